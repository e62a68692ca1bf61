package format

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

// Part is one key of a record that several keys make.
type Part struct {
	Key               string
	Created, Modified int64
	Lease             int64             // 0 = none
	Backends          []service.Backend // what the record gives for this key, without Key, Created, Modified and Lease
	Err               error             // what is wrong with this key (1.7)

	value string
}

// Joiner keeps the keys of a format in which a backend is what several keys say together, since a change of one of them comes alone, and a deleted one without
// its value. Its owner tells it every change, and asks Changed what has become of the records that were touched. It is for one goroutine.
type Joiner struct {
	record func(key string) string // the record that key is a part of; empty if of none
	join   func(parts []Part)      // sets Backends and Err, from values; parts are sorted by key
	shared *sharer

	parts   map[string][]Part // by record
	touched map[string]struct{}
}

// Joiner is nil for the formats in which each key speaks for itself. For the others Append gives nothing: it only refuses what can be no part of a record.
func (d *Decoder) Joiner() *Joiner { return d.joiner }

func (d *Decoder) join(record func(string) string, join func([]Part)) {
	d.joiner = &Joiner{record: record, join: join, shared: &d.shared}
	d.joiner.Reset()
	d.decode = func(dst []service.Backend, _ string, _ []byte) ([]service.Backend, error) { return dst, nil }
}

// Reset forgets everything, before a whole read.
func (j *Joiner) Reset() {
	j.parts, j.touched = make(map[string][]Part), make(map[string]struct{})
}

// Put notes what key says now.
func (j *Joiner) Put(key string, value []byte, created, modified, lease int64) {
	if !utf8.ValidString(key) || len(value) > maxValue {
		j.Delete(key)
		return
	}
	record := j.record(key)
	if record == "" {
		return
	}
	parts := j.parts[record]
	at, found := find(parts, key)
	if !found {
		parts = slices.Insert(parts, at, Part{})
	}
	parts[at] = Part{Key: key, Created: created, Modified: modified, Lease: lease, value: string(value)}
	j.parts[record] = parts
	j.touched[record] = struct{}{}
}

// Delete notes that key is gone.
func (j *Joiner) Delete(key string) {
	record := j.record(key)
	at, found := find(j.parts[record], key)
	if !found {
		return
	}
	j.parts[record] = slices.Delete(j.parts[record], at, at+1)
	if len(j.parts[record]) == 0 {
		delete(j.parts, record)
	}
	j.touched[record] = struct{}{}
}

// Changed returns all keys of the records that were touched since it was called last, with what they give now. A key that was deleted is not among them.
func (j *Joiner) Changed() []Part {
	var all []Part
	for record := range j.touched {
		at := len(all)
		all = append(all, j.parts[record]...)
		j.join(all[at:])
	}
	clear(j.touched)
	for i := range all {
		for k := range all[i].Backends {
			j.shared.share(&all[i].Backends[k])
		}
	}
	return all
}

func find(parts []Part, key string) (int, bool) {
	return slices.BinarySearchFunc(parts, key, func(p Part, key string) int { return cmp.Compare(p.Key, key) })
}

// cutLast splits a key into its last segment and what comes before it, without the / between.
func cutLast(key string) (before, last string) {
	i := strings.LastIndexByte(key, '/')
	return key[:max(i, 0)], key[i+1:]
}
