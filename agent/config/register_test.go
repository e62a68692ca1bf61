package config

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestRegister(t *testing.T) {
	got := mustParse(t, `
etcd: {endpoints: ["http://127.0.0.1:2379"], namespace: /prod/}
registration_ttl: 30s
register_allow:
  - {user: app}
  - {group: 1000, services: ["shop-*", user]}
register:
  - {name: user, address: ":8080"}
  - name: order
    address: "[::ffff:10.0.0.1]:9090"
    format: kitex
    prefix: mine/
    metadata: {Weight: 50, zone: eu-1a, region: eu, version: v1, empty: ""}
    load: host
    probe: {type: grpc, interval: 2s, service: order}
  - {name: user, address: ":8081", load: off, probe: none}
`)
	plain := Probe{Type: "tcp", Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3, Path: "/", StatusMin: 200, StatusMax: 399}
	grpc, none := plain, plain
	grpc.Type, grpc.Interval, grpc.Service = "grpc", 2*time.Second, "order"
	none.Type = "none"
	want := []Register{
		{Name: "user", Address: ":8080", At: "lbagent.yaml:8", Probe: plain},
		{Name: "order", Address: "10.0.0.1:9090", At: "lbagent.yaml:9", Format: "kitex", Prefix: "/prod/mine/", Weight: 50, Zone: "eu-1a", Region: "eu",
			Metadata: map[string]string{"version": "v1", "empty": ""}, HostLoad: true, Probe: grpc},
		{Name: "user", Address: ":8081", At: "lbagent.yaml:16", Probe: none},
	}
	if !reflect.DeepEqual(got.Register, want) {
		t.Errorf("got  %+v\nwant %+v", got.Register, want)
	}
	allow := []RegisterAllow{{User: "app"}, {Group: "1000", Services: []string{"shop-*", "user"}}}
	if !reflect.DeepEqual(got.RegisterAllow, allow) || got.RegistrationTTL != 30*time.Second {
		t.Errorf("%+v %v", got.RegisterAllow, got.RegistrationTTL)
	}

	// A reload sees each of them, but not where they stand.
	moved := *got
	moved.Register = slices.Clone(got.Register)
	moved.Register[0].At = "elsewhere:1"
	if c := Compare(got, &moved); !c.None() {
		t.Errorf("moved: %s", c)
	}
	moved.Register[1].Metadata = nil
	moved.RegisterAllow, moved.RegistrationTTL = nil, time.Minute
	if c := Compare(got, &moved); !slices.Equal(c.Sections, []string{"register_allow", "registration_ttl", "register"}) {
		t.Errorf("changed: %s", c)
	}
}

// Without etcd there is nowhere to register.
func TestRegisterNeedsEtcd(t *testing.T) {
	if _, err := testOptions().parse([]source{{name: "lbagent.yaml", data: []byte(`register: [{name: user, address: ":8080"}]`)}}); err == nil {
		t.Error("no error")
	}
}
