package proxy

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
)

// listless has a service "c", which has begun just now and has no list yet, served by a proxy that lets its callers wait.
func listless(t *testing.T, wait time.Duration) (r *two, at Addr) {
	t.Helper()
	r = newTwo(t, func(c *Config) { c.FirstList = wait })
	r.table.SetSpec(time.Now(), table.Spec{Name: "c", Policy: picker.P2C, InUse: true})
	at = free(t)
	r.apply(svc("c", at))
	return r, at
}

// awaiting is how many listeners wait for a list.
func (r *two) awaiting() int {
	n := make(chan int)
	w := r.p.workers[0]
	w.loop.Post(func() { n <- len(w.awaiting) })
	return <-n
}

func dialAndSay(t *testing.T, at Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	return c
}

// Who calls a service that has just begun waits in the backlog until its list is there, and never hears that there is none (6.4).
func TestCallersWaitForTheFirstList(t *testing.T) {
	addr := netip.MustParseAddrPort(tcpBackend(t, "tcp4", named("c")))
	r, at := listless(t, time.Hour)
	c := dialAndSay(t, at)
	if got := r.awaiting(); got != 1 {
		t.Fatalf("%d listeners wait", got)
	}
	r.p.Publish(r.table.Lookup("a")) // another service's
	if got := r.awaiting(); got != 1 {
		t.Fatalf("%d listeners wait after a list of another service", got)
	}
	r.table.Apply(time.Now(), &service.List{Service: "c", Source: service.FromEtcd, Backends: []*service.Backend{{Addr: addr, Weight: 1}}})
	r.p.Publish(r.table.Lookup("c"))
	read(t, c, "c")
	if got := r.awaiting(); got != 0 {
		t.Errorf("%d listeners wait", got)
	}
}

// But not for longer than that, counted from the beginning of the service: then they hear that there is no list.
func TestCallersWaitForTheFirstListNotForEver(t *testing.T) {
	const wait = 100 * time.Millisecond
	begun := time.Now()
	r, at := listless(t, wait)
	c := dialAndSay(t, at)
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	if took := time.Since(begun); took < wait {
		t.Errorf("sent away after %v", took)
	}
	second := free(t)
	r.apply(svc("c", at, second))
	if got := r.awaiting(); got != 0 {
		t.Errorf("a new listener of a service without a list waits, though the service isn't new")
	}
}

// A listener that goes while it waits is gone.
func TestListenerGoesBeforeTheFirstList(t *testing.T) {
	r, at := listless(t, time.Hour)
	r.apply()
	await(t, "the port to refuse", func() bool {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if got := r.awaiting(); got != 0 {
		t.Errorf("%d listeners wait", got)
	}
}
