package proxy

import (
	"bytes"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/loop"
	"golang.org/x/sys/unix"
)

const (
	// sniffTimeout is how long a client may stay silent before it counts as one that waits for the server to speak (4.9).
	sniffTimeout = 200 * time.Millisecond
	// sniffPatience is how long it may take for the rest of what began like HTTP.
	sniffPatience = 10 * time.Second
)

// preface begins every HTTP/2 connection (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// methods that begin an HTTP/1 request: those of RFC 9110, PATCH, and WebDAV's (RFC 4918 and its kin).
var methods = [...]string{
	"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH ",
	"PROPFIND ", "PROPPATCH ", "MKCOL ", "COPY ", "MOVE ", "LOCK ", "UNLOCK ", "REPORT ", "SEARCH ", "MKCALENDAR ", "ACL ", "BIND ", "UNBIND ",
}

// classify tells the protocol of what begins with b. known is false while b may still become HTTP (and for no bytes at all).
func classify(b []byte) (k protocol, known bool) {
	if len(b) == 0 {
		return protoTCP, false
	}
	if len(b) >= len(preface) && string(b[:len(preface)]) == preface {
		return protoH2, true
	}
	open := len(b) < len(preface) && strings.HasPrefix(preface, string(b))
	for _, m := range methods {
		if bytes.HasPrefix(b, []byte(m)) {
			return protoHTTP1, true
		}
		open = open || strings.HasPrefix(m, string(b[:min(len(b), len(m))])) && len(b) < len(m)
	}
	return protoTCP, !open
}

// sniffer looks at the first bytes of a client connection, and hands it on.
type sniffer struct {
	w     *worker
	rt    *route
	conn  *loop.Conn
	timer loop.Timer
	began bool // something came that may become HTTP
}

// sniff finds out how to serve a new connection (4.9).
func (w *worker) sniff(rt *route, fd int) {
	s := &sniffer{w: w, rt: rt}
	c, err := w.loop.Add(fd, s, nil)
	if err != nil {
		unix.Close(fd)
		w.proxy.clients.Add(-1)
		return
	}
	s.conn = c
	s.timer.F = s.silent
	w.loop.Arm(&s.timer, sniffTimeout)
}

// Readable leaves everything to whoever serves the connection.
func (s *sniffer) Readable(b []byte) int {
	k, known := classify(b)
	if known {
		s.hand(k, false)
	} else if !s.began {
		s.began = true
		s.w.loop.Arm(&s.timer, sniffPatience)
	}
	return 0
}

// silent ends the wait: the server speaks first, or what began like HTTP is something else. If it is this loop that was late, the client's bytes are there. If it
// is the client, it will say so (late.go).
func (s *sniffer) silent() {
	if !s.began && s.conn.Waiting() {
		s.w.loop.Arm(&s.timer, sniffTimeout)
		return
	}
	s.hand(protoTCP, !s.began)
}

// EOF of one that said nothing is a port check. What it said, if anything, goes on, and the FIN is seen again by whoever reads.
func (s *sniffer) EOF() {
	if s.began {
		s.detach(protoTCP, false)
		return
	}
	s.conn.Close()
	s.gone()
}

// hand gives the connection away. silent: the client has said nothing.
func (s *sniffer) hand(k protocol, silent bool) {
	if k != protoTCP || s.w.proxy.least() != s.w {
		s.detach(k, silent)
		return
	}
	// It stays on this loop, and need not leave epoll to come back.
	s.count(k, silent)
	s.w.load.Add(1)
	s.w.adopt(s.rt, s.conn, silent)
}

// count notes what the connection is; of one that is silent, that is known later.
func (s *sniffer) count(k protocol, silent bool) {
	s.w.loop.Disarm(&s.timer)
	if !silent {
		s.w.statsOf(s.rt).sniffed[k]++
	}
}

// detach gives it to whichever loop has the fewest, or to HTTP/1.1.
func (s *sniffer) detach(k protocol, silent bool) {
	s.count(k, silent)
	fd, received := s.conn.Detach()
	s.w.assign(s.rt, k, fd, received, silent)
}

func (s *sniffer) gone() {
	s.w.loop.Disarm(&s.timer)
	s.w.proxy.clients.Add(-1)
}

func (s *sniffer) Closed(error)   { s.gone() }
func (s *sniffer) Connected()     {}
func (s *sniffer) Written(uint64) {}
