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
	shown  []service.Backend // sorted by Addr, one each. Shared with the List that was made of it, so never written
	hidden []service.Backend // what older keys say of addresses in shown
	other  map[string]other  // keys without a backend
}

// other is a key that gives no backend.
type other struct {
	reason   string // why not (1.7); empty if the format wants none of it
	modified int64
}

// change is what a key says now.
type change struct {
	backends []service.Backend // with Key, Created and Modified
	other    *other            // set if there are no backends, nil for a deleted key
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
	var fresh []service.Backend
	for _, b := range r.hidden {
		if _, touched := changes[b.Key]; !touched {
			fresh = append(fresh, b)
		}
	}
	for _, c := range changes {
		fresh = append(fresh, c.backends...)
	}
	kept := func(b *service.Backend) bool {
		_, touched := changes[b.Key]
		return !touched
	}
	next := merge(r.shown, kept, fresh)
	next.other = r.nextOther(changes)
	return next, compare(r, next, sameVersion)
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

// merge joins the backends of shown that kept names, sorted, with fresh ones in any order.
func merge(shown []service.Backend, kept func(*service.Backend) bool, fresh []service.Backend) records {
	slices.SortFunc(fresh, better)
	out := records{shown: make([]service.Backend, 0, len(shown)+len(fresh))}
	add := func(b *service.Backend) {
		if n := len(out.shown); n == 0 || out.shown[n-1].Addr != b.Addr {
			out.shown = append(out.shown, *b)
		} else if out.shown[n-1].Key != b.Key { // a key that names an address twice says it once
			out.hidden = append(out.hidden, *b)
		}
	}
	for i := range shown {
		b := &shown[i]
		if !kept(b) {
			continue
		}
		for len(fresh) > 0 && better(fresh[0], *b) < 0 {
			add(&fresh[0])
			fresh = fresh[1:]
		}
		add(b)
	}
	for i := range fresh {
		add(&fresh[i])
	}
	if n := len(out.shown); cap(out.shown)-n > n/8+4 {
		out.shown = append(make([]service.Backend, 0, n), out.shown...) // it may live for days
	}
	return out
}

// better orders backends by address, and those of one address so that the first is shown: the last written; of one transaction, the last key.
func better(a, b service.Backend) int {
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(b.Modified, a.Modified), strings.Compare(b.Key, a.Key))
}

// compare says what differs between two records; same compares two backends of one address.
func compare(old, next records, same func(a, b *service.Backend) bool) effect {
	if len(old.shown) != len(next.shown) || !sameReasons(old.other, next.other) {
		return content
	}
	e := nothing
	for i := range next.shown {
		a, b := &old.shown[i], &next.shown[i]
		if !same(a, b) {
			return content
		}
		if a.Modified != b.Modified {
			e = revisions
		}
	}
	if e == nothing && (!slices.EqualFunc(old.hidden, next.hidden, sameKey) || !maps.Equal(old.other, next.other)) {
		e = revisions
	}
	return e
}

func sameKey(a, b service.Backend) bool {
	return a.Key == b.Key && a.Addr == b.Addr && a.Modified == b.Modified
}

// sameVersion is sameContent without a look at the content if both are one version of one key, which is so for most after a change.
func sameVersion(a, b *service.Backend) bool {
	return a.Key == b.Key && a.Addr == b.Addr && a.Created == b.Created && a.Modified == b.Modified || sameContent(a, b)
}

// sameContent compares all but ModRevisions.
func sameContent(a, b *service.Backend) bool {
	return a.Addr == b.Addr && a.Key == b.Key && a.Created == b.Created && a.Host == b.Host && a.Weight == b.Weight && a.Draining == b.Draining &&
		a.Zone == b.Zone && a.Region == b.Region && maps.Equal(a.Metadata, b.Metadata)
}

func sameReasons(a, b map[string]other) bool {
	return maps.EqualFunc(a, b, func(x, y other) bool { return x.reason == y.reason })
}

// keys returns how many keys there are and the newest ModRevision: what etcd is asked for to see whether a silent watch missed something (1.3).
func (r records) keys() (n int, newest int64) {
	seen := make(map[string]struct{}, len(r.shown)+len(r.hidden))
	for _, list := range [][]service.Backend{r.shown, r.hidden} {
		for i := range list {
			seen[list[i].Key] = struct{}{}
			newest = max(newest, list[i].Modified)
		}
	}
	for _, o := range r.other {
		newest = max(newest, o.modified)
	}
	return len(seen) + len(r.other), newest
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
