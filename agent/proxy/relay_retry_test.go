package proxy

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"golang.org/x/net/http2"
)

func retryOn(words ...string) func(*Service) {
	return func(s *Service) { s.Retry = Retry{On: words, Max: 2, BudgetPercent: 20} }
}

// How a backend answers the first attempt, and what the policy makes of it (4.2): the second backend, if it's asked, answers well. The first has its failure
// noted either way.
func TestPolicyRetries(t *testing.T) {
	trailersOnly := func(code string) func(*rawConn) {
		return func(c *rawConn) {
			c.headers(1, true, ":status", "200", "content-type", "application/grpc", "grpc-status", code, "grpc-message", "why")
		}
	}
	cases := []struct {
		name     string
		on       string
		request  func(c *rawConn)
		answer   func(c *rawConn)
		retried  bool
		want     string
		failures uint64
	}{
		{"trailers-only 14", "unavailable", nil, trailersOnly("14"), true, "[2000]", 1},
		{"trailers-only 8", "resource_exhausted", nil, trailersOnly("8"), true, "[2000]", 0},
		{"trailers-only 10", "aborted", nil, trailersOnly("10"), true, "[2000]", 0},
		{"another status", "unavailable", nil, trailersOnly("8"), false, "[2008]", 0},
		{"no status", "unavailable unknown", nil, func(c *rawConn) { c.headers(1, true, ":status", "200") }, false, "[200]", 0},
		{"14 in trailers without DATA", "unavailable", nil, func(c *rawConn) { // the head was passed on
			c.headers(1, false, ":status", "200", "content-type", "application/grpc")
			c.headers(1, true, "grpc-status", "14")
		}, false, "[200][14]", 0},
		{"503 before gRPC", "503", nil, func(c *rawConn) { c.headers(1, true, ":status", "503") }, true, "[2000]", 1},
		{"GET 503 with a body", "503", func(c *rawConn) { c.get(1, "/") }, func(c *rawConn) {
			c.headers(1, false, ":status", "503", "content-length", "5")
			c.fr.WriteData(1, true, []byte("sorry"))
		}, true, "[2000]", 1},
		{"GET 503 with trailers to come", "503", func(c *rawConn) { c.get(1, "/") }, func(c *rawConn) {
			c.headers(1, false, ":status", "503")
			c.fr.WriteData(1, false, make([]byte, 10_000))
		}, true, "[2000]", 1},
		{"GET 503 after 103", "503", func(c *rawConn) { c.get(1, "/") }, func(c *rawConn) {
			c.headers(1, false, ":status", "103")
			c.headers(1, true, ":status", "503")
		}, false, "[103][503]", 1},
		{"POST 503", "503 reset", func(c *rawConn) { // RFC 9110 9.2.2
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a")
		}, func(c *rawConn) { c.headers(1, true, ":status", "503") }, false, "[503]", 1},
		{"POST 503, the request goes on", "503", func(c *rawConn) {
			c.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc")
			c.fr.WriteData(1, false, []byte("half"))
		}, func(c *rawConn) { c.headers(1, true, ":status", "503") }, true, "[2000]", 1},
		{"reset", "reset", nil, func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, true, "[2000]", 1},
		{"reset, not asked for", "unavailable 503", nil, func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, false, "INTERNAL_ERROR", 1},
		{"reset of a POST", "reset", func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a")
		}, func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, false, "INTERNAL_ERROR", 1},
		{"malformed", "reset", nil, func(c *rawConn) { c.headers(1, true, "x", "y") }, true, "[2000]", 1},
		{"connection lost", "reset", nil, func(c *rawConn) { c.Close() }, true, "[2000]", 1},
		{"connection lost, not asked for", "unavailable", nil, func(c *rawConn) { c.Close() }, false, "[20014]", 1},
		{"reset after the head", "reset", nil, func(c *rawConn) {
			c.headers(1, false, ":status", "200", "content-type", "application/grpc")
			c.fr.WriteRSTStream(1, http2.ErrCodeInternal)
		}, false, "[200]INTERNAL_ERROR", 0},
		{"the deadline is over", "unavailable", func(c *rawConn) {
			c.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc", "grpc-timeout", "1S")
		}, func(c *rawConn) {
			deadline := time.Now().Add(time.Second)
			await(c.t, "the deadline is over", func() bool { return time.Now().After(deadline) })
			trailersOnly("14")(c)
		}, false, "[20014]", 1},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, retryOn(strings.Fields(k.on)...))
			first, second := newRawBackend(t), newRawBackend(t)
			r.backends(first.addr)
			client := newRawClient(t, r.addr)
			if k.request == nil {
				client.call(1, true, "/a/b", []byte("body"))
			} else {
				k.request(client)
			}
			c := first.accept()
			c.request()
			r.backends(first.addr, second.addr)
			k.answer(c)
			if k.retried {
				d := second.accept()
				f := d.request()
				if k.request == nil {
					if f = d.until(func(f frame) bool { return f.data != nil }); string(f.data) != "\x00\x00\x00\x00\x00body" || !f.end {
						t.Errorf("the second backend got %q, end %v", f.data, f.end)
					}
				}
				if strings.Contains(k.name, "goes on") { // what comes later goes to the second one alone
					client.fr.WriteData(1, true, []byte(" and half"))
					got := ""
					for !f.end {
						f = d.until(func(f frame) bool { return f.data != nil })
						got += string(f.data)
					}
					if got != "half and half" {
						t.Errorf("the second backend got %q", got)
					}
				}
				d.headers(1, true, ":status", "200", "grpc-status", "0")
			}
			if got := client.answerOf(1); got != k.want {
				t.Errorf("the client got %q, want %q", got, k.want)
			}
			r.quiet()
			if s := r.state(first.addr).Snapshot(time.Now()); s.Failures != k.failures {
				t.Errorf("%d failures (%q), want %d", s.Failures, s.LastFailure, k.failures)
			}
			retried := uint64(0)
			if k.retried {
				retried = 1
			}
			if s := r.proxy.Stats().Services[0]; s.Retried["policy"] != retried || s.Denied != 0 {
				t.Errorf("counted %v, %d denied", s.Retried, s.Denied)
			}
		})
	}
}

