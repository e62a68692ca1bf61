package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

// webServer speaks HTTP/2 without TLS, and does what plain clients can ask for: interim answers, trailers, bodies of any size and any status.
func webServer(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body) // the client sees what is missing
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		w.Header().Set("Content-Length", strconv.Itoa(n))
		_, _ = w.Write(noise(n))
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Link", "</b.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "late\n")
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		n, _ := io.Copy(w, r.Body)
		_ = http.NewResponseController(w).Flush() // a Content-Length would be the end for curl
		w.Header().Set("X-Sum", strconv.FormatInt(n, 10)+" "+r.Trailer.Get("X-Sent"))
	})
	// What the server saw.
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s %s\n", r.Method, r.Host, r.RequestURI, r.Proto)
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			if strings.HasPrefix(name, "X-") || strings.HasPrefix(name, "Cont") || name == "Cookie" {
				fmt.Fprintf(w, "%s: %d %.40q\n", name, len(strings.Join(r.Header[name], "")), r.Header[name])
			}
		}
	})
	srv := &http.Server{Handler: mux, Protocols: &protocols}
	var served sync.WaitGroup
	served.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Close(); served.Wait() })
	return l.Addr().String()
}

// noise are n bytes, the same ones whenever one asks.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// web is a service before two of webServer, and one before two nghttpd of which one pads its frames; url and files are their listeners.
type web struct {
	dir        string // files that clients send, and that nghttpd serves
	url, files string
}

