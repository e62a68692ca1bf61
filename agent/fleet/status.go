package fleet

import (
	"cmp"
	"slices"
	"time"
)

// Status is what is known of the fleet's configuration on this host.
type Status struct {
	Prefix     string // "" = off
	Source     string // etcd, spool; "" = nothing is known yet
	Revision   int64
	Confirmed  time.Time
	Error      string // why etcd's keys can't be followed; "" if they can, as far as is known
	SpoolError string
	Items      []Item // by key
}

// Item is one of them.
type Item struct {
	Outcome
	Modified int64
	Held     time.Time // since when etcd no longer has it, while it stays in force; zero = it has
}

// State is one word for an item, for metrics.
func (i *Item) State() string {
	switch {
	case !i.Held.IsZero():
		return "held"
	case i.Problem != "":
		return "bad"
	case i.Place == "in force":
		return "in_force"
	}
	return i.Place
}

// States are all that State may say.
func States() []string {
	return []string{"in_force", "elsewhere", "hidden", "overridden", "bad", "held"}
}

// Status returns it.
func (f *Fleet) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{
		Prefix: f.prefix, Source: f.source, Revision: f.revision, Confirmed: f.confirmed, Error: f.trouble, SpoolError: f.spool.trouble(),
	}
	for key, o := range f.outcomes {
		e := f.set.entries[key] // gone already, perhaps
		s.Items = append(s.Items, Item{Outcome: o, Modified: e.Modified, Held: e.Held})
	}
	slices.SortFunc(s.Items, func(a, b Item) int { return cmp.Compare(a.Key, b.Key) })
	return s
}
