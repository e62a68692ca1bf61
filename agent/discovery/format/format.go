// Package format turns what a key of etcd holds into backends: one file per key/value format of service lists.
//
// A format appends the backends of one key: none (the record says nothing yet), one, or many (a value that lists them); they may stand in the value or in the
// key, so it gets both. A format whose backends are the join of sibling keys (traefik's url and weight) will name, beside this, the record that a key belongs
// to; then the keys of a record are decoded together.
package format

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

// Names of the formats, as `format:` in the configuration has them.
const (
	GRPCNaming = "grpc-naming"
	Plain      = "plain"
)

// MaxValue bounds a value in bytes. Registrations have some hundred bytes; a larger limit lets one key cost more memory and time.
const MaxValue = 64 << 10

// Decoder reads one service's keys. It is for one goroutine.
type Decoder struct {
	decode func(dst []service.Backend, key string, value []byte) ([]service.Backend, error)
}

// New returns a decoder of the format called name.
func New(name string) (*Decoder, error) {
	switch name {
	case GRPCNaming:
		return &Decoder{(&grpcNaming{}).decode}, nil
	case Plain:
		return &Decoder{plain}, nil
	}
	return nil, fmt.Errorf("format %q is not known: use %s or %s", name, GRPCNaming, Plain)
}

// Append appends the backends of one key to dst, without Key, Created and Modified. On an error dst comes back as it was; the error says what is wrong
// with this key in words for `explain` (SEMANTICS 1.7), in valid UTF-8.
func (d *Decoder) Append(dst []service.Backend, key string, value []byte) ([]service.Backend, error) {
	switch {
	case !utf8.ValidString(key):
		return dst, errors.New("the key is not valid UTF-8")
	case len(value) > MaxValue:
		return dst, fmt.Errorf("the value has %d bytes, more than %d", len(value), MaxValue)
	}
	out, err := d.decode(dst, key, value)
	if err != nil {
		return dst, err
	}
	return out, nil
}
