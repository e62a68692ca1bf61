package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// only says on which hosts an item of the fleet applies: each key's values are alternatives, all keys have to match. Empty = everywhere.
type only map[string][]string

const maxOnly = 1000 // values of one key

// only reads services[].only.
func (v value) only() only {
	o := make(only)
	one := func(key string) func(value) {
		return func(v value) {
			const allowed = "a name, or a list of them, is allowed"
			read := func(v value) {
				var s string
				v.str(&s, nameAllowed, false, service.ValidName)
				if len(o[key]) >= maxOnly {
					v.fail(fmt.Sprintf("at most %d are allowed", maxOnly), "is one too many")
					return
				}
				o[key] = append(o[key], s)
			}
			if v.isScalar() {
				read(v)
				return
			}
			if v.isList() && len(v.node.Content) == 0 {
				v.fail(allowed, "names no host")
			}
			v.list(allowed, read)
		}
	}
	found := v.object(keys{"node": one("node"), "zone": one("zone"), "region": one("region")})
	if len(found) == 0 && v.isMap() {
		v.fail("write only: {zone: ...}, {region: ...} or {node: ...}, or leave it out", "names no host")
	}
	return o
}

// matches says whether n is one of the hosts.
func (o only) matches(n Node) bool {
	for key, values := range o {
		is := map[string]string{"node": n.Name, "zone": n.Zone, "region": n.Region}[key]
		if !slices.Contains(values, is) {
			return false
		}
	}
	return true
}

// apart says whether no host is one of o's and of p's.
func (o only) apart(p only) bool {
	for key, values := range o {
		others, both := p[key]
		if both && !slices.ContainsFunc(values, func(v string) bool { return slices.Contains(others, v) }) {
			return true
		}
	}
	return false
}

// String is o for a person: "zone eu-1a or eu-1b, node web-17".
func (o only) String() string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(o)) {
		values := o[key]
		text := strings.Join(values[:min(len(values), 5)], " or ")
		if more := len(values) - 5; more > 0 {
			text += fmt.Sprintf(" or %d more", more)
		}
		parts = append(parts, key+" "+text)
	}
	return strings.Join(parts, ", ")
}
