package proxy

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"
)

// pieces is a body of unknown length.
type pieces struct{ io.Reader }

// What an HTTP/1.1 backend answers first, and what the policy makes of it (4.2).
func TestHTTP1PolicyRetries(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(code)
			io.WriteString(w, "sorry")
		}
	}
	early := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) } // before it has read the body
	dies := func(_ http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	hinted := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.WriteHeader(503) }
	small, large := strings.Repeat("x", 50_000), strings.Repeat("x", 1<<20)
	cases := []struct {
		name, method, on string
		body             io.Reader
		expect           bool
		first            http.HandlerFunc
		want             string
		failures         uint64
	}{
		{"503", "GET", "503", nil, false, status(503), "200 GET 0", 1},
		{"429", "GET", "429 503", nil, false, status(429), "200 GET 0", 0},
		{"another status", "GET", "429 503", nil, false, status(500), "500 sorry", 0},
		{"a gRPC word", "GET", "unavailable", nil, false, status(503), "503 sorry", 1},
		{"HEAD", "HEAD", "503", nil, false, status(503), "200 ", 1},
		{"POST", "POST", "503 reset", strings.NewReader(small), false, status(503), "503 sorry", 1},
		{"POST without a body", "POST", "503 reset", nil, false, status(503), "503 sorry", 1},
		{"PUT", "PUT", "503", strings.NewReader(small), false, status(503), "200 PUT 50000", 1},
		{"PUT in chunks", "PUT", "503", pieces{strings.NewReader(small)}, false, status(503), "200 PUT 50000", 1},
		{"PUT answered early", "PUT", "503", pieces{strings.NewReader(small)}, false, early, "200 PUT 50000", 1},
		{"PUT with Expect", "PUT", "503", strings.NewReader(small), true, early, "200 PUT 50000", 1},
		{"PUT of more than is kept", "PUT", "503", strings.NewReader(large), false, status(503), "503 sorry", 1},
		{"dies", "GET", "reset", nil, false, dies, "200 GET 0", 1},
		{"dies, not asked for", "GET", "503", nil, false, dies, "502 lbagent: user: ADDR: connection closed before an answer\n", 1},
		{"dies of a POST", "POST", "reset", strings.NewReader(small), false, dies, "502 lbagent: user: ADDR: ", 1},
		{"503 after 103", "GET", "503", nil, false, hinted, "503 ", 1},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, func(s *Service) {
				asHTTP1(s)
				retryOn(strings.Fields(k.on)...)(s)
			})
			second := web(t, func(w http.ResponseWriter, r *http.Request) {
				n, _ := io.Copy(io.Discard, r.Body)
				fmt.Fprintf(w, "%s %d", r.Method, n)
			})
			var first string
			first = web(t, func(w http.ResponseWriter, req *http.Request) {
				r.backends(first, second) // now there is another one
				k.first(w, req)
			})
			r.backends(first)
			req, err := http.NewRequest(k.method, "http://"+r.addr+"/", k.body)
			if err != nil {
				t.Fatal(err)
			}
			if k.expect {
				req.Header.Set("Expect", "100-continue")
			}
			client := browser(t)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if k.name == "PUT in chunks" { // what was sent twice was read once: the connection is where the next request begins
				var used httptrace.GotConnInfo
				trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { used = i }}
				next, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "HEAD", "http://"+r.addr+"/", nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := client.Do(next)
				if err != nil || !used.Reused {
					t.Errorf("the next request: reused %v, %v", used.Reused, err)
				} else {
					resp.Body.Close()
				}
				return
			}
			want := strings.ReplaceAll(k.want, "ADDR", first)
			if got := fmt.Sprintf("%d %s", resp.StatusCode, body); got != want && (k.name != "dies of a POST" || !strings.HasPrefix(got, want)) {
				t.Errorf("the client got %q, want %q", got, want)
			}
			retried := uint64(0)
			if strings.HasPrefix(want, "200") {
				retried = 1
			}
			await(t, "the accounts", func() bool { return r.stats().calls("http1", want[:1]+"xx") == 1 })
			if s := r.stats(); s.Retried["policy"] != retried || s.Denied != 0 {
				t.Errorf("counted %v, %d denied", s.Retried, s.Denied)
			}
			if s := r.state(first).Snapshot(time.Now()); s.Failures != k.failures {
				t.Errorf("%d failures (%q), want %d", s.Failures, s.LastFailure, k.failures)
			}
		})
	}
}

// A budget that is used up, and a large request: the error says so.
func TestHTTP1PolicyRetrySaysWhyNot(t *testing.T) {
	for _, k := range []struct{ name, want string }{
		{"budget", "; the budget for retries is used up\n"},
		{"large", "; more of the request was sent than is kept for a retry\n"},
		{"alone", "; no other backend is usable\n"},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, func(s *Service) {
				asHTTP1(s)
				retryOn("reset")(s)
			})
			dies := func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				panic(http.ErrAbortHandler)
			}
			addrs := []string{web(t, dies)}
			if k.name != "alone" {
				addrs = append(addrs, web(t, dies))
			}
			r.backends(addrs...)
			body := io.Reader(http.NoBody)
			switch k.name {
			case "budget":
				r.proxy.routes["user"].budget.next.Store(int64(time.Hour))
			case "large":
				body = strings.NewReader(strings.Repeat("x", 1<<20))
			}
			req, err := http.NewRequest("PUT", "http://"+r.addr+"/", body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := browser(t).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 502 || !strings.HasSuffix(string(text), k.want) {
				t.Errorf("the client got %d %q", resp.StatusCode, text)
			}
			await(t, "the accounts", func() bool { return r.stats().calls("http1", "5xx") == 1 })
			if got, want := r.stats().Denied, k.name == "budget"; got > 0 != want {
				t.Errorf("%d denied", got)
			}
		})
	}
}
