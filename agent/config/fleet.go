package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
	"gopkg.in/yaml.v3"
)

// Fleet is where the services of all hosts are kept in etcd.
type Fleet struct {
	Prefix string // of their keys, with the namespace; ends in /
}

// MaxItem bounds the text of one item; nothing that can be configured needs more.
const MaxItem = 64 << 10

func (s *sections) fleet(v value) {
	if v.isOff() {
		return
	}
	f := &Fleet{}
	s.cfg.Fleet = f
	v.object(keys{"prefix": func(v value) { v.prefix(&f.Prefix, true) }})
}

// decided works out what fleet: and etcd: say together.
func (f *Fleet) decided(v value, etcd *Etcd) {
	switch {
	case f.Prefix == "":
	case etcd == nil:
		v.fail("configure etcd, or leave fleet out", "needs etcd:")
	default:
		f.Prefix = etcd.Namespace + f.Prefix
	}
}

// checkFleet refuses services that would read the fleet's items as backends.
func checkFleet(f *Fleet, drafts []*draft) {
	if f == nil {
		return
	}
	for _, dr := range drafts {
		if keys := dr.etcdKeys(); keys != "" && (strings.HasPrefix(keys, f.Prefix) || dr.holds(f.Prefix)) {
			dr.source().fail("write another one", "%q and fleet.prefix, %q, hold each other's keys", clip(keys, 128), clip(f.Prefix, 128))
		}
	}
}

// Item is one service of the fleet's configuration as etcd has it.
type Item struct {
	Key  string // below fleet.prefix: SERVICE or SERVICE/VARIANT
	File string // how its mistakes name it
	Now  string // the YAML text
	Good string // the last text that was in force; "" = none. It is used when Now can't be
}

// Place says where an item is in force on a host.
type Place string

// Every Place.
const (
	Here       Place = "in force"   // it is one of the Config's services
	Elsewhere  Place = "elsewhere"  // its only: names other hosts
	Hidden     Place = "hidden"     // a variant of the same service is in force here
	Overridden Place = "overridden" // the files of this host have that service: they win
	Nowhere    Place = "bad"        // neither its text nor an older one can be used
)

// Fate is what came of an Item on this host.
type Fate struct {
	Place   Place
	Used    string // the text that is used: Now, Good, or none
	Problem error  // why Now isn't used; nil if it is
	By      string // Hidden, Overridden: by what
	Only    string // in words; "" = all hosts
	Service Service
}

// own is what a Config was made of.
type own struct {
	opt      Options
	sections *sections
	drafts   []*draft // nil without Fleet
}

// candidate is an item while it is looked at.
type candidate struct {
	Item
	service, variant string

	forms   []*draft // that can be read: Now, Good
	now     bool     // forms[0] is of Now
	problem error
	by      string
	place   Place
}

// WithFleet returns c with the items that are for this host, and what came of each. Items are looked at one by one: one that can't be used leaves the others alone. Of two that clash, the one that
// was in force before stays, then the one that comes first in items; the files of this host win over both. Without Fleet there must be no items.
func (c *Config) WithFleet(items []Item) (*Config, []Fate) {
	if len(items) == 0 {
		return c, nil
	}
	all := c.candidates(items)
	selected := c.settle(all, func() []*candidate { return here(all, c.Node, c.own.drafts) })
	next := *c
	next.Services = slices.Clone(c.Services)
	for _, one := range selected {
		s := one.forms[0].Service
		s.Item = one.Key
		next.Services = append(next.Services, s)
	}
	sortServices(next.Services)
	return &next, fates(all)
}

// CheckFleet looks at items as all hosts together would: those that can be on one host must not clash. Of two that do, the later one is blamed. The files' own services play
// no part: they are of one host.
func (c *Config) CheckFleet(items []Item) []Fate {
	all := c.candidates(items)
	alone := *c
	alone.own = &own{opt: c.own.opt, sections: c.own.sections}
	alone.settle(all, func() []*candidate {
		var usable []*candidate
		for _, one := range all {
			if len(one.forms) > 0 {
				usable, one.place = append(usable, one), Here
			}
		}
		return usable
	})
	return fates(all)
}

