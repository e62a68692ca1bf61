package config

import (
	"reflect"
	"testing"
)

// TestSources: where backends come from, with the namespace applied; a service's own select: goes before that of defaults:, whole.
func TestSources(t *testing.T) {
	c := mustParse(t, `
etcd: {endpoints: ["http://a:2379"], namespace: /prod/}
defaults: {select: {scheme: grpc}}
services:
  - {name: a, prefix: services/a/}
  - {name: b, key: lists/b}
  - {name: c, key: lists/b, namespace: ""}
  - {name: d, key: lists/b, namespace: /other/, select: {role: [replica, primary, replica], zone: }}
  - {name: e, key: lists/b/c}
  - {name: f, prefix: lists/g/}
  - {name: g, key: lists/g}
  - {name: h, prefix: services/h/, select: {}}
`)
	for _, w := range []struct {
		name, prefix, key, namespace string
		sel                          map[string][]string
	}{
		{"a", "/prod/services/a/", "", "/prod/", map[string][]string{"scheme": {"grpc"}}},
		{"b", "", "/prod/lists/b", "/prod/", map[string][]string{"scheme": {"grpc"}}},
		{"c", "", "lists/b", "", map[string][]string{"scheme": {"grpc"}}},
		{"d", "", "/other/lists/b", "/other/", map[string][]string{"role": {"primary", "replica"}, "zone": {""}}},
		{"e", "", "/prod/lists/b/c", "/prod/", map[string][]string{"scheme": {"grpc"}}},
		{"f", "/prod/lists/g/", "", "/prod/", map[string][]string{"scheme": {"grpc"}}},
		{"g", "", "/prod/lists/g", "/prod/", map[string][]string{"scheme": {"grpc"}}},
		{"h", "/prod/services/h/", "", "/prod/", nil},
	} {
		s := find(t, c, w.name)
		if s.EtcdPrefix != w.prefix || s.EtcdKey != w.key || s.Namespace != w.namespace || !reflect.DeepEqual(s.Select, w.sel) {
			t.Errorf("%s: prefix %q, key %q, namespace %q, select %v", w.name, s.EtcdPrefix, s.EtcdKey, s.Namespace, s.Select)
		}
	}
}

// TestFallback: one of prefix and backends, with the service's namespace and the defaults' fallback for who has none of its own.
func TestFallback(t *testing.T) {
	c := mustParse(t, `
etcd: {endpoints: ["http://a:2379"], namespace: /prod/}
defaults: {fallback: {prefix: far/all/}}
services:
  - {name: a, prefix: services/a/, fallback: {backends: ["10.0.0.2:80", "dns:far.svc:80"]}}
  - {name: b, prefix: services/b/, namespace: /other/}
  - {name: c, prefix: services/c/, fallback: {prefix: far/c/, format: plain}}
  - {name: d, prefix: services/d/, fallback: off}
  - {name: e, backends: ["10.0.0.1:80"], fallback: {}}
`)
	for name, want := range map[string]*Fallback{
		"a": {Backends: find(t, c, "a").Fallback.Backends},
		"b": {Prefix: "far/all/", EtcdPrefix: "/other/far/all/"},
		"c": {Prefix: "far/c/", EtcdPrefix: "/prod/far/c/", Format: "plain"},
		"d": nil,
		"e": nil,
	} {
		if got := find(t, c, name).Fallback; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if b := find(t, c, "a").Fallback.Backends; len(b) != 2 || b[0].Host != "far.svc" || b[1].Addr.String() != "10.0.0.2:80" {
		t.Errorf("backends %+v", b)
	}
	if s, _ := c.OnDemandService("x"); s.Fallback == nil || s.Fallback.EtcdPrefix != "/prod/far/all/" {
		t.Errorf("on demand: %+v", s.Fallback)
	}
}