// What is not kept isn't retried, and the answer says so (4.3).
func TestPolicyRetryOfALargeRequest(t *testing.T) {
	for on, want := range map[string]string{
		"unavailable": "why", // as it came
		"reset":       "lbagent: user: ADDR connection lost: connection reset by peer; more of the request was sent than is kept for a retry",
	} {
		t.Run(on, func(t *testing.T) {
			r := newRig(t, retryOn(on))
			first, second := newRawBackend(t), newRawBackend(t)
			r.backends(first.addr)
			client := newRawClient(t, r.addr)
			client.call(1, false, "/a/b", make([]byte, 10_000))
			for range 4 {
				client.fr.WriteData(1, false, make([]byte, 15_000))
			}
			c := first.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			c.request()
			r.await("more came than is kept", func(k *relay) bool {
				for s := range c0(k).h2.All() {
					return s.Owner.(*call).req.got >= 70_000
				}
				return false
			})
			r.backends(first.addr, second.addr)
			if on == "reset" {
				c.Conn.(*net.TCPConn).SetLinger(0)
				c.Close()
			} else {
				c.headers(1, true, ":status", "200", "grpc-status", "14", "grpc-message", "why")
			}
			f := client.until(func(f frame) bool { return f.id == 1 && f.fields != nil })
			if got := f.fields["grpc-message"]; f.fields["grpc-status"] != "14" || got != strings.ReplaceAll(want, "ADDR", first.addr) {
				t.Errorf("the client got %v", f.fields)
			}
			client.fr.WriteRSTStream(1, http2.ErrCodeNo)
			r.quiet()
		})
	}
}

// c0 is the only client.
func c0(k *relay) *clientConn {
	for c := range k.clients {
		return c
	}
	return nil
}

// newHTTP2 is a backend by net/http.
func newHTTP2(t testing.TB, h http.HandlerFunc) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: &only}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// unwilling answers 503 and who it is.
func unwilling(asked chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		addr := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		asked <- addr
		w.WriteHeader(503)
		fmt.Fprint(w, addr)
	}
}

// At most max retries, each on another backend; without another one, the answer as it came.
func TestPolicyRetriesAreFew(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4} {
		t.Run(fmt.Sprint(n, " backends"), func(t *testing.T) {
			r := newRig(t, retryOn("503"))
			var addrs []string
			asked := make(chan string, 10)
			for range n {
				addrs = append(addrs, newHTTP2(t, unwilling(asked)))
			}
			r.backends(addrs...)
			client := newRawClient(t, r.addr)
			client.get(1, "/")
			if got := client.answerOf(1); !strings.HasPrefix(got, "[503]127.0.0.1:") {
				t.Errorf("the client got %q", got)
			}
			seen := map[string]int{}
			for range min(n, 3) {
				seen[<-asked]++
			}
			if len(asked) != 0 || len(seen) != min(n, 3) {
				t.Errorf("asked %v and %d more", seen, len(asked))
			}
			r.quiet()
			if got := r.proxy.Stats().Services[0].Retried["policy"]; got != uint64(min(n, 3)-1) {
				t.Errorf("%d retries", got)
			}
		})
	}
}

// Without budget the answers pass as they came, counted and told once.
func TestPolicyRetryBudget(t *testing.T) {
	r := newRig(t, retryOn("503"))
	asked := make(chan string, 1000)
	var addrs []string
	for range 2 {
		addrs = append(addrs, newHTTP2(t, unwilling(asked)))
	}
	r.backends(addrs...)
	r.onLoop(func(k *relay) { k.w.proxy.routes["user"].budget.next.Store(int64(time.Hour)) }) // nothing is free
	client := newRawClient(t, r.addr)
	const calls = 50 // ejections come after five failures in a row: then there is no other backend, and nothing is asked of the budget
	for i := range calls {
		id := uint32(2*i + 1)
		client.get(id, "/")
		if got := client.answerOf(id); !strings.HasPrefix(got, "[503]") {
			t.Fatalf("the client got %q", got)
		}
	}
	r.quiet()
	s := r.proxy.Stats().Services[0]
	if s.Retried["policy"] > calls/5 || s.Denied == 0 {
		t.Errorf("%d retries of %d calls, %d denied", s.Retried["policy"], calls, s.Denied)
	}
	events, _ := r.events.Since(0)
	told := 0
	for _, e := range events {
		if e.Kind == event.Retry {
			told++
			if e.Service != "user" || e.Detail != "the budget for retries is used up (20% of the calls and 3/s): what fails is not tried again" {
				t.Errorf("told %+v", e)
			}
		}
	}
	if told < 1 || told > 2 { // two if a period of 10 s ended meanwhile
		t.Errorf("told %d times", told)
	}
}
