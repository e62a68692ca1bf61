package packaging

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// testInstall is the life of the .deb on a host: installed, used, configured, broken, upgraded, removed.
func testInstall(t *testing.T, first built) {
	root := newRoot(t)
	second := build(t, "..", "v0.2.0")
	m := boot(t, root)
	firstDeb := m.copyIn(t, first.deb)
	mainPID := func() string { return m.run(t, "systemctl show -P MainPID lbagent") }

	// Installed, it runs: as its own user, with its sockets, without a complaint.
	if out := m.run(t, "dpkg -i "+firstDeb); strings.Contains(strings.ToLower(out), "warning") || strings.Contains(out, "rror") {
		t.Errorf("dpkg -i says\n%s", out)
	}
	m.want(t, "systemctl is-active lbagent", "active")
	m.want(t, "systemctl is-enabled lbagent", "enabled")
	m.want(t, "getent passwd lbagent | cut -d: -f1,5-", "lbagent:lbagent, load balancing for this host:/var/lib/lbagent:/usr/sbin/nologin")
	m.want(t, "stat -c '%U %G' /proc/"+mainPID(), "lbagent lbagent")
	m.want(t, "stat -c '%a %U:%G %n' /run/lbagent /run/lbagent/lbagent.sock /run/lbagent-admin /run/lbagent-admin/admin.sock /var/lib/lbagent /etc/lbagent "+
		"/etc/lbagent/lbagent.yaml", strings.Join([]string{
		"755 lbagent:lbagent /run/lbagent",
		"666 root:root /run/lbagent/lbagent.sock",
		"750 lbagent:lbagent /run/lbagent-admin",
		"660 root:lbagent /run/lbagent-admin/admin.sock",
		"750 lbagent:lbagent /var/lib/lbagent",
		"755 root:root /etc/lbagent",
		"644 root:root /etc/lbagent/lbagent.yaml",
	}, "\n"))
	m.run(t, "lbagent status")
	m.run(t, "lbagent check")
	m.run(t, "curl -fsS http://127.0.0.1:9901/readyz")
	m.run(t, "curl -fsS --unix-socket /run/lbagent/lbagent.sock http://lbagent/v1/status")
	m.want(t, "lbagent version | grep -o '0\\.1\\.0' | head -1", "0.1.0")
	m.want(t, "systemd-analyze verify --man=no lbagent.service", "")
	testFirstMinutes(t, m)

	// Everybody may ask, not everybody may change.
	m.run(t, "runuser -u nobody -- lbagent services")
	m.fails(t, "runuser -u nobody -- lbagent reload")
	m.run(t, "runuser -u nobody -g lbagent -- lbagent reload")

	// A reload takes what is new and keeps the process; a broken file changes nothing.
	pid := mainPID()
	const dropIn = "/etc/lbagent/services.d/web.yaml"
	m.write(t, dropIn, "services:\n  - {name: web, backends: [\"127.0.0.1:9\"], listen: [8080, \"unix:/run/lbagent/web.sock\", \"unix:/tmp/web.sock\"]}\n")
	m.run(t, "systemctl reload lbagent")
	m.run(t, "lbagent services | grep -w web")
	const answers = "curl -s -o /dev/null -w '%{http_code}' "
	m.want(t, answers+"http://127.0.0.1:8080/", "503") // nobody is behind it
	m.want(t, answers+"--unix-socket /run/lbagent/web.sock http://web/", "503")
	m.want(t, answers+"--unix-socket /tmp/web.sock http://web/", "503")
	m.want(t, "ss -lntH sport = 8080 | awk '{print $3}' | sort -u", "4096") // the backlog; ProcSubset=pid would make it 128
	m.write(t, "/etc/lbagent/services.d/zz.yaml", "services: [{name: web}]\n")
	m.fails(t, "systemctl reload lbagent")
	m.run(t, "lbagent services | grep -w web")
	if got := mainPID(); got != pid {
		t.Errorf("reload: process %s became %s", pid, got)
	}

	// Started on a broken file, it runs on the last configuration that worked (SEMANTICS 6.5).
	m.run(t, "systemctl restart lbagent")
	m.want(t, "systemctl is-active lbagent", "active")
	m.run(t, "lbagent services | grep -w web")
	m.run(t, "journalctl --no-pager -q -o cat -u lbagent -p err | grep zz.yaml")
	m.run(t, "rm /etc/lbagent/services.d/zz.yaml")
	m.run(t, "systemctl reload lbagent")

	// It has no capability and so no port below 1024, unless the administrator says so.
	m.want(t, "grep -h ^Cap /proc/"+mainPID()+"/status | cut -f2 | sort -u", "0000000000000000")
	m.write(t, "/etc/lbagent/services.d/low.yaml", "services:\n  - {name: low, backends: [\"127.0.0.1:9\"], listen: [80]}\n")
	m.fails(t, "systemctl reload lbagent")
	m.run(t, "install -D -m 0644 /usr/share/doc/lbagent/examples/low-ports.conf /etc/systemd/system/lbagent.service.d/low-ports.conf")
	m.run(t, "systemctl daemon-reload && systemctl restart lbagent")
	m.want(t, answers+"http://127.0.0.1/", "503")
	m.run(t, "rm -r /etc/lbagent/services.d/low.yaml /etc/systemd/system/lbagent.service.d && systemctl daemon-reload && systemctl restart lbagent")

	// Killed, it comes back.
	pid = mainPID()
	m.run(t, "kill -9 "+pid)
	eventually(t, "restart after a kill", func() error {
		if out, err := m.try("systemctl is-active lbagent && lbagent status"); err != nil {
			return errors.New(out)
		}
		if mainPID() == pid {
			return errors.New("the same process")
		}
		return nil
	})

	testCrashes(t, m)
	testUpgrades(t, m, first, second)

	// Stopped, it leaves the lists, and nobody waits for it; removed, nothing that runs, but all that it knew; installed again, it starts.
	m.run(t, "systemctl stop lbagent")
	eventually(t, "stop of the sockets, for which systemctl does not wait", func() error {
		if out, _ := m.try("systemctl is-active lbagent.socket lbagent-admin.socket"); out != "inactive\ninactive" {
			return errors.New(out)
		}
		return nil
	})
	m.run(t, "test -e /run/lbagent/lists/web && ! curl -s http://127.0.0.1:9901/healthz")
	m.fails(t, "curl -sS --unix-socket /run/lbagent/lbagent.sock http://lbagent/v1/status")
	m.run(t, "systemctl start lbagent")
	m.want(t, "systemctl is-active lbagent.socket lbagent-admin.socket", "active\nactive")
	m.run(t, "dpkg -r lbagent")
	m.fails(t, "systemctl is-active lbagent")
	m.run(t, "test ! -e /run/lbagent && test ! -e /run/lbagent-admin && test ! -e /usr/bin/lbagent")
	m.run(t, "test -e /etc/lbagent/lbagent.yaml && test -e /var/lib/lbagent/config.good && getent passwd lbagent")
	m.want(t, "systemctl list-units --all --no-legend --state=active 'lbagent*'", "")
	m.run(t, "dpkg -i "+firstDeb+" && lbagent services | grep -w web")
	m.run(t, "mv "+dropIn+" /etc/lbagent/mine && dpkg -P lbagent && rm /etc/lbagent/mine && rmdir /etc/lbagent") // what the administrator added stays
	m.run(t, "test ! -e /etc/lbagent && test ! -e /var/lib/lbagent && test ! -e /etc/systemd/system/lbagent.service")
	m.want(t, "getent passwd lbagent; getent group lbagent; ls /var/lib/systemd/deb-systemd-helper-*/lbagent* 2>/dev/null || true", "")
	m.want(t, "systemctl list-units --all --no-legend 'lbagent*'", "")
	m.want(t, "readlink /proc/[0-9]*/exe | grep lbagent || true", "")

	testRpmLife(t, m, first, second)
}

