package health

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// naive is the dumb way to judge: it keeps everything that happened to a backend and reads it all again for each question.
type naive struct {
	history []happening
	limit   int // 2.5
}

type happening struct {
	what happened
	at   time.Time
}

type happened uint8

const (
	callSucceeded happened = iota
	callFailed             // after its connect
	connectFailed
	connected
	probeOK
	probeRefused
	probeBad
	probeSpared // a good outcome stood for it
	trialOK     // what ended a hold-down for good
	paroled     // a probe did: the next failed call is one too many
	reportFailed
	reportSucceeded
	unprobed // a time without probes began
)

func (n *naive) add(what happened, at time.Time) { n.history = append(n.history, happening{what, at}) }

// back counts, from the newest, what counts says, until something that ends says so.
func (n *naive) back(counts, ends []happened) (count int) {
	for _, h := range slices.Backward(n.history) {
		if h.what == paroled && slices.Contains(counts, callFailed) {
			return count + max(0, n.limit-1)
		}
		if h.what == paroled || slices.Contains(ends, h.what) {
			return count
		}
		if slices.Contains(counts, h.what) {
			count++
		}
	}
	return count
}

func (n *naive) unreachable() bool {
	return n.back([]happened{connectFailed, probeRefused}, []happened{callSucceeded, connected, probeOK, trialOK}) >= 3
}

func (n *naive) streak() int {
	return n.failures() + n.back([]happened{connectFailed}, []happened{callSucceeded, trialOK, connected, probeOK})
}

func (n *naive) failures() int {
	return n.back([]happened{callFailed}, []happened{callSucceeded, trialOK})
}

// evidence is the streak as far as it ejects: what is unreachable is out by that.
func (n *naive) evidence() int {
	if n.unreachable() {
		return n.failures()
	}
	return n.streak()
}

// reports is the streak of what was only reported.
func (n *naive) reports() int {
	return n.back([]happened{reportFailed}, []happened{callSucceeded, trialOK, reportSucceeded})
}

// down walks through the probes: the only part that depends on itself.
func (n *naive) down(o Options) (down bool) {
	passes, fails := 0, 0
	for _, h := range n.history {
		switch h.what {
		case probeOK, probeSpared:
			fails = 0
			if passes++; passes >= o.Rise {
				down = false
			}
		case probeRefused, probeBad:
			passes = 0
			if fails++; fails >= o.Fall {
				down = true
			}
		case unprobed:
			if passes = 0; !down {
				fails = 0
			}
		}
	}
	return down
}

