package config

import (
	"fmt"
	"slices"

	"gopkg.in/yaml.v3"
)

const maxSelect = 32 // keys of select:, and values of each

// selection reads services[].select: of each key one value, or a list of those that match.
func (v value) selection() map[string][]string {
	const allowed = "a map such as {role: primary, zone: [eu-1a, eu-1b]} is allowed"
	if v.d.bad[v.node] || null(v.node) {
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		v.fail(allowed, "%s is no map", v.quote())
		return nil
	}
	out := make(map[string][]string)
	names := make(keys)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		name := v.node.Content[i].Value
		names[name] = func(v value) { out[name] = v.wanted() }
	}
	if len(names) > maxSelect {
		v.fail(fmt.Sprintf("at most %d are allowed", maxSelect), "has %d keys", len(names))
	}
	v.object(names)
	if len(out) == 0 {
		return nil
	}
	return out
}

// wanted reads the values that one key of select: may have.
func (v value) wanted() []string {
	const allowed = "a value, or a list of values of which one has to match, is allowed"
	var all []string
	one := func(v value) {
		if s, ok := v.text(allowed, true); ok && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if v.node.Kind != yaml.SequenceNode {
		one(v)
		return all
	}
	v.list(allowed, one)
	if len(v.node.Content) == 0 || len(all) > maxSelect {
		v.fail(fmt.Sprintf("1 to %d values are allowed", maxSelect), "has %d values", len(v.node.Content))
	}
	slices.Sort(all)
	return all
}
