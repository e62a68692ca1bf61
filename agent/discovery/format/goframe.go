package format

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// goFrame reads what goframe's contrib/registry/etcd writes: `/service/<deployment>/<namespace>/<name>/<version>/<host:port>[,<host:port>]`, with the backends in
// the key, and JSON metadata as the value, or nothing. The key's version becomes metadata. metadata.weight counts, 100 if absent; 0 is draining, and goframe's
// weighted selector never picks it either.
func goFrame(dst []service.Backend, key string, value []byte) ([]service.Backend, error) {
	before, last := cutLast(key)
	if last == "" || !strings.Contains(last, ":") {
		return dst, nil // a folder
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if !blank(value) {
		o, err := parse(value)
		if err != nil {
			return dst, err
		}
		if err := setMetadata(&b, o); err != nil {
			return dst, err
		}
	}
	if _, version := cutLast(before); version != "" && b.Metadata["version"] == "" {
		b.Metadata = with(b.Metadata, "version", version)
	}
	var bad error
	for address := range strings.SplitSeq(last, ",") {
		one := b
		if err := setAddr(&one, strings.TrimSpace(address)); err != nil {
			bad = cmp.Or(bad, fmt.Errorf("in the key: %w", err))
			continue
		}
		dst = append(dst, one)
	}
	return dst, bad
}
