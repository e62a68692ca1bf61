package format

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// apisix reads an upstream of APISIX (core/etcd): `/apisix/upstreams/<id>`, JSON with nodes as {"host:port": weight} or [{host, port, weight, priority}]. A node
// that can't be read hides only itself. A weight of 0 is draining, 100 an absent one. A port that is missing is that of the upstream's scheme.
//
// APISIX uses the nodes of the highest priority first (0 if absent, -1 for a spare one); Priority counts the other way round, so the highest of the upstream is 0.
// The upstream's scheme, name and labels become metadata; all else is for APISIX itself.
func apisix(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	nodes, err := apisixNodes(o.take("nodes"))
	if err != nil {
		return dst, err
	}
	common := service.Backend{Weight: service.DefaultWeight}
	fields := o.object("labels")
	if fields == nil {
		fields = make(object)
	}
	delete(fields, "weight") // a label says nothing about nodes
	for _, name := range []string{"scheme", "name"} {
		if raw := o.take(name); raw != nil {
			fields[name] = raw
		}
	}
	if err := setMetadata(&common, fields); err != nil {
		return dst, err
	}
	from, highest := len(dst), int64(math.MinInt64)
	var priorities []int64
	var bad error
	for i, n := range nodes {
		b := common
		priority, err := n.read(&b, common.Metadata["scheme"])
		if err != nil {
			bad = cmp.Or(bad, fmt.Errorf("node %d: %w", i, err))
			continue
		}
		dst, priorities, highest = append(dst, b), append(priorities, priority), max(highest, priority)
	}
	for i, p := range priorities {
		dst[from+i].Priority = uint16(min(highest-p, math.MaxUint16))
	}
	return dst, bad
}

// apisixNode is one node as its fields.
type apisixNode struct{ object }

// apisixNodes reads both forms of nodes. None is not an error: the upstream may be found by a service discovery of APISIX' own.
func apisixNodes(raw json.RawMessage) ([]apisixNode, error) {
	if raw == nil {
		return nil, nil
	}
	var nodes []apisixNode
	if raw[0] == '{' {
		var weights object
		if err := json.Unmarshal(raw, &weights); err != nil {
			return nil, jsonError(err)
		}
		for _, address := range slices.Sorted(maps.Keys(weights)) {
			text, err := json.Marshal(address)
			if err != nil {
				return nil, jsonError(err)
			}
			nodes = append(nodes, apisixNode{object{"host": text, "weight": weights[address]}})
		}
		return nodes, nil
	}
	var list []object
	if json.Unmarshal(raw, &list) != nil {
		return nil, errors.New("nodes is neither an object nor a list of objects")
	}
	for _, o := range list {
		nodes = append(nodes, apisixNode{o})
	}
	return nodes, nil
}

// read gives b the node's address and weight, and returns its priority.
func (n apisixNode) read(b *service.Backend, scheme string) (priority int64, err error) {
	host, port := n.text("host"), n.text("port")
	if err := apisixAddr(b, host, port, scheme); err != nil {
		return 0, err
	}
	if w := n.text("weight"); w != "" {
		if err := setWeight(b, w); err != nil {
			return 0, err
		}
	}
	if p := n.text("priority"); p != "" {
		priority, err = strconv.ParseInt(p, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("priority %.40q is not a whole number", p)
		}
	}
	return priority, nil
}

// apisixAddr reads the address of a node: host and port, both in host, or a host alone, whose port is the scheme's.
func apisixAddr(b *service.Backend, host, port, scheme string) error {
	if port == "" {
		if setAddr(b, host) == nil {
			return nil
		}
		switch scheme {
		case "", "http", "grpc", "ws":
			port = "80"
		case "https", "grpcs", "wss":
			port = "443"
		default:
			return setAddr(b, host) // says what is wrong
		}
		if _, _, err := net.SplitHostPort(host); err == nil {
			return setAddr(b, host)
		}
	}
	return setAddr(b, net.JoinHostPort(strings.Trim(host, "[]"), port))
}
