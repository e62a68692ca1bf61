package table

import (
	"context"
	"runtime"
	"slices"
	"time"
)

const (
	secondTick = time.Second

	// medianOf bounds how many backends a median is taken of: more wouldn't move it.
	medianOf = 1024
)

// Run does what has to be done each second while a service is in use: medians (3.4), weights (3.3), ends of use (2.3), ends of drain. It returns when ctx ends.
func (t *Table) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	ticking := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
			t.attend(time.Now())
			if !ticking {
				ticking = true
				timer.Reset(secondTick)
			}
		case <-timer.C:
			if ticking = t.Second(time.Now()); ticking { // else no wake-up until somebody pokes
				timer.Reset(secondTick)
			}
		}
	}
}

// attend does what can't wait for the next second: it answers pings, and begins the use of services that were asked for. It costs next to nothing for the others: a host's
// services come into use one by one, and each of them wakes Run.
func (t *Table) attend(now time.Time) {
	t.answerPings()
	for _, s := range *t.services.Load() {
		if !s.active.Load() && s.askedWithin(now, askedUse) {
			t.beginUse(now, s)
		}
	}
}

func (t *Table) answerPings() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ping := range t.pings {
		close(ping)
	}
	t.pings = nil
}

func (t *Table) beginUse(now time.Time, s *Service) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Lookup(s.name) == s { // else it was removed meanwhile
		t.setActive(now, s, true)
	}
}

// Second does what is due in the second that begins at now, and reports whether there will be something to do in the next. Run calls it, unless time is virtual: then whoever
// has the clock does, from one goroutine.
func (t *Table) Second(now time.Time) (busy bool) {
	active, busy := t.second(now)
	for _, s := range active {
		t.sample = s.setMedian(now, t.sample[:0])
	}
	return busy
}

// second begins and ends uses and drains, and tells what was too much to tell. It returns the services in use, and whether there will be something to do in a second.
// Between two services it lets go of the lock, and of the processor: a thousand services in use may take a tenth of a second, which a new list is not to wait for.
func (t *Table) second(now time.Time) (active []*Service, busy bool) {
	t.answerPings()
	for _, s := range *t.services.Load() {
		if t.serviceSecond(now, s) {
			busy = true
		}
		if s.active.Load() {
			active = append(active, s)
		}
		runtime.Gosched()
	}
	return active, busy
}

// serviceSecond is second for one service; it reports whether that has something to do in a second.
func (t *Table) serviceSecond(now time.Time, s *Service) (busy bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Lookup(s.name) != s {
		return false // removed meanwhile
	}
	t.setActive(now, s, s.Spec().InUse || s.askedWithin(now, askedUse))
	for addr, b := range s.left {
		if !now.Before(b.until) {
			delete(s.left, addr)
		}
	}
	if len(s.left) == 0 {
		s.left = nil // a map keeps its buckets
	}
	if s.fallback.due(now) {
		t.publish(now, s, s.View().List, s.View().roster.edit())
	}
	if s.active.Load() {
		t.weigh(now, s)
	}
	t.tellUntold(now, s)
	return s.active.Load() || s.fallback.used || s.left != nil || s.listVoice.untold > 0 || s.verdictVoice.untold > 0 || s.weightVoice.untold > 0
}

// Ping returns when Run has answered, or ctx has ended.
func (t *Table) Ping(ctx context.Context) {
	done := make(chan struct{})
	t.mu.Lock()
	t.pings = append(t.pings, done)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// setMedian takes the median of the fresh latencies; sample is scratch space, returned for the next.
func (s *Service) setMedian(now time.Time, sample []time.Duration) []time.Duration {
	v := s.View()
	stride := 1 + len(v.candidates)/medianOf
	for i := 0; i < len(v.candidates); i += stride {
		if ewma, fresh := v.candidates[i].State.Latency(now); fresh {
			sample = append(sample, ewma)
		}
	}
	if len(sample) == 0 {
		s.median.Set(0)
		return sample
	}
	slices.Sort(sample)
	s.median.Set(sample[(len(sample)-1)/2]) // the lower one: of two backends the slow one stands out
	return sample
}
