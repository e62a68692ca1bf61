package health

import "time"

// earlier is the earlier of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// schedule is a heap of targets by dueAt.
type schedule struct{ heap []*target }

func (s *schedule) first() *target {
	if len(s.heap) == 0 {
		return nil
	}
	return s.heap[0]
}

// set puts t where its times say: the earliest of probe, end of the hold-down, end of the trial.
func (s *schedule) set(t *target) {
	at := earlier(t.probeAt, t.trialEnd)
	if !t.holdOver {
		at = earlier(at, t.hold)
	}
	t.dueAt = at
	switch {
	case at.IsZero() || t.gone:
		s.remove(t)
	case t.slot < 0:
		t.slot = len(s.heap)
		s.heap = append(s.heap, t)
		s.up(t.slot)
	default:
		s.down(s.up(t.slot))
	}
}

func (s *schedule) remove(t *target) {
	i := t.slot
	if i < 0 {
		return
	}
	last := len(s.heap) - 1
	s.swap(i, last)
	s.heap[last] = nil
	s.heap = s.heap[:last]
	t.slot = -1
	if i < last {
		s.down(s.up(i))
	}
}

func (s *schedule) up(i int) int {
	for i > 0 {
		parent := (i - 1) / 2
		if !s.heap[i].dueAt.Before(s.heap[parent].dueAt) {
			break
		}
		s.swap(i, parent)
		i = parent
	}
	return i
}

func (s *schedule) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(s.heap); child++ {
			if s.heap[child].dueAt.Before(s.heap[least].dueAt) {
				least = child
			}
		}
		if least == i {
			return
		}
		s.swap(i, least)
		i = least
	}
}

func (s *schedule) swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.heap[i].slot, s.heap[j].slot = i, j
}
