package h2

import "time"

// Stream is one side of a call on one connection. The owner embeds it where it keeps the call, so that a stream costs no allocation; it may be
// used again once it is closed.
type Stream struct {
	Owner any // the call; set by the owner, never read here

	conn       *Conn // nil: not open
	next, prev *Stream
	id         uint32

	sendWindow int64 // how much we may send; negative after a smaller SETTINGS_INITIAL_WINDOW_SIZE
	recvWindow int64 // how much the peer may send
	owed       int64 // credit for padding, which nobody else gives back
	length     int64 // what content-length leaves to come; -1 = not said

	opened time.Duration // by Conn.clock

	recvEnd  bool // the peer ended its direction
	sendEnd  bool // we ended ours
	answered bool // client: the final response's header list has come; server: always
	replied  bool // WriteHeaders was called: a server's response has begun
	noBody   bool // client: the answer to HEAD, whose content-length says nothing
	waiting  bool // WriteData took less than it was given
	queued   bool // in conn.blocked

	after, before *Stream // there
}

// queue is a list of streams in the order in which they came. It links them, so that one that is reset leaves at once: a peer that opens and resets streams
// while its window is closed must not make it grow, nor have it searched.
type queue struct {
	first, last *Stream
	n           int
}

func (q *queue) push(s *Stream) {
	s.queued, s.before, s.after = true, q.last, nil
	if q.last != nil {
		q.last.after = s
	} else {
		q.first = s
	}
	q.last = s
	q.n++
}

func (q *queue) remove(s *Stream) {
	if s.before != nil {
		s.before.after = s.after
	} else {
		q.first = s.after
	}
	if s.after != nil {
		s.after.before = s.before
	} else {
		q.last = s.before
	}
	s.queued, s.before, s.after = false, nil, nil
	q.n--
}

// ID is the stream's number on its connection.
func (s *Stream) ID() uint32 { return s.id }

// Open reports whether either direction is open.
func (s *Stream) Open() bool { return s.conn != nil }

// Sending reports whether we have not ended our direction.
func (s *Stream) Sending() bool { return s.conn != nil && !s.sendEnd }

// table finds open streams by number: open addressing over the numbers' upper 30 bits. Numbers rise by two, so that concurrent streams
// seldom collide, and the map of the language costs four times as much.
type table struct {
	slots []*Stream // len is 0 or a power of two, at least twice n
	n     int
}

func (t *table) get(id uint32) *Stream {
	if t.n == 0 {
		return nil
	}
	mask := uint32(len(t.slots) - 1)
	for i := id >> 1 & mask; t.slots[i] != nil; i = (i + 1) & mask {
		if t.slots[i].id == id {
			return t.slots[i]
		}
	}
	return nil
}

func (t *table) put(s *Stream) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*Stream, max(8, 2*len(old)))
		for _, o := range old {
			if o != nil {
				t.insert(o)
			}
		}
	}
	t.insert(s)
	t.n++
}

func (t *table) insert(s *Stream) {
	mask := uint32(len(t.slots) - 1)
	i := s.id >> 1 & mask
	for t.slots[i] != nil {
		i = (i + 1) & mask
	}
	t.slots[i] = s
}

// remove closes the gap by moving later entries of the run back (Knuth 6.4 R), so that no tombstones pile up.
func (t *table) remove(s *Stream) {
	mask := uint32(len(t.slots) - 1)
	i := s.id >> 1 & mask
	for t.slots[i] != s {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; t.slots[j] != nil; j = (j + 1) & mask {
		home := t.slots[j].id >> 1 & mask
		if (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = nil
	t.n--
	if t.n == 0 && len(t.slots) > 64 {
		t.slots = nil // an idle connection keeps little
	}
}

// history remembers of the last 1,024 stream numbers which were opened and which we reset: what comes late for a stream that we reset is
// dropped, what comes for one that the peer closed is an error (RFC 9113 5.1).
type history struct {
	opened, reset [16]uint64
}

func (h *history) bit(id uint32) (word int, mask uint64) {
	n := id >> 1 & 1023
	return int(n >> 6), 1 << (n & 63)
}

// open notes that id was opened, and that the numbers between last and id never were.
func (h *history) open(last, id uint32) {
	if skipped := (id - last) >> 1; skipped > 1 || last == 0 {
		if skipped >= 1024 {
			*h = history{}
		} else {
			for n := last + 2; n < id; n += 2 {
				w, m := h.bit(n)
				h.opened[w] &^= m
				h.reset[w] &^= m
			}
		}
	}
	w, m := h.bit(id)
	h.opened[w] |= m
	h.reset[w] &^= m
}

func (h *history) markReset(id uint32) {
	w, m := h.bit(id)
	h.reset[w] |= m
}

// forgiven reports whether frames for closed stream id are to be dropped in silence: we reset it, or it is too long ago to know.
func (h *history) forgiven(last, id uint32) bool {
	w, m := h.bit(id)
	return (last-id)>>1 >= 1024 || h.reset[w]&m != 0
}

// wasOpen reports whether closed stream id was ever opened, as far as is known.
func (h *history) wasOpen(last, id uint32) bool {
	w, m := h.bit(id)
	return (last-id)>>1 >= 1024 || h.opened[w]&m != 0
}
