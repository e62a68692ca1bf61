package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// object is a JSON object whose fields are read one by one.
type object map[string]json.RawMessage

// parse reads a value that is a JSON object.
func parse(value []byte) (object, error) {
	var o object
	if err := json.Unmarshal(value, &o); err != nil {
		return nil, jsonError(err)
	}
	return o, nil
}

// blank reports whether a value says nothing: it was not written yet, or the key only stands for a folder.
func blank(value []byte) bool { return len(bytes.TrimSpace(value)) == 0 }

// take removes a field and returns its value, nil if it is absent or null. Go's own JSON accepts any case; here the name and its lower case are enough, so that
// of two spellings always the same one wins.
func (o object) take(name string) json.RawMessage {
	lower := strings.ToLower(name)
	v, ok := o[name]
	if !ok {
		v = o[lower]
	}
	delete(o, name)
	delete(o, lower)
	if isNull(v) {
		return nil
	}
	return v
}

// text takes a field as a string, empty if absent.
func (o object) text(name string) string { return jsonText(o.take(name)) }

// no takes a field that says yes or no, and reports whether it says no.
func (o object) no(name string) (bool, error) {
	switch s := o.text(name); strings.ToLower(s) {
	case "", "true", "1":
		return false, nil
	case "false", "0":
		return true, nil
	default:
		return false, fmt.Errorf("%s %.40q is neither true nor false", name, s)
	}
}

// object takes a field that is an object; anything else is none.
func (o object) object(name string) object {
	var in object
	if v := o.take(name); v != nil && v[0] == '{' {
		_ = json.Unmarshal(v, &in) // it is part of a value that was read already
	}
	return in
}

// drop removes fields that say nothing about a backend.
func (o object) drop(names ...string) {
	for _, name := range names {
		o.take(name)
	}
}

// dropBlank removes fields that are empty strings.
func (o object) dropBlank(names ...string) {
	for _, name := range names {
		if string(o[name]) == `""` {
			delete(o, name)
		}
	}
}

// setMetadata gives b what an object of metadata says: weight, zone and region, the rest as it is (rules 3 and 6).
func setMetadata(b *service.Backend, fields object) error {
	if w, ok := fields["weight"]; ok && !isNull(w) {
		if err := setWeight(b, jsonText(w)); err != nil {
			return err
		}
	}
	b.Zone, b.Region = jsonText(fields["zone"]), jsonText(fields["region"])
	for _, name := range []string{"weight", "zone", "region"} {
		delete(fields, name)
	}
	b.Metadata = withFields(b.Metadata, fields)
	return nil
}

// withFields returns a copy of m with fields added where m has no such key; nil if that is nothing.
func withFields(m map[string]string, fields object) map[string]string {
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

// with returns a copy of m in which name has this value.
func with(m map[string]string, name, value string) map[string]string {
	out := make(map[string]string, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	out[name] = value
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