func (c *Config) candidates(items []Item) []*candidate {
	all := make([]*candidate, len(items))
	for i, item := range items {
		one := &candidate{Item: item}
		all[i] = one
		var dr *draft
		if one.service, one.variant, one.problem = SplitKey(item.Key); one.problem == nil {
			dr, one.problem = c.read(one, item.Now)
		}
		if one.problem == nil {
			one.forms, one.now = append(one.forms, dr), true
		}
		if item.Good != "" && item.Good != item.Now {
			if dr, err := c.read(one, item.Good); err == nil {
				one.forms = append(one.forms, dr)
			}
		}
	}
	return all
}

// settle takes back what clashes until nothing does: an item first falls back to its last good form, then goes. Each round takes back all that can't stay, so there are as
// many as one such step causes another.
func (c *Config) settle(all []*candidate, choose func() []*candidate) []*candidate {
	for {
		selected := choose()
		settled := func(one *candidate) int {
			if !one.now || one.Now == one.Good {
				return 0
			}
			return 1
		}
		ordered := slices.Clone(selected)
		slices.SortStableFunc(ordered, func(a, b *candidate) int { return cmp.Compare(settled(a), settled(b)) })
		drafts := slices.Clone(c.own.drafts)
		for i, one := range ordered {
			one.forms[0].rank = i + 1
			one.forms[0].at.d.errs = Errors{}
			drafts = append(drafts, one.forms[0])
		}
		check(c.own.sections, drafts)
		failed := false
		for _, one := range ordered {
			err := one.forms[0].at.d.errs.orNil(nil)
			if err == nil {
				continue
			}
			failed = true
			if one.problem == nil {
				one.problem = err
			}
			one.forms, one.now = one.forms[1:], false
		}
		if !failed {
			return selected
		}
	}
}

// here are the items for node, one per service at most: a variant that matches goes before the plain item, the first of them by name before the others.
func here(all []*candidate, node Node, files []*draft) []*candidate {
	local := make(map[string]*draft, len(files))
	for _, dr := range files {
		local[dr.Name] = dr
	}
	best := make(map[string]*candidate)
	for _, one := range all {
		one.place, one.by = Nowhere, ""
		if len(one.forms) == 0 {
			continue
		}
		if dr := local[one.service]; dr != nil {
			one.place, one.by = Overridden, dr.at.place()
			continue
		}
		if !one.forms[0].only.matches(node) {
			one.place = Elsewhere
			continue
		}
		other := best[one.service]
		if other == nil || other.variant == "" || one.variant != "" && one.variant < other.variant {
			best[one.service] = one
		}
	}
	var out []*candidate
	for _, one := range all {
		winner := best[one.service]
		switch {
		case one.place != Nowhere || len(one.forms) == 0:
		case winner == one:
			one.place = Here
			out = append(out, one)
		default:
			one.place, one.by = Hidden, winner.Key
		}
	}
	return out
}

func fates(all []*candidate) []Fate {
	out := make([]Fate, len(all))
	for i, one := range all {
		f := Fate{Place: one.place, Problem: one.problem, By: one.by}
		switch {
		case len(one.forms) == 0:
			f.Place = Nowhere
		case one.now:
			f.Used = one.Now
		default:
			f.Used = one.Good
		}
		if len(one.forms) > 0 {
			f.Only, f.Service = one.forms[0].only.String(), one.forms[0].Service
			f.Service.Item = one.Key
		}
		out[i] = f
	}
	return out
}

// errNoVariables: an item means the same on all hosts.
var errNoVariables = errors.New("an item of the fleet has no variables, since it means the same on every host; its only: tells hosts apart, $$ is a $")

