package table

import (
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// diff is what a new list changes.
type diff struct {
	added, removed, restarted, changed tally
	orphaned, relisted                 tally // by having their keys no more, or again
	first                              bool  // there was no list before
	targets                            bool  // what health judges is another set
}

// tally counts addresses and keeps the first few, for the event.
type tally struct {
	n     int
	first [3]netip.AddrPort
}

func (t *tally) add(addr netip.AddrPort) {
	if t.n < len(t.first) {
		t.first[t.n] = addr
	}
	t.n++
}

// merge makes the next roster of a new list. The records of a chunk that are the same as before are the same in memory most often: then the chunk is. Of the others, the
// old and the new, both sorted by address, are walked together, and states and verdicts carried over (3.11).
func (s *Service) merge(now time.Time, l *service.List) (*edit, diff) {
	v := s.View()
	d, e := diff{first: !v.Ready}, new(edit)
	fresh := l.Backends
	for k, c := range v.roster.chunks {
		n, start := len(c.backends), int(v.roster.starts[k])
		if n <= len(fresh) && slices.Equal(fresh[:n], v.List.Backends[start:start+n]) {
			e.keep(c)
			fresh = fresh[n:]
			continue
		}
		upTo := len(fresh)
		if k+1 < len(v.roster.chunks) { // what comes before its first belongs here
			upTo, _ = slices.BinarySearchFunc(fresh, v.roster.chunks[k+1].backends[0].Addr, func(b *service.Backend, a netip.AddrPort) int { return b.Addr.Compare(a) })
		}
		e.put(s.mergeRun(now, l, c.backends, fresh[:upTo], &d))
		fresh = fresh[upTo:]
	}
	e.put(s.mergeRun(now, l, nil, fresh, &d))
	e.seal()
	return e, d
}

// mergeRun is merge for backends that follow one another.
func (s *Service) mergeRun(now time.Time, l *service.List, old []Backend, fresh []*service.Backend, d *diff) []Backend {
	v := s.View()
	out := make([]Backend, len(fresh))
	sameEpoch := v.List.Epoch == l.Epoch // CreateRevisions compare only within one (1.5)
	i := 0
	for j, b := range fresh {
		to := &out[j]
		if i == len(old) || old[i].Addr != b.Addr {
			for i < len(old) && old[i].Addr.Compare(b.Addr) < 0 {
				s.leave(now, v.List, &old[i], d)
				i++
			}
			if i == len(old) || old[i].Addr != b.Addr {
				s.join(now, l, b, to, d)
				continue
			}
		}
		from := &old[i]
		i++
		switch was := from.Backend; {
		case sameEpoch && was.Created < b.Created && was.Orphaned.IsZero(): // a process that only wrote its key again was there all along; a lower one is an older key of the same life: the newer was deleted
			s.restart(now, from, b, to, d)
		case was.Draining != b.Draining || was.Modified != b.Modified || was.Weight != b.Weight || was.Priority != b.Priority || was.Fallback != b.Fallback ||
			!was.Orphaned.Equal(b.Orphaned):
			s.change(now, from, b, to, d)
		default:
			*to = *from
			to.Backend = b
		}
	}
	for ; i < len(old); i++ {
		s.leave(now, v.List, &old[i], d)
	}
	return out
}

// change keeps what is known of a backend whose record says something else now.
func (s *Service) change(now time.Time, from *Backend, b *service.Backend, to *Backend, d *diff) {
	*to = *from
	to.Backend, to.zone = b, s.zoneOf(b.Zone)
	s.refresh(now, to)
	if from.Draining != to.Draining || !from.Orphaned.Equal(to.Orphaned) {
		to.Verdict = s.listVerdict(now, to)
		s.moved(now, to, from.Verdict)
		d.targets = true
	}
	switch {
	case from.Orphaned.IsZero() && !to.Orphaned.IsZero():
		d.orphaned.add(to.Addr)
	case !from.Orphaned.IsZero() && to.Orphaned.IsZero():
		d.relisted.add(to.Addr)
	default:
		d.changed.add(to.Addr)
	}
}

// restart begins another life of an address (1.1). One that was down stays so until its first probe, which is at once (2.2); health does the same.
func (s *Service) restart(now time.Time, from *Backend, b *service.Backend, to *Backend, d *diff) {
	s.place(to, b)
	to.State = s.newState(now)
	if to.State != nil {
		to.life = newLife()
		s.refresh(now, to)
		s.slowly(now, to)
	}
	to.Verdict = s.listVerdict(now, to)
	if to.Verdict.Kind > health.Muted && from.Verdict.Kind == health.Down {
		to.Verdict = from.Verdict
	}
	d.targets = true
	d.restarted.add(to.Addr)
}

// newState is the state of a backend about which nothing is known; none while nobody has used the service: of a host's thousand services most never are, and a state is
// three times what a view keeps of a backend besides.
func (s *Service) newState(now time.Time) *health.State {
	if !s.used {
		return nil
	}
	return health.NewState(now)
}

// resume has b go on with what another process knew of it, and reports whether one did (Config.Known).
func (s *Service) resume(now time.Time, l *service.List, b *Backend) bool {
	if !s.used {
		return false
	}
	state, factors := s.table.cfg.Known(now, s.name, l.Epoch, b.Backend)
	if state == nil {
		return false
	}
	b.State, b.life = state, newLife()
	s.reweighAs(now, b, factors)
	return true
}

// begin is the service's first use: all backends get states.
func (s *Service) begin(now time.Time, e *edit) {
	s.used = true
	for k := range e.chunks {
		backends := e.writeChunk(k)
		for i := range backends {
			if b := &backends[i]; b.State == nil {
				b.State, b.life = health.NewState(now), newLife()
				s.refresh(now, b)
			}
		}
	}
}

// join takes a backend in: with its old state if it is the same life of it.
func (s *Service) join(now time.Time, l *service.List, b *service.Backend, to *Backend, d *diff) {
	s.place(to, b)
	if was, ok := s.left[to.Addr]; ok {
		delete(s.left, to.Addr)
		if was.created == to.Created && was.epoch == l.Epoch && now.Before(was.until) {
			to.State, to.life = was.state, was.life
		}
	}
	if to.State != nil || !s.resume(now, l, to) {
		if to.State == nil {
			to.State = s.newState(now)
		}
		if to.State != nil && to.life == nil {
			to.life = newLife()
		}
		s.refresh(now, to)
		if !d.first {
			s.slowly(now, to)
		}
	}
	to.Verdict = s.listVerdict(now, to)
	d.targets = true
	if !to.Orphaned.IsZero() {
		d.orphaned.add(to.Addr)
		return
	}
	d.added.add(to.Addr)
}

// leave remembers a backend for the time of its drain, if there is anything to remember.
func (s *Service) leave(now time.Time, l *service.List, b *Backend, d *diff) {
	if drain := s.Spec().Drain; drain > 0 && b.State != nil {
		if s.left == nil {
			s.left = make(map[netip.AddrPort]leftBackend)
		}
		s.left[b.Addr] = leftBackend{state: b.State, life: b.life, epoch: l.Epoch, created: b.Created, until: now.Add(drain)}
		s.poke()
	}
	d.targets = true
	d.removed.add(b.Addr)
}

// listVerdict is the verdict of a backend whose record or mutes were read anew: draining if the record says so, then muted, else what health says (2.8).
func (s *Service) listVerdict(now time.Time, b *Backend) *health.Part {
	if b.Draining {
		return &health.Part{Kind: health.Draining, Since: now, Cause: "its record says that it is out of service"}
	}
	if parts := s.muted[b.Addr]; parts != nil {
		return &parts[0]
	}
	p := b.State.Verdict()
	if p == nil {
		p = &s.up
	}
	return orphaned(b.Backend, p)
}

// orphaned is what counts of a backend of which health says p: for one without keys that it is an orphan, which weighs more (2.8), but gives nobody calls who fails.
func orphaned(b *service.Backend, p *health.Part) *health.Part {
	if b.Orphaned.IsZero() {
		return p
	}
	o := &health.Part{Kind: health.Orphaned, Since: b.Orphaned, Cause: "its key went away with most others of the service; kept while it is alive"}
	if p.Kind != health.Up {
		o.Failing, o.Soft, o.Last, o.At = true, p.Soft, p.Kind.String()+": "+p.Cause, p.Since
	}
	return o
}

// verdict is p as a view holds it: all that are up share one.
func (s *Service) verdict(p health.Part) *health.Part {
	if p.Kind == health.Up {
		return &s.up
	}
	return &p
}