// Random histories: the core and the naive judge agree, and what must always hold does.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomHistory(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func randomHistory(t *testing.T, r *rand.Rand) {
	o := defaults()
	o.Interval = time.Duration(1+r.IntN(5)) * time.Second
	o.Rise, o.Fall = 1+r.IntN(3), 1+r.IntN(4)
	o.Consecutive = 1 + r.IntN(6)
	o.SuccessRate = r.IntN(2) * 50
	o.MaxPercent = []int{0, 10, 50, 50, 50, 100}[r.IntN(6)]
	o.PanicPercent = []int{0, 0, 50}[r.IntN(3)]
	if r.IntN(3) == 0 {
		o.Probe = ProbeNone
	}
	n := 1 + r.IntN(8)
	s := newStory(t, o, n)
	s.c.random = r.Float64
	models := make([]naive, n)
	for i := range models {
		models[i].limit = o.Consecutive
	}
	active := true
	s.note = func(i int, what happened) { models[i].add(what, s.now) }
	for range 300 {
		i := r.IntN(n)
		st, m := s.states[i], &models[i]
		switch op := r.IntN(14); op {
		case 0, 1, 2:
			s.states[i].Begin()
			m.add(callFailed, s.now)
			st.End(s.now, Failure, 0, true, "HTTP 503")
		case 3:
			st.Begin()
			m.add(callSucceeded, s.now)
			st.End(s.now, Success, ms, true, "")
		case 4, 5:
			m.add(connectFailed, s.now)
			st.ConnectFailed(s.now, "connection refused")
		case 6:
			m.add(connected, s.now)
			st.Connected(s.now)
		case 7:
			st.Begin()
			st.End(s.now, []Result{Neutral, Timeout, Overloaded, AppError}[r.IntN(4)], ms, true, "")
		case 8:
			s.answers[i] = []outcome{{}, {}, saysNo, refused, silent}[r.IntN(5)]
		case 9:
			if active = !active; r.IntN(4) > 0 {
				active = true
			}
			if active != s.c.groups["g"].active {
				for i := range models {
					models[i].add(unprobed, s.now)
				}
			}
			s.c.setActive(s.now, "g", active)
		case 10:
			if st.TryTrial(s.now) {
				st.Begin()
				if r.IntN(2) == 0 {
					m.add(trialOK, s.now)
					st.End(s.now, AppError, ms, true, "HTTP 500")
				} else {
					m.add(callFailed, s.now)
					st.End(s.now, Failure, 0, true, "HTTP 503")
				}
			}
		case 11:
			randomStep(s, r, models, o)
		case 13:
			result, what := Failure, reportFailed
			if r.IntN(4) == 0 {
				result, what = Success, reportSucceeded
			}
			m.add(what, s.now)
			st.Report(s.now, uint32(r.IntN(3)), result, 0, 1, "reported: call failed")
			st.Report(s.now, uint32(r.IntN(3)), result, 0, 2+r.IntN(20), "reported: call failed") // no streak
		case 12: // what fills the windows
			for range 30 {
				st.Begin()
				if r.IntN(3) == 0 {
					m.add(callSucceeded, s.now)
					st.End(s.now, Success, ms, true, "")
				} else {
					m.add(callFailed, s.now)
					st.End(s.now, Failure, 0, true, "HTTP 503")
				}
			}
		}
		s.work()
		check(s, models, o)
		if t.Failed() {
			return
		}
	}
}

// randomStep lets time go by from one look of the core to the next.
func randomStep(s *story, r *rand.Rand, models []naive, o Options) {
	end := s.now.Add(time.Duration(r.ExpFloat64() * 3e9))
	for {
		next, ok := s.c.next(s.now)
		if !ok || next.After(end) {
			break
		}
		s.now = later(s.now, next)
		s.work()
		check(s, models, o)
	}
	s.now = end
}

// noteProbe notes a probe that is about to be taken, noteSpared those that a good outcome is about to stand for.
func (s *story) noteProbe(r result) {
	if s.note == nil {
		return
	}
	if hold := r.t.hold; r.kind == probePassed && !hold.IsZero() && !s.now.Before(hold) {
		if r.t.ejected != nil {
			s.note(number(r.t.addr), paroled)
		} else {
			s.note(number(r.t.addr), trialOK)
		}
	}
	what := map[probeKind]happened{probePassed: probeOK, probeAnswered: probeBad, probeSilent: probeBad, probeUnreachable: probeRefused}
	s.note(number(r.t.addr), what[r.kind])
}

func (s *story) noteSpared() {
	if s.note == nil {
		return
	}
	for i, st := range s.states {
		t := st.watch.Load()
		if !t.probeAt.IsZero() && !t.probeAt.After(s.now) && st.goodWithin(s.now, t.delay(s.now)) {
			s.note(i, probeSpared)
		}
	}
}

