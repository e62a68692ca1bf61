package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestNamespace(t *testing.T) {
	c := mustParse(t, `
etcd: {endpoints: ["http://etcd:2379"], namespace: /prod/}
defaults: {namespace: /other/}
services:
  - {name: a, prefix: x/}
  - {name: b, prefix: x/, namespace: ""}
  - {name: c, prefix: x/, namespace: /c/}
  - {name: d, backends: ["10.0.0.1:1"]}
`)
	for name, want := range map[string]string{"a": "/other/x/", "b": "x/", "c": "/c/x/", "d": ""} {
		if s := find(t, c, name); s.EtcdPrefix != want || s.Namespace+s.Prefix != want {
			t.Errorf("%s: %q, namespace %q, want %q", name, s.EtcdPrefix, s.Namespace, want)
		}
	}
}

// TestOverlap: the same refused, the neighbour not; the namespace counts (see testdata/bad/prefixes too).
func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		name, a, b string
		ok         bool
	}{
		{"equal", "{name: a, prefix: x/}", "{name: b, prefix: x/}", false},
		{"nested", "{name: a, prefix: x/y/}", "{name: b, prefix: x/}", false},
		{"neighbours", "{name: a, prefix: x/}", "{name: b, prefix: xy/}", true},
		{"below one parent", "{name: a, prefix: x/a/}", "{name: b, prefix: x/b/}", true},
		{"equal, the first says so", "{name: a, prefix: x/, overlap: true}", "{name: b, prefix: x/}", true},
		{"equal, the second says so", "{name: a, prefix: x/}", "{name: b, prefix: x/, overlap: true}", true},
		{"equal, overlap: false", "{name: a, prefix: x/, overlap: false}", "{name: b, prefix: x/}", false},
		{"another namespace", "{name: a, prefix: x/}", "{name: b, prefix: x/, namespace: /b/}", true},
		{"equal by namespace", "{name: a, prefix: p/x/}", "{name: b, prefix: x/, namespace: p/}", false},
		{"holds the services on demand", "{name: a, prefix: services/}", "{name: b, prefix: x/}", false},
		{"holds the services on demand, meant", "{name: a, prefix: services/, overlap: true}", "{name: b, prefix: x/}", true},
		{"one of the services on demand", "{name: a, prefix: services/a/}", "{name: b, prefix: services/z/}", true},
		{"below one of the services on demand by default", "{name: a, prefix: services/a/grpc/}", "{name: b, prefix: x/}", true},
		{"static", "{name: a, backends: [\"10.0.0.1:1\"]}", "{name: b, backends: [\"10.0.0.1:1\"]}", true},
	} {
		_, err := parseText(withEtcd + "services:\n  - " + c.a + "\n  - " + c.b + "\n")
		if (err == nil) != c.ok {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
}

func TestOnDemandService(t *testing.T) {
	c := mustParse(t, `
etcd: {endpoints: ["http://etcd:2379"], namespace: /prod/}
on_demand: {format: plain}
defaults: {policy: round_robin}
`)
	got, ok := c.OnDemandService("user.v1")
	want := defaultService()
	want.Name, want.At, want.Namespace, want.Prefix, want.EtcdPrefix = "user.v1", "on demand", "/prod/", "services/user.v1/", "/prod/services/user.v1/"
	want.Format, want.Policy, want.OnDemand = "plain", "round_robin", true
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %+v, want %+v", ok, got, want)
	}
	for _, name := range []string{"", "a/b", "..", ".", strings.Repeat("x", 254)} {
		if _, ok := c.OnDemandService(name); ok {
			t.Errorf("%q is accepted", name)
		}
	}
}
