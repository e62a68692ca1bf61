package discovery

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// records is what the keys of one prefix say. Addresses are shown once, with the data of the key that was written last; what other keys say of the same address
// is kept beside it, so that a backend leaves with its last key (SEMANTICS 1.1). It has no index by key: a change makes a new sorted slice anyway, and an index
// would take more memory than the backends.
type records struct {
	shown  []*service.Backend // sorted by Addr, names by Host, one each. Shared with the Lists that were made of them, so never written
	hidden []*service.Backend // what older keys say of addresses in shown
	other  map[string]other   // keys that give no backend, or not all that they list
}

// other is a key that gives no backend, or not all that its value lists.
type other struct {
	reason   string // what is wrong (1.7); empty if the format wants none of it
	modified int64
}

// change is what a key says now.
type change struct {
	backends []service.Backend // with Key, Created and Modified
	other    *other            // set if there are no backends or something is wrong, nil for a deleted key
}

// effect says how much a change changed.
type effect int

const (
	nothing   effect = iota
	revisions        // only ModRevisions: written again with the same value
	content          // what callers see
)

// apply returns records with changes, by key; r stays as it was.
func (r records) apply(changes map[string]change) (records, effect) {
	var fresh []*service.Backend
	for i := range r.hidden {
		if _, touched := changes[r.hidden[i].Key]; !touched {
			fresh = append(fresh, r.hidden[i])
		}
	}
	for _, c := range changes {
		fresh = appendCopies(fresh, c.backends)
	}
	var gone []int
	for i := range r.shown {
		if _, touched := changes[r.shown[i].Key]; touched {
			gone = append(gone, i)
		}
	}
	next, e := merge(r.shown, gone, fresh)
	next.other = r.nextOther(changes)
	if e == nothing && (len(r.hidden) > 0 || len(next.hidden) > 0 || !maps.Equal(r.other, next.other)) {
		e = revisions
	}
	if !sameReasons(r.other, next.other) {
		e = content
	}
	return next, e
}

// appendCopies appends backends, each by itself: one that stays keeps no other in memory.
func appendCopies(to []*service.Backend, backends []service.Backend) []*service.Backend {
	for i := range backends {
		to = append(to, new(backends[i]))
	}
	return to
}

// nextOther is r.other with changes.
func (r records) nextOther(changes map[string]change) map[string]other {
	var out map[string]other // copied at the first difference; there is seldom one
	for key, c := range changes {
		if _, had := r.other[key]; !had && c.other == nil {
			continue
		}
		if out == nil {
			out = make(map[string]other, len(r.other)+1)
			maps.Copy(out, r.other)
		}
		delete(out, key)
		if c.other != nil {
			out[key] = *c.other
		}
	}
	if out == nil {
		return r.other
	}
	return out
}

// merge joins what is shown, less the backends at the positions gone, with fresh ones in any order, and says what that changes. Between the places where something
// happens it copies whole runs.
func merge(shown []*service.Backend, gone []int, fresh []*service.Backend) (out records, e effect) {
	slices.SortFunc(fresh, better)
	out.shown = make([]*service.Backend, 0, len(shown)-len(gone)+len(fresh))
	at := 0 // what is before this in shown is done
	for len(gone) > 0 || len(fresh) > 0 {
		if len(fresh) == 0 || len(gone) > 0 && site(shown[gone[0]], fresh[0]) < 0 {
			out.shown = append(out.shown, shown[at:gone[0]]...)
			at, gone, e = gone[0]+1, gone[1:], content
			continue
		}
		here := fresh[0]
		n, found := slices.BinarySearchFunc(shown[at:], here, site)
		out.shown = append(out.shown, shown[at:at+n]...)
		at += n
		best := fresh[0]
		if !found {
			e = content
		} else {
			old := shown[at]
			if len(gone) > 0 && gone[0] == at {
				gone = gone[1:]
			} else if better(old, best) < 0 {
				best = old
				out.hide(best, fresh[0])
			} else {
				out.hide(best, old)
			}
			at++
			e = max(e, difference(old, best))
		}
		out.shown = append(out.shown, best)
		for fresh = fresh[1:]; len(fresh) > 0 && site(fresh[0], here) == 0; fresh = fresh[1:] {
			out.hide(best, fresh[0])
		}
	}
	out.shown = append(out.shown, shown[at:]...)
	if n := len(out.shown); cap(out.shown)-n > n/8+4 {
		out.shown = append(make([]*service.Backend, 0, n), out.shown...) // it may live for days
	}
	return out, e
}

