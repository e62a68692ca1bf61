package format

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// goMicro reads what go-micro's registry/etcd writes: `/micro/registry/<service>/<node id>`, a JSON service with its nodes, each with id, address and metadata.
//
// A / in a service's name or a node's id is a - in the key, so that a/b and a-b share a prefix; the name is metadata where it is not what the key says, so that
// `select: {name: a/b}` tells them apart. Metadata is the node's, then the service's, then its version. go-micro has no weights of its own: a node's
// metadata.weight counts, 100 if absent, 0 is draining.
func goMicro(dst []service.Backend, key string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	var nodes []object
	if raw := o.take("nodes"); raw != nil && json.Unmarshal(raw, &nodes) != nil {
		return dst, errors.New("nodes is not a list of objects")
	}
	common := o.object("metadata")
	o.drop("endpoints") // a description of the API
	o.dropBlank("version")
	if name := o.text("name"); name != "" && !strings.Contains(key, "/"+name+"/") {
		o["name"], _ = json.Marshal(name)
	}
	var bad error
	for i, node := range nodes {
		b, err := microNode(node, common, o)
		if err != nil {
			bad = cmp.Or(bad, fmt.Errorf("node %d: %w", i, err))
			continue
		}
		dst = append(dst, b)
	}
	return dst, bad
}

// microNode reads one node of a service with its own metadata and fields.
func microNode(node, common, fields object) (service.Backend, error) {
	b := service.Backend{Weight: service.DefaultWeight}
	all := make(object, len(common))
	for _, m := range []object{common, node.object("metadata")} {
		for k, v := range m {
			all[k] = v
		}
	}
	if err := setMetadata(&b, all); err != nil {
		return b, err
	}
	b.Metadata = withFields(b.Metadata, fields)
	return b, setAddr(&b, node.text("address"))
}
