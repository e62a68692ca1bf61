package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
)

// What all tests share: the built binary, an etcd in which each test has a namespace of its own, which ports of this host they have, and how late the machine is.
var (
	binary  string
	etcd    *etcdtest.Server
	ports   sync.Map
	machine late
)

// sideBySide is how many tests run at a time: most of them wait for something most of the time, so that cores are no measure.
const sideBySide = 5

const testVersion = "v0.0.0-e2e"

func TestMain(m *testing.M) {
	if os.Getenv(reloadAs) != "" { // another user's run of one function, which needs nothing of this
		os.Exit(m.Run())
	}
	if os.Getenv(doorsAs) != "" { // somebody at the doors
		os.Exit(doorsMain())
	}
	if os.Getenv(soakAs) != "" { // a backend of TestSoak
		os.Exit(soakBackendMain())
	}
	if os.Getenv(brokenAs) != "" { // backends of TestBrokenBackends
		os.Exit(brokenBackendMain())
	}
	go machine.watch()
	if binary = os.Getenv(cutOff); binary != "" { // a test in a network of its own, where this etcd can't be reached
		os.Exit(m.Run())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lbagent-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Another user runs it in one of the tests.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}

	binary = filepath.Join(dir, "lbagent")
	args := []string{"build", "-o", binary, "-ldflags", "-X main.version=" + testVersion}
	if raced {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "github.com/lbagent/lbagent/cmd/lbagent")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
		return 1
	}

	etcd, err = etcdtest.Run(etcdtest.Config{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer etcd.Close()
	if !flagGiven("test.parallel") {
		if err := flag.Set("test.parallel", strconv.Itoa(sideBySide)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// flagGiven reports whether whoever runs the tests has set a flag.
func flagGiven(name string) (given bool) {
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}
