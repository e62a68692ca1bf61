package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// Bounds of the cache of metadata: the backends of a service share few different ones (version, zone, weight), each of some hundred bytes.
const (
	cachedMetadata  = 32
	cachedMetadataB = 1 << 10
)

// grpcNaming reads the records of etcd's own gRPC naming (client/v3/naming/endpoints): JSON with Op (0 add, 1 delete), Addr and Metadata, which may be any
// JSON. An object's weight, zone and region are read, what else it has becomes metadata, as do fields beside these three.
type grpcNaming struct {
	// seen holds what Metadata said before, by its JSON text: equal metadata is read once, and its backends share one map. A map of one entry takes 300
	// bytes, which is more than all else of a backend.
	seen map[string]service.Backend
}

func (g *grpcNaming) decode(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if len(bytes.TrimSpace(value)) == 0 {
		return dst, errors.New("the value is empty")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return dst, jsonError(err)
	}
	op, addr, meta := take(fields, "Op"), take(fields, "Addr"), take(fields, "Metadata")
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
	if b.Addr, err = parseAddr(text); err != nil {
		return dst, err
	}
	if len(fields) > 0 {
		b.Metadata = withFields(b.Metadata, fields)
	}
	return append(dst, b), nil
}

// take removes a field and returns its value, nil if it is absent or null. Go's own JSON accepts any case; here the name and its lower case are enough, so that
// of two spellings always the same one wins.
func take(fields map[string]json.RawMessage, name string) json.RawMessage {
	lower := strings.ToLower(name)
	v, ok := fields[name]
	if !ok {
		v = fields[lower]
	}
	delete(fields, name)
	delete(fields, lower)
	if isNull(v) {
		return nil
	}
	return v
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
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(meta, &fields); err != nil {
			return b, jsonError(err)
		}
		if w, ok := fields["weight"]; ok && !isNull(w) {
			if err := setWeight(&b, jsonText(w)); err != nil {
				return b, err
			}
		}
		b.Zone, b.Region = jsonText(fields["zone"]), jsonText(fields["region"])
		for _, name := range []string{"weight", "zone", "region"} {
			delete(fields, name)
		}
		b.Metadata = withFields(nil, fields)
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

// withFields returns a copy of m with fields added where m has no such key; nil if that is nothing.
func withFields(m map[string]string, fields map[string]json.RawMessage) map[string]string {
	var out map[string]string
	add := func(k, v string) {
		if out == nil {
			out = make(map[string]string, len(m)+len(fields))
		}
		out[k] = v
	}
	for k, raw := range fields {
		if !isNull(raw) {
			add(k, jsonText(raw))
		}
	}
	for k, v := range m {
		add(k, v)
	}
	return out
}

// isNull reports whether a field is absent or null, which say the same.
func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// jsonText is a JSON value as a string: strings as they are, anything else as its JSON.
func jsonText(raw json.RawMessage) string {
	if isNull(raw) {
		return ""
	}
	var s string
	if raw[0] == '"' && json.Unmarshal(raw, &s) == nil {
		return s
	}
	var out bytes.Buffer
	if json.Compact(&out, raw) == nil {
		raw = out.Bytes()
	}
	return strings.ToValidUTF8(string(raw), "\uFFFD")
}

// jsonError says what is wrong with the JSON.
func jsonError(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("the value is a JSON %s, not an object", e.Value)
	}
	return fmt.Errorf("the value is not JSON: %s", strings.ToValidUTF8(err.Error(), "\uFFFD"))
}
