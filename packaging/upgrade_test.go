package packaging

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testUpgrades: from the first to the second version and back, with everything that can be in the way. It begins and ends with the first one running.
func testUpgrades(t *testing.T, m *machine, first, second built) {
	older, newer := "dpkg -i "+m.copyIn(t, first.deb), "dpkg -i "+m.copyIn(t, second.deb)
	runs := func(version string) {
		t.Helper()
		m.want(t, "systemctl is-active lbagent lbagent.socket lbagent-admin.socket", "active\nactive\nactive")
		m.want(t, "lbagent status --json | grep -o '\"version\": *\"[^\"]*' | grep -o '[^\"]*$'", version)
		m.run(t, "lbagent services | grep -w web")
	}
	pid := func() string { return m.run(t, "systemctl show -P MainPID lbagent") }
	same := func(what, before string) {
		t.Helper()
		if now := pid(); now != before {
			t.Errorf("%s: process %s became %s", what, before, now)
		}
	}

	// What the administrator wrote stays, without a question; who waits in the API's socket isn't refused.
	m.run(t, "echo '# mine' | tee -a /etc/lbagent/lbagent.yaml >>/etc/default/lbagent")
	m.run(t, "echo 'RUN=$(touch /root/executed)' >>/etc/default/lbagent")
	before, restarts := pid(), "systemctl show -P NRestarts lbagent"
	n := m.run(t, restarts)
	m.run(t, "apt-get install -y "+strings.TrimPrefix(newer, "dpkg -i ")+" </dev/null")
	runs("v0.2.0")
	m.run(t, "grep '^# mine' /etc/lbagent/lbagent.yaml /etc/default/lbagent && test ! -e /root/executed")
	m.run(t, "apt-get install -y --allow-downgrades "+strings.TrimPrefix(older, "dpkg -i ")+" </dev/null")
	runs("v0.1.0")
	m.want(t, restarts, n)
	if pid() == before {
		t.Errorf("still process %s", before)
	}

	// A configuration that is broken ends nothing; mended, the new version takes over.
	before = pid()
	m.write(t, "/etc/lbagent/services.d/zz.yaml", "services: [{name: web}]\n")
	if out := m.run(t, newer); !strings.Contains(out, "the old version goes on running") {
		t.Errorf("dpkg -i says\n%s", out)
	}
	same("upgrade with a broken configuration", before)
	runs("v0.1.0")
	m.run(t, "rm /etc/lbagent/services.d/zz.yaml && lbagent upgrade")
	runs("v0.2.0")
	m.run(t, older)

	// An upgrade that fails before it has begun, and one that fails at its end and is then completed.
	before = pid()
	m.fails(t, "dpkg -i "+m.copyIn(t, failing(t, second.deb, "DEBIAN/preinst")))
	same("failed upgrade", before)
	runs("v0.1.0")
	m.want(t, "dpkg-query -W -f '${db:Status-Status} ${Version}' lbagent", "installed 0.1.0")
	m.fails(t, "dpkg -i "+m.copyIn(t, failing(t, second.deb, "DEBIAN/postinst")))
	same("upgrade that isn't configured", before)

	// A program that ends as soon as it starts.
	if out := m.run(t, "dpkg -i "+m.copyIn(t, failing(t, second.deb, "usr/bin/lbagent"))); !strings.Contains(out, "the old version goes on running") {
		t.Errorf("dpkg -i says\n%s", out)
	}
	same("upgrade to a program that doesn't start", before)
	m.run(t, "curl -fsS http://127.0.0.1:9901/readyz")
	m.run(t, newer)
	runs("v0.2.0")

	// One that can't take over, as a program of before can't be taken over from: a restart, unless the configuration is broken.
	m.run(t, older)
	before = pid()
	strange := "dpkg -i " + m.copyIn(t, noUpgrade(t, second.deb))
	m.write(t, "/etc/lbagent/services.d/zz.yaml", "services: [{name: web}]\n")
	if out := m.run(t, strange); !strings.Contains(out, "the old version goes on running") || !strings.Contains(out, "lbagent check") {
		t.Errorf("dpkg -i says\n%s", out)
	}
	same("no upgrade, and a broken configuration", before)
	m.run(t, "rm /etc/lbagent/services.d/zz.yaml && "+strange)
	runs("v0.2.0")
	if pid() == before {
		t.Errorf("still process %s", before)
	}

	m.run(t, older+" && systemctl restart lbagent") // what runs is a file that is gone
	runs("v0.1.0")

	// Where the administrator's policy forbids restarts nothing takes over.
	before = pid()
	m.run(t, "printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && "+newer)
	same("upgrade against the policy", before)
	m.run(t, "rm /usr/sbin/policy-rc.d && lbagent upgrade")
	runs("v0.2.0")

	// What is stopped, disabled or masked stays so.
	m.run(t, "systemctl stop lbagent lbagent.socket lbagent-admin.socket && "+older)
	m.fails(t, "systemctl is-active lbagent lbagent.socket")
	m.run(t, "systemctl disable --quiet lbagent && "+newer)
	m.want(t, "systemctl is-enabled lbagent lbagent.socket lbagent-admin.socket || true", "disabled\ndisabled\ndisabled")
	m.run(t, "systemctl mask lbagent && "+older)
	m.want(t, "systemctl is-enabled lbagent || true", "masked")
	m.fails(t, "systemctl is-active lbagent")
	m.run(t, "systemctl unmask lbagent && systemctl enable --now lbagent")
	runs("v0.1.0")

	// A version before may have had fewer units. Those that are new run from the upgrade on, not only from the next start.
	const beside = "lbagent-on.target lbagent-beside.target lbagent-again.timer lbagent-deregister.service"
	m.run(t, "systemctl stop lbagent lbagent.socket lbagent-admin.socket "+beside+" && cd /usr/lib/systemd/system && rm "+beside+" && systemctl daemon-reload && systemctl start lbagent")
	m.fails(t, "systemctl is-active "+beside)
	before = pid()
	m.run(t, newer)
	runs("v0.2.0")
	if pid() == before {
		t.Errorf("still process %s", before)
	}
	m.want(t, "systemctl is-active "+beside, "active\nactive\nactive\nactive")
	m.run(t, older)
	runs("v0.1.0")
}

