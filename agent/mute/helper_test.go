package mute

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// rig is Mutes with what its hook was told, and the lists that it may ask for.
type rig struct {
	*Mutes
	t      testing.TB
	events *event.Log

	mu sync.Mutex

	holds []string // what OnMutes said last
	calls int
	lists map[string][]string
	asked func() // if set: when the lists are asked for
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, events: event.NewLog(4096), lists: map[string][]string{"user": {"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"}}}
	cfg.Events, cfg.OnMutes, cfg.Backends = r.events, r.onMutes, r.backends
	if cfg.Node == "" {
		cfg.Node = "web-1"
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Mutes = m
	return r
}

func (r *rig) onMutes(_ time.Time, mutes []service.Mute) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	r.holds = nil
	for i := range mutes {
		r.holds = append(r.holds, line(&mutes[i]))
	}
}

// line is a mute in short: "user 10.0.0.1:80 fleet alice@web-1".
func line(m *service.Mute) string {
	where := "here"
	if m.Fleet {
		where = "fleet"
	}
	return fmt.Sprintf("%s %s %s %s@%s", m.Service, m.Addr, where, m.Author, m.Host)
}

func (r *rig) backends(name string) ([]Backend, bool) {
	if r.asked != nil {
		r.asked()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	list, ok := r.lists[name]
	var out []Backend
	for _, s := range list {
		addr, draining := strings.CutSuffix(s, " draining")
		b := Backend{Addr: netip.MustParseAddrPort(addr), Usable: !draining, Draining: draining}
		for _, h := range r.holds {
			if strings.HasPrefix(h, name+" "+addr+" ") {
				b.Usable = false
			}
		}
		out = append(out, b)
	}
	return out, ok
}

func (r *rig) held() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.holds)
}

// want says that exactly these mutes hold.
func (r *rig) want(what string, lines ...string) {
	r.t.Helper()
	if got := r.held(); !slices.Equal(got, lines) {
		r.t.Errorf("%s: %q are muted, want %q", what, got, lines)
	}
}

// await waits until exactly these mutes hold.
func (r *rig) until(what string, lines ...string) {
	r.t.Helper()
	eventually(r.t, what, func() string {
		if got := r.held(); !slices.Equal(got, lines) {
			return fmt.Sprintf("%q are muted, want %q", got, lines)
		}
		return ""
	})
}

// eventually waits until ok returns "", and fails with what it last said.
func eventually(t testing.TB, what string, ok func() string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		why := ok()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %s", what, why)
		}
	}
}

// mute asks, and fails if it is refused.
func (r *rig) mute(now time.Time, q Request) Answer {
	r.t.Helper()
	if q.Service == "" {
		q.Service = "user"
	}
	if q.Author == "" {
		q.Author = "alice"
	}
	a, err := r.Mute(r.t.Context(), now, q)
	if err != nil {
		r.t.Fatalf("mute %+v: %v", q, err)
	}
	return a
}

func (r *rig) unmute(now time.Time, q Request) Answer {
	r.t.Helper()
	q.Service, q.Author = "user", "bob"
	a, err := r.Unmute(r.t.Context(), now, q)
	if err != nil {
		r.t.Fatalf("unmute %+v: %v", q, err)
	}
	return a
}

func (r *rig) details() []string {
	var out []string
	events, _ := r.events.Since(0)
	for _, e := range events {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s: %s", e.Kind, e.Service, e.Backend, e.Detail)))
	}
	return out
}

func contains(t testing.TB, what string, all []string, text string) {
	t.Helper()
	if !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, text) }) {
		t.Errorf("%s: %q, want %q", what, all, text)
	}
}
