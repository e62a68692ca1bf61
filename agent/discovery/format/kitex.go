package format

import (
	"cmp"
	"errors"

	"github.com/lbagent/lbagent/agent/service"
)

// kitexWeight is what kitex and hertz give an instance that names no weight.
const kitexWeight = 10

// kitex reads what kitex' registry-etcd and hertz' registry/etcd write: `kitex/registry-etcd/<service>/<addr>` and `hertz/registry-etcd/<service>/<addr>`, a JSON
// object with network, address, weight and tags. Tags become metadata, but zone and region; the network does if it is not tcp. Unix sockets wait: they are on
// another host.
//
// A kitex server always writes a weight, 10 if none was set, so that 0 is draining here (kitex' own clients read it as 10). Hertz writes 0 if none was set, and
// its clients read that as 10: it has no mark for draining.
type kitex struct{ hertz bool }

func (k kitex) decode(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	b := service.Backend{Weight: kitexWeight}
	tags := o.object("tags")
	delete(tags, "weight") // the weight has a field of its own
	if err := setMetadata(&b, tags); err != nil {
		return dst, err
	}
	if w := o.text("weight"); w != "" && (w != "0" || !k.hertz) {
		if err := setWeight(&b, w); err != nil {
			return dst, err
		}
	}
	address, network := o.text("address"), o.text("network")
	switch network {
	case "", "tcp", "tcp4", "tcp6":
	default:
		return dst, nil
	}
	if address == "" {
		return dst, errors.New("no address")
	}
	if !k.hertz {
		address = bracketed(address) // kitex' registry leaves the brackets out
	}
	if err := setAddr(&b, address); err != nil {
		return dst, err
	}
	b.Metadata = withFields(b.Metadata, o)
	return append(dst, b), nil
}

// kitex has no mark for draining that kitex' own clients know.
func (r *Registration) kitex() (string, error) {
	return marshal(struct {
		Network string            `json:"network"`
		Address string            `json:"address"`
		Weight  uint32            `json:"weight"`
		Tags    map[string]string `json:"tags"`
	}{"tcp", r.Addr.String(), cmp.Or(r.Weight, kitexWeight), r.labels()})
}
