package proxy

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// A removed service ends for its HTTP/2 clients: the list behind them is a dead letter from then on. What runs may end, what is new is answered with the
// reason, and nothing of the service is left (4.5, 4.7).
func TestServiceRemoved(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept()
	c.request()
	late := newRawClient(t, r.addr) // without a call
	r.await("both clients are served", func(k *relay) bool { return len(k.clients) == 2 })
	r.table.Remove(time.Now(), "user")
	goaway := func(f frame) bool { _, ok := f.Frame.(*http2.GoAwayFrame); return ok }
	for _, one := range []*rawConn{client, late} {
		one.until(goaway)
	}
	client.get(3, "/") // it had not heard yet
	if got, want := client.answerOf(3), "[503]lbagent: user: the service was removed\n"; got != want {
		t.Errorf("a new call got %q, want %q", got, want)
	}
	for _, one := range []*rawConn{client, late} {
		one.fr.WritePing(true, [8]byte{'l', 'b', 'a', 'g', '-', 'b', 'y', 'e'})
		one.until(goaway)
	}
	c.headers(1, true, ":status", "200")
	if got := client.answerOf(1); got != "[200]" {
		t.Errorf("the running call got %q", got)
	}
	for _, one := range []*rawConn{client, late} {
		if f, err := one.read(); err == nil {
			t.Errorf("the client's connection goes on with %v", f)
		}
		one.Close()
	}
	r.await("nothing is left", func(k *relay) bool { return len(k.pools) == 0 && len(k.clients) == 0 && k.calls == 0 })
}
