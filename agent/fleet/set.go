package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// lately is how long a key that vanished counts as having vanished together with others (SEMANTICS 1.9).
const lately = 10 * time.Second

// set is what is known of all keys. It decides, in the way of 1.9, which keys are gone because somebody removed them, and which because etcd lost them.
type set struct {
	entries map[string]Entry
	gone    map[string]gone // within lately
	removed map[string]bool // those that somebody says to have removed (Store.Write)
}

type gone struct {
	entry    Entry
	at       time.Time
	believed bool // settle found nothing odd about it, so far
}

func newSet() set {
	return set{entries: make(map[string]Entry), gone: make(map[string]gone), removed: make(map[string]bool)}
}

func (s *set) load(entries []Entry) {
	for _, e := range entries {
		s.entries[e.Key] = e
	}
}

// put notes what etcd says of a key; it is false if that is known.
func (s *set) put(key, text string, modified int64) bool {
	old, ok := s.entries[key]
	if !ok {
		old = s.gone[key].entry // written anew a moment later: it still has a last good form
		delete(s.gone, key)
	}
	s.entries[key] = Entry{Key: key, Now: text, Modified: modified, Good: old.Good}
	return !ok || old.Now != text || old.Modified != modified || !old.Held.IsZero()
}

// remove notes that a key is not in etcd.
func (s *set) remove(now time.Time, key string) {
	if e, ok := s.entries[key]; ok && e.Held.IsZero() {
		delete(s.entries, key)
		s.gone[key] = gone{entry: e, at: now}
	}
}

// settle decides about what is gone. More than half of three or more keys that go within lately, or all of them, are held: they stay as they are until they are written again, or
// somebody says that they were removed. held are those for which this is new, released those that it ends for.
func (s *set) settle(now time.Time) (held, released []string) {
	present := 0
	for key, e := range s.entries {
		switch {
		case e.Held.IsZero():
			present++
		case s.removed[key]:
			delete(s.entries, key)
			released = append(released, key)
		}
	}
	for key, g := range s.gone {
		if s.removed[key] || now.Sub(g.at) > lately {
			delete(s.gone, key)
		}
	}
	all := present + len(s.gone)
	if len(s.gone) > 0 && (present == 0 || all >= 3 && 2*present < all) {
		for key, g := range s.gone {
			g.entry.Held = now
			s.entries[key] = g.entry
			held = append(held, key)
		}
		clear(s.gone)
	}
	for key, g := range s.gone {
		g.believed = true
		s.gone[key] = g
	}
	slices.Sort(held)
	slices.Sort(released)
	return held, released
}

// all are the entries that are in force: also what vanished a moment ago and settle has not decided about yet. Whoever asks in between, a reload or the spool, would
// otherwise see a fleet that lost its keys as one that somebody emptied.
func (s *set) all() []Entry {
	out := slices.Collect(maps.Values(s.entries))
	for _, g := range s.gone {
		if !g.believed {
			out = append(out, g.entry)
		}
	}
	return out
}

// heldKeys are those that etcd no longer has.
func (s *set) heldKeys() []string {
	var out []string
	for key, e := range s.entries {
		if !e.Held.IsZero() {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// install makes s what a whole read found; it is false if all of that is known.
func (s *set) install(now time.Time, read map[string]Entry, removed map[string]bool) bool {
	changed := !maps.Equal(s.removed, removed)
	s.removed = removed
	for key, e := range read {
		if s.put(key, e.Now, e.Modified) {
			changed = true
		}
	}
	for key, e := range s.entries {
		if _, ok := read[key]; !ok && e.Held.IsZero() {
			s.remove(now, key)
			changed = true
		}
	}
	return changed
}

// heldSentence says what happened, and what a person can do.
func heldSentence(held []string) string {
	names := strings.Join(held[:min(len(held), 5)], " ")
	more := ""
	if n := len(held) - 5; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Sprintf("%d items of the fleet vanished from etcd at once, too many to be believed, and stay in force: %s%s; if that was meant, run \"lbagent config rm --vanished %s\" once, for all hosts; if not, put them back",
		len(held), names, more, names)
}

func serviceOf(key string) string {
	name, _, _ := strings.Cut(key, "/")
	return name
}
