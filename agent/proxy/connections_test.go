package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"golang.org/x/net/http2"
)

var times = regexp.MustCompile(`\d+ (ms|s|min)\b`)

// toldOf are the events of connections to addr, with T for times.
func (r *rig) toldOf(addr string) (all []string) {
	events, _ := r.events.Since(0)
	for _, e := range events {
		if e.Kind == event.Connection && e.Backend == addr && e.Service == "user" {
			all = append(all, times.ReplaceAllString(e.Detail, "T"))
		}
	}
	return all
}

// wantTold waits for what is told of addr's connections.
func (r *rig) wantTold(addr string, want ...string) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		got := r.toldOf(addr)
		if slices.Equal(got, want) {
			break
		}
		if len(got) >= len(want) {
			r.t.Fatalf("told: %q, want %q", got, want)
		}
		_, more := r.events.Since(1 << 60)
		if slices.Equal(r.toldOf(addr), got) {
			select {
			case <-more:
			case <-deadline:
				r.t.Fatalf("told: %q, want %q", got, want)
			}
		}
	}
	// Explain says the same, without the connects that failed.
	all := r.proxy.Connections(r.t.Context(), "user", netip.AddrPort{})
	c, known := all[netip.MustParseAddrPort(addr)]
	if r.svc.View().Find(netip.MustParseAddrPort(addr)) == nil {
		if known {
			r.t.Errorf("a backend that left is explained: %+v", c)
		}
		return
	}
	var ends []string
	for _, e := range slices.Backward(c.Ends) {
		ends = append(ends, e.Protocol+" connection ended after T: "+times.ReplaceAllString(e.Cause, "T"))
	}
	var wanted []string
	opened := uint64(0)
	for _, w := range want {
		switch {
		case w[:9] == "connected":
			opened++
		case w[:9] != "connect f":
			wanted = append(wanted, w)
		}
	}
	if !slices.Equal(ends, wanted) || c.Opened != opened || c.Failed != uint64(len(want)-len(wanted))-opened || c.Open != int(opened)-len(wanted) {
		r.t.Errorf("explained: %+v, told: %q", c, want)
	}
}

// How a connection to a backend ends is told in words that say what happened, for each of the ways in which it does.
func TestHTTP2ConnectionsAreTold(t *testing.T) {
	const up = "connected (HTTP/2)"
	const down = "HTTP/2 connection ended after T: "
	// begin has a connection with an answered call; with a second one that runs, if that is asked for.
	begin := func(t *testing.T, running, silence bool, change func(*Service)) (*script, *rawConn) {
		s := newScript(t, change)
		if silence {
			s.realSilence() // its watch looks for the end of idle time, too
		}
		s.client.get(1, "/")
		c := s.b.accept()
		c.request()
		c.headers(1, true, ":status", "200")
		s.client.answerOf(1)
		s.quiet()
		if running {
			s.client.get(3, "/")
			c.request()
		}
		return s, c
	}
	for _, k := range []struct {
		name    string
		running bool
		change  func(*Service)
		do      func(s *script, c *rawConn)
		want    string
	}{
		{"GOAWAY", false, nil, func(_ *script, c *rawConn) { c.fr.WriteGoAway(1, http2.ErrCodeNo, nil) }, "GOAWAY"},
		{"GOAWAY with words", false, nil, func(_ *script, c *rawConn) { c.fr.WriteGoAway(1, http2.ErrCodeNo, []byte("max_age")) }, "GOAWAY NO_ERROR: max_age"},
		{"GOAWAY and FIN", true, nil, func(_ *script, c *rawConn) {
			c.fr.WriteGoAway(3, http2.ErrCodeInternal, []byte("oh"))
			c.Close()
		}, "GOAWAY INTERNAL_ERROR: oh, then closed, under a call"},
		{"FIN while idle", false, nil, func(_ *script, c *rawConn) { c.Close() }, "closed by the backend, while idle"},
		{"FIN under a call", true, nil, func(_ *script, c *rawConn) { c.Close() }, "closed by the backend, under a call"},
		{"reset", true, nil, func(_ *script, c *rawConn) {
			c.Conn.(*net.TCPConn).SetLinger(0)
			c.Close()
		}, "reset by the backend, under a call"},
		{"no HTTP/2", true, nil, func(_ *script, c *rawConn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "the backend sent no valid HTTP: "},
		{"idle", false, func(s *Service) { s.Idle = 100 * time.Millisecond }, func(*script, *rawConn) {}, "idle for T"},
		{"removed", false, nil, func(s *script, _ *rawConn) { s.backends(refusing(s.t)) }, "removed from the list"},
		{"hangs", true, nil, func(s *script, _ *rawConn) { s.client.get(5, "/") }, "no answer to PING, and nothing else came for T, under 2 calls"},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			s, c := begin(t, k.running, k.name == "idle" || k.name == "hangs", k.change)
			k.do(s, c)
			want := down + k.want
			if k.want[len(k.want)-1] == ' ' { // the rest is h2's
				await(t, "the end is told", func() bool { return len(s.toldOf(s.b.addr)) == 2 })
				if got := s.toldOf(s.b.addr)[1]; got[:len(want)] != want {
					t.Errorf("told %q, want %q", got, want)
				}
				return
			}
			s.wantTold(s.b.addr, up, want)
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		addr := refusing(t)
		r.backends(addr)
		c := newRawClient(t, r.addr)
		c.get(1, "/")
		c.answerOf(1)
		r.wantTold(addr, "connect failed: connection refused")
	})
}

