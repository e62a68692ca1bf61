package packaging

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// built are the packages of one version.
type built struct{ dist, deb, rpm string }

// build makes the packages of this machine's architecture from the sources in tree.
func build(t *testing.T, tree, version string) built {
	t.Helper()
	dist := t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(tree, "packaging/build.sh"))
	cmd.Env = append(os.Environ(), "VERSION="+version, "ARCHES="+runtime.GOARCH, "DIST="+dist, "SOURCE_DATE_EPOCH=1767225600")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	return built{dist: dist, deb: one(t, dist+"/*.deb"), rpm: one(t, dist+"/*.rpm")}
}

func one(t *testing.T, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) != 1 {
		t.Fatalf("%s: %v %v", pattern, paths, err)
	}
	return paths[0]
}

// output runs a program of the host and returns what it says on both outputs.
func output(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// installed is what both packages have to hold.
func installed() []string {
	return []string{
		"/etc/default/lbagent",
		"/etc/lbagent/lbagent.yaml",
		"/etc/lbagent/services.d",
		"/etc/logrotate.d/lbagent",
		"/usr/bin/lbagent",
		"/usr/lib/systemd/system/lbagent-admin.socket",
		"/usr/lib/systemd/system/lbagent-again.timer",
		"/usr/lib/systemd/system/lbagent-deregister.service",
		"/usr/lib/systemd/system/lbagent-beside.target",
		"/usr/lib/systemd/system/lbagent-on.target",
		"/usr/lib/systemd/system/lbagent.service",
		"/usr/lib/systemd/system/lbagent.socket",
		"/usr/lib/sysusers.d/lbagent.conf",
		"/usr/lib/tmpfiles.d/lbagent.conf",
		"/usr/share/bash-completion/completions/lbagent",
		"/usr/share/doc/lbagent/README.md",
		"/usr/share/doc/lbagent/copyright",
		"/usr/share/doc/lbagent/examples/Containerfile",
		"/usr/share/doc/lbagent/examples/README.md",
		"/usr/share/doc/lbagent/examples/cpp/Makefile",
		"/usr/share/doc/lbagent/examples/cpp/client.cc",
		"/usr/share/doc/lbagent/examples/daemonset.yaml",
		"/usr/share/doc/lbagent/examples/echo.proto",
		"/usr/share/doc/lbagent/examples/lbagent.yaml",
		"/usr/share/doc/lbagent/examples/lbagent/v1/lookup.proto",
		"/usr/share/doc/lbagent/examples/low-ports.conf",
		"/usr/share/doc/lbagent/examples/node/client.js",
		"/usr/share/doc/lbagent/examples/node/package.json",
		"/usr/share/doc/lbagent/examples/python/client.py",
		"/usr/share/doc/lbagent/examples/shell/client.sh",
		"/usr/share/doc/lbagent/metrics.md",
		"/usr/share/fish/vendor_completions.d/lbagent.fish",
		"/usr/share/lbagent/grafana/lbagent.json",
		"/usr/share/lbagent/prometheus/lbagent.rules.yml",
		"/usr/share/man/man5/lbagent.yaml.5.gz",
		"/usr/share/doc/lbagent/lbagent.cdx.json",
		"/usr/share/doc/lbagent/runbook.md",
		"/usr/share/doc/lbagent/third-party-licences.gz",
		"/usr/share/man/man8/lbagent-config-put.8.gz",
		"/usr/share/man/man8/lbagent-run.8.gz",
		"/usr/share/man/man8/lbagent.8.gz",
	}
}

// TestPackages builds the packages once and looks at them from all sides.
func TestPackages(t *testing.T) {
	p := build(t, "..", "v0.1.0")
	t.Run("deb", func(t *testing.T) { testDeb(t, p) })
	t.Run("rpm", func(t *testing.T) { testRpm(t, p) })
	t.Run("lintian", func(t *testing.T) { testLintian(t, p) })
	t.Run("rpmlint", func(t *testing.T) { testRpmlint(t, p) })
	t.Run("dist", func(t *testing.T) { testDist(t, p) })
	t.Run("same sources, same bytes", func(t *testing.T) { testSameBytes(t, p) })
	t.Run("install", func(t *testing.T) { testInstall(t, p) })
	t.Run("install without systemd", func(t *testing.T) { testInstallWithoutSystemd(t, p) })
	t.Run("rpm in a root tree", func(t *testing.T) { testRpmInRoot(t, p) })
}

// testDeb looks into the .deb.
func testDeb(t *testing.T, p built) {
	dpkg := testneed.Program(t, "dpkg-deb", "dpkg")
	list := output(t, dpkg, "--contents", p.deb)
	for _, path := range installed() {
		if !strings.Contains(list, " ."+path+"\n") && !strings.Contains(list, " ."+path+"/\n") {
			t.Errorf("no %s in\n%s", path, list)
		}
	}
	for line := range strings.Lines(list) {
		if !strings.Contains(line, " root/root ") || line[5] == 'w' || line[8] == 'w' {
			t.Errorf("owner or mode of %s", line)
		}
	}
	if got := output(t, dpkg, "--field", p.deb, "Version", "Architecture", "Section"); got !=
		"Version: 0.1.0\nArchitecture: "+runtime.GOARCH+"\nSection: net\n" {
		t.Errorf("fields %q", got)
	}
	dir := t.TempDir()
	output(t, dpkg, "--control", p.deb, dir)
	if got := read(t, filepath.Join(dir, "conffiles")); got != "/etc/default/lbagent\n/etc/lbagent/lbagent.yaml\n/etc/logrotate.d/lbagent\n" {
		t.Errorf("conffiles %q", got)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		output(t, "sh", "-n", filepath.Join(dir, script))
	}
}

// testRpm looks into the .rpm.
func testRpm(t *testing.T, p built) {
	rpm := testneed.Program(t, "rpm", "rpm")
	list := output(t, rpm, "-qlp", p.rpm)
	for _, path := range append(installed(), "/usr/share/licenses/lbagent/LICENSE") {
		if !strings.Contains("\n"+list, "\n"+path+"\n") {
			t.Errorf("no %s in\n%s", path, list)
		}
	}
	if got := output(t, rpm, "-qcp", p.rpm); got != "/etc/default/lbagent\n/etc/lbagent/lbagent.yaml\n/etc/logrotate.d/lbagent\n" {
		t.Errorf("configuration files %q", got)
	}
	scripts := output(t, rpm, "-qp", "--scripts", p.rpm)
	for _, want := range []string{"postinstall scriptlet", "preuninstall scriptlet", "postuninstall scriptlet", "systemd-sysusers lbagent.conf"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("no %q in\n%s", want, scripts)
		}
	}
	for _, script := range []string{"post", "preun", "postun"} {
		output(t, "sh", "-n", filepath.Join("rpm", script))
	}
	if got := output(t, rpm, "-qp", "--queryformat", "%{NAME} %{VERSION} %{LICENSE}", p.rpm); got != "lbagent 0.1.0 Apache-2.0" {
		t.Errorf("fields %q", got)
	}
}

// testSameBytes: a package can be checked by building it again, elsewhere, from files of another time, under another umask.
func testSameBytes(t *testing.T, a built) {
	tree := t.TempDir()
	copyTree(t, "..", tree)
	defer syscall.Umask(syscall.Umask(0o077))
	b := build(t, tree, "v0.1.0")
	if read(t, filepath.Join(a.dist, "SHA256SUMS")) != read(t, filepath.Join(b.dist, "SHA256SUMS")) {
		t.Errorf("not the same:\n%s%s", read(t, filepath.Join(a.dist, "SHA256SUMS")), read(t, filepath.Join(b.dist, "SHA256SUMS")))
	}
}

// copyTree copies the sources: all but what git and the builds keep there.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case slices.Contains([]string{".git", "bin", "dist"}, name) && d.IsDir():
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, filepath.Join(to, name))
		case !info.Mode().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), text, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
}
