package format

import (
	"github.com/lbagent/lbagent/agent/service"
)

// jupiter reads what douyu's jupiter writes: `<scheme>:<name>:v1:<mode>/<addr>`, the record of etcd's gRPC naming with jupiter's own MetadataX, which has weight,
// enable, healthy, zone, region, scheme, group and more; they become metadata. Default weight 100; Op 1, a weight of 0, and enable or healthy false are draining.
func jupiter(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	b := service.Backend{Weight: service.DefaultWeight}
	op, address := o.take("Op"), o.text("Addr")
	x := o.object("MetadataX")
	if own := x.text("address"); address == "" {
		address = own
	}
	if address == "" {
		return dst, nil
	}
	if err := setAddr(&b, address); err != nil {
		return dst, err
	}
	if err := setSwitches(&b, x, "enable", "healthy"); err != nil {
		return dst, err
	}
	if err := setOp(&b, op); err != nil {
		return dst, err
	}
	more := x.object("metadata")
	x.drop("name", "appID", "services") // the key has the name; the services are a description of the API
	x.dropBlank("zone", "region", "group", "deployment", "kind", "scheme")
	for k, v := range more {
		if _, ok := x[k]; !ok {
			x[k] = v
		}
	}
	if err := setMetadata(&b, x); err != nil {
		return dst, err
	}
	o.drop("Metadata")
	b.Metadata = withFields(b.Metadata, o)
	return append(dst, b), nil
}
