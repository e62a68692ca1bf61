package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestDoorsAreReadOnlyAndKnowTheirPaths(t *testing.T) {
	f := serve(t, nil)
	type want struct {
		door         int
		method, path string
		code         int
	}
	tests := []want{
		{0, "GET", "/", 200}, {0, "HEAD", "/", 200}, {0, "HEAD", "/metrics", 200}, {0, "HEAD", "/ui/live", 200}, {0, "GET", "/ui/app.js", 200},
		{0, "GET", "/ui/service?name=user", 200}, {0, "GET", "/ui/service?name=nosuch", 404}, {0, "GET", "/ui/service?name=user&from=-1", 400},
		{0, "GET", "/ui/service?name=user&q=" + strings.Repeat("x", maxQuery+1), 400},
		{0, "GET", "/nosuch", 404}, {0, "GET", "/ui/", 404}, {0, "GET", "/ui/nosuch.js", 404}, {0, "GET", "/ui/%2e%2e%2fadmin.go", 404}, {0, "GET", "/page/index.html", 404},
		{0, "GET", "/debug/pprof/", 404}, {0, "GET", "/debug/pprof/goroutine", 404}, {0, "GET", "/debug/vars", 404},
		{1, "GET", "/", 404}, {1, "GET", "/metrics", 200}, {1, "PUT", "/metrics", 405}, {1, "GET", "/debug/pprof/", 404}, {1, "GET", "/ui/live", 404}, {1, "GET", "/ui/service?name=user", 404},
	}
	for _, path := range []string{"/", "/metrics", "/healthz", "/readyz", "/ui/app.js", "/ui/live", "/ui/service"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
			tests = append(tests, want{0, method, path, 405})
		}
	}
	for _, tt := range tests {
		code, _, header := f.get(t, tt.door, tt.method, tt.path, "")
		if code != tt.code {
			t.Errorf("%s %s at door %d: %d, want %d", tt.method, tt.path, tt.door, code, tt.code)
		}
		if code == 405 && header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow is %q", tt.method, tt.path, header.Get("Allow"))
		}
	}
}

// hosts are names that a browser could send, and whether they are of this host.
func hosts() map[string]bool {
	return map[string]bool{
		"": true, "localhost": true, "LocalHost:9901": true, "localhost.": true, "localhost.:9901": true, "localhost:": true, "127.0.0.1": true, "127.0.0.1:1": true,
		"127.8.8.8": true, "127.0.0.1.": true, "[::1]": true, "[::1]:9901": true, "[::ffff:127.0.0.1]:9901": true, "[0:0:0:0:0:0:0:1]": true,
		"evil.example": false, "evil.example:9901": false, "evil.example.": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false, "evil.localhost": false,
		"localhost..": false, "xlocalhost": false, "localhost:99:01": false, "localhost:http": false, "localhost@evil.example": false, "evil.example@localhost": false,
		"10.0.0.1": false, "0.0.0.0": false, "[::]": false, "[2001:db8::1]": false, "[::ffff:10.0.0.1]": false, "::1": false, "[::1": false, "[localhost]": false,
		"127.1": false, "2130706433": false, "0x7f000001": false, "web-17": false, "localhost/": false,
	}
}

