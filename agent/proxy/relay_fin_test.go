package proxy

import (
	"net"
	"testing"
)

// A call that meets the end of a reused connection before anything of it was written goes elsewhere, whatever its method (4.1).
func TestCallMeetsFIN(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept()
	c.request()
	c.headers(1, true, ":status", "200")
	client.answerOf(1)
	r.quiet()
	r.onLoop(func(*relay) { // both arrive while the loop is busy, and are seen in one wake-up
		client.call(3, true, "/a/b", nil)
		c.Conn.(*net.TCPConn).CloseWrite()
	})
	second := b.accept()
	second.headers(second.request().id, true, ":status", "200", "grpc-status", "0")
	if got := client.answerOf(3); got != "[2000]" {
		t.Errorf("the client got %q", got)
	}
	r.quiet()
}