// failing is a package like deb, but a program or script in it fails.
func failing(t *testing.T, deb, path string) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tree")
	output(t, "dpkg-deb", "-R", deb, tree)
	if err := os.WriteFile(filepath.Join(tree, path), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(filepath.Dir(tree), "fails-in-"+filepath.Base(path)+".deb")
	output(t, "dpkg-deb", "-Znone", "-b", tree, out)
	return out
}

// noUpgrade is a package like deb, but its program says at an upgrade what one says that knows no such verb.
func noUpgrade(t *testing.T, deb string) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tree")
	output(t, "dpkg-deb", "-R", deb, tree)
	program := filepath.Join(tree, "usr/bin/lbagent")
	if err := errors.Join(os.Rename(program, program+".real"), os.WriteFile(program, []byte(`#!/bin/sh
if [ "$1" = upgrade ]; then
	echo 'no verb "upgrade"' >&2
	exit 2
fi
exec /usr/bin/lbagent.real "$@"
`), 0o755)); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(filepath.Dir(tree), "knows-no-upgrade.deb")
	output(t, "dpkg-deb", "-Znone", "-b", tree, out)
	return out
}

// testRpmLife is the same for the .rpm, on a machine that has no lbagent. (It is of another family, but its systemd is as real, and rpm does what it does.)
func testRpmLife(t *testing.T, m *machine, first, second built) {
	rpm := "rpm --nodeps --nosignature "
	if _, err := m.try("rpm --help | grep -e --force-debian"); err == nil { // 4.20 no longer wants to be told
		rpm += "--force-debian "
	}
	older, newer := rpm+"-U --oldpackage "+m.copyIn(t, first.rpm), rpm+"-U "+m.copyIn(t, second.rpm)
	runs := func(version string) {
		t.Helper()
		m.want(t, "systemctl is-active lbagent lbagent.socket lbagent-admin.socket", "active\nactive\nactive")
		m.want(t, "lbagent status --json | grep -o '\"version\": *\"[^\"]*' | grep -o '[^\"]*$'", version)
	}
	m.run(t, older)
	runs("v0.1.0")
	m.want(t, "systemctl is-enabled lbagent lbagent.socket lbagent-admin.socket", "enabled\nenabled\nenabled")
	m.run(t, "echo '# mine' >>/etc/lbagent/lbagent.yaml && "+newer)
	runs("v0.2.0")
	m.run(t, "grep '^# mine' /etc/lbagent/lbagent.yaml")
	m.run(t, "echo 'nonsense: 1' >>/etc/lbagent/lbagent.yaml")
	if out := m.run(t, older); !strings.Contains(out, "the old version goes on running") {
		t.Errorf("rpm -U says\n%s", out)
	}
	runs("v0.2.0")
	m.run(t, "sed -i /nonsense/d /etc/lbagent/lbagent.yaml && lbagent upgrade")
	runs("v0.1.0")
	m.run(t, "systemctl disable --now lbagent lbagent.socket lbagent-admin.socket && "+newer)
	m.fails(t, "systemctl is-active lbagent lbagent.socket")
	m.fails(t, "systemctl is-enabled lbagent")
	m.run(t, "systemctl mask lbagent && "+older+" && systemctl unmask lbagent && systemctl enable --now lbagent")
	runs("v0.1.0")
	m.run(t, rpm+"-e lbagent")
	m.fails(t, "systemctl is-active lbagent")
	m.run(t, "test ! -e /run/lbagent && test ! -e /usr/bin/lbagent && test -e /var/lib/lbagent/config.good && test -e /etc/lbagent/lbagent.yaml.rpmsave")
	m.want(t, "readlink /proc/[0-9]*/exe | grep lbagent || true", "")
}
