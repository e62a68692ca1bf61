// Package scan looks at what an etcd holds and says which services it sees, in which format: what a person would guess from the keys and values. The agent itself never
// guesses, since two hosts might differ.
package scan

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
)

const (
	pageSize    = 1000
	pageTimeout = 30 * time.Second
	maxServices = 50_000 // more are counted, not kept
	maxUnknown  = 20     // folders of keys that look like no service
)

// Found is a service.
type Found struct {
	Name     string   // valid as a service's, unique among those found
	Format   string   // of package format
	Prefix   string   // ends in /; empty if Key is set
	Key      string   // of a service that is a single key
	Keys     int      // under the prefix, those without a backend included
	Backends int      // addresses, one each
	Examples []string // at most 3 of them
	Bad      int      // keys whose value the format can't read
	Reason   string   // of the first of those
	Schemes  []string // more than one: what select: {scheme: ...} could choose
}

// Unknown is a folder with keys that look like no service.
type Unknown struct {
	Prefix string
	Keys   int
}

// Result is what a scan found.
type Result struct {
	Revision int64
	Keys     int // looked at
	Services []Found
	TooMany  int       // services beyond those
	Unknown  []Unknown // the largest
}

// Scan reads everything under prefix, which may be empty. progress is told the number of keys read so far, after each page.
func Scan(ctx context.Context, c etcd.Client, prefix string, progress func(keys int)) (Result, error) {
	s := newScanner()
	from := cmp.Or(prefix, "\x00") // etcd has no empty key
	limit := pageSize
	for {
		pctx, cancel := context.WithTimeout(ctx, pageTimeout)
		r, err := c.Page(pctx, prefix, from, s.out.Revision, limit)
		cancel()
		switch {
		case etcd.IsTooLarge(err) && limit > 1:
			limit = max(1, limit/8)
			continue
		case etcd.IsDenied(err):
			return s.out, fmt.Errorf("read %q: %w; scan a PREFIX that this user may read", prefix, err)
		case err != nil:
			return s.out, fmt.Errorf("read %q: %w", prefix, err)
		}
		s.out.Revision = cmp.Or(s.out.Revision, r.Header.Revision) // later pages are read at the first one's
		for _, kv := range r.Kvs {
			s.add(string(kv.Key), kv.Value)
		}
		progress(s.out.Keys)
		if !r.More || len(r.Kvs) == 0 {
			return s.result(), nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// scanner gathers what keys say.
type scanner struct {
	out      Result
	services map[place]*found
	unknown  map[string]int
}

// place is where a service's keys are.
type place struct{ format, prefix, key string }

// found is a service that is being gathered.
type found struct {
	Found

	decoder *format.Decoder
	seen    map[string]struct{} // addresses
	schemes map[string]struct{}
}

func newScanner() *scanner {
	return &scanner{services: make(map[place]*found), unknown: make(map[string]int)}
}

func (s *scanner) add(key string, value []byte) {
	s.out.Keys++
	g, ok := guess(key, value)
	if !ok {
		s.unknown[folder(key)]++
		return
	}
	at := place{g.format, g.prefix, g.key}
	f := s.services[at]
	if f == nil {
		if len(s.services) == maxServices {
			s.out.TooMany++
			return
		}
		d, err := format.New(g.format, nil)
		if err != nil { // a guess of a format that there is not
			s.unknown[folder(key)]++
			return
		}
		f = &found{
			Found:   Found{Name: g.name, Format: g.format, Prefix: g.prefix, Key: g.key},
			decoder: d, seen: make(map[string]struct{}), schemes: make(map[string]struct{}),
		}
		s.services[at] = f
	}
	f.take(key, value)
	for _, scheme := range g.schemes {
		f.schemes[scheme] = struct{}{}
	}
}

// take decodes one key as the agent would.
func (f *found) take(key string, value []byte) {
	f.Keys++
	if j := f.decoder.Joiner(); j != nil {
		j.Put(key, value, 1, 1, 0)
		return
	}
	backends, err := f.decoder.Append(nil, key, value)
	f.count(key, backends, err)
}

// count takes what a key gives.
func (f *found) count(key string, backends []service.Backend, err error) {
	if err != nil {
		if f.Bad++; f.Bad == 1 {
			f.Reason = fmt.Sprintf("%s: %v", key, err)
		}
	}
	for i := range backends {
		addr := address(&backends[i])
		if _, ok := f.seen[addr]; ok {
			continue
		}
		f.seen[addr] = struct{}{}
		f.Backends++
		if len(f.Examples) < 3 {
			f.Examples = append(f.Examples, addr)
		}
	}
}

func address(b *service.Backend) string {
	if b.Host != "" && !b.Addr.Addr().IsValid() {
		return fmt.Sprintf("%s:%d", b.Host, b.Addr.Port())
	}
	return b.Addr.String()
}

// result puts what was gathered in order.
func (s *scanner) result() Result {
	for at, f := range s.services {
		if j := f.decoder.Joiner(); j != nil {
			for _, p := range j.Changed() {
				f.count(p.Key, p.Backends, p.Err)
			}
			if f.Backends == 0 && f.Bad == 0 { // keys of the same form, and nothing behind them
				s.unknown[folder(at.prefix+"x")] += f.Keys
				continue
			}
		}
		for scheme := range f.schemes {
			f.Schemes = append(f.Schemes, scheme)
		}
		slices.Sort(f.Schemes)
		s.out.Services = append(s.out.Services, f.Found)
	}
	slices.SortFunc(s.out.Services, func(a, b Found) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Format, b.Format), strings.Compare(a.Prefix+a.Key, b.Prefix+b.Key))
	})
	unique(s.out.Services)
	for prefix, n := range s.unknown {
		s.out.Unknown = append(s.out.Unknown, Unknown{prefix, n})
	}
	slices.SortFunc(s.out.Unknown, func(a, b Unknown) int {
		return cmp.Or(cmp.Compare(b.Keys, a.Keys), strings.Compare(a.Prefix, b.Prefix))
	})
	s.out.Unknown = s.out.Unknown[:min(len(s.out.Unknown), maxUnknown)]
	return s.out
}

// unique renames services of the same name: the format goes behind it, then a number.
func unique(all []Found) {
	count := make(map[string]int)
	for i := range all {
		count[all[i].Name]++
	}
	taken := make(map[string]bool)
	for i := range all {
		name := all[i].Name
		if count[name] > 1 {
			name = validName(name + "-" + all[i].Format)
		}
		for n, base := 2, name; taken[name]; n++ {
			name = validName(fmt.Sprintf("%s-%d", base, n))
		}
		taken[name] = true
		all[i].Name = name
	}
}

// validName makes of any text a service's name: what has no place in one becomes '-'.
func validName(text string) string {
	out := strings.Map(func(r rune) rune {
		if service.ValidName(string(r)) || r == '.' {
			return r
		}
		return '-'
	}, text)
	out = strings.Trim(out, "-")
	if len(out) > service.MaxNameLength {
		out = out[len(out)-service.MaxNameLength:] // the end tells names apart
	}
	if !service.ValidName(out) {
		return "service"
	}
	return out
}

// folder is where a key lies, two levels deep at most.
func folder(key string) string {
	end, levels := 0, 0
	for i := range len(key) - 1 {
		if key[i] == '/' && i > 0 {
			end = i + 1
			if levels++; levels == 2 {
				break
			}
		}
	}
	if end == 0 {
		return strings.ToValidUTF8(key, "\uFFFD")
	}
	return strings.ToValidUTF8(key[:end], "\uFFFD")
}
