package discovery

import (
	"slices"

	"github.com/lbagent/lbagent/agent/service"
)

// Select says what a record has to say of a backend for it to be in the list: of each key one of the values. The value "" stands for a record without that key.
type Select map[string][]string

// matches reports whether b is wanted. Keys are those of its metadata, and zone and region, which formats read out of it.
func (s Select) matches(b *service.Backend) bool {
	for key, values := range s {
		has := b.Metadata[key]
		switch {
		case key == "zone" && b.Zone != "":
			has = b.Zone
		case key == "region" && b.Region != "":
			has = b.Region
		}
		if !slices.Contains(values, has) {
			return false
		}
	}
	return true
}

// choose leaves those backends out of l that select: doesn't want, and counts them. An address counts as what its newest key says (1.1), so select: comes after
// keys have become backends.
func (s Select) choose(l *service.List) {
	if len(s) == 0 {
		return
	}
	all := l.Backends
	l.Backends = make([]*service.Backend, 0, len(all))
	for _, b := range all {
		if s.matches(b) {
			l.Backends = append(l.Backends, b)
		}
	}
	l.LeftOut += len(all) - len(l.Backends)
}
