package table

import (
	"fmt"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

const (
	namedMost = 3   // how many backends one sentence names
	upMost    = 100 // how many of those that are up it asks for a failure: calls that fail by the thousand each need a sentence
)

// Unusable is the sentence of 4.5 that says why a call got no backend:
// `lbagent: user: 3 backends, 0 usable; 10.0.0.1:80 unreachable: connection refused (2 s ago)`. It names at most 3 backends.
func (v *View) Unusable(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "lbagent: %s: ", v.Service.Name())
	switch {
	case v.Gone:
		b.WriteString("the service was removed")
		return b.String()
	case !v.Ready:
		b.WriteString("no list yet")
		return b.String()
	}
	fmt.Fprintf(&b, "%s, %d usable", backends(v.Total), v.Usable)
	if v.Fallback {
		b.WriteString(" (of the fallback)")
	}
	named := 0
	name := func(of *Backend) {
		if why := of.why(now); why != "" && named < namedMost && v.inUse(of) {
			fmt.Fprintf(&b, "; %s %s", of.Addr, why)
			named++
		}
	}
	for k := 0; k < len(v.roster.chunks) && named < namedMost; k++ {
		c := v.roster.chunks[k]
		if c.sums.usable == len(c.backends) {
			continue
		}
		for i := 0; i < len(c.backends) && named < namedMost; i++ {
			if of := &c.backends[i]; !of.Verdict.Usable() {
				name(of)
			}
		}
	}
	// Then those whose calls failed without a verdict yet.
	asked := 0
	for _, of := range v.roster.each() {
		if named == namedMost || asked == upMost {
			break
		}
		if of.Verdict.Usable() {
			name(of)
			asked++
		}
	}
	return b.String()
}

// Evidence is the verdict with the evidence of now: last error and next trial may be newer than the view.
func (b *Backend) Evidence() health.Part {
	if b.Verdict.Kind > health.Muted {
		if current := b.State.Verdict(); current != nil && current.Kind == b.Verdict.Kind {
			return *current
		}
	}
	return *b.Verdict
}

// why is what is wrong with a backend, empty if nothing is known to be.
func (b *Backend) why(now time.Time) string {
	p := b.Evidence()
	what, at := p.Last, p.At
	if what == "" {
		what, at = p.Cause, p.Since
	}
	if what == "" {
		s := b.State.Snapshot(now)
		what, at = s.LastFailure, s.LastFailureAt
	}
	switch {
	case what == "" && p.Usable():
		return ""
	case what == "":
		return p.Kind.String()
	}
	if now.Sub(at) < time.Second {
		return fmt.Sprintf("%s: %s", p.Kind, what) // most of all the error of this very call
	}
	return fmt.Sprintf("%s: %s (%s ago)", p.Kind, what, health.Ago(now.Sub(at)))
}

func backends(n int) string {
	if n == 1 {
		return "1 backend"
	}
	return fmt.Sprintf("%d backends", n)
}

// announce tells what a list changed.
func (t *Table) announce(now time.Time, s *Service, d *diff, first bool) {
	var parts []string
	say := func(what string, n *tally) {
		if n.n == 0 {
			return
		}
		var names []string
		for _, addr := range n.first[:min(n.n, len(n.first))] {
			names = append(names, addr.String())
		}
		if n.n > len(n.first) {
			names = append(names, "...")
		}
		parts = append(parts, fmt.Sprintf("%d %s (%s)", n.n, what, strings.Join(names, ", ")))
	}
	say("added", &d.added)
	say("removed", &d.removed)
	say("restarted", &d.restarted)
	say("changed", &d.changed)
	say("orphaned", &d.orphaned)
	say("back from being orphaned", &d.relisted)
	l := s.View().List
	detail := strings.Join(parts, ", ")
	if first {
		detail = strings.TrimSuffix(fmt.Sprintf("first list, from %s: %s", l.Source, detail), ": ")
	}
	if detail == "" {
		return
	}
	if !s.listVoice.may(now) {
		return
	}
	t.tell(now, event.List, s, "", detail)
	log := t.cfg.Log.Info
	if first && l.Source == service.FromSpool {
		log = t.cfg.Log.Debug // discovery says in one line how many there were
	}
	log("list changed", "service", s.name, "source", string(l.Source), "revision", l.Revision, "backends", len(l.Backends), "change", detail)
}

// tellVerdicts makes events of verdicts that moved; a new cause of the same verdict is none.
func (t *Table) tellVerdicts(now time.Time, s *Service, changes []health.Change) {
	for _, c := range changes {
		if c.From.Kind == c.To.Kind || !s.verdictVoice.may(now) {
			continue
		}
		words := c.To.Told(now)
		t.tell(now, event.Verdict, s, c.Addr.String(), fmt.Sprintf("was %s, now %s", c.From.Kind, words))
		if c.To.Kind == health.Up {
			t.cfg.Log.Info("backend is back", "service", s.name, "backend", c.Addr, "was", c.From.Kind)
		} else {
			t.cfg.Log.Warn("backend is out", "service", s.name, "backend", c.Addr, "cause", words)
		}
	}
}

// tellObserved tells of an ejection that `eject: observe` keeps from happening.
func (t *Table) tellObserved(now time.Time, s *Service, c *health.Change) {
	if !s.verdictVoice.may(now) {
		return
	}
	words := c.Would.Told(now)
	t.tell(now, event.Verdict, s, c.Addr.String(), fmt.Sprintf("is %s, %s (eject: observe)", c.To.Kind, words))
	t.cfg.Log.Warn("backend would be ejected, and is only observed", "service", s.name, "backend", c.Addr, "cause", words)
}

// tellUntold sums up what was not told one by one.
func (t *Table) tellUntold(now time.Time, s *Service) {
	if n := s.listVoice.rest(now); n > 0 {
		t.tell(now, event.List, s, "", fmt.Sprintf("%d more changes of the list", n))
		t.cfg.Log.Info("more list changes", "service", s.name, "count", n)
	}
	if n := s.weightVoice.rest(now); n > 0 {
		t.tell(now, event.Weight, s, "", fmt.Sprintf("%d more weights moved", n))
		t.cfg.Log.Info("more weights moved", "service", s.name, "count", n)
	}
	if n := s.verdictVoice.rest(now); n > 0 {
		t.tell(now, event.Verdict, s, "", fmt.Sprintf("%d more verdicts moved", n))
		t.cfg.Log.Warn("more verdicts moved", "service", s.name, "count", n)
	}
}

// tellPanic says that panic began or ended.
func (t *Table) tellPanic(now time.Time, v *View) {
	detail := fmt.Sprintf("%d of %s usable", v.Usable, backends(v.Total))
	if v.Panic {
		t.tell(now, event.Panic, v.Service, "", fmt.Sprintf("panic began: %s, doubtful ones get calls, too", detail))
		t.cfg.Log.Warn("panic began", "service", v.Service.name, "cause", detail)
		return
	}
	t.tell(now, event.Panic, v.Service, "", "panic ended: "+detail)
	t.cfg.Log.Info("panic ended", "service", v.Service.name, "cause", detail)
}

func (t *Table) tell(now time.Time, kind event.Kind, s *Service, backend, detail string) {
	t.cfg.Events.Add(event.Event{Time: now, Kind: kind, Service: s.name, Backend: backend, Detail: detail})
}
