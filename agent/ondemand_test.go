package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/localapi"
)

// demand is an onDemand with what it did.
type demand struct {
	onDemand

	following []string
	last      config.Service // that was followed, or followed in another way
	idle      map[string]time.Duration
}

func newDemand(t *testing.T, yaml string) *demand {
	d := &demand{idle: make(map[string]time.Duration)}
	d.onDemand = onDemand{
		follow: func(services ...config.Service) {
			for _, s := range services {
				d.drop(s.Name)
				d.following = append(d.following, s.Name)
				d.last = s
			}
		},
		followed: func(name string) bool { return slices.Contains(d.following, name) },
		drop: func(name string) {
			d.following = slices.DeleteFunc(d.following, func(s string) bool { return s == name })
		},
		unasked: func(name string, _ time.Time) time.Duration { return d.idle[name] },
		config:  load(t, yaml),
		owner:   make(map[string]uint32),
		count:   make(map[uint32]int),
	}
	return d
}

func load(t *testing.T, yaml string) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lbagent.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const withEtcd = "etcd: {endpoints: [\"http://127.0.0.1:2379\"]}\n"

func TestOnDemandRefusals(t *testing.T) {
	for _, c := range []struct {
		name, yaml, service string
		want                error
	}{
		{"no etcd", "", "user", localapi.ErrUnknownService},
		{"off", withEtcd + "on_demand: off\n", "user", localapi.ErrUnknownService},
		{"not a name", withEtcd, "../user", localapi.ErrUnknownService},
		{"fine", withEtcd, "user", nil},
	} {
		if err := newDemand(t, c.yaml).ask(c.service, 1000); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestOnDemandBounds: at most 256 per agent and 64 per uid (1.15); asking again for what is followed is free.
func TestOnDemandBounds(t *testing.T) {
	d := newDemand(t, withEtcd)
	for i := range maxOnDemandPerUID {
		if err := d.ask(fmt.Sprintf("s%d", i), 1000); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.ask("one-more", 1000); !errors.Is(err, localapi.ErrTooManyServices) {
		t.Errorf("the 65th of a uid: %v", err)
	}
	if err := d.ask("s0", 1000); err != nil {
		t.Errorf("asked again: %v", err)
	}
	for uid := uint32(1001); len(d.following) < maxOnDemand; uid++ {
		for i := range maxOnDemandPerUID {
			if err := d.ask(fmt.Sprintf("u%d-%d", uid, i), uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.ask("one-more", 5000); !errors.Is(err, localapi.ErrTooManyServices) {
		t.Errorf("the 257th of the agent: %v", err)
	}
	if len(d.following) != maxOnDemand {
		t.Errorf("%d are followed, want %d", len(d.following), maxOnDemand)
	}
}

// TestOnDemandIdle: what nobody asked for during `idle` is dropped, and its owner may ask for something else.
func TestOnDemandIdle(t *testing.T) {
	d := newDemand(t, withEtcd+"on_demand: {idle: 10m}\n")
	for i := range maxOnDemandPerUID {
		if err := d.ask(fmt.Sprintf("s%d", i), 1000); err != nil {
			t.Fatal(err)
		}
	}
	d.idle["s3"] = 10 * time.Minute
	d.idle["s4"] = 10*time.Minute - 1
	d.sweep(time.Now())
	if slices.Contains(d.following, "s3") || !slices.Contains(d.following, "s4") {
		t.Errorf("after the sweep: %v", d.following)
	}
	if err := d.ask("other", 1000); err != nil {
		t.Errorf("the freed place: %v", err)
	}
}

// TestOnDemandReload: what a new configuration names itself, or would follow elsewhere, is no longer followed on demand.
func TestOnDemandReload(t *testing.T) {
	d := newDemand(t, withEtcd)
	for _, name := range []string{"user", "order"} {
		if err := d.ask(name, 1000); err != nil {
			t.Fatal(err)
		}
	}
	d.configure(config.Service{Name: "user"})
	d.idle["user"] = time.Hour * 24
	d.sweep(time.Now())
	if !slices.Contains(d.following, "user") {
		t.Error("a service that is configured now was dropped as idle")
	}
	// A caller who found it unknown just before the reload asks for it just after.
	d.configure(config.Service{Name: "late"})
	if err := d.ask("late", 1000); err != nil {
		t.Error(err)
	}
	d.idle["late"] = time.Hour * 24
	d.sweep(time.Now())
	if !slices.Contains(d.following, "late") {
		t.Error("a service that was asked for when it had just been configured was dropped as idle")
	}
	d.last = config.Service{}
	d.set(load(t, withEtcd+"state_dir: /elsewhere\n"))
	if !slices.Contains(d.following, "order") || d.last.Name != "" {
		t.Error("a reload that changes nothing of it dropped a service, or changed it")
	}
	d.set(load(t, withEtcd+"node: {zone: a}\n"))
	if !slices.Contains(d.following, "order") || d.last.Name != "order" || d.last.Zone != "a" {
		t.Errorf("a reload with another zone left service %+v", d.last)
	}
	d.set(load(t, withEtcd+"on_demand: {prefix: \"elsewhere/{service}/\"}\n"))
	if slices.Contains(d.following, "order") {
		t.Error("a service that would be read elsewhere is still followed")
	}
}