// check compares with the naive judge and recounts.
func check(s *story, models []naive, o Options) {
	s.t.Helper()
	g := s.c.groups["g"]
	up, ejected := 0, 0
	for i := range models {
		m, st := &models[i], s.states[i]
		has := map[Kind]bool{}
		parts := st.Snapshot(s.now).Parts
		for _, p := range parts {
			has[p.Kind] = true
		}
		if len(parts) == 0 {
			up++
		}
		if has[Ejected] {
			ejected++
		}
		k := streaks(st.streaks.Load())
		if k.hard() != m.streak() {
			s.t.Fatalf("%v: backend %d has %d hard failures in a row, want %d", s.at(), i, k.hard(), m.streak())
		}
		if has[Unreachable] != m.unreachable() {
			s.t.Fatalf("%v: backend %d unreachable: %v, want %v", s.at(), i, has[Unreachable], m.unreachable())
		}
		if want := o.Probe != ProbeNone && m.down(o); has[Down] != want {
			s.t.Fatalf("%v: backend %d down: %v, want %v", s.at(), i, has[Down], want)
		}
		if k.reports() != m.reports() {
			s.t.Fatalf("%v: backend %d has %d reported failures in a row, want %d", s.at(), i, k.reports(), m.reports())
		}
		t := st.watch.Load()
		if has[Ejected] && t.ejected.By == ByStreak && m.evidence() < o.Consecutive && !(t.reported && m.evidence()+m.reports() >= o.Consecutive) {
			s.t.Fatalf("%v: backend %d is ejected with a streak of %d, %d reported", s.at(), i, m.evidence(), m.reports())
		}
		if has[Ejected] && t.reported && t.ejected.Since.Equal(s.now) && !t.bearsOut(s.now, 2*fewTime) {
			s.t.Fatalf("%v: backend %d is ejected by reports alone", s.at(), i)
		}
		if m.evidence() >= o.Consecutive && !has[Ejected] && (g.room(t) || !slices.Contains(g.held, t)) {
			s.t.Fatalf("%v: backend %d should be ejected: streak %d, %d ejected of %d", s.at(), i, m.evidence(), g.ejected, g.counted)
		}
		if w := t.window; w != nil && !has[Ejected] && !has[Unreachable] && (g.room(t) || !slices.Contains(g.held, t)) {
			if f := w.find(o.rate(), func(time.Duration) bool { return false }); f.found {
				s.t.Fatalf("%v: backend %d should be ejected: %s, %d ejected of %d", s.at(), i, f.cause, g.ejected, g.counted)
			}
		}
		checkPending(s, t)
	}
	if g.up != up || g.ejected != ejected || g.counted != len(models) {
		s.t.Fatalf("%v: the group counts %d up, %d ejected of %d; want %d, %d, %d", s.at(), g.up, g.ejected, g.counted, up, ejected, len(models))
	}
	if ejected > 1 && ejected*100 > o.MaxPercent*len(models) {
		s.t.Fatalf("%v: %d of %d ejected, cap %d %%", s.at(), ejected, len(models), o.MaxPercent)
	}
	for i, t := range s.c.due.heap {
		if t.slot != i || i > 0 && t.dueAt.Before(s.c.due.heap[(i-1)/2].dueAt) {
			s.t.Fatalf("%v: the heap is out of order at %d", s.at(), i)
		}
	}
}

// checkPending: whatever is out has something that will end it, and whatever is to be probed will be.
func checkPending(s *story, t *target) {
	s.t.Helper()
	o := &t.group.options
	if !t.probeAt.IsZero() || !t.hold.IsZero() && !t.holdOver || !t.trialEnd.IsZero() {
		if t.slot < 0 {
			s.t.Fatalf("%v: %v has something planned and isn't in the schedule", s.at(), t.addr)
		}
	}
	if o.probes() && t.group.active && t.probeAt.IsZero() && !t.probing && !t.waits {
		s.t.Fatalf("%v: %v will never be probed again", s.at(), t.addr)
	}
	if t.ejected != nil || t.unreachable != nil && !o.probes() {
		trial := t.state.trial.Load()
		if t.hold.IsZero() || t.holdOver && !o.probes() && trial != trialReady && trial != trialClaimed {
			s.t.Fatalf("%v: %v is out for good: hold %v, over %v, trial %d", s.at(), t.addr, t.hold, t.holdOver, trial)
		}
		if !t.holdOver && t.hold.Sub(s.now) > o.EjectMax {
			s.t.Fatalf("%v: %v is held down for %v", s.at(), t.addr, t.hold.Sub(s.now))
		}
	} else if trial := t.state.trial.Load(); trial != trialNone {
		s.t.Fatalf("%v: %v is not out and has a trial: %d", s.at(), t.addr, trial)
	}
}
