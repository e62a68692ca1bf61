package agent

import (
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/agent/testneed"
)

// follows says how a service is followed on d and by which backend: "fleet ...", "asked ...", "" if it isn't followed.
func follows(d *daemon, name string) string {
	s := d.table.Lookup(name)
	if s == nil {
		return ""
	}
	first := "nobody"
	if v := s.View(); v.Len() > 0 {
		first = v.Backend(0).Addr.String()
	}
	return how(s) + " " + first
}

func how(s *table.Service) string {
	switch spec := s.Spec(); {
	case spec.Fleet:
		return "fleet"
	case spec.OnDemand:
		return "asked"
	}
	return "neither"
}

// owned reports whether name counts among the services that somebody asked for.
func (d *daemon) owned(name string) bool {
	d.ondemand.mu.Lock()
	defer d.ondemand.mu.Unlock()
	_, ok := d.ondemand.owner[name]
	return ok
}

// 1.15 and the fleet's configuration: a service that is followed since somebody asked becomes the fleet's with its item, as the item says: it is no longer dropped when
// nobody asks, and takes nobody's room. When the item goes it is followed no longer, until somebody asks again; then as anything that is asked for.
func TestFleetItemOfAServiceOnDemand(t *testing.T) {
	f := newFleetTest(t)
	one := backend(t, "one")
	port := testneed.Port(t)
	if _, err := f.client.Put(t.Context(), "/test/services/user/a", `{"Op":0,"Addr":"10.77.0.1:80"}`); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"some", "more", "items"} { // the last of all would be kept as if it had been lost
		f.put(name, 0, one, "")
	}
	d := f.host("a", "")
	d.open()
	for round := range 2 {
		if err := d.ondemand.ask("user", 1000); err != nil {
			t.Fatal(err)
		}
		d.until("user is followed on demand", func() bool { return follows(d, "user") == "asked 10.77.0.1:80" })
		if !d.owned("user") {
			t.Error("it takes no room of 1000's")
		}
		f.put("user", port, one, "")
		d.until("user is the fleet's", func() bool { return follows(d, "user") == "fleet "+one && get(port) == "one" })
		if d.owned("user") {
			t.Error("it still takes room of 1000's")
		}
		d.ondemand.sweep(time.Now().Add(1000 * time.Hour))
		if err := d.ondemand.ask("user", 1001); err != nil || d.owned("user") {
			t.Errorf("asked again: %v, owned %v", err, d.owned("user"))
		}
		if got := follows(d, "user"); got != "fleet "+one {
			t.Errorf("round %d: after a sweep: %s", round, got)
		}
		f.remove("user")
		d.until("user is followed no longer", func() bool { return follows(d, "user") == "" })
	}
	// An item for other hosts is none of this one's business: here it is on demand as before.
	f.put("user", port, one, ", only: {zone: b}")
	d.until("the item is known", func() bool { return len(d.hints("user")) > 0 })
	if err := d.ondemand.ask("user", 1000); err != nil {
		t.Fatal(err)
	}
	d.until("user is followed on demand", func() bool { return follows(d, "user") == "asked 10.77.0.1:80" })
	f.put("user", 0, one, "")
	d.until("and the item is for this host, too", func() bool { return follows(d, "user") == "fleet "+one })
}

// Somebody asks all the time while the item comes and goes: whoever wins, it is followed in one of both ways as a whole, and never left behind by the other.
func TestFleetItemWhileSomebodyAsks(t *testing.T) {
	f := newFleetTest(t)
	one := backend(t, "one")
	if _, err := f.client.Put(t.Context(), "/test/services/user/a", `{"Op":0,"Addr":"10.77.0.1:80"}`); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"some", "more", "items"} { // the last of all would be kept as if it had been lost
		f.put(name, 0, one, "")
	}
	d := f.host("a", "")
	d.open()
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for uid := range uint32(2) {
		asking.Go(func() {
			tick := time.NewTicker(200 * time.Microsecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if err := d.ondemand.ask("user", uid); err != nil {
					t.Errorf("ask: %v", err)
					return
				}
				if s := d.table.Lookup("user"); s != nil && how(s) == "neither" {
					t.Error("it is followed in neither way")
				}
			}
		})
	}
	for range 10 {
		f.put("user", 0, one, "")
		d.until("the fleet's", func() bool { return follows(d, "user") == "fleet "+one && !d.owned("user") })
		f.remove("user")
		d.until("asked for", func() bool { return follows(d, "user") == "asked 10.77.0.1:80" && d.owned("user") })
	}
	close(stop)
	asking.Wait()
	d.ondemand.sweep(time.Now().Add(1000 * time.Hour))
	if got := follows(d, "user"); got != "" || d.owned("user") {
		t.Errorf("nobody asks: %s, owned %v", got, d.owned("user"))
	}
}
