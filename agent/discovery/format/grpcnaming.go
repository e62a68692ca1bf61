package format

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lbagent/lbagent/agent/service"
)

// grpcNaming reads the records of etcd's own gRPC naming (client/v3/naming/endpoints): JSON with Op (0 add, 1 delete), Addr and Metadata, which may be any
// JSON. An object's weight, zone and region are read, what else it has becomes metadata, as do fields beside these three.
type grpcNaming struct {
	// seen holds what Metadata said before, by its JSON text: equal metadata is read once.
	seen map[string]service.Backend
}

func (g *grpcNaming) decode(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, errors.New("the value is empty")
	}
	fields, err := parse(value)
	if err != nil {
		return dst, err
	}
	op, addr, meta := fields.take("Op"), fields.take("Addr"), fields.take("Metadata")
	b, err := g.metadata(meta)
	if err != nil {
		return dst, err
	}
	if err := setOp(&b, op); err != nil {
		return dst, err
	}
	var text string
	if addr == nil || json.Unmarshal(addr, &text) != nil {
		return dst, errors.New("no string Addr")
	}
	if err := setAddr(&b, text); err != nil {
		return dst, err
	}
	if len(fields) > 0 {
		b.Metadata = withFields(b.Metadata, fields)
	}
	return append(dst, b), nil
}

// setOp marks a record that says it was deleted (SEMANTICS 1.11).
func setOp(b *service.Backend, op json.RawMessage) error {
	switch string(op) {
	case "", "0":
	case "1":
		b.Draining = true
	default:
		return fmt.Errorf("unknown Op %.40q", op)
	}
	return nil
}

// metadata returns a backend with what meta says.
func (g *grpcNaming) metadata(meta json.RawMessage) (service.Backend, error) {
	if b, ok := g.seen[string(meta)]; ok {
		return b, nil
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if meta != nil && meta[0] == '{' {
		fields, err := parse(meta)
		if err != nil {
			return b, err
		}
		if err := setMetadata(&b, fields); err != nil {
			return b, err
		}
	} else if meta != nil {
		b.Metadata = map[string]string{"metadata": jsonText(meta)}
	}
	if len(meta) <= cachedMetadataB {
		if g.seen == nil || len(g.seen) >= cachedMetadata {
			g.seen = make(map[string]service.Backend)
		}
		g.seen[string(meta)] = b
	}
	return b, nil
}

// grpcNaming marks a draining backend by its Op. etcd's own resolver doesn't look at it, nor at weights: for its users a backend is gone with its key.
func (r *Registration) grpcNaming() (string, error) {
	metadata := make(map[string]any)
	for k, v := range r.labels() {
		metadata[k] = v
	}
	if r.Weight > 0 {
		metadata["weight"] = r.Weight
	}
	record := struct {
		Op       int
		Addr     string
		Metadata any
	}{Addr: r.Addr.String()}
	if r.Draining {
		record.Op = 1
	}
	if len(metadata) > 0 {
		record.Metadata = metadata
	}
	return marshal(record)
}