func TestTCPConnectionsAreTold(t *testing.T) {
	const up = "connected (TCP)"
	const down = "TCP connection ended after T: "
	for _, k := range []struct {
		name   string
		change func(*Service)
		serve  func(*net.TCPConn)
		do     func(r *rig, c *net.TCPConn)
		want   string
	}{
		{"client", nil, named("x"), func(_ *rig, c *net.TCPConn) { c.Close() }, "ended by the client"},
		{"backend", nil, func(c *net.TCPConn) { io.WriteString(c, "x") }, func(_ *rig, c *net.TCPConn) { io.Copy(io.Discard, c); c.Close() }, "closed by the backend"},
		{"reset", nil, func(c *net.TCPConn) {
			io.WriteString(c, "x")
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		}, func(_ *rig, c *net.TCPConn) { io.WriteString(c, "y"); io.Copy(io.Discard, c) }, "reset by the backend"},
		{"removed", func(s *Service) { s.Drain = 10 * time.Millisecond }, named("x"), func(r *rig, c *net.TCPConn) {
			r.backends(refusing(r.t))
		}, "removed from the list"},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(s *Service) {
				asTCP(s)
				if k.change != nil {
					k.change(s)
				}
			})
			addr := tcpBackend(t, "tcp4", k.serve)
			r.backends(addr)
			c := r.client()
			io.ReadFull(c, make([]byte, 1))
			k.do(r, c)
			r.wantTold(addr, up, down+k.want)
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, asTCP)
		addr := refusing(t)
		r.backends(addr)
		if c, err := net.Dial("tcp", r.addr); err == nil { // it may see the reset before it has the connection
			c.Close()
		}
		r.wantTold(addr, "connect failed: connection refused")
	})
}

