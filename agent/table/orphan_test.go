package table

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// orphanRig is a table whose hooks are recorded.
type orphanRig struct {
	*Table
	now     time.Time
	targets health.Targets
	gone    []string
}

func newOrphanRig(t *testing.T) *orphanRig {
	r := &orphanRig{now: time.Unix(1e9, 0)}
	var err error
	r.Table, err = New(Config{
		Log: hclog.NewNullLogger(), Events: event.NewLog(100),
		OnTargets: func(_ string, _ health.Options, targets health.Targets) { r.targets = targets },
		OnGone:    func(name string, a netip.AddrPort, why string) { r.gone = append(r.gone, name+" "+a.String()+" "+why) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.SetSpec(r.now, Spec{Name: "user", Policy: picker.P2C, PanicPercent: 50})
	return r
}

// list applies 3 backends, those in orphans without keys.
func (r *orphanRig) list(epoch uint64, created int64, orphans ...int) {
	l := &service.List{Service: "user", Source: service.FromEtcd, Epoch: epoch, Confirmed: r.now}
	for i := range 3 {
		b := &service.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: 1, Created: created}
		for _, o := range orphans {
			if o == i {
				b.Orphaned = r.now
			}
		}
		l.Backends = append(l.Backends, b)
	}
	r.Apply(r.now, l)
}

func (r *orphanRig) view() *View { return r.Lookup("user").View() }

func (r *orphanRig) kinds() string {
	var out []string
	v := r.view()
	for i := range v.Len() {
		out = append(out, v.Backend(i).Verdict.Kind.String())
	}
	return strings.Join(out, " ")
}

// An orphan is used like a listed backend (1.10), told to health although nobody uses the service, and keeps its state when its key goes and when it comes back, which is no restart.
func TestOrphans(t *testing.T) {
	r := newOrphanRig(t)
	r.list(7, 1)
	if r.targets != nil {
		t.Fatal("health knows of a service that nobody uses")
	}
	r.list(7, 1, 1, 2)
	v := r.view()
	state := v.Backend(1).State
	if r.kinds() != "up orphaned orphaned" || v.Usable != 3 || v.Orphans() != 2 || state == nil {
		t.Errorf("%s, %d usable, %d orphans", r.kinds(), v.Usable, v.Orphans())
	}
	if r.targets == nil || r.targets.At(0).Orphan || !r.targets.At(1).Orphan || r.targets.At(1).Draining {
		t.Errorf("targets %+v", r.targets)
	}
	if p := v.Backend(1).Verdict; !p.Since.Equal(r.now) || !strings.Contains(p.Cause, "its key went away") {
		t.Errorf("verdict %+v", p)
	}
	r.list(7, 2)
	if v := r.view(); r.kinds() != "up up up" || v.Backend(1).State != state || v.Backend(0).State == nil {
		t.Errorf("%s; the state of a relisted orphan is another: %v", r.kinds(), v.Backend(1).State != state)
	}
	if r.targets.At(1).Orphan {
		t.Error("health still takes it for an orphan")
	}
}

// Orphaned weighs more than what health says (2.8), but who fails gets no calls, and who is gone is told to discovery, once it is an orphan only (1.10).
func TestOrphanFails(t *testing.T) {
	r := newOrphanRig(t)
	r.list(7, 1, 1)
	v := r.view()
	change := func(i int, c health.Change) {
		c.Group, c.Addr, c.State = "user", v.Backend(i).Addr, v.Backend(i).State
		r.SetVerdicts(r.now, []health.Change{c})
	}
	ejected := health.Part{Kind: health.Ejected, Soft: true, Since: r.now, Cause: "5 failures in a row"}
	change(1, health.Change{From: health.Part{Kind: health.Up}, To: ejected})
	if v := r.view(); r.kinds() != "up orphaned up" || v.Usable != 2 || v.Backend(1).Verdict.Usable() || !v.Backend(1).Verdict.Soft {
		t.Errorf("%s, %d usable", r.kinds(), v.Usable)
	}
	if got := r.view().Backend(1).Verdict.Words(r.now); !strings.Contains(got, "ejected: 5 failures in a row") {
		t.Errorf("words %q", got)
	}
	change(1, health.Change{From: ejected, To: health.Part{Kind: health.Up}})
	if v := r.view(); r.kinds() != "up orphaned up" || v.Usable != 3 {
		t.Errorf("%s, %d usable", r.kinds(), v.Usable)
	}
	change(0, health.Change{Gone: "connection refused"})
	change(1, health.Change{Gone: "connection refused"})
	if len(r.gone) != 1 || r.gone[0] != "user 10.0.0.1:80 connection refused" {
		t.Errorf("told %v", r.gone)
	}
}

// A list that was confirmed earlier than the one before, of the spool, has its own age (1.3).
func TestAgeGoesBack(t *testing.T) {
	r := newOrphanRig(t)
	r.list(7, 1)
	l := *r.view().List
	l.Source, l.Confirmed = service.FromSpool, r.now.Add(-time.Hour)
	r.Apply(r.now, &l)
	if age := r.Lookup("user").Age(r.now); age != time.Hour {
		t.Errorf("age %v", age)
	}
	r.Confirm("user", r.now)
	if age := r.Lookup("user").Age(r.now); age != 0 {
		t.Errorf("age %v", age)
	}
}
