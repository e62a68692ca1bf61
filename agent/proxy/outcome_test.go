package proxy

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
)

// A trial is decided by the first of the answer, however long the rest takes (2.7): TestTrial has it for HTTP/2.
func TestTrialEndsWithTheFirstBytes(t *testing.T) {
	for _, protocol := range []struct {
		name    string
		as      func(*Service)
		backend func(t *testing.T, well *atomic.Bool, linger func()) string
	}{
		{"http1", asHTTP1, func(t *testing.T, well *atomic.Bool, linger func()) string {
			return web(t, func(w http.ResponseWriter, r *http.Request) {
				if !well.Load() {
					w.WriteHeader(503)
					return
				}
				w.(http.Flusher).Flush()
				linger()
			})
		}},
		{"tcp", asTCP, func(t *testing.T, well *atomic.Bool, linger func()) string {
			return tcpBackend(t, "tcp4", func(c *net.TCPConn) {
				if !well.Load() {
					c.Read(make([]byte, 1))
					c.SetLinger(0)
					return
				}
				io.WriteString(c, "x")
				linger()
			})
		}},
	} {
		t.Run(protocol.name, func(t *testing.T) {
			var well atomic.Bool
			release := make(chan struct{})
			r := newRig(t, protocol.as)
			bad := protocol.backend(t, &well, func() { <-release })
			defer close(release)
			r.backends(bad)
			call := func() net.Conn {
				c, err := net.Dial("tcp", r.addr)
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				return c
			}
			for range 5 {
				c := call()
				c.Read(make([]byte, 1))
				c.Close()
			}
			await(t, "five failures", func() bool { return r.state(bad).Snapshot(r.svc.View().At).Streak == 5 })
			other := tcpBackend(t, "tcp4", func(c *net.TCPConn) { io.Copy(io.Discard, c) })
			r.backends(bad, other)
			kind := func() health.Kind { return r.svc.View().Find(netip.MustParseAddrPort(bad)).Verdict.Kind }
			await(t, "ejected", func() bool { return kind() == health.Ejected })
			well.Store(true)
			// No answer ends before it is back, so that it's the first bytes of one that decided. A trial on which this machine stood still for a second has failed: the next one
			// comes with the next call.
			var open []net.Conn
			await(t, "back while the answer goes on", func() bool {
				if kind() == health.Up {
					return true
				}
				open = append(open, call())
				<-time.After(20 * time.Millisecond) // so that they don't become too many
				return false
			})
			for _, c := range open {
				c.Close()
			}
		})
	}
}
