package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Equal says whether two services are the same; where they stand in the files does not count.
func (s Service) Equal(other Service) bool {
	s.At, other.At = "", ""
	return reflect.DeepEqual(s, other)
}

// Change is what differs between two configurations, in the words of the file.
type Change struct {
	Sections []string // top-level keys but services; without those whose values are the same
	Added    []string // names of services
	Removed  []string
	Changed  []string
}

// Compare says what a reload from old to new has to do. What it does not name must not be touched (6.1).
func Compare(old, new *Config) Change {
	var c Change
	for _, section := range []struct {
		name     string
		old, new any
	}{
		{"node", old.Node, new.Node},
		{"etcd", old.Etcd, new.Etcd},
		{"api", old.API, new.API},
		{"admin", old.AdminListen, new.AdminListen},
		{"metrics", old.MetricsAddr, new.MetricsAddr},
		{"state_dir", old.StateDir, new.StateDir},
		{"proxy", old.Loops, new.Loops},
		{"limits", old.Limits, new.Limits},
		{"on_demand", old.OnDemand, new.OnDemand},
		{"fleet", old.Fleet, new.Fleet},
		{"mute", old.MutePrefix, new.MutePrefix},
		{"log", old.Log, new.Log},
		{"access_log", old.AccessLog, new.AccessLog},
		{"notify", old.NotifyURL, new.NotifyURL},
		{"defaults", old.Defaults, new.Defaults},
		{"register_allow", old.RegisterAllow, new.RegisterAllow},
		{"registration_ttl", old.RegistrationTTL, new.RegistrationTTL},
		{"drain_timeout", old.DrainTimeout, new.DrainTimeout},
	} {
		if !reflect.DeepEqual(section.old, section.new) {
			c.Sections = append(c.Sections, section.name)
		}
	}
	if !equalRegister(old.Register, new.Register) {
		c.Sections = append(c.Sections, "register")
	}
	before := make(map[string]Service, len(old.Services))
	for _, s := range old.Services {
		before[s.Name] = s
	}
	for _, s := range new.Services {
		was, ok := before[s.Name]
		switch {
		case !ok:
			c.Added = append(c.Added, s.Name)
		case !was.Equal(s):
			c.Changed = append(c.Changed, s.Name)
		}
		delete(before, s.Name)
	}
	for _, s := range old.Services {
		if _, gone := before[s.Name]; gone {
			c.Removed = append(c.Removed, s.Name)
		}
	}
	return c
}

// None says whether nothing differs.
func (c Change) None() bool { return len(c.Sections)+len(c.Added)+len(c.Removed)+len(c.Changed) == 0 }

// String is one line for logs and answers: "etcd; services: 1 added (user), 2 changed (a, b)".
func (c Change) String() string {
	if c.None() {
		return "nothing changed"
	}
	var parts []string
	for _, of := range []struct {
		what  string
		names []string
	}{{"added", c.Added}, {"removed", c.Removed}, {"changed", c.Changed}} {
		if n := len(of.names); n > 0 {
			names := strings.Join(of.names[:min(n, 5)], ", ")
			if n > 5 {
				names += ", ..."
			}
			parts = append(parts, fmt.Sprintf("%d %s (%s)", n, of.what, names))
		}
	}
	text := strings.Join(c.Sections, ", ")
	if len(parts) > 0 {
		if text != "" {
			text += "; "
		}
		text += "services: " + strings.Join(parts, ", ")
	}
	return text
}
