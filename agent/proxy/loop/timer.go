package loop

import "time"

// Timer is a timer on the loop, embedded in what it times; no allocation. It fires at most a millisecond and the length of one wake-up late, never early; late.go says when later.
type Timer struct {
	F func() // what to do; set once

	at int // place in the heap + 1; 0 = not armed
}

// timers is a 4-ary heap. The deadline stands beside the pointer, so that sifting touches no Timer but those that it moves.
type timers struct {
	heap []timed
}

type timed struct {
	due time.Duration // since Loop.start
	t   *Timer
}

// Arm starts or restarts t.
func (l *Loop) Arm(t *Timer, d time.Duration) {
	due := l.now.Sub(l.start) + d
	h := &l.timers
	if t.at == 0 {
		h.heap = append(h.heap, timed{due, t})
		t.at = len(h.heap)
		h.up(t.at - 1)
		return
	}
	i := t.at - 1
	later := due > h.heap[i].due
	h.heap[i].due = due
	if later {
		h.down(i)
	} else {
		h.up(i)
	}
}

// Disarm stops t; nothing if it isn't armed.
func (l *Loop) Disarm(t *Timer) {
	if t.at != 0 {
		l.timers.remove(t.at - 1)
	}
}

// Armed reports whether t will fire.
func (t *Timer) Armed() bool { return t.at != 0 }

// next is when the first timer is due.
func (h *timers) next() (due time.Duration, ok bool) {
	if len(h.heap) == 0 {
		return 0, false
	}
	return h.heap[0].due, true
}

// run fires what is due, at most as many as were armed in the beginning: a func that arms its timer with 0 again can't hold the loop.
func (h *timers) run(now time.Duration) {
	for n := len(h.heap); n > 0 && len(h.heap) > 0 && h.heap[0].due <= now; n-- {
		t := h.heap[0].t
		h.remove(0)
		t.F()
	}
}

func (h *timers) remove(i int) {
	h.heap[i].t.at = 0
	last := len(h.heap) - 1
	moved := h.heap[last]
	h.heap[last] = timed{}
	h.heap = h.heap[:last]
	if i == last {
		return
	}
	h.heap[i] = moved
	moved.t.at = i + 1
	h.down(i)
	h.up(moved.t.at - 1)
}

func (h *timers) up(i int) {
	e := h.heap[i]
	for i > 0 {
		parent := (i - 1) / 4
		if h.heap[parent].due <= e.due {
			break
		}
		h.set(i, h.heap[parent])
		i = parent
	}
	h.set(i, e)
}

func (h *timers) down(i int) {
	e := h.heap[i]
	for {
		first := 4*i + 1
		if first >= len(h.heap) {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, len(h.heap)); c++ {
			if h.heap[c].due < h.heap[least].due {
				least = c
			}
		}
		if h.heap[least].due >= e.due {
			break
		}
		h.set(i, h.heap[least])
		i = least
	}
	h.set(i, e)
}

func (h *timers) set(i int, e timed) {
	h.heap[i] = e
	e.t.at = i + 1
}
