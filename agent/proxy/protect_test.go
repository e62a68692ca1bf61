package proxy

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"golang.org/x/net/http2"
)

// One kind of protection is told once in 10 s, with the number of those that were not.
func TestGuard(t *testing.T) {
	var g guard
	start := time.Now()
	for _, c := range []struct {
		after  time.Duration
		tell   bool
		untold uint64
	}{
		{0, true, 0}, {0, false, 0}, {time.Second, false, 0}, {tellEvery - 1, false, 0}, {tellEvery, true, 3}, {tellEvery + 1, false, 0}, {time.Hour, true, 1}, {2 * time.Hour, true, 0},
	} {
		if tell, untold := g.hit(start.Add(c.after)); tell != c.tell || untold != c.untold {
			t.Errorf("after %v: %v, %d untold; want %v, %d", c.after, tell, untold, c.tell, c.untold)
		}
	}
	if g.count != 8 {
		t.Errorf("%d counted", g.count)
	}
}

// protected is how often a kind of protection was counted for the rig's service.
func (r *rig) protected(kind protection) (n uint64) {
	for _, s := range r.proxy.Stats().Services {
		n += s.Protections[kind.String()]
	}
	return n
}

// told are the events about protections.
func (r *rig) told() (events []event.Event) {
	all, _ := r.events.Since(0)
	for _, e := range all {
		if e.Kind == event.Protection {
			events = append(events, e)
		}
	}
	return events
}

// A client and a backend that break the protocol are counted, and named in one event per kind.
func TestProtectionIsTold(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	for id := uint32(1); id < 7; id += 2 {
		client.headers(id, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "UPPER", "case")
		if got := client.answerOf(id); got != "PROTOCOL_ERROR" {
			t.Errorf("the client got %s", got)
		}
	}
	client.get(7, "/")
	c := b.accept()
	c.request()
	c.headers(1, true, "no-status", "200")
	if got := client.answerOf(7); got != "[502]lbagent: user: "+b.addr+" sent a malformed response\n" {
		t.Errorf("the client got %q", got)
	}
	if n := r.protected(protectMalformed); n != 4 {
		t.Errorf("%d counted", n)
	}
	events := r.told()
	if len(events) != 1 || events[0].Service != "user" || events[0].Backend != "" || events[0].Detail != "client "+client.LocalAddr().String()+": malformed request refused" {
		t.Errorf("told: %+v", events)
	}
	r.onLoop(func(k *relay) { k.w.stats["user"].guards[protectMalformed].told = time.Time{} }) // 10 s later
	client.get(9, "/")
	c.request()
	c.headers(3, true, "no-status", "200")
	client.answerOf(9)
	if events = r.told(); len(events) != 2 || events[1].Backend != b.addr || !strings.HasSuffix(events[1].Detail, "; 3 more since the last event of this kind (malformed)") {
		t.Errorf("told: %+v", events)
	}
	client.fr.WriteData(0, false, nil)
	if _, err := client.read(); err != nil {
		t.Fatal(err)
	}
	r.quiet()
	if n := r.protected(protectMalformed); n != 6 {
		t.Errorf("%d counted", n)
	}
}

// Whoever comes after a flood from his own side has little budget in the beginning; nobody else has.
func TestWary(t *testing.T) {
	t.Parallel()      // it waits
	const many = 5000 // PINGs in the beginning: a quarter of a full budget
	r := newRig(t, nil)
	good, bad := newRawBackend(t), newEvil(t, nil, func(a *attacker) { a.fr.WritePing(false, [8]byte{}) })
	pinging := func() *attacker {
		a := newAttacker(t, r.addr)
		for range many {
			a.fr.WritePing(false, [8]byte{})
		}
		a.flush()
		return a
	}
	lives := func(what string, a *attacker) {
		t.Helper()
		await(t, what+": all is read", func() (all bool) {
			r.onLoop(func(k *relay) {
				for c := range k.clients {
					all = all || c.h2.Acked() && c.lc.Unread() == 0
				}
			})
			return all
		})
		if isClosed(a.over) {
			t.Errorf("%s: closed", what)
		}
		a.Close()
		<-a.over
	}
	// A backend floods.
	r.backends(bad.addr)
	c := newRawClient(t, r.addr)
	c.get(1, "/")
	c.answerOf(1)
	c.Close()
	lives("a client, after a backend's flood", pinging())
	r.await("the flood is noted", func(k *relay) bool { return k.pools[r.svc] == nil || len(k.clients) == 0 })
	r.onLoop(func(k *relay) {
		for _, be := range k.pools[r.svc].backends {
			if !be.flood.wary(k.loop.Now()) {
				t.Error("the backend that flooded is trusted")
			}
		}
	})
	// A client floods.
	if a := newAttacker(t, r.addr); !a.flood(func(a *attacker) { a.fr.WritePing(false, [8]byte{}) }) {
		t.Error("the flood goes on")
	}
	<-pinging().over // as it is one more like it
	r.backends(good.addr)
	c = newRawClient(t, r.addr)
	c.get(1, "/")
	b := good.accept()
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	for range many {
		fr.WritePing(false, [8]byte{})
	}
	b.Write(out.Bytes())
	b.request()
	b.headers(1, true, ":status", "200")
	if got := c.answerOf(1); got != "[200]" {
		t.Errorf("after a client's flood, the backend's answer became %q", got)
	}
}
