package main

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lbagent/lbagent/agent/config"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// host is a /proc as doctor may find it.
func host(t *testing.T, files map[string]string) *doctor {
	t.Helper()
	proc := t.TempDir()
	for name, text := range files {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, isLink := strings.CutPrefix(text, "->"); isLink {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &doctor{proc: proc, now: moment(), unitsRun: proc}
}

// found is what a check said, a line per finding.
func (d *doctor) found() string {
	var all []string
	for _, f := range d.findings {
		all = append(all, f.State+" "+f.Check+": "+f.What+" -> "+f.Mend)
	}
	return strings.Join(all, "\n")
}

// listenAt is a configuration with two services; 7001 is user's, 40000 cart's.
func listenAt(t *testing.T) *config.Config {
	t.Helper()
	c, err := config.Parse("test", []byte(`{admin: {listen: ""}, services: [{name: user, backends: ["10.0.0.1:1"], listen: [7001]}, {name: cart, backends: ["10.0.0.1:1"], listen: ["127.0.0.1:40000"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	tcpHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	// 127.0.0.1:7001 listens; a connection of it is established.
	tcp7001 = tcpHead + "   0: 0100007F:1B59 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 555 1 0 100 0 0 10 0\n" +
		"   1: 0100007F:9C40 0100007F:1B59 01 00000000:00000000 00:00000000 00000000     0        0 556 1 0 100 0 0 10 0\n"
	// [::]:40000, for both families.
	tcp40000 = tcpHead + "   0: 00000000000000000000000000000000:9C40 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1 0 100 0 0 10 0\n"
)

func TestDoctorPorts(t *testing.T) {
	running := func(listeners ...string) *lbagentv1.StatusResponse {
		return &lbagentv1.StatusResponse{Ready: true, Pid: 42, Services: []*lbagentv1.ServiceInfo{{Name: "user", Listeners: listeners}}}
	}
	agentHolds := map[string]string{"net/tcp": tcp7001, "42/comm": "lbagent\n", "42/fd/3": "->socket:[555]"}
	for _, tt := range []struct {
		name  string
		files map[string]string
		agent *lbagentv1.StatusResponse
		want  []string
	}{
		{"free", map[string]string{"net/tcp": tcpHead}, nil, []string{"ok ports: 3 listeners, none of them taken"}},
		{
			"taken", map[string]string{"net/tcp": tcp7001, "9/comm": "nginx\n", "9/fd/5": "->socket:[555]"}, nil,
			[]string{"bad ports: port 7001 (service user) is taken by nginx (pid 9)"},
		},
		{"taken by whom can't be seen", map[string]string{"net/tcp": tcp7001}, nil, []string{"bad ports: port 7001 (service user) is taken by another program -> run doctor as root"}},
		{
			"a listener of all addresses takes those of one", map[string]string{"net/tcp6": tcp40000, "9/comm": "nginx\n", "9/fd/5": "->socket:[777]"}, nil,
			[]string{"bad ports: port 40000 (service cart) is taken by nginx"},
		},
		{"the agent's own; cart is new", agentHolds, running("127.0.0.1:7001"), []string{"bad ports: nobody listens at port 40000 (service cart), although an agent runs -> lbagent reload"}},
		{
			"the agent's own, says the agent", map[string]string{"net/tcp": tcp7001, "net/tcp6": tcp40000, "42/comm": "lbagent\n"},
			&lbagentv1.StatusResponse{Pid: 42, Services: []*lbagentv1.ServiceInfo{{Listeners: []string{"127.0.0.1:7001", "[::1]:7001", "127.0.0.1:40000"}}}},
			[]string{"ok ports"},
		},
		{"systemd holds it", map[string]string{"net/tcp": tcp7001, "1/comm": "systemd\n", "1/fd/5": "->socket:[555]"}, nil, []string{"ok ports"}},
		{
			"of the range for outgoing connections", map[string]string{"net/tcp": tcpHead, "sys/net/ipv4/ip_local_port_range": "32768\t60999\n"}, nil,
			[]string{"warn ports: port 40000 (service cart) is one that the kernel takes for outgoing connections (32768 to 60999)", "ip_local_reserved_ports=40000"},
		},
		{
			"of that range, reserved",
			map[string]string{"net/tcp": tcpHead, "sys/net/ipv4/ip_local_port_range": "32768\t60999\n", "sys/net/ipv4/ip_local_reserved_ports": "8080,39990-40010\n"},
			nil, []string{"ok ports"},
		},
		{
			"api.listen, taken", map[string]string{"net/tcp": strings.ReplaceAll(tcp7001, ":1B59 0", ":26AC 0"), "9/comm": "nginx\n", "9/fd/5": "->socket:[555]"}, nil,
			[]string{"bad ports: port 9900 (api.listen) is taken by nginx (pid 9)"},
		},
	} {
		d := host(t, tt.files)
		d.c, d.agent = listenAt(t), tt.agent
		if strings.HasPrefix(tt.name, "api.listen") {
			d.c.API.Listen = "127.0.0.1:9900"
		}
		d.checkPorts()
		for _, want := range tt.want {
			if !strings.Contains(d.found(), want) || len(d.findings) != 1 {
				t.Errorf("%s: found\n%s\nwant one with\n%s", tt.name, d.found(), want)
			}
		}
	}
}

func TestParseListening(t *testing.T) {
	text := tcpHead + "   0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0 0 0 0 0 12\n" +
		"   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0 0 0 0 0 13\nnonsense\n   2: XX:0050 00:00 0A 0 0 0 0 0 1\n"
	got := parseListening(text)
	want := []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("127.0.0.1:81")}
	if len(got) != 2 || got[0].addr != want[0] || got[1].addr != want[1] || got[0].inode != "12" {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestDoctorDescriptors(t *testing.T) {
	const limits = "Limit                     Soft Limit           Hard Limit           Units\nMax processes             100                  100                  processes\nMax open files            %                 524288               files\n"
	for most, want := range map[string]string{"1024": "warn open files: the agent may open 1024 files; limits.connections of 10000 can take 20256", "524288": "ok open files: the agent may open 524288", "unlimited": ""} {
		d := host(t, map[string]string{"42/comm": "lbagent\n", "42/limits": strings.Replace(limits, "%", most, 1)})
		d.c, d.agent = listenAt(t), &lbagentv1.StatusResponse{Pid: 42}
		d.checkDescriptors()
		if !strings.HasPrefix(d.found(), want) || want == "" && d.found() != "" {
			t.Errorf("%s: %s, want %s", most, d.found(), want)
		}
	}
}

func TestDoctorKernel(t *testing.T) {
	d := host(t, map[string]string{"sys/net/core/somaxconn": "128\n", "sys/net/ipv4/ip_local_port_range": "50000 51000\n", "sys/fs/file-max": "1000\n"})
	d.c = listenAt(t)
	d.checkKernel()
	for _, want := range []string{"somaxconn is 128", "ip_local_port_range is 50000 to 51000", "fs.file-max is 1000"} {
		if !strings.Contains(d.found(), want) {
			t.Errorf("no %q in\n%s", want, d.found())
		}
	}
	d = host(t, map[string]string{"sys/net/core/somaxconn": "4096\n", "sys/net/ipv4/ip_local_port_range": "32768 60999\n", "sys/fs/file-max": "9223372036854775807\n"})
	d.c = listenAt(t)
	if d.checkKernel(); !strings.HasPrefix(d.found(), "ok kernel") {
		t.Errorf("a usual kernel: %s", d.found())
	}
}

func TestDoctorUnit(t *testing.T) {
	const fine = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nNRestarts=0\nNeedDaemonReload=no\nDropInPaths=\nNoNewPrivileges=yes\nProtectSystem=strict\nUser=lbagent\n"
	for change, want := range map[string]string{
		"":                    "ok unit: lbagent.service is active (running), as user lbagent",
		"LoadState=not-found": "",
		"LoadState=masked":    "bad unit: lbagent.service is masked",
		"ActiveState=failed":  "bad unit: lbagent.service is failed",
		"NRestarts=17":        "warn unit: systemd has started it again 17 times",
		"ActiveState=activating\nStatusText=a crash loop: 6 starts in the last minute": "bad unit: lbagent.service does not run yet: a crash loop: 6 starts in the last minute",
		"UnitFileState=disabled": "warn unit: it will not start at boot",
		"NeedDaemonReload=yes":   "warn unit: its files have changed",
		"NoNewPrivileges=no":     "warn unit: it runs with less confinement than the package has: NoNewPrivileges=no",
		"User=root":              "warn unit: it runs with less confinement than the package has: User=root",
		"DropInPaths=/etc/systemd/system/lbagent.service.d/override.conf": "ok unit: overrides: /etc/systemd/system/lbagent.service.d/override.conf",
	} {
		d := host(t, nil)
		d.systemctl = func(context.Context, ...string) ([]byte, error) { return []byte(fine + change + "\n"), nil }
		d.checkUnit(t.Context())
		if !strings.HasPrefix(d.found(), want) || want == "" && d.found() != "" {
			t.Errorf("%s: %s, want %s", change, d.found(), want)
		}
	}
	d := host(t, nil)
	d.unitsRun = filepath.Join(d.proc, "nosuch")
	if d.checkUnit(t.Context()); d.found() != "" {
		t.Errorf("without systemd: %s", d.found())
	}
}

func TestDoctorMutes(t *testing.T) {
	at := func(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(moment().Add(-ago)) }
	d := host(t, nil)
	d.agent = &lbagentv1.StatusResponse{Mutes: []*lbagentv1.MuteInfo{
		{Service: "a", Address: "10.0.0.1:1", Author: "bob", Since: at(time.Hour), Until: at(-time.Hour)},
		{Service: "b", Address: "10.0.0.2:1", Author: "ann", Fleet: true, Host: "web-2", Since: at(49 * time.Hour), Until: at(-time.Hour)},
		{Service: "c", Address: "10.0.0.3:1", Fleet: true, Host: "web-3", Since: at(-time.Minute), Until: at(-time.Hour)},
		{Service: "d", Address: "10.0.0.4:1", Fleet: true, Host: "web-3", Since: at(-time.Minute), Until: at(-time.Hour)},
	}}
	d.checkMutes()
	want := "warn mutes: b 10.0.0.2:1 has been muted by ann for 2d, and is until 2026-01-02 04:04:05: forgotten? -> lbagent unmute b 10.0.0.2:1 --fleet\n" +
		"warn clock: a mute made on web-3 is from 60s in the future: one of the two clocks is wrong, and mutes end by them -> timedatectl, on both"
	if d.found() != want {
		t.Errorf("%s\nwant\n%s", d.found(), want)
	}
}

func TestDoctorEnvironment(t *testing.T) {
	got := assignments("# a comment=1\nZONE=eu-1a\n QUOTED=\"a b\"\nSINGLE='x'\nEMPTY=\n;X=1\nnonsense\nODD=\"\n")
	want := map[string]string{"ZONE": "eu-1a", "QUOTED": "a b", "SINGLE": "x", "EMPTY": "", "ODD": "\""}
	if len(got) != len(want) {
		t.Errorf("%q, want %q", got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
}

// TestDoctorForm compares what people read with a file.
func TestDoctorForm(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: &output{w: &out}}
	err := a.printFindings([]finding{
		{"configuration", findOK, "3 services, 2 with listeners; etcd at http://10.0.0.1:2379; from /etc/lbagent/lbagent.yaml", ""},
		{"etcd", findBad, "http://10.0.0.1:2379: no connection: dial tcp 10.0.0.1:2379: connect: connection refused", "is that etcd running, and does a firewall let this host through? Else take it out of etcd.endpoints"},
		{"kernel", findWarn, "net.core.somaxconn is 128: \x1b[2J", "sysctl -w net.core.somaxconn=4096"},
	}, false)
	checkForm(t, false, out.String(), "")
	const want = `ok    configuration  3 services, 2 with listeners; etcd at http://10.0.0.1:2379; from
                     /etc/lbagent/lbagent.yaml
bad   etcd           http://10.0.0.1:2379: no connection: dial tcp 10.0.0.1:2379: connect:
                     connection refused
                     -> is that etcd running, and does a firewall let this host through? Else take
                        it out of etcd.endpoints
warn  kernel         net.core.somaxconn is 128: ` + "\uFFFD" + `[2J
                     -> sysctl -w net.core.somaxconn=4096

1 thing to mend, 1 warning
`
	if out.String() != want || err == nil {
		t.Errorf("%v:\n%s\nwant\n%s", err, out.String(), want)
	}
	out.Reset()
	if err := a.printFindings(nil, true); err != nil || !strings.Contains(out.String(), `"ok": true`) {
		t.Errorf("%v: %s", err, out.String())
	}
}

// After an upgrade the kernel still names the process that called listen(): what counts is who has the socket open.
func TestDoctorHandedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	unixSockets := "Num RefCount Protocol Flags Type St Inode Path\n0000: 00000002 00000000 00010000 0001 01 888 " + path + "\n0000: 00000002 00000000 00010000 0001 01 999 " + path + "2\n"
	for _, tt := range []struct {
		name, holder, want string
	}{
		{"the agent has it", "42/fd/3", ""},
		{"another has it", "7/fd/3", "bad sockets: api.socket: " + path + " belongs to "},
		{"nobody knows", "7/nothing", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := host(t, map[string]string{"net/unix": unixSockets, "42/comm": "lbagent\n", "42/fd/1": "->socket:[999]", tt.holder: "->socket:[888]"})
			d.agent = &lbagentv1.StatusResponse{Pid: 42}
			d.checkListener("api.socket", path)
			if got := d.found(); !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