// testFirstMinutes: status is green, nothing is a warning or worse, and the log's last line says what to do next. Who looks closer finds nothing either, as root and as nobody.
func testFirstMinutes(t *testing.T, m *machine) {
	status := m.run(t, "systemctl status -l lbagent")
	for _, want := range []string{"Loaded: loaded (", "; enabled; ", "Active: active (running)", `Status: "0 services"`} {
		if !strings.Contains(status, want) {
			t.Errorf("systemctl status lacks %q:\n%s", want, status)
		}
	}
	m.want(t, "journalctl --no-pager -q -o cat -u lbagent -p warning", "")
	m.want(t, "journalctl --no-pager -q -o cat -b -p warning --grep 'lbagent' || true", "")
	// -u would have systemd's own lines, too, in any order.
	if last := m.run(t, "journalctl --no-pager -q -o cat _SYSTEMD_UNIT=lbagent.service | tail -n 1"); !strings.Contains(last, "/etc/lbagent/lbagent.yaml") || !strings.Contains(last, "lbagent scan --etcd URL") {
		t.Errorf("the log ends with %q", last)
	}
	m.well(t)
	m.run(t, "lbagent check /usr/share/doc/lbagent/examples/lbagent.yaml")
}

// testInstallWithoutSystemd: in a chroot or an image there is no running systemd; nothing fails, nothing is said, and the next boot starts the agent.
func testInstallWithoutSystemd(t *testing.T, p built) {
	root := newRoot(t)
	in := func(argv ...string) string { return output(t, append([]string{"chroot", root}, argv...)...) }
	output(t, "cp", p.deb, filepath.Join(root, "root/lbagent.deb"))
	out := in("dpkg", "-i", "/root/lbagent.deb")
	for line := range strings.Lines(out) {
		if !hasAnyPrefix(line, "Selecting previously", "(Reading database", "Preparing to unpack", "Unpacking lbagent", "Setting up lbagent",
			"Creating group", "Creating user", "Created symlink") {
			t.Errorf("dpkg -i says %q", line)
		}
	}
	in("getent", "passwd", "lbagent")
	in("test", "-L", "/etc/systemd/system/multi-user.target.wants/lbagent.service")
	in("lbagent", "check")

	// There it goes as quietly, and can come back.
	in("dpkg", "-r", "lbagent")
	in("sh", "-c", "test -e /etc/lbagent/lbagent.yaml && getent passwd lbagent")
	in("dpkg", "-P", "lbagent")
	in("sh", "-c", "test ! -e /etc/lbagent && test ! -e /var/lib/lbagent && ! getent passwd lbagent && ! getent group lbagent && ! ls /etc/systemd/system/*/lbagent* /etc/systemd/system/lbagent* 2>/dev/null")
	in("dpkg", "-i", "/root/lbagent.deb")

	m := boot(t, root)
	m.want(t, "systemctl is-active lbagent", "active")
	m.run(t, "lbagent status")
	testShutdown(t, m)
	testBadBoot(t, root)
}