// A page of another site that makes its own name point here (DNS rebinding) reads nothing: its name stands in Host.
func TestForeignNamesAreRefused(t *testing.T) {
	f := serve(t, nil)
	for host, allowed := range hosts() {
		for _, path := range []string{"/metrics", "/", "/ui/service?name=user", "/readyz"} {
			got := f.raw(t, 0, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			code := got.StatusCode
			if allowed && code != 200 || !allowed && code != 421 && code != 400 { // 400: no Host at all, says net/http
				t.Errorf("Host %q, %s: %d, allowed is %v", host, path, code, allowed)
			}
			if body := read(t, got); !allowed && (strings.Contains(body, "lbagent_") || strings.Contains(body, "10.0.0.")) && host != "10.0.0.1" && host != "[::ffff:10.0.0.1]" {
				t.Errorf("Host %q, %s: the answer tells: %s", host, path, body)
			}
		}
	}
	if got := f.raw(t, 1, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"); got.StatusCode != 200 {
		t.Errorf("Host at metrics.listen: %d, a scraper may use any name", got.StatusCode)
	}
}

// The host of an absolute request target is the one that counts (RFC 9112, 3.2.2), and there is one Host.
func TestRequestTargets(t *testing.T) {
	f := serve(t, nil)
	tests := map[string]int{
		"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n":        421,
		"GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n":           200,
		"GET http://127.0.0.1:9901/metrics HTTP/1.1\r\nHost: evil.example\r\n":   200, // no browser sends that: it asks a proxy this way
		"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n":     400,
		"GET /metrics HTTP/1.1\r\n":                                              400,
		"GET /metrics HTTP/1.0\r\n":                                              200,
		"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n":                              400,
		"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n":                421,
		"GET //evil.example/..%2f HTTP/1.1\r\nHost: localhost\r\n":               404,
		"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: evil\r\n": 200,
		"PRI * HTTP/2.0\r\n": 400,
	}
	for request, code := range tests {
		got := f.raw(t, 0, request+"Connection: close\r\n\r\n")
		if l := got.Header.Get("Location"); got.StatusCode != code && !(got.StatusCode/100 == 3 && strings.HasPrefix(l, "/evil.example/")) {
			t.Errorf("%q: %d %s, want %d", request, got.StatusCode, l, code)
		}
	}
}

// Pages of other sites can neither read nor take up places; a link from one may be followed.
func TestPagesOfOtherSites(t *testing.T) {
	f := serve(t, nil)
	tests := []struct {
		site, mode, dest string
		path             string
		code             int
	}{
		{"same-origin", "cors", "empty", "/ui/service?name=user", 200},
		{"none", "navigate", "document", "/", 200},
		{"", "", "", "/metrics", 200},
		{"cross-site", "navigate", "document", "/", 200},
		{"cross-site", "navigate", "iframe", "/", 403},
		{"cross-site", "no-cors", "script", "/ui/app.js", 403},
		{"cross-site", "cors", "empty", "/ui/live", 403},
		{"same-site", "cors", "empty", "/ui/live", 403}, // another port of this host
		{"cross-site", "no-cors", "image", "/metrics", 403},
	}
	for _, tt := range tests {
		got := f.raw(t, 0, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: %s\r\nSec-Fetch-Mode: %s\r\nSec-Fetch-Dest: %s\r\nConnection: close\r\n\r\n",
			tt.path, tt.site, tt.mode, tt.dest))
		if got.StatusCode != tt.code {
			t.Errorf("%+v: %d", tt, got.StatusCode)
		}
		for name := range got.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%+v: %s lets others read", tt, name)
			}
		}
	}
}

func TestGuardingHeaders(t *testing.T) {
	f := serve(t, nil)
	for path, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/ui/app.js": "text/javascript; charset=utf-8", "/ui/style.css": "text/css; charset=utf-8", "/ui/icon.svg": "image/svg+xml; charset=utf-8",
		"/ui/service?name=user": "application/json", "/ui/service?name=nosuch": "application/json", "/healthz": "text/plain; charset=utf-8", "/nosuch": "text/plain; charset=utf-8",
		"/metrics": "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
	} {
		_, _, header := f.get(t, 0, "GET", path, "")
		if got := header.Get("Content-Type"); got != kind {
			t.Errorf("%s: Content-Type is %q, want %q", path, got, kind)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
			"Cross-Origin-Opener-Policy": "same-origin",
		} {
			if got := header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		csp := header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy lacks %s: %s", path, want, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
			t.Errorf("%s: the policy is %s", path, csp)
		}
	}
}

func TestHostAllowed(t *testing.T) {
	local := &net.TCPAddr{IP: net.ParseIP("10.0.0.7"), Port: 9901}
	tests := []struct {
		host, own string
		want      bool
	}{
		{"10.0.0.7:9901", "0.0.0.0", true}, // the address that the connection came to
		{"10.0.0.8:9901", "0.0.0.0", false},
		{"[::ffff:10.0.0.7]", "", true},
		{"web-17:9901", "web-17", true}, // as admin.listen names it
		{"WEB-17.:9901", "web-17", true},
		{"web-18:9901", "web-17", false},
		{"", "", true},
		{":9901", "", true},
	}
	for _, tt := range tests {
		r := (&http.Request{Host: tt.host}).WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(local)))
		if got := hostAllowed(r, tt.own); got != tt.want {
			t.Errorf("Host %q at %q: %v, want %v", tt.host, tt.own, got, tt.want)
		}
	}
}

// The page's files are asked for again, and not sent again.
func TestFilesAreSentOnce(t *testing.T) {
	f := serve(t, nil)
	_, body, header := f.get(t, 0, "GET", "/ui/app.js", "")
	if !strings.Contains(body, "import") || header.Get("Cache-Control") != "no-cache" {
		t.Fatalf("%v %.80s", header, body)
	}
	got := f.raw(t, 0, "GET /ui/app.js HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: "+header.Get("ETag")+"\r\nConnection: close\r\n\r\n")
	if got.StatusCode != 304 || read(t, got) != "" {
		t.Errorf("with the ETag: %d", got.StatusCode)
	}
}

// raw sends bytes to a door and reads an answer.
func (f *fixture) raw(t *testing.T, door int, request string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", f.Addrs()[door].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return resp
}

func read(t *testing.T, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