func newWeb(t *testing.T, p *peers) *web {
	t.Helper()
	w := &web{dir: t.TempDir()}
	for _, n := range []int{0, 1000, 100_000, 1 << 20, 20 << 20} {
		if err := os.WriteFile(filepath.Join(w.dir, strconv.Itoa(n)), noise(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	urls, files := freePort(t), freePort(t)
	startAgent(t, fmt.Sprintf(`
- {name: web, backends: [%q, %q], listen: [%d], policy: round_robin}
- {name: files, backends: [%q, %q], listen: [%d], policy: round_robin, protocol: h2}
`, webServer(t), webServer(t), urls, p.nghttpServer(t, w.dir, "--echo-upload"), p.nghttpServer(t, w.dir, "--echo-upload", "--padding=255", "--trailer=x-after: 1"), files))
	w.url, w.files = fmt.Sprintf("http://127.0.0.1:%d", urls), fmt.Sprintf("http://127.0.0.1:%d", files)
	return w
}

// file is the path of n bytes.
func (w *web) file(n int) string { return filepath.Join(w.dir, strconv.Itoa(n)) }

// program is a client and what its stdout has to be. It is run twice, so that each of two backends has its turn.
type program struct {
	name  string
	argv  []string
	check func(stdout string) error
}

func runPrograms(t *testing.T, s *suite, group string, programs []program) {
	t.Helper()
	for _, c := range programs {
		s.try(t, group, c.name, func() error {
			for range 2 {
				out, err := attempt(t, time.Minute, []string{"no_proxy=127.0.0.1"}, c.argv...)
				if err == nil {
					err = c.check(out)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// is wants exactly this output.
func is(want string) func(string) error {
	return func(out string) error {
		if out == want {
			return nil
		}
		if len(out)+len(want) > 1000 {
			return fmt.Errorf("%d bytes with sum %x, want %d bytes with sum %x", len(out), sha256.Sum256([]byte(out)), len(want), sha256.Sum256([]byte(want)))
		}
		return fmt.Errorf("got %q, want %q", out, want)
	}
}

// matches wants each of the expressions in the output, one after the other.
func matches(expressions ...string) func(string) error {
	all := regexp.MustCompile("(?s)" + strings.Join(expressions, ".*"))
	return func(out string) error {
		if !all.MatchString(out) {
			return fmt.Errorf("%.2000q does not match %q", out, all)
		}
		return nil
	}
}

// curlSuite is curl, on nghttp2, with prior knowledge. Each run is one request: curl 7.88, Debian 12's, can't use such a connection twice.
func curlSuite(t *testing.T, p *peers, s *suite) {
	w := newWeb(t, p)
	path := testneed.Program(t, "curl", "curl")
	curl := func(args ...string) []string {
		return append([]string{path, "-sS", "--http2-prior-knowledge", "--noproxy", "*", "--max-time", "50"}, args...)
	}
	host := strings.TrimPrefix(w.url, "http://")
	const mega = 20 << 20
	runPrograms(t, s, "curl to net/http", []program{
		{"get", curl(w.url + "/a/b%2Fc?d=%20;e"), is("GET " + host + " /a/b%2Fc?d=%20;e HTTP/2.0\n")},
		{"authority", curl("-H", "Host: some.where:81", w.url+"/"), is("GET some.where:81 / HTTP/2.0\n")},
		{"methods", curl("-X", "PROPFIND", w.url+"/x"), is("PROPFIND " + host + " /x HTTP/2.0\n")},
		{"options star", curl("-X", "OPTIONS", "--request-target", "*", w.url), is("")},
		{"cookies and headers", curl("-H", "Cookie: a=1; b=2; c=3", "-H", "X-Empty;", "-H", "X-Long: "+strings.Repeat("l", 9000), w.url+"/"),
			is("GET " + host + " / HTTP/2.0\nCookie: 13 [\"a=1; b=2; c=3\"]\nX-Empty: 0 [\"\"]\nX-Long: 9000 [\"" + strings.Repeat("l", 40) + "\"]\n")},
		{"head", curl("-I", w.url+"/bytes?n=12345"), matches("^HTTP/2 200 ", "content-length: 12345\r\n", "\r\n\r\n$")},
		{"no body", curl("-i", w.url+"/status?code=204"), matches("^HTTP/2 204 ", "\r\n\r\n$")},
		{"not modified", curl("-i", w.url+"/status?code=304"), matches("^HTTP/2 304 ", "\r\n\r\n$")},
		{"early hints", curl("-i", w.url+"/early"), matches("^HTTP/2 103 ?\r\nlink: </a.css>\r\n\r\nHTTP/2 103 ?\r\nlink: </b.css>\r\n\r\nHTTP/2 200 ", "\r\n\r\nlate\n$")},
		{"trailers", curl("-i", "--data-binary", "five!", w.url+"/trailers"), matches("^HTTP/2 200 ", "\r\ntrailer: X-Sum\r\n", "\r\n\r\n", "five!", "x-sum: 5 ?\r\n$")},
		{"download 20 MiB", curl(fmt.Sprintf("%s/bytes?n=%d", w.url, mega)), is(string(noise(mega)))},
		{"upload and back 20 MiB", curl("--data-binary", "@"+w.file(mega), w.url+"/echo"), is(string(noise(mega)))},
		{"upload of unknown size", curl("-T", "-", w.url+"/echo"), is("")},
		{"put", curl("-T", w.file(100_000), w.url+"/echo"), is(string(noise(100_000)))},
	})
	runPrograms(t, s, "curl to nghttpd", []program{
		{"download 20 MiB", curl(w.files + "/" + strconv.Itoa(mega)), is(string(noise(mega)))},
		{"upload and back 1 MiB", curl("--data-binary", "@"+w.file(1<<20), w.files+"/echo"), is(string(noise(1 << 20)))},
		{"empty", curl(w.files + "/0"), is("")},
		{"not found", curl("-i", w.files+"/no-such-file"), matches("^HTTP/2 404 ")},
	})
}

// nghttp2Suite is nghttp and h2load: frames and settings that other clients never send.
func nghttp2Suite(t *testing.T, p *peers, s *suite) {
	w := newWeb(t, p)
	path := testneed.Program(t, "nghttp", "nghttp2-client")
	nghttp := func(args ...string) []string { return append([]string{path, "--timeout=50"}, args...) }
	file := func(n int) string { return w.files + "/" + strconv.Itoa(n) }
	runPrograms(t, s, "nghttp to nghttpd", []program{
		{"get", nghttp(file(100_000)), is(string(noise(100_000)))},
		{"no dependencies", nghttp("--no-dep", file(1000)), is(string(noise(1000)))},
		{"weight", nghttp("--weight=200", file(1000)), is(string(noise(1000)))},
		{"padding both ways", nghttp("--padding=255", "--data="+w.file(1<<20), w.files+"/echo"), is(string(noise(1 << 20)))},
		{"tiny windows", nghttp("--window-bits=10", "--connection-window-bits=16", file(100_000)), is(string(noise(100_000)))},
		{"huge windows", nghttp("--window-bits=30", "--connection-window-bits=30", file(20<<20)), is(string(noise(20 << 20)))},
		{"no header table", nghttp("--header-table-size=0", file(1000)), is(string(noise(1000)))},
		{"small, then large header table", nghttp("--header-table-size=64", "--header-table-size=65536", file(1000)), is(string(noise(1000)))},
		{"encoder without table", nghttp("--encoder-header-table-size=0", file(1000)), is(string(noise(1000)))},
		{"100 large streams at once", nghttp("--null-out", "--stat", "--multiply=100", file(100_000)), countOf(` 200 +97K /100000\n`, 100)},
	})
	var statuses, answers []string
	for code := 200; code < 600; code += 7 {
		statuses = append(statuses, fmt.Sprintf("%s/status?code=%d", w.url, code))
		answers = append(answers, fmt.Sprintf(" %d +0 /status\\?code=%d\n", code, code))
	}
	runPrograms(t, s, "nghttp to net/http", []program{
		{"statuses", nghttp(append([]string{"--null-out", "--stat"}, statuses...)...), each(answers...)},
		{"18 KiB of headers", nghttp("--continuation", w.url+"/"), matches(`^GET `, `Continuation-Test-1: `, `Continuation-Test-6: `)},
		{"expect continue", nghttp("-v", "--expect-continue", "--data="+w.file(1000), w.url+"/echo"), matches(`:status: 100\n`, `send DATA`, `:status: 200\n`)},
		{"request trailers", nghttp("-v", "--data="+w.file(1000), "--trailer=x-sent: yes", w.url+"/trailers"), matches(`:status: 200\n`, `x-sum: 1000 yes\n`)},
		{"early hints", nghttp("-v", w.url+"/early"), matches(`:status: 103\n`, `link: </a.css>\n`, `:status: 103\n`, `link: </b.css>\n`, `:status: 200\n`)},
		{"head", nghttp("-v", "-H:method: HEAD", w.url+"/bytes?n=12345"), matches(`:status: 200\n`, `content-length: 12345\n`, `END_STREAM`)},
		{"padding", nghttp("--padding=100", "--data="+w.file(1<<20), w.url+"/echo"), is(string(noise(1 << 20)))},
	})

	load := testneed.Program(t, "h2load", "nghttp2-client")
	h2load := func(requests int, args ...string) program {
		want := matches(fmt.Sprintf(`requests: %[1]d total, %[1]d started, %[1]d done, %[1]d succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: %[1]d 2xx, 0 3xx, 0 4xx, 0 5xx\n`, requests))
		name := strings.ReplaceAll(strings.Join(args[:len(args)-1], " "), w.dir+"/", "")
		return program{name, append([]string{load, "-n", strconv.Itoa(requests)}, args...), want}
	}
	runPrograms(t, s, "h2load", []program{
		h2load(5000, "-c1", "-m1", file(1000)),
		h2load(20000, "-c4", "-m32", file(1000)),
		h2load(5000, "-c50", "-m1", file(1000)),
		h2load(2000, "-c10", "-m20", file(0)),
		h2load(500, "-c4", "-m32", "-w12", "-W16", file(100_000)),
		h2load(500, "-c4", "-m16", "-d"+w.file(100_000), w.files+"/echo"),
		h2load(100, "-c2", "-m4", "-d"+w.file(1<<20), w.url+"/echo"),
	})
}

// each wants each of the expressions somewhere in the output.
func each(expressions ...string) func(string) error {
	return func(out string) error {
		for _, e := range expressions {
			if !regexp.MustCompile(e).MatchString(out) {
				return fmt.Errorf("no %q in %.2000q", e, out)
			}
		}
		return nil
	}
}

// countOf wants an expression exactly n times.
func countOf(expression string, n int) func(string) error {
	re := regexp.MustCompile(expression)
	return func(out string) error {
		if got := len(re.FindAllString(out, -1)); got != n {
			return fmt.Errorf("%d times %q, want %d: %.500q", got, expression, n, out)
		}
		return nil
	}
}