// testBadBoot: a host that boots with a file that is invalid serves by the last one that worked, and says where the mistake is (6.5).
func testBadBoot(t *testing.T, root string) {
	const file = "/etc/lbagent/services.d/self.yaml"
	if err := os.WriteFile(filepath.Join(root, file), []byte("services:\n  - {name: web, backends: [\"127.0.0.1:9\"], listen: [7001]}\n  - {name: web}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := boot(t, root)
	m.want(t, "systemctl is-active lbagent", "active")
	m.want(t, "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:7001/", "503") // nobody is behind it
	m.run(t, "systemctl status -l lbagent | grep 'Status:.*last good configuration'")
	m.run(t, "curl -s http://127.0.0.1:9901/metrics | grep '^lbagent_config_ok 0'")
	if out := m.fails(t, "lbagent doctor"); !strings.Contains(out, file+":3") || !strings.Contains(out, "last configuration that worked") {
		t.Errorf("lbagent doctor says\n%s", out)
	}
	m.run(t, "sed -i 3d "+file+" && systemctl reload lbagent")
	m.run(t, "curl -s http://127.0.0.1:9901/metrics | grep '^lbagent_config_ok 1' && lbagent doctor")
}

// testShutdown: an application that is ordered After=lbagent.service can call until its own end. It ends by calling, a second after the shutdown began.
func testShutdown(t *testing.T, m *machine) {
	m.write(t, "/etc/lbagent/services.d/self.yaml", "services:\n  - {name: web, backends: [\"127.0.0.1:9\"], listen: [7001]}\n")
	m.write(t, "/etc/systemd/system/app.service", `[Unit]
After=lbagent.service
Wants=lbagent.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'sleep 1; curl -sS -w %%{http_code} -o /dev/null http://127.0.0.1:7001/ >/root/dialled 2>&1; lbagent services --json >/root/asked 2>&1; systemctl is-system-running >/root/system'
`)
	m.run(t, "systemctl reload lbagent && systemctl daemon-reload && systemctl start app")
	m.powerOff(t)
	for file, want := range map[string]string{"dialled": "503", "asked": `"web"`, "system": "stopping"} { // 503: nobody is behind the port
		if got := read(t, filepath.Join(m.root, "root", file)); !strings.Contains(got, want) {
			t.Errorf("at shutdown, %s: %q, want %q", file, got, want)
		}
	}
}

// testRpmInRoot installs and removes the .rpm in a root tree. (Its distribution is another one; files and scripts are the same.)
func testRpmInRoot(t *testing.T, p built) {
	rpm := testneed.Program(t, "rpm", "rpm")
	root := newRoot(t)
	do := func(args ...string) string {
		return output(t, append([]string{rpm, "--root", root, "--nodeps", "--nosignature", "-vv"}, args...)...)
	}
	if out := do("-i", p.rpm); strings.Contains(out, "scriptlet failed") {
		t.Errorf("rpm -i:\n%s", out)
	}
	output(t, "chroot", root, "getent", "passwd", "lbagent")
	output(t, "chroot", root, "lbagent", "check")
	link := filepath.Join(root, "etc/systemd/system/multi-user.target.wants/lbagent.service")
	socket := filepath.Join(root, "etc/systemd/system/sockets.target.wants/lbagent.socket")
	for _, path := range []string{link, socket} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if out := do("-e", "lbagent"); strings.Contains(out, "scriptlet failed") {
		t.Errorf("rpm -e:\n%s", out)
	}
	for _, gone := range []string{link, socket, filepath.Join(root, "usr/bin/lbagent"), filepath.Join(root, "etc/lbagent/lbagent.yaml")} {
		if _, err := os.Lstat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

// testLintian asks Debian's own checker; deb/lintian-overrides explains what is meant so.
func testLintian(t *testing.T, p built) {
	lintian := testneed.Program(t, "lintian", "lintian")
	out, err := exec.CommandContext(t.Context(), lintian, "--allow-root", "--fail-on=error,warning", p.deb).CombinedOutput()
	if err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
