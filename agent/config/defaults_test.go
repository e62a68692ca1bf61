package config

import (
	"reflect"
	"testing"
	"time"
)

// TestDefaults holds every default against DESIGN.md 5.
func TestDefaults(t *testing.T) {
	wantService := Service{
		Name:       "user",
		At:         "lbagent.yaml:3",
		Prefix:     "services/user/",
		EtcdPrefix: "services/user/",
		Format:     "grpc-naming",
		Protocol:   "auto",
		Authority:  "keep",
		Policy:     "p2c",
		Probe: Probe{Type: "tcp", Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3, Path: "/", StatusMin: 200,
			StatusMax: 399},
		Eject:        Eject{On: true, Consecutive: 5, SuccessRate: 50, Base: time.Second, Max: time.Minute, MaxPercent: 50},
		PanicPercent: 50,

		DynamicWeight: true,
		PreferZone:    true,
		SlowStart:     15 * time.Second,
		Subset:        32,

		Retry:     Retry{Max: 2, BudgetPercent: 20},
		Reconnect: Reconnect{Base: 100 * time.Millisecond, Max: 10 * time.Second},
		Timeout:   Timeout{Connect: time.Second, Request: 0, Idle: 5 * time.Minute},
		GuardHold: 10 * time.Minute,
		Drain:     30 * time.Second,
	}
	want := &Config{
		Files:       []string{"lbagent.yaml"},
		Node:        Node{Name: "host"},
		API:         API{Socket: "/run/lbagent/lbagent.sock", AdminSocket: "/run/lbagent-admin/admin.sock"},
		AdminListen: "127.0.0.1:9901",
		StateDir:    "/var/lib/lbagent",
		Loops:       1,
		Limits: Limits{
			Connections: 10000, StreamsPerConnection: 250, HeaderBytes: 64 << 10, HeaderFields: 200, Buffered: 256 << 20, BackendConnections: 8,
		},
		Log: Log{Level: "info", Format: "auto"}, RegistrationTTL: time.Minute, DrainTimeout: 5 * time.Minute,
	}
	want.Defaults = wantService
	want.Defaults.Name, want.Defaults.At, want.Defaults.Prefix, want.Defaults.EtcdPrefix = "", "", "", ""

	for _, empty := range []string{"", "# nothing\n", "---\n", "{}\n", "defaults:\nservices:\n", "\ufeff# with a byte order mark\r\n"} {
		got := mustParse(t, empty)
		got.good, got.own = nil, nil
		if !reflect.DeepEqual(got, want) { //nolint:govet // the errors in it are those of own, which is nil
			t.Errorf("%q: got %+v, want %+v", empty, got, want)
		}
	}

	got := mustParse(t, withEtcd+"services:\n  - {name: user, prefix: services/user/}\n")
	got.good, got.own = nil, nil
	want.Etcd = &Etcd{Endpoints: []string{"http://etcd:2379"}}
	want.OnDemand = &OnDemand{Prefix: "services/{service}/", Format: "grpc-naming", Idle: time.Hour}
	want.MutePrefix = "lbagent/mutes/"
	want.Services = []Service{wantService}
	if !reflect.DeepEqual(got, want) { //nolint:govet // the errors in it are those of own, which is nil
		t.Errorf("with etcd: got %+v, want %+v", got, want)
	}
	if dir := got.API.ListsDir(); dir != "/run/lbagent/lists" {
		t.Errorf("ListsDir %q", dir)
	}
}

func TestDefaultsOfTheHost(t *testing.T) {
	o := Options{}.withDefaults()
	if o.Hostname == "" || o.Cores < 1 || o.Env == nil {
		t.Errorf("%+v", o)
	}
	for _, c := range []struct{ written, cores, want int }{{0, 1, 1}, {0, 3, 1}, {0, 8, 2}, {0, 16, 4}, {0, 128, 4}, {7, 1, 7}} {
		if got := loops(c.written, c.cores); got != c.want {
			t.Errorf("loops(%d, %d) = %d, want %d", c.written, c.cores, got, c.want)
		}
	}
}

// TestPrecedence: a service's own key, then defaults:, then the default; maps merge key by key.
func TestPrecedence(t *testing.T) {
	c := mustParse(t, withEtcd+`
defaults:
  policy: round_robin
  format: plain
  drain: 5s
  panic_percent: 10
  probe: {type: http, interval: 1s, path: /ready}
  eject: {mode: off, consecutive: 9}
  timeout: {request: 7s}
  retry: {on: [unavailable, 503], max: 3}
  reconnect: {base: 1s}
services:
  - {name: none, prefix: none/}
  - name: some
    prefix: some/
    policy: p2c
    panic_percent: 0
    probe: {interval: 3s}
    eject: {base: 3s}
    timeout: {connect: 3s}
    retry: {on: [429], budget_percent: 30}
    reconnect: {max: 3s}
  - {name: back, prefix: back/, eject: on, probe: off}
  - {name: grpc, prefix: grpc/, probe: {type: grpc, service: x}}
`)
	none, some, back, grpc := find(t, c, "none"), find(t, c, "some"), find(t, c, "back"), find(t, c, "grpc")
	for _, x := range []struct {
		what      string
		got, want any
	}{
		{"none policy", none.Policy, "round_robin"},
		{"none format", none.Format, "plain"},
		{"none drain", none.Drain, 5 * time.Second},
		{"none probe interval", none.Probe.Interval, time.Second},
		{"none probe fall, the default", none.Probe.Fall, 3},
		{"none eject", none.Eject.On, false},
		{"some policy", some.Policy, "p2c"},
		{"some panic", some.PanicPercent, 0},
		{"some probe type, of defaults", some.Probe.Type, "http"},
		{"some probe path, of defaults", some.Probe.Path, "/ready"},
		{"some probe interval", some.Probe.Interval, 3 * time.Second},
		{"some eject stays off", some.Eject.On, false},
		{"some eject base", some.Eject.Base, 3 * time.Second},
		{"some eject consecutive, of defaults", some.Eject.Consecutive, 9},
		{"some connect", some.Timeout.Connect, 3 * time.Second},
		{"some request, of defaults", some.Timeout.Request, 7 * time.Second},
		{"none retry", none.Retry, Retry{On: []string{"503", "unavailable"}, Max: 3, BudgetPercent: 20}},
		{"some retry: its own list, max of defaults", some.Retry, Retry{On: []string{"429"}, Max: 3, BudgetPercent: 30}},
		{"some reconnect", some.Reconnect, Reconnect{Base: time.Second, Max: 3 * time.Second}},
		{"back eject", back.Eject.On, true},
		{"back consecutive, of defaults", back.Eject.Consecutive, 9},
		{"back probe", back.Probe.Type, "none"},
		{"grpc probe, though defaults has a path", grpc.Probe.Type, "grpc"},
		{"defaults policy", c.Defaults.Policy, "round_robin"},
	} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("%s: got %v, want %v", x.what, x.got, x.want)
		}
	}
}

// TestDefaultsPrecedeServices: where defaults: stands in the file does not matter.
func TestDefaultsPrecedeServices(t *testing.T) {
	c := mustParse(t, "services: [{name: a, backends: [\"10.0.0.1:1\"]}]\ndefaults: {policy: round_robin}\n")
	if got := c.Services[0].Policy; got != "round_robin" {
		t.Errorf("policy %q", got)
	}
}
