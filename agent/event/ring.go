package event

import "sort"

// ring keeps the last size events of those that were added, in order of their IDs. It grows to that size by use.
type ring struct {
	size   int
	events []Event
	oldest int    // its place in events, once they are size many
	added  uint64 // N of the last
}

func (r *ring) add(e Event) {
	r.added++
	e.N = r.added
	if len(r.events) < r.size {
		r.events = append(r.events, e)
		return
	}
	r.events[r.oldest] = e
	r.oldest = (r.oldest + 1) % r.size
}

// at is the event at place i from the oldest.
func (r *ring) at(i int) *Event { return &r.events[(r.oldest+i)%len(r.events)] }

// since is the events with an ID above after.
func (r *ring) since(after uint64) tail {
	return tail{r, sort.Search(len(r.events), func(i int) bool { return r.at(i).ID > after })}
}

// tail is the events of a ring from place i on.
type tail struct {
	*ring
	i int
}

func (t *tail) len() int      { return len(t.events) - t.i }
func (t *tail) first() *Event { return t.at(t.i) }

func (t *tail) take() Event {
	e := *t.first()
	t.i++
	return e
}
