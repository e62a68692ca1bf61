package table

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

func TestStatesSurviveLists(t *testing.T) {
	r, s := user(t, 3)
	was := s.View()
	next := list("user", 0, 2, 5)
	next.Backends[1].Created = 7 // restarted
	r.Apply(r.now, next)
	v := s.View()
	if v.Backend(0).State != was.Backend(0).State {
		t.Error("the state of a backend that stayed was replaced")
	}
	if v.Backend(1).State == was.Backend(2).State {
		t.Error("a restarted backend kept its history (1.1)")
	}
	if got := r.details(event.List)[1]; got != "1 added (10.0.0.5:80), 1 removed (10.0.0.1:80), 1 restarted (10.0.0.2:80)" {
		t.Errorf("event %q", got)
	}
	// Back with the same key, before its drain is over: undrained (4.7).
	r.now = r.now.Add(29 * time.Second)
	r.Apply(r.now, list("user", 0, 1))
	if s.View().Find(addr(1)).State != was.Backend(1).State {
		t.Error("the same life of a backend came back within its drain and lost its state")
	}
}

// After its drain, or with another key, a backend that comes back is new.
func TestBackTooLateIsNew(t *testing.T) {
	for name, back := range map[string]func(r *rig) *service.List{
		"after the drain": func(r *rig) *service.List { r.now = r.now.Add(31 * time.Second); return list("user", 0, 1) },
		"another life": func(r *rig) *service.List {
			l := list("user", 0, 1)
			l.Backends[1].Created = 9
			return l
		},
		"another epoch": func(r *rig) *service.List {
			l := list("user", 0, 1)
			l.Epoch = 2
			return l
		},
	} {
		r, s := user(t, 2)
		was := s.View().Find(addr(1)).State
		r.Apply(r.now, list("user", 0))
		r.Apply(r.now, back(r))
		if s.View().Find(addr(1)).State == was {
			t.Errorf("%s: it kept its state", name)
		}
	}
}

// Revisions of different epochs don't compare: a restored etcd restarts nobody (1.5).
func TestNewEpochRestartsNobody(t *testing.T) {
	r, s := user(t, 1)
	was := s.View().Backend(0).State
	l := list("user", 0)
	l.Epoch, l.Backends[0].Created = 2, 77
	r.Apply(r.now, l)
	if s.View().Backend(0).State != was {
		t.Error("a backend lost its state to a new epoch")
	}
}

// 1.1: of two keys for one address the newer was deleted. The address falls back to the older key, which is no restart.
func TestOlderKeyRestartsNobody(t *testing.T) {
	r, s := user(t, 1)
	newer := list("user", 0)
	newer.Backends[0].Created = 9
	r.Apply(r.now, newer)
	was := s.View().Backend(0).State
	r.Apply(r.now, list("user", 0))
	if s.View().Backend(0).State != was {
		t.Error("a backend lost its state because one of its keys went")
	}
}

// Random lists: merging keeps what it should, as a map would.
func TestMergeRandomLists(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	r, s := user(t, 0)
	known := map[netip.AddrPort]*health.State{}
	created := map[netip.AddrPort]int64{}
	for range 500 {
		l := list("user")
		for id := range 40 {
			if rnd.IntN(3) > 0 {
				continue
			}
			b := &service.Backend{Addr: addr(id), Weight: uint32(1 + rnd.IntN(5)), Created: int64(1 + rnd.IntN(3)), Draining: rnd.IntN(5) == 0}
			l.Backends = append(l.Backends, b)
		}
		r.now = r.now.Add(time.Duration(rnd.IntN(100)) * time.Second)
		before := s.View()
		r.Apply(r.now, l)
		v := s.View()
		if v.Len() != len(l.Backends) {
			t.Fatalf("%d backends of %d", v.Len(), len(l.Backends))
		}
		for i := range v.Len() {
			b := v.Backend(i)
			if !reflect.DeepEqual(b.Backend.Backend, l.Backends[i]) || b.State == nil || b.Verdict == nil || b.Weight != float64(b.Backend.Weight) {
				t.Fatalf("backend %d: %+v", i, b)
			}
			if (b.Verdict.Kind == health.Draining) != b.Draining {
				t.Fatalf("%v draining %v is %v", b.Addr, b.Draining, b.Verdict.Kind)
			}
			if before.Find(b.Addr) != nil && (known[b.Addr] == b.State) != (created[b.Addr] >= b.Created) {
				t.Fatalf("%v: state kept %v, same life %v", b.Addr, known[b.Addr] == b.State, created[b.Addr] >= b.Created)
			}
			known[b.Addr], created[b.Addr] = b.State, b.Created
			if got := v.Find(b.Addr); got != b.Backend {
				t.Fatalf("Find(%v) = %v", b.Addr, got)
			}
		}
	}
	if v := s.View(); v.Find(addr(999)) != nil {
		t.Error("found what isn't there")
	}
}

// A list that changes nothing tells health and the events nothing.
func TestListWithoutChange(t *testing.T) {
	r, _ := user(t, 3)
	sent, marks := r.sent, r.marks
	l := list("user", ids(3)...)
	l.Revision = 9
	r.Apply(r.now, l)
	if r.sent != sent {
		t.Error("health was told of targets that didn't change")
	}
	if r.marks != marks+1 {
		t.Error("the new revision wasn't published")
	}
	if got := r.details(event.List); len(got) != 1 {
		t.Errorf("events %q", got)
	}
	weights := list("user", ids(3)...)
	weights.Backends[1].Weight = 7
	r.Apply(r.now, weights)
	if r.sent != sent {
		t.Error("health was told of a weight")
	}
	drains := list("user", ids(3)...)
	drains.Backends[1].Draining = true
	r.Apply(r.now, drains)
	if ts := r.targets["user"]; r.sent != sent+1 || !ts.At(1).Draining || ts.At(0).Draining {
		t.Error("health wasn't told that a backend drains")
	}
}

func TestListEvents(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	r.Apply(r.now, list("user", ids(5)...))
	r.Apply(r.now, list("user", 1, 2, 3, 4, 5))
	l := list("user", 1, 2, 3, 4, 5)
	l.Backends[0].Weight = 1
	r.Apply(r.now, l)
	r.Apply(r.now, list("user"))
	got := r.details(event.List)
	want := []string{
		"first list, from etcd: 5 added (10.0.0.0:80, 10.0.0.1:80, 10.0.0.2:80, ...)",
		"1 added (10.0.0.5:80), 1 removed (10.0.0.0:80)",
		"1 changed (10.0.0.1:80)",
		"5 removed (10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80, ...)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n%q\nwant\n%q", got, want)
	}
}

// A restarted backend that was down stays so until health has seen it (2.2).
func TestRestartedWhileDown(t *testing.T) {
	r, s := user(t, 2)
	r.judge(s, 0, downHard)
	r.judge(s, 1, unreachable)
	l := list("user", ids(2)...)
	l.Backends[0].Created, l.Backends[1].Created = 5, 5
	r.Apply(r.now, l)
	v := s.View()
	if k := v.Backend(0).Verdict.Kind; k != health.Down {
		t.Errorf("was down, restarted: %v", k)
	}
	if k := v.Backend(1).Verdict.Kind; k != health.Up {
		t.Errorf("was unreachable, restarted: %v", k)
	}
}