// read makes a service of the text of an item. The error, if any, is a *Errors with every mistake of its own.
func (c *Config) read(one *candidate, text string) (*draft, error) {
	d := newDecoder(c.own.opt)
	d.opt.noVariables = true
	whole := value{d: d, file: one.File, line: 1, node: &yaml.Node{Kind: yaml.MappingNode}}
	if len(text) > MaxItem {
		whole.fail(fmt.Sprintf("at most %d KiB are allowed", MaxItem>>10), "the item has %d bytes", len(text))
		return nil, d.errs.orNil(nil)
	}
	root, ok := d.tree(source{name: one.File, data: []byte(text)})
	if !ok {
		return nil, d.errs.orNil(nil)
	}
	if root.node.Kind != yaml.MappingNode || len(root.node.Content) == 0 {
		whole.fail("write one entry of services:, such as {name: user, prefix: services/user/}", "the item is no service")
		return nil, d.errs.orNil(nil)
	}
	dr := new(c.own.sections.base)
	dr.at, dr.ownProbe, dr.rank = root, nil, 1
	dr.decode(root, c.Etcd)
	switch name := dr.own["name"]; {
	case dr.Name != "" && dr.Name != one.service:
		name.fail(fmt.Sprintf("write name: %s", one.service), "%q is not the service that the key is of", clip(dr.Name, 64))
	case one.variant != "" && len(dr.only) == 0:
		root.fail("write only: {zone: ...}, {region: ...} or {node: ...}", "the variant has no only:, so it would take the place of the item itself everywhere")
	}
	return dr, d.errs.orNil(nil)
}

// ForFleet is what an empty file would say beside etcd.endpoints: enough to look at the fleet's items.
func ForFleet(endpoints []string) (*Config, error) {
	text, err := yaml.Marshal(map[string]any{"etcd": map[string]any{"endpoints": endpoints}})
	if err != nil {
		return nil, fmt.Errorf("write the endpoints as YAML: %w", err)
	}
	return Options{}.withDefaults().parse([]source{{name: "--etcd", data: text}})
}

// refused says whether an item of the fleet is known to clash: what it claims is not taken from others.
func (dr *draft) refused() bool { return dr.rank > 0 && len(dr.at.d.errs.List) > 0 }

// variantName is short, and no number, which versions in the history are.
var variantName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,62}$`)

// SplitKey takes the key of an item, without fleet.prefix, apart.
func SplitKey(key string) (name, variant string, err error) {
	name, variant, isVariant := strings.Cut(key, "/")
	switch {
	case !service.ValidName(name):
		return "", "", fmt.Errorf("%q is no SERVICE or SERVICE/VARIANT: in a service's name %s", clip(printable(key), 128), nameAllowed)
	case isVariant && !variantName.MatchString(variant):
		return "", "", fmt.Errorf("%q is no item: a variant's name is a letter and at most 62 of A-Z a-z 0-9 . _ -", clip(printable(key), 128))
	}
	return name, variant, nil
}

// FleetItems are the services of a file that somebody wants to keep for the fleet: one entry of services:, or a file with several of them. The text of a single one is data as it is.
// name is how mistakes name the file.
func FleetItems(name string, data []byte) ([]Item, error) {
	d := newDecoder(Options{}.withDefaults())
	d.opt.noVariables = true
	root, ok := d.tree(source{name: name, data: data})
	if !ok || len(d.errs.List) > 0 {
		return nil, d.errs.orNil(nil)
	}
	var items []Item
	if root.get("name") != "" || root.node.Kind != yaml.MappingNode || len(root.node.Content) == 0 {
		if root.get("name") == "" {
			root.fail("write one entry of services:, such as {name: user, prefix: services/user/}, or services: with a list of them", "there is no service in it")
			return nil, d.errs.orNil(nil)
		}
		return []Item{{Key: root.get("name"), File: name, Now: string(data)}}, nil
	}
	plain, _, err := parseYAML(data) // as it was written: tree has replaced $$
	if err != nil {
		return nil, err
	}
	root.object(keys{"services": func(v value) {
		v.list("a list of entries such as {name: user, prefix: services/user/} is allowed", func(value) {})
	}})
	for i := 0; i+1 < len(plain.Content[0].Content) && len(d.errs.List) == 0; i += 2 {
		for _, n := range plain.Content[0].Content[i+1].Content {
			var text bytes.Buffer
			enc := yaml.NewEncoder(&text)
			enc.SetIndent(2)
			if err := errors.Join(enc.Encode(n), enc.Close()); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			at := value{d: d, file: name, line: n.Line, node: n}
			if at.get("name") == "" {
				at.fail("write name: SERVICE", "the service has no name")
			}
			items = append(items, Item{Key: at.get("name"), File: fmt.Sprintf("%s (service on line %d)", name, n.Line), Now: text.String()})
		}
	}
	if len(items) == 0 && len(d.errs.List) == 0 {
		root.fail("write at least one", "there is no service in it")
	}
	return items, d.errs.orNil(nil)
}
