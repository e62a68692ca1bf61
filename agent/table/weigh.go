package table

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

const (
	// largeChange is by how much a weight has to have moved since those who watch were told, for them to be told again. Lower tells more, higher has them use old
	// weights longer.
	largeChange = 2
	// weightEvery is how often an event may tell of one backend's weight.
	weightEvery = 10 * time.Second
)

// weigh moves the weights of s, once a second (3.3, 3.7, 3.12). Verdicts stay as they are, so that nobody has to be told, unless much has changed.
func (t *Table) weigh(now time.Time, s *Service) {
	v := s.View()
	if v.Gone || !s.used {
		return
	}
	t.weighed = t.weighed[:0]
	t.dynamicWeights(now, s, v)
	if s.Spec().Load {
		for i, b := range v.roster.each() {
			if b.life.loadFactor(now, b.Backend) != b.factors.Load {
				t.weighed = append(t.weighed, int32(i))
			}
		}
	}
	if len(t.weighed) == 0 && !s.slow && !s.ring.stale {
		return
	}
	e := v.roster.edit()
	for _, i := range t.weighed {
		s.refresh(now, e.write(int(i)))
	}
	e.seal()
	next := newView(now, s, v.List, e)
	next.Ready, next.At = v.Ready, v.At
	if s.largely(next) {
		t.swap(s, next)
		return
	}
	next.next = v.next // nobody is woken
	s.view.Store(next)
}

// refresh sets the factors of b that its life knows.
func (s *Service) refresh(now time.Time, b *Backend) {
	if b.life == nil {
		return
	}
	spec := s.Spec()
	b.factors.Dynamic, b.factors.Load = 1, 1
	if spec.DynamicWeight {
		b.factors.Dynamic = float32(b.life.dynamic.weight)
	}
	if spec.Load {
		b.factors.Load = b.life.loadFactor(now, b.Backend)
	}
	b.reweigh()
}

// dynamicWeights takes the samples that are whole, and notes whose weights they move. Cuts go to the worst first, and once over half of the service is low (3.3) only to who fails
// every call: then it is no longer some backends that fail, and the others would have to carry all; but when all are gone, none of them is to get all calls.
func (t *Table) dynamicWeights(now time.Time, s *Service, v *View) {
	if !s.Spec().DynamicWeight {
		return
	}
	type bad struct {
		i int32
		sample
	}
	var cuts []bad
	t.inside = v.insides(t.inside[:0])
	for i, b := range v.roster.each() {
		d := &b.life.dynamic
		calls, good := b.State.Calls()
		began, offered := d.began, v.chosen(b) && t.inside[i]
		if sample, whole := d.take(now, calls, good); whole && !sample.healthy() {
			// A backend that is out gets no calls: what fails there are trials and late reports, and what it was taken out for has been counted.
			if offered || !began.After(b.Verdict.Since) {
				cuts = append(cuts, bad{int32(i), sample})
			}
		} else if whole {
			if d.weight < 1 {
				d.raise()
				t.weighed = append(t.weighed, int32(i))
			}
			if offered {
				t.tellWeight(now, s, b, sample.words())
			}
		}
	}
	if len(cuts) == 0 {
		return
	}
	usable, lows := t.lows(v)
	slices.SortStableFunc(cuts, func(a, b bad) int { return cmp.Compare(a.rate(), b.rate()) })
	for _, c := range cuts {
		b := v.roster.at(int(c.i))
		if d := &b.life.dynamic; lows*2 <= usable || c.good == 0 {
			was := d.low()
			d.lower(c.sample)
			t.weighed = append(t.weighed, c.i)
			if !was && d.low() {
				lows++
			}
		}
		if v.chosen(b) && t.inside[c.i] {
			t.tellWeight(now, s, b, c.words())
		}
	}
}

// lows is how many backends get calls and are usable, and how many of them are low. t.inside is that of v.
func (t *Table) lows(v *View) (usable, lows int) {
	for i, b := range v.roster.each() {
		if t.inside[i] && v.chosen(b) && b.Verdict.Usable() {
			usable++
			if b.life.dynamic.low() {
				lows++
			}
		}
	}
	return usable, lows
}