// hide keeps b, which best outdoes; but a key that names an address twice says it once.
func (r *records) hide(best, b *service.Backend) {
	if b.Key != best.Key {
		r.hidden = append(r.hidden, b)
	}
}

// better orders backends by address, and those of one address so that the first is shown: the last written; of one transaction, the last key.
func better(a, b *service.Backend) int {
	return cmp.Or(site(a, b), newer(a, b))
}

func newer(a, b *service.Backend) int {
	return cmp.Or(cmp.Compare(b.Modified, a.Modified), strings.Compare(b.Key, a.Key))
}

// difference says what differs between two backends of one address.
func difference(a, b *service.Backend) effect {
	switch {
	case a.Key != b.Key || a.Created != b.Created || a.Host != b.Host || a.Weight != b.Weight || a.Draining != b.Draining || a.Priority != b.Priority ||
		a.Zone != b.Zone || a.Region != b.Region || !maps.Equal(a.Metadata, b.Metadata) || !a.Orphaned.Equal(b.Orphaned):
		return content
	case a.Modified != b.Modified || a.Lease != b.Lease:
		return revisions
	}
	return nothing
}

// compare says what differs between two whole reads.
func compare(old, next records) effect {
	if len(old.shown) != len(next.shown) || !sameReasons(old.other, next.other) {
		return content
	}
	e := nothing
	for i := range next.shown {
		a, b := old.shown[i], next.shown[i]
		if a == b {
			continue
		}
		if site(a, b) != 0 {
			return content
		}
		if e = max(e, difference(a, b)); e == content {
			return content
		}
	}
	if !slices.EqualFunc(old.hidden, next.hidden, sameVersion) || !maps.Equal(old.other, next.other) {
		e = max(e, revisions)
	}
	return e
}

func sameVersion(a, b *service.Backend) bool {
	return a.Key == b.Key && site(a, b) == 0 && a.Modified == b.Modified
}

func sameReasons(a, b map[string]other) bool {
	return maps.EqualFunc(a, b, func(x, y other) bool { return x.reason == y.reason })
}

// keys returns how many keys there are and the newest ModRevision: what etcd is asked for to see whether a silent watch missed something (1.3).
func (r records) keys() (n int, newest int64) {
	seen := r.keySet()
	for _, list := range [][]*service.Backend{r.shown, r.hidden} {
		for i := range list {
			newest = max(newest, list[i].Modified)
		}
	}
	for key, o := range r.other {
		seen[key] = struct{}{}
		newest = max(newest, o.modified)
	}
	return len(seen), newest
}

// keySet are the keys that give backends.
func (r records) keySet() map[string]struct{} {
	seen := make(map[string]struct{}, len(r.shown)+len(r.hidden))
	for _, list := range [][]*service.Backend{r.shown, r.hidden} {
		for i := range list {
			seen[list[i].Key] = struct{}{}
		}
	}
	return seen
}

// lease is the lease of b's key, as it was written last: b itself may be older, since a key that is written again as it was makes no new list.
func (r records) lease(b *service.Backend) int64 {
	i, ok := slices.BinarySearchFunc(r.shown, b, site)
	if ok && r.shown[i].Key == b.Key {
		return r.shown[i].Lease
	}
	return b.Lease
}

// bad returns the first MaxBadRecords bad keys in order, and how many there are (1.7).
func (r records) bad() (first []service.BadRecord, count int) {
	for key, o := range r.other {
		if o.reason == "" {
			continue
		}
		count++
		i, _ := slices.BinarySearchFunc(first, key, func(b service.BadRecord, key string) int { return strings.Compare(b.Key, key) })
		if i < service.MaxBadRecords {
			first = slices.Insert(first, i, service.BadRecord{Key: key, Reason: o.reason})
			first = first[:min(len(first), service.MaxBadRecords)]
		}
	}
	for i := range first {
		first[i].Key = strings.ToValidUTF8(first[i].Key, "\uFFFD")
	}
	return first, count
}
