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
	dir := DropInDir(path)
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

// TestWarnings: each listener that other hosts can reach is told, and no other.
func TestWarnings(t *testing.T) {
	for listen, want := range map[string]bool{`""`: false, `"127.0.0.1:9900"`: false, `"127.0.0.2:9900"`: false, `"[::1]:9900"`: false, `":9900"`: true, `"0.0.0.0:9900"`: true, `"10.0.0.1:9900"`: true, `"[::]:9900"`: true} {
		got := mustParse(t, "api: {listen: "+listen+"}\n").Warnings()
		if (len(got) == 1 && strings.HasPrefix(got[0], "api.listen: "+strings.Trim(listen, `"`)+" is open to other hosts")) != want || len(got) > 1 {
			t.Errorf("%s: %q", listen, got)
		}
	}
	got := mustParse(t, "services: [{name: a, backends: [\"10.0.0.1:80\"], listen: [7001, \"10.0.0.9:7001\", \"unix:/run/a.sock\"]}]\n").Warnings()
	if len(got) != 1 || !strings.Contains(got[0], "services[a].listen: 10.0.0.9:7001 is open") {
		t.Errorf("%q", got)
	}
}
