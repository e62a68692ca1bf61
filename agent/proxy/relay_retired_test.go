package proxy

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// A connection that is going away is none that a call could wait for: without another one coming, the call goes on at once (4.1, 4.10).
func TestNoWaitForRetiredConnection(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept()
	c.request()
	c.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	r.await("the connection takes no more streams", func(k *relay) bool {
		for _, be := range k.pools[r.svc].backends {
			be.again.notUntil = k.loop.Now().Add(time.Hour) // a connect has failed meanwhile
			return be.inUse() == 0
		}
		return false
	})
	client.get(3, "/")
	want := fmt.Sprintf("[503]lbagent: user: 1 backend, 1 usable; %s is not connected to again so soon after it failed\n", b.addr)
	client.SetDeadline(time.Now().Add(patience))
	if got := client.answerOf(3); got != want {
		t.Errorf("the client got %q, want %q", got, want)
	}
	c.headers(1, true, ":status", "200")
	client.answerOf(1)
	r.quiet()
}

// All calls that a GOAWAY sends back wait for the next connection, as if it were the first (4.1, 4.4).
func TestManyCallsAfterGoaway(t *testing.T) {
	const calls = waitForSlot + 50
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	for i := range calls {
		client.get(uint32(2*i+1), "/")
	}
	c := b.accept()
	for range calls {
		c.request()
	}
	c.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	c2 := b.accept()
	for i := 1; i < calls; i++ {
		c2.SetDeadline(time.Now().Add(patience))
		c2.headers(c2.request().id, true, ":status", "200")
	}
	c.headers(1, true, ":status", "200")
	for range calls {
		if f := client.request(); f.fields[":status"] != "200" {
			t.Fatalf("the client got %v", f.fields)
		}
	}
	r.quiet()
}

// A burst waits for the connections that it is the reason for, though more calls wait than may for a slot alone (4.4).
func TestBurstWaitsForGrowth(t *testing.T) {
	const slots, calls = 50, 250
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: slots})
	c.headers(c.request().id, true, ":status", "200")
	client.answerOf(1)
	for i := 1; i <= calls; i++ {
		client.get(uint32(2*i+1), "/")
	}
	type held struct {
		c  *rawConn
		id uint32
	}
	var all []held
	for len(all) < calls {
		if len(all) > 0 {
			c = b.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: slots})
		}
		c.SetDeadline(time.Now().Add(patience))
		for range slots {
			all = append(all, held{c, c.request().id})
		}
	}
	for _, h := range all {
		h.c.headers(h.id, true, ":status", "200")
	}
	for range calls {
		if f := client.request(); f.fields[":status"] != "200" {
			t.Fatalf("the client got %v", f.fields)
		}
	}
	r.quiet()
}
