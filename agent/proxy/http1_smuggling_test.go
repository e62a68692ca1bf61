package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
)

// recorder is a backend that keeps every byte that it gets. What it takes for requests, net/http says: a reader that has nothing in common with the proxy's.
type recorder struct {
	addr string

	mu   sync.Mutex
	got  bytes.Buffer
	open int
}

func newRecorder(t testing.TB) *recorder {
	rec := &recorder{}
	rec.addr = tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		rec.mu.Lock()
		rec.open++
		rec.mu.Unlock()
		defer func() {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			rec.open--
		}()
		in := bufio.NewReader(io.TeeReader(c, rec))
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.URL.Path)+len(body), r.URL.Path+string(body))
		}
	})
	return rec
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(b)
}

func (r *recorder) saw() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

func (r *recorder) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open == 0
}

// smuggled stands behind what shall not be followed by anything.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"

// Either a request is refused, its connection closed, and nothing of it or of what follows reaches a backend; or what the backend gets means the same to everybody.
func TestHTTP1Smuggling(t *testing.T) {
	long := strings.Repeat("a", 70_000)
	get := func(line string) string { return "GET / HTTP/1.1\r\nHost: x\r\n" + line + "\r\n\r\n" + smuggled }
	post := func(lines, body string) string {
		return "POST /p HTTP/1.1\r\nHost: x\r\n" + lines + "\r\n\r\n" + body
	}
	chunked := func(body string) string { return post("Transfer-Encoding: chunked", body) + smuggled }
	for name, c := range map[string]struct {
		send   string
		status int
	}{
		// Where the body ends.
		"CL.TE":                    {post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE.CL":                    {post("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n") + smuggled, 400},
		"CL 0 and TE":              {post("Content-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE twice":                 {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE and identity":          {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n") + smuggled, 400},
		"TE identity":              {post("Transfer-Encoding: identity\r\nContent-Length: 0", "") + smuggled, 501},
		"TE list":                  {post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n") + smuggled, 501},
		"TE chunked, identity":     {post("Transfer-Encoding: chunked, identity", "0\r\n\r\n") + smuggled, 501},
		"TE chunked not last":      {post("Transfer-Encoding: chunked, gzip", "0\r\n\r\n") + smuggled, 501},
		"TE xchunked":              {post("Transfer-Encoding: xchunked", "0\r\n\r\n") + smuggled, 501},
		"TE quoted":                {post("Transfer-Encoding: \"chunked\"", "0\r\n\r\n") + smuggled, 501},
		"TE with parameter":        {post("Transfer-Encoding: chunked;q=1", "0\r\n\r\n") + smuggled, 501},
		"TE empty":                 {post("Transfer-Encoding:", "0\r\n\r\n") + smuggled, 501},
		"TE with vertical tab":     {post("Transfer-Encoding:\vchunked", "0\r\n\r\n") + smuggled, 400},
		"TE space before colon":    {post("Transfer-Encoding : chunked", "0\r\n\r\n") + smuggled, 400},
		"TE tab before colon":      {post("Transfer-Encoding\t: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE folded":                {post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n") + smuggled, 501},
		"TE behind a folded line":  {post("X: y\r\n Transfer-Encoding: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE with bare CR":          {post("X: y\rTransfer-Encoding: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE with bare LF":          {post("X: y\nTransfer-Encoding: chunked", "0\r\n\r\n") + smuggled, 400},
		"TE with NUL":              {post("Transfer-Encoding: chunked\x00", "0\r\n\r\n") + smuggled, 400},
		"TE in HTTP/1.0":           {"POST / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, 400},
		"TE and CL in HTTP/1.0":    {"POST / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, 400},
		"CL twice, different":      {post("Content-Length: 0\r\nContent-Length: 40", "") + smuggled, 400},
		"CL twice, the same":       {post("Content-Length: 0\r\nContent-Length: 0", "") + smuggled, 400},
		"CL list":                  {post("Content-Length: 0, 0", "") + smuggled, 400},
		"CL list, different":       {post("Content-Length: 0, 40", "") + smuggled, 400},
		"CL with plus":             {post("Content-Length: +0", "") + smuggled, 400},
		"CL negative":              {post("Content-Length: -1", "") + smuggled, 400},
		"CL hex":                   {post("Content-Length: 0x0", "") + smuggled, 400},
		"CL with a space inside":   {post("Content-Length: 0 0", "") + smuggled, 400},
		"CL fraction":              {post("Content-Length: 0.0", "") + smuggled, 400},
		"CL exponent":              {post("Content-Length: 0e1", "") + smuggled, 400},
		"CL empty":                 {post("Content-Length:", "") + smuggled, 400},
		"CL 2^63":                  {post("Content-Length: 9223372036854775808", "") + smuggled, 400},
		"CL 2^64":                  {post("Content-Length: 18446744073709551616", "") + smuggled, 400},
		"CL of 40 digits":          {post("Content-Length: "+strings.Repeat("0", 40), "") + smuggled, 400},
		"CL other digits":          {post("Content-Length: ٠", "") + smuggled, 400},
		"CL space before colon":    {post("Content-Length : 0", "") + smuggled, 400},
		"CL folded":                {post("Content-Length: 1\r\n 2", "") + smuggled, 400},
		"CL nominated":             {post("Content-Length: 38\r\nConnection: close, Content-Length", "") + smuggled, 400},
		"TE nominated":             {post("Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding", "0\r\n\r\n") + smuggled, 400},
		"Host nominated":           {get("Connection: hOST"), 400},
		"Connection no list":       {get("Connection: a b"), 400},
		"Connection with too many": {get("Connection: " + strings.Repeat("a,", 60)), 400},
		// Lines.
		"LF only":                         {"GET / HTTP/1.1\nHost: x\n\n" + smuggled, 400},
		"LF behind the request line":      {"GET / HTTP/1.1\nHost: x\r\n\r\n" + smuggled, 400},
		"LF LF at the end":                {"GET / HTTP/1.1\r\nHost: x\n\n" + smuggled, 400},
		"CR LF LF at the end":             {"GET / HTTP/1.1\r\nHost: x\r\n\n" + smuggled, 400},
		"CR only":                         {"GET / HTTP/1.1\rHost: x\r\r\n\r\n" + smuggled, 400},
		"folded":                          {get("X: a\r\n b"), 400},
		"folded by tab":                   {get("X: a\r\n\tb"), 400},
		"folded at once":                  {"GET / HTTP/1.1\r\n Host: y\r\nHost: x\r\n\r\n" + smuggled, 400},
		"space in a name":                 {get("X Y: a"), 400},
		"space behind a name":             {get("X : a"), 400},
		"no colon":                        {get("X"), 400},
		"empty name":                      {get(": a"), 400},
		"NUL in a name":                   {get("X\x00Y: a"), 400},
		"CR in a name":                    {get("X\rY: a"), 400},
		"high byte in a name":             {get("X\xffY: a"), 400},
		"NUL in a value":                  {get("X: a\x00b"), 400},
		"CR in a value":                   {get("X: a\rb"), 400},
		"BEL in a value":                  {get("X: a\ab"), 400},
		"DEL in a value":                  {get("X: a\x7fb"), 400},
		"space before the request line":   {" GET / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"two empty lines before it":       {"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"NUL before it":                   {"\x00GET / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"tab instead of space":            {"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"two spaces":                      {"GET  / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"two spaces before the version":   {"GET /  HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"space behind the version":        {"GET / HTTP/1.1 \r\nHost: x\r\n\r\n" + smuggled, 400},
		"space in the target":             {"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"a request line in the target":    {"GET / HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"no target":                       {"GET HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"control character in the target": {"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"fragment":                        {"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"relative target":                 {"GET a HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"asterisk":                        {"GET * HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"authority form":                  {"GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"another scheme":                  {"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"CONNECT":                         {"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 501},
		"method no token":                 {"G@T / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"method with colon":               {"GET: / HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"HTTP/0.9":                        {"GET /\r\n\r\n" + smuggled, 400},
		"HTTP/0.9 by number":              {"GET / HTTP/0.9\r\n\r\n" + smuggled, 505},
		"HTTP/1.2":                        {"GET / HTTP/1.2\r\nHost: x\r\n\r\n" + smuggled, 505},
		"HTTP/2.0":                        {"GET / HTTP/2.0\r\nHost: x\r\n\r\n" + smuggled, 505},
		"HTTP/1.10":                       {"GET / HTTP/1.10\r\nHost: x\r\n\r\n" + smuggled, 400},
		"HTTP/01.1":                       {"GET / HTTP/01.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"http/1.1":                        {"GET / http/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"HTTP/1":                          {"GET / HTTP/1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"the preface of HTTP/2":           {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + smuggled, 505},
		// The host.
		"no Host":                     {"GET / HTTP/1.1\r\n\r\n" + smuggled, 400},
		"two Hosts":                   {get("Host: y"), 400},
		"two Hosts, the same":         {get("Host: x"), 400},
		"Host with userinfo":          {"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n" + smuggled, 400},
		"Host list":                   {"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n" + smuggled, 400},
		"Host with path":              {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n" + smuggled, 400},
		"Host with space":             {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n" + smuggled, 400},
		"Host with bad port":          {"GET / HTTP/1.1\r\nHost: a:80x\r\n\r\n" + smuggled, 400},
		"Host with two ports":         {"GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n" + smuggled, 400},
		"Host of brackets":            {"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n" + smuggled, 400},
		"absolute form with userinfo": {"GET http://u:p@x/ HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"absolute form without host":  {"GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"absolute form and bad Host":  {"GET http://x/ HTTP/1.1\r\nHost: a@b\r\n\r\n" + smuggled, 400},
		"absolute form and no Host":   {"GET http://x/ HTTP/1.1\r\n\r\n" + smuggled, 400},
		// Too much.
		"long request line": {"GET /" + long + " HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 414},
		"long field":        {get("X: " + long), 431},
		"long name":         {get(long + ": x"), 431},
		"many fields":       {get(strings.Repeat("X: y\r\n", 300) + "Y: z"), 431},
		"other expectation": {get("Expect: 200-ok"), 417},
		"endless head":      {"GET / HTTP/1.1\r\n" + strings.Repeat("X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", 2000), 431},
		// Chunks: the head may have been passed on, the end of the body never.
		"chunk size 0x":              {chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size empty":           {chunked("\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size with plus":       {chunked("+5\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size negative":        {chunked("-5\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size behind space":    {chunked(" 5\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size before space":    {chunked("5 \r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size with underscore": {chunked("0_5\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size 2^63":            {chunked("8000000000000000\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size 2^64":            {chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk size and LF":          {chunked("5\nhello\r\n0\r\n\r\n"), 400},
		"chunk size and CR":          {chunked("5\rhello\r\n0\r\n\r\n"), 400},
		"chunk extension and LF":     {chunked("5;a\nhello\r\n0\r\n\r\n"), 400},
		"chunk extension with CR":    {chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk extension with NUL":   {chunked("5;\x00\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk extension too long":   {chunked("5;" + strings.Repeat("a", 300) + "\r\nhello\r\n0\r\n\r\n"), 400},
		"chunk longer than it says":  {chunked("5\r\nhello, world\r\n0\r\n\r\n"), 400},
		"chunk ends in LF":           {chunked("5\r\nhello\n0\r\n\r\n"), 400},
		"chunk ends in CR":           {chunked("5\r\nhello\r0\r\n\r\n"), 400},
		"no CRLF behind trailers":    {chunked("0\r\n"), 400}, // the next request line is read as a trailer
		"LF behind the last chunk":   {chunked("0\r\n\n"), 400},
		"CL in trailers":             {chunked("0\r\nContent-Length: 9\r\n\r\n"), 400},
		"TE in trailers":             {chunked("0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400},
		"Host in trailers":           {chunked("0\r\nHost: y\r\n\r\n"), 400},
		"Connection in trailers":     {chunked("0\r\nConnection: close\r\n\r\n"), 400},
		"folded trailers":            {chunked("0\r\nX: y\r\n z\r\n\r\n"), 400},
		"NUL in trailers":            {chunked("0\r\nX: \x00\r\n\r\n"), 400},
		"many trailers":              {chunked("0\r\n" + strings.Repeat("X: y\r\n", 300) + "\r\n"), 431},
		"long trailers":              {chunked("0\r\nX: " + long + "\r\n\r\n"), 431},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newRecorder(t)
			r := newRig(t, asHTTP1)
			r.backends(rec.addr)
			answers := r.say(c.send)
			resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answers)), nil)
			if err != nil {
				t.Fatalf("%v in %q", err, answers)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || !resp.Close || !strings.HasPrefix(string(body), "lbagent: user: ") {
				t.Errorf("%d %q, close %v; want %d", resp.StatusCode, body, resp.Close, c.status)
			}
			if n := strings.Count(answers, "HTTP/1.1 "); n != 1 {
				t.Errorf("%d answers: %q", n, answers)
			}
			await(t, "the backend's end", rec.idle)
			saw := rec.saw()
			if strings.Contains(saw, "smuggled") || strings.Contains(saw, "\r\n0\r\n") {
				t.Errorf("the backend saw %q", saw)
			}
			if saw != "" && !strings.HasPrefix(name, "chunk") && !strings.Contains(name, "trailers") && !strings.Contains(name, "last chunk") {
				t.Errorf("the backend saw %q", saw)
			}
		})
	}
}

// say sends all of text, and returns everything that comes until the proxy closes. The client's own direction stays open.
func (r *rig) say(text string) string {
	r.t.Helper()
	c := r.client()
	var sent sync.WaitGroup
	sent.Go(func() { io.WriteString(c, text) }) // what is refused early isn't read to its end
	defer sent.Wait()
	b, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Fatalf("not closed; got %q", b)
	}
	c.Close()
	return string(b)
}

// What looks strange and is allowed reaches the backend in one form that nobody can misread, and the connection goes on behind it.
func TestHTTP1Unambiguous(t *testing.T) {
	for name, c := range map[string]struct{ send, saw string }{
		"plain":                       {"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"},
		"order, case and repetition":  {"GET /a HTTP/1.1\r\nx-B: 1\r\nHOST: x\r\nA: 2\r\nX-b: 3\r\n\r\n", "GET /a HTTP/1.1\r\nx-B: 1\r\nHost: x\r\nA: 2\r\nX-b: 3\r\n\r\n"},
		"space around a value":        {"GET /a HTTP/1.1\r\nHost:x\r\nA:  \t b c\t \r\nEmpty:\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\nA: b c\r\nEmpty: \r\n\r\n"},
		"an empty line before":        {"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"},
		"bytes above ASCII":           {"GET /\xff?\xfe HTTP/1.1\r\nHost: x\r\nA: \xe4\r\n\r\n", "GET /\xff?\xfe HTTP/1.1\r\nHost: x\r\nA: \xe4\r\n\r\n"},
		"two slashes":                 {"GET //a/../b%7e HTTP/1.1\r\nHost: x\r\n\r\n", "GET //a/../b%7e HTTP/1.1\r\nHost: x\r\n\r\n"},
		"empty Host":                  {"GET /a HTTP/1.1\r\nHost:\r\n\r\n", "GET /a HTTP/1.1\r\nHost: \r\n\r\n"},
		"IPv6 Host":                   {"GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"},
		"absolute form, another host": {"GET http://y:1/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a HTTP/1.1\r\nHost: y:1\r\n\r\n"},
		"absolute form without path":  {"GET HTTPS://y?q HTTP/1.1\r\nHost: x\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: y\r\n\r\n"},
		"OPTIONS *":                   {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"},
		"OPTIONS for the whole host":  {"OPTIONS http://y HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: y\r\n\r\n"},
		"TRACE":                       {"TRACE /a HTTP/1.1\r\nHost: x\r\n\r\n", "TRACE /a HTTP/1.1\r\nHost: x\r\n\r\n"},
		"an unknown method":           {"purge_1 /a HTTP/1.1\r\nHost: x\r\n\r\n", "purge_1 /a HTTP/1.1\r\nHost: x\r\n\r\n"},
		"nominated fields": {
			"GET /a HTTP/1.1\r\nHost: x\r\nX-Real: 1\r\nConnection: X-REAL, keep-alive,,\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nB: 2\r\n\r\n",
			"GET /a HTTP/1.1\r\nHost: x\r\nB: 2\r\n\r\n",
		},
		"upgrade to h2c": {
			"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
			"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
		},
		"upgrade to h2c among others": {
			"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: foo, h2c\r\nConnection: Upgrade\r\n\r\n",
			"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
		},
		"Upgrade without Connection": {"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"},
		"upgrade with a body": {
			"POST /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nhi",
			"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
		},
		"TE: trailers":   {"GET /a HTTP/1.1\r\nHost: x\r\nTE: gzip, trailers\r\nConnection: TE\r\n\r\n", "GET /a HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE\r\n\r\n"},
		"Content-Length": {"POST /a HTTP/1.1\r\nContent-Length: 05\r\nHost: x\r\n\r\nhello", "POST /a HTTP/1.1\r\nContent-Length: 05\r\nHost: x\r\n\r\nhello"},
		"a GET with a body": {
			"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
		},
		"chunks": {
			"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\n00005;a=\"b\"\r\nhello\r\n000;x\r\n\r\n",
			"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0005\r\nhello\r\n0\r\n\r\n",
		},
		"a body that looks like a request": {
			"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 38\r\n\r\n" + smuggled, "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 38\r\n\r\n" + smuggled,
		},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newRecorder(t)
			r := newRig(t, asHTTP1)
			r.backends(rec.addr)
			answers := r.say(c.send + "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if n := strings.Count(answers, "HTTP/1.1 200 OK\r\n"); n != 2 || !strings.HasSuffix(answers, "Connection: close\r\n\r\n/last") {
				t.Errorf("answered %q", answers)
			}
			if want := c.saw + "GET /last HTTP/1.1\r\nHost: x\r\n\r\n"; rec.saw() != want {
				t.Errorf("the backend saw\n%q, want\n%q", rec.saw(), want)
			}
		})
	}
}

// A client that is refused while it sends can read why: it gets an end, not a reset that destroys the answer.
func TestHTTP1RefusalCanBeRead(t *testing.T) {
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		if _, err := http.ReadRequest(in); err == nil {
			io.WriteString(c, "HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n")
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	for head, status := range map[string]int{"GET / HTTP/1.1\r\n\r\n": 400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n": 413} {
		c := r.client()
		io.WriteString(c, head)
		b, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(b), fmt.Sprintf("HTTP/1.1 %d ", status)) {
			t.Errorf("%q, %v; want %d and an end", b, err, status)
		}
		for range 100 { // it is slow to notice
			if _, err := c.Write(make([]byte, 4<<10)); err != nil {
				t.Fatalf("reset behind %d: %v", status, err)
			}
		}
	}
}

// After a refusal nothing that was pipelined behind it is served, and what came before it was.
func TestHTTP1PipelineEndsAtAnError(t *testing.T) {
	rec := newRecorder(t)
	r := newRig(t, asHTTP1)
	r.backends(rec.addr)
	answers := r.say("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nbGET /3 HTTP/1.1\r\nHost : x\r\n\r\n" + smuggled)
	if !strings.HasPrefix(answers, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/1HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n/2bHTTP/1.1 400 Bad Request\r\n") {
		t.Errorf("answered %q", answers)
	}
	if want := "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb"; rec.saw() != want {
		t.Errorf("the backend saw %q", rec.saw())
	}
}