// accuse takes the weight of the backend at i down to the floor, since as many failures in a row were reported as would eject it, had this agent seen them. That doesn't wait for the
// end of a sample: batches go on to it until those who hold them are told. It reports whether it did; a weight at the floor makes no other view, so that it can't be done more often
// than it rises. How many are low doesn't matter, as for samples without a success.
func (t *Table) accuse(now time.Time, s *Service, v *View, e *edit, i int) bool {
	b := e.at(i)
	if !s.Spec().DynamicWeight || !b.Verdict.Usable() || b.life.dynamic.weight <= floor {
		return false
	}
	b = e.write(i)
	b.life.dynamic.accuse()
	s.refresh(now, b)
	t.tellWeight(now, s, b, "as many failures in a row were reported as eject")
	return true
}

// insides appends for each backend whether it is in this host's subset, if it is chosen at all (3.9).
func (v *View) insides(in []bool) []bool {
	in = append(in, make([]bool, v.Len())...)
	for _, k := range v.at {
		in[k] = true
	}
	for i := range in {
		in[i] = in[i] || !v.subset
	}
	return in
}

// largely reports whether the weights in v are others than those who watch know, and notes that they will be told.
func (s *Service) largely(v *View) bool {
	large := false
	for _, b := range v.roster.each() {
		if b.life == nil {
			continue
		}
		f := b.factors.Dynamic * b.factors.SlowStart * b.factors.Load
		known := b.life.shown
		large = large || f >= known*largeChange || f*largeChange <= known || f == 1 && known != 1
	}
	if !large {
		return false
	}
	for _, b := range v.roster.each() {
		if b.life != nil {
			b.life.shown = b.factors.Dynamic * b.factors.SlowStart * b.factors.Load
		}
	}
	return true
}

// tellWeight makes an event of b's dynamic weight if it is largely another than was told last, or whole again. why says what moved it.
func (t *Table) tellWeight(now time.Time, s *Service, b *Backend, why string) {
	f, w := b.life, float32(b.life.dynamic.weight)
	var moved string
	switch {
	case now.Sub(f.toldAt) < weightEvery:
		return
	case w*largeChange <= f.told:
		moved = "is cut"
	case w == 1 && f.told != 1:
		moved = "is whole again,"
	case w >= f.told*largeChange:
		moved = "rose"
	default:
		return
	}
	was := f.told
	f.told, f.toldAt = w, now
	if !s.weightVoice.may(now) {
		return
	}
	detail := fmt.Sprintf("its dynamic weight %s from %.0f to %.0f %%: %s", moved, was*100, w*100, why)
	if latency, fresh := b.State.Latency(now); fresh {
		detail += ", latency " + latency.Round(10*time.Microsecond).String()
	}
	t.tell(now, event.Weight, s, b.Addr.String(), detail)
	t.cfg.Log.Info("dynamic weight moved", "service", s.name, "backend", b.Addr, "cause", detail)
}

// reweighAs has b go on with factors that another process had for it. One that it can't have had is as if it were 1.
func (s *Service) reweighAs(now time.Time, b *Backend, f Factors) {
	if f.Dynamic > 0 && f.Dynamic < 1 {
		b.life.dynamic.weight = max(floor, float64(f.Dynamic))
		b.life.told = float32(b.life.dynamic.weight) // the other process has
	}
	if lasts := s.Spec().SlowStart; lasts > 0 && f.SlowStart >= slowFrom && f.SlowStart < 1 {
		b.life.slow = now.Add(-slowSince(f.SlowStart, lasts))
		b.factors.SlowStart, s.slow = f.SlowStart, true
	}
	s.refresh(now, b)
	b.life.shown = b.factors.Dynamic * b.factors.SlowStart * b.factors.Load
}

// newLife is what is known of the weight of a backend of which nothing is known.
func newLife() *life { return &life{dynamic: newDynamic(), shown: 1, told: 1} }

// place says what of a backend's weight and place its record and this host say.
func (s *Service) place(b *Backend, of *service.Backend) {
	b.Backend, b.factors = of, plain()
	b.rank, b.zone = rankOf(s.table.cfg.Seed, of.Addr), s.zoneOf(of.Zone)
	b.reweigh()
}
