package proxy

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// Informational responses know no flow control: without end, to a client that doesn't read, they are dropped rather than kept.
func TestInformationalFlood(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept()
	c.request()
	link := strings.Repeat("x", 10<<10)
	for i := range 2000 { // 20 MB, which both sockets can't hold
		c.headers(1, false, ":status", "103", "link", link+string(rune('a'+i%26)))
	}
	c.fr.WritePing(false, [8]byte{1})
	c.until(func(f frame) bool { p, ok := f.Frame.(*http2.PingFrame); return ok && p.IsAck() })
	r.onLoop(func(k *relay) {
		for one := range k.clients {
			if n := one.lc.Unwritten(); n > 2*fullAt {
				t.Errorf("%d bytes wait for the client", n)
			}
		}
	})
	c.headers(1, true, ":status", "204")
	if got := client.answerOf(1); !strings.HasPrefix(got, "[103]") || !strings.HasSuffix(got, "[103][204]") {
		t.Errorf("the client got %.40q", got)
	}
	r.quiet()
}
