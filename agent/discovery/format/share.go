package format

import (
	"maps"
	"slices"

	"github.com/lbagent/lbagent/agent/service"
)

// Bounds of what is shared: the backends of a service have few different ones (version, zone, scheme), each of some hundred bytes.
const (
	cachedMetadata  = 32
	cachedMetadataB = 1 << 10
)

// sharer gives backends with equal metadata one map, and those with equal zones one string. A map of one entry takes 300 bytes, which is more than all else of a
// backend.
type sharer struct {
	seen  map[string]map[string]string // by its sorted entries
	words map[string]string
	room  []byte
	names []string
}

func (s *sharer) share(b *service.Backend) {
	b.Zone, b.Region = s.word(b.Zone), s.word(b.Region)
	switch {
	case len(b.Metadata) == 0:
		b.Metadata = nil
	case len(b.Metadata) <= cachedMetadata:
		b.Metadata = s.metadata(b.Metadata)
	}
}

func (s *sharer) metadata(m map[string]string) map[string]string {
	s.names = slices.AppendSeq(s.names[:0], maps.Keys(m))
	slices.Sort(s.names)
	s.room = s.room[:0]
	for _, name := range s.names {
		s.room = append(append(append(append(s.room, name...), 0xff), m[name]...), 0xff) // 0xff is in no UTF-8
	}
	if known, ok := s.seen[string(s.room)]; ok {
		return known
	}
	if len(s.room) <= cachedMetadataB {
		if s.seen == nil || len(s.seen) >= cachedMetadata {
			s.seen = make(map[string]map[string]string)
		}
		s.seen[string(s.room)] = m
	}
	return m
}

func (s *sharer) word(w string) string {
	if w == "" || len(w) > cachedMetadataB {
		return w
	}
	if known, ok := s.words[w]; ok {
		return known
	}
	if s.words == nil || len(s.words) >= cachedMetadata {
		s.words = make(map[string]string)
	}
	s.words[w] = w
	return w
}
