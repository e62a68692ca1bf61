package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

const withEtcd = "etcd: {endpoints: [\"http://etcd:2379\"]}\n"

// write makes a configuration of pairs of name and text and returns the path of the first file.
func write(t *testing.T, pairs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i+1 < len(pairs); i += 2 {
		path := filepath.Join(dir, pairs[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(pairs[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, pairs[0])
}

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := parseText(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parseText(text string) (*Config, error) {
	return testOptions().withDefaults().parse([]source{{name: "lbagent.yaml", data: []byte(text)}})
}

func find(t *testing.T, c *Config, name string) Service {
	t.Helper()
	for _, s := range c.Services {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no service %q in %v", name, c.Services)
	return Service{}
}

// TestEveryKey writes each key that is supported.
func TestEveryKey(t *testing.T) {
	got := mustParse(t, `
node: {name: web-17, zone: eu-1a, region: eu-1}
etcd:
  endpoints: ["https://etcd-1:2379", "https://[::1]:2379"]
  namespace: /prod/
  username: lbagent
  password_file: /etc/lbagent/etcd.password
  tls: {ca_file: /ca, cert_file: /cert, key_file: /key, server_name: etcd.local}
api: {socket: /run/a.sock, admin_socket: /run/b.sock, listen: "127.0.0.1:9900"}
fleet: {prefix: lbagent/config/}
admin: {listen: "[::1]:9911"}
metrics: {listen: "0.0.0.0:9912"}
state_dir: /var/lib/other
proxy: {loops: 3}
limits: {connections: 20, streams_per_connection: 7, header_bytes: 16KiB, header_fields: 100, buffered: 1GiB, backend_connections: 2}
on_demand: {prefix: "od/{service}/", format: plain, idle: 10m}
mute: {prefix: ops/mutes/}
log: {level: debug, format: json}
access_log: {path: /var/log/lbagent/access.log, sample: 0.25, errors: sampled}
notify: {url: "https://ops.example:8443/events?key=k"}
services:
  - name: user
    prefix: services/user/
    format: plain
    overlap: true
    listen: [7001, 127.0.0.2:7002, "[::1]:7003", "unix:/run/user.sock"]
    protocol: h2
    authority: user.local:80
    policy: hash
    hash: {header: X-User-ID}
    dynamic_weight: off
    zone: ignore
    slow_start: 1m
    subset: 50
    load: on
    probe: {type: grpc, interval: 2s, timeout: 500ms, rise: 1, fall: 4, port: 81, service: health}
    eject: {mode: observe, consecutive: 3, success_rate: 40, base: 2s, max: 30s, max_percent: 20}
    panic_percent: 30
    retry: {on: [unavailable, 503, reset], max: 1, budget_percent: 10}
    reconnect: {base: 50ms, max: 5s}
    timeout: {connect: 2s, request: 1m30s, idle: 1m}
    drain: 1m
    guard: {mode: hold, hold: 5m}
  - name: http
    allow: [127.0.0.1, 10.0.0.0/8, "::/0", 10.0.0.0/8, "::ffff:10.0.0.9"]
    deny: [169.254.0.0/16]
    backends: ["[2001:db8::1]:80", "[::ffff:10.0.0.2]:80", 10.0.0.1:80]
    probe: {type: http, path: "/healthz?x=1", status: 204}
`)
	v4, v6 := netip.MustParseAddrPort("127.0.0.1:7001"), netip.MustParseAddrPort("[::1]:7001")
	user := Service{
		Name: "user", At: "lbagent.yaml:22", Prefix: "services/user/", EtcdPrefix: "/prod/services/user/", Namespace: "/prod/", Format: "plain",
		Listen: []Listen{{TCP: v4}, {TCP: v6}, {TCP: netip.MustParseAddrPort("127.0.0.2:7002")},
			{TCP: netip.MustParseAddrPort("[::1]:7003")}, {Unix: "/run/user.sock"}},
		Protocol: "h2", Authority: "user.local:80", Policy: "hash", HashHeader: "x-user-id",
		Probe: Probe{Type: "grpc", Interval: 2 * time.Second, Timeout: 500 * time.Millisecond, Rise: 1, Fall: 4, Port: 81, Path: "/", StatusMin: 200,
			StatusMax: 399, Service: "health"},
		Eject:        Eject{On: true, Observe: true, Consecutive: 3, SuccessRate: 40, Base: 2 * time.Second, Max: 30 * time.Second, MaxPercent: 20},
		PanicPercent: 30,
		SlowStart:    time.Minute, Subset: 50, Load: true,
		Retry:     Retry{On: []string{"503", "reset", "unavailable"}, Max: 1, BudgetPercent: 10},
		Reconnect: Reconnect{Base: 50 * time.Millisecond, Max: 5 * time.Second},
		Timeout:   Timeout{Connect: 2 * time.Second, Request: 90 * time.Second, Idle: time.Minute},
		Drain:     time.Minute,
		GuardHold: 5 * time.Minute,
	}
	http := defaultService()
	http.Name, http.At = "http", "lbagent.yaml:44"
	http.Zone = "eu-1a"
	for _, a := range []string{"10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80"} {
		http.Backends = append(http.Backends, service.Backend{Addr: netip.MustParseAddrPort(a), Weight: 100})
	}
	for _, p := range []string{"10.0.0.0/8", "10.0.0.9/32", "127.0.0.1/32", "::/0"} {
		http.Allow = append(http.Allow, netip.MustParsePrefix(p))
	}
	http.Deny = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")}
	http.Probe.Type, http.Probe.Path, http.Probe.StatusMin, http.Probe.StatusMax = "http", "/healthz?x=1", 204, 204
	defaults := defaultService()
	defaults.Namespace, defaults.Zone = "/prod/", "eu-1a"
	want := &Config{
		Files: []string{"lbagent.yaml"},
		Node:  Node{Name: "web-17", Zone: "eu-1a", Region: "eu-1"},
		Etcd: &Etcd{Endpoints: []string{"https://etcd-1:2379", "https://[::1]:2379"}, Namespace: "/prod/", Username: "lbagent",
			PasswordFile: "/etc/lbagent/etcd.password", TLS: TLS{CAFile: "/ca", CertFile: "/cert", KeyFile: "/key", ServerName: "etcd.local"}},
		API: API{Socket: "/run/a.sock", AdminSocket: "/run/b.sock", Listen: "127.0.0.1:9900"}, AdminListen: "[::1]:9911", MetricsAddr: "0.0.0.0:9912",
		StateDir: "/var/lib/other", Loops: 3,
		Limits: Limits{
			Connections: 20, StreamsPerConnection: 7, HeaderBytes: 16 << 10, HeaderFields: 100, Buffered: 1 << 30, BackendConnections: 2,
		},
		OnDemand: &OnDemand{Prefix: "od/{service}/", Format: "plain", Idle: 10 * time.Minute}, Fleet: &Fleet{Prefix: "/prod/lbagent/config/"},
		MutePrefix: "/prod/ops/mutes/",
		Log:        Log{Level: "debug", Format: "json"}, Defaults: defaults, Services: []Service{http, user},
		AccessLog: AccessLog{Path: "/var/log/lbagent/access.log", Sample: 0.25}, NotifyURL: "https://ops.example:8443/events?key=k",
		RegistrationTTL: time.Minute,
		DrainTimeout:    5 * time.Minute,
	}
	got.good, got.own = nil, nil
	if !reflect.DeepEqual(got, want) { //nolint:govet // the errors in it are those of own, which is nil
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestOff: a written value is meant as written, 0, off and "" included.
func TestOff(t *testing.T) {
	c := mustParse(t, withEtcd+`
node: {zone: "", region: }
api: {listen: off}
admin: {listen: off}
metrics: {listen: ""}
on_demand: off
mute: {prefix: ""}
access_log: off
notify: {url: ""}
limits: {connections: off, buffered: 0}
defaults: {retry: {on: [503]}}
services:
  - {name: a, prefix: a/, retry: off, listen: [], probe: off, eject: off, panic_percent: off, drain: off, timeout: {connect: 0, request: off, idle: 0s}}
  - {name: b, prefix: b/, retry: {on: []}, probe: none, eject: {mode: off}, panic_percent: 0, drain: 0}
  - {name: c, prefix: c/, retry: {on: off}, probe: {type: none}, eject: {consecutive: 0, success_rate: off}}
  - {name: d, prefix: d/, retry: {on: }, probe: {type: off}, eject: {max_percent: off}}
`)
	if c.Limits.Connections != 0 || c.Limits.Buffered != 0 || c.AdminListen != "" || c.MetricsAddr != "" || c.API.Listen != "" || c.OnDemand != nil || c.MutePrefix != "" || c.AccessLog.Path != "" || c.NotifyURL != "" {
		t.Errorf("%+v", c)
	}
	for _, s := range c.Services {
		if s.Probe.Type != "none" || s.Eject.On || s.Listen != nil || s.Retry.On != nil {
			t.Errorf("%s: %+v", s.Name, s)
		}
	}
	for _, name := range []string{"a", "b"} {
		if s := find(t, c, name); s.PanicPercent != 0 || s.Drain != 0 {
			t.Errorf("%s: panic %d, drain %s", name, s.PanicPercent, s.Drain)
		}
	}
	if s := find(t, c, "a"); s.Timeout != (Timeout{}) {
		t.Errorf("timeout %+v", s.Timeout)
	}
	if _, ok := c.OnDemandService("x"); ok {
		t.Error("on demand is off, and yet there is a service")
	}
}

// guard: is a mode, or a map; 0 and off are off, and a mode of defaults: counts until a service says another (1.9).
func TestGuard(t *testing.T) {
	c := mustParse(t, withEtcd+`
defaults: {guard: {mode: off, hold: 1m}}
services:
  - {name: none, prefix: none/}
  - {name: hold, prefix: hold/, guard: hold}
  - {name: mode, prefix: mode/, guard: {mode: hold, hold: 2m}}
  - {name: only, prefix: only/, guard: {hold: 2m}}
  - {name: zero, prefix: zero/, guard: {mode: hold, hold: 0}}
  - {name: off, prefix: off/, guard: off}
`)
	for name, want := range map[string]time.Duration{"none": 0, "hold": time.Minute, "mode": 2 * time.Minute, "only": 0, "zero": 0, "off": 0} {
		if got := find(t, c, name).GuardHold; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if s, _ := c.OnDemandService("x"); s.GuardHold != 0 {
		t.Errorf("on demand: %v", s.GuardHold)
	}
}

func TestVariables(t *testing.T) {
	c := mustParse(t, `
node: {name: "a-${ZONE}-${WORD}", zone: "${ZONE}", region: "${EMPTY}"} # ${UNSET} in a comment is none
state_dir: /var/$${x}$$$$
services:
  - name: ${WORD}
    backends: ["10.0.0.1:${PORT}"]
    listen: ["${PORT}", "unix:/run/${WORD}.sock"]
    panic_percent: 1${EMPTY}2
`)
	if want := (Node{Name: "a-eu-1a-word", Zone: "eu-1a"}); c.Node != want {
		t.Errorf("node %+v, want %+v", c.Node, want)
	}
	if want := "/var/${x}$$"; c.StateDir != want {
		t.Errorf("state_dir %q, want %q", c.StateDir, want)
	}
	s := find(t, c, "word")
	if s.Backends[0].Addr.Port() != 7001 || s.Listen[0].TCP.Port() != 7001 || s.Listen[2].Unix != "/run/word.sock" || s.PanicPercent != 12 {
		t.Errorf("%+v", s)
	}
}

// TestOneVariableBomb: many expansions of a long variable end as an error, not as gigabytes.
func TestOneVariableBomb(t *testing.T) {
	o := testOptions()
	o.Env = environment("V", strings.Repeat("x", maxValue))
	text := "services:\n  - {name: a, backends: [" + strings.Repeat("\"${V}\", ", 5000) + "]}\n"
	_, err := o.withDefaults().parse([]source{{name: "lbagent.yaml", data: []byte(text)}})
	if err == nil || !strings.Contains(err.Error(), "the variables of all files are too long") {
		t.Errorf("error %.300v", err)
	}
	if list := err.(*Errors); len(list.List) != maxErrors || list.More < 1000 {
		t.Errorf("%d errors and %d more", len(list.List), list.More)
	}
}

func TestDropIns(t *testing.T) {
	path := write(t,
		"agent.yaml", "services: [{name: m, backends: [\"10.0.0.1:1\"]}]\ndefaults: {policy: round_robin}\n",
		"services.d/20-z.yaml", "services:\n  - {name: z, backends: [\"10.0.0.1:1\"]}\n",
		"services.d/10-a.yaml", "services:\n- name: a\n  backends: [\"10.0.0.1:1\"]\n",
		"services.d/30-empty.yaml", "# nothing\n",
		"services.d/.editor.yaml", "{{{",
		"services.d/README", "{{{",
		"services.d/old.yaml.off", "{{{")
	c, err := testOptions().Load(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := dropInDir(path)
	wantFiles := []string{path, dir + "/10-a.yaml", dir + "/20-z.yaml", dir + "/30-empty.yaml"}
	if !reflect.DeepEqual(c.Files, wantFiles) {
		t.Errorf("files %q, want %q", c.Files, wantFiles)
	}
	var names []string
	for _, s := range c.Services {
		names = append(names, s.Name)
		if s.Policy != "round_robin" {
			t.Errorf("%s has not the defaults of the main file: %+v", s.Name, s)
		}
	}
	if got := strings.Join(names, " "); got != "a m z" {
		t.Errorf("services %q", got)
	}
	if at := find(t, c, "a").At; at != dir+"/10-a.yaml:2" {
		t.Errorf("a stands at %q", at)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"name", "prefix", "password_file", "on_demand", "max", "max_percent", "log"}
	for key, want := range map[string]string{
		"nam": "name", "nmae": "name", "prefx": "prefix", "prefixes": "prefix", "password": "password_file", "onDemand": "on_demand", "on-demand": "on_demand",
		"maxPercent": "max_percent", "lgo": "log", "cat": "", "xyz": "", "": "", strings.Repeat("n", 1000): "",
	} {
		if got := nearest(key, known); got != want {
			t.Errorf("nearest(%.20q) = %q, want %q", key, got, want)
		}
	}
}