func TestHTTP1ConnectionsAreTold(t *testing.T) {
	const up = "connected (HTTP/1.1)"
	const down = "HTTP/1.1 connection ended after T: "
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	// answering serves as many requests with those answers, then does the last.
	answering := func(last func(c *net.TCPConn, in *bufio.Reader), answers ...string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			in := bufio.NewReader(c)
			for _, a := range answers {
				if _, err := http.ReadRequest(in); err != nil {
					return
				}
				io.WriteString(c, a)
			}
			last(c, in)
		}
	}
	stay := func(_ *net.TCPConn, in *bufio.Reader) { in.ReadByte() }
	leave := func(*net.TCPConn, *bufio.Reader) {}
	for _, k := range []struct {
		name   string
		change func(*Service)
		serve  func(*net.TCPConn)
		do     func(r *rig, c *net.TCPConn, in *bufio.Reader)
		want   []string
	}{
		{
			"one call each", nil, answering(stay, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
			func(*rig, *net.TCPConn, *bufio.Reader) {}, []string{up, down + "the backend keeps it for one call only"},
		},
		{
			"closed in the answer", nil, answering(leave, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
			func(*rig, *net.TCPConn, *bufio.Reader) {}, []string{up, down + "closed by the backend, under a call"},
		},
		{
			"bytes behind the answer", nil, answering(stay, ok+"more"),
			func(*rig, *net.TCPConn, *bufio.Reader) {}, []string{up, down + "the backend sent no valid HTTP: bytes behind its answer"},
		},
		{
			"client left", nil, answering(stay, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
			func(_ *rig, c *net.TCPConn, _ *bufio.Reader) { c.SetLinger(0); c.Close() }, []string{up, down + "ended by the client"},
		},
		{
			"timeout", func(s *Service) { s.Request = 100 * time.Millisecond }, answering(stay, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
			func(*rig, *net.TCPConn, *bufio.Reader) {}, []string{up, down + "its call was given up: timeout.request has passed"},
		},
		{
			"removed", nil, answering(stay, ok),
			func(r *rig, _ *net.TCPConn, _ *bufio.Reader) { r.backends(refusing(r.t)) }, []string{up, down + "removed from the list"},
		},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(s *Service) {
				asHTTP1(s)
				if k.change != nil {
					k.change(s)
				}
			})
			addr := tcpBackend(t, "tcp4", k.serve)
			r.backends(addr)
			c := r.client()
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(resp.Body, make([]byte, 2))
			if k.name == "removed" {
				await(t, "the connection is idle", func() bool { return r.stats().calls("http1", "2xx") == 1 })
			}
			k.do(r, c, in)
			r.wantTold(addr, k.want...)
		})
	}
	t.Run("closed while idle", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, asHTTP1)
		var mu sync.Mutex
		var first *net.TCPConn
		addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
			mu.Lock()
			if first == nil {
				first = c
			}
			mu.Unlock()
			answering(stay, ok, ok)(c)
		})
		r.backends(addr)
		b := browser(t)
		r.get(b, "/")
		await(t, "the connection is idle", func() bool { return r.stats().calls("http1", "2xx") == 1 })
		mu.Lock()
		first.Close()
		mu.Unlock()
		r.get(b, "/")
		r.wantTold(addr, up, down+"closed by the backend, while idle", up)
		r.backends(refusing(t)) // or the backend waits for the end of the second connection
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, asHTTP1)
		addr := refusing(t)
		r.backends(addr)
		r.get(browser(t), "/")
		r.wantTold(addr, "connect failed: connection refused")
	})
	t.Run("tunnel", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, asHTTP1)
		addr := tcpBackend(t, "tcp4", answering(leave, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"))
		r.backends(addr)
		c := r.client()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
		io.Copy(io.Discard, c)
		c.Close()
		r.wantTold(addr, up, down+"closed by the backend, under a call")
	})
}

// However a backend's connections flap, what is told of it stays little, and nothing else is pushed out.
func TestChurnIsSummedUp(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t, asTCP)
	addr := tcpBackend(t, "tcp4", func(*net.TCPConn) {})
	r.backends(addr)
	for range 300 {
		io.Copy(io.Discard, r.client())
	}
	sums := func() (n int) {
		for _, s := range r.toldOf(addr) {
			if s[:11] == "in the last" {
				n++
			}
		}
		return n
	}
	await(t, "a sum is told", func() bool { return sums() > 0 })
	if all := r.toldOf(addr); len(all) > 100 { // ten a second, on a machine that takes its time
		t.Errorf("%d events of 600 changes: %q", len(all), all)
	}
	if all, _ := r.events.Since(0); all[0].Kind != event.Listener {
		t.Errorf("the first event is %+v", all[0])
	}
}
