// Package testneed says what a test needs beyond Go and a C compiler. A test whose need isn't met is skipped and names the Debian package that is
// missing; with LBAGENT_TEST_ALL=1, which CI sets, it fails instead, so that a test that never runs can't hide. Only tests import it.
package testneed

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// AllVariable is the environment variable that turns every skip into a failure when it is "1".
const AllVariable = "LBAGENT_TEST_ALL"

// commandTimeout bounds the question whether a need is met, so that a program that hangs doesn't hang the tests.
const commandTimeout = time.Minute

// Program returns the path of the program name, for example "haproxy"; debianPackage is where to get it.
func Program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	// Debian keeps daemons out of an ordinary user's PATH.
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	Unmet(t, "no program %s; Debian has it in the package %s", name, debianPackage)
	return ""
}

// Command wants argv to succeed, for example "/usr/bin/python3", "-c", "import grpc"; debianPackage is what makes it.
func Command(t testing.TB, debianPackage string, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		Unmet(t, "%s: %v: %s; Debian has what it needs in the package %s", strings.Join(argv, " "), err, lastLine(out), debianPackage)
	}
}

// Root wants to be root: for other users' processes, containers and network namespaces.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unmet(t, "not root: run the tests as root, or with sudo")
	}
}

// IPv6 wants ::1 on the loopback interface.
func IPv6(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/if_inet6")
	if err != nil || !strings.Contains(string(b), "00000000000000000000000000000001 ") {
		Unmet(t, "no IPv6 on the loopback interface: sysctl net.ipv6.conf.lo.disable_ipv6=0")
	}
}

// Unmet ends the test as skipped, or as failed under LBAGENT_TEST_ALL=1; the text says what is missing and how to get it.
func Unmet(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(AllVariable) == "1" {
		t.Fatalf("needed, since "+AllVariable+"=1: "+format, args...)
		return
	}
	t.Skipf("skipped: "+format, args...)
}

func lastLine(out []byte) string {
	s := strings.TrimSpace(string(out))
	return s[strings.LastIndexByte(s, '\n')+1:]
}
