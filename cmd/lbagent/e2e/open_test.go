package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
	"google.golang.org/grpc/codes"
)

// A listener for containers of this host: allowed where it is written, and said wherever a person looks.
func TestOpenListener(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") }))
	defer backend.Close()
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf(`- {name: user, backends: [%q], listen: ["0.0.0.0:%d"]}`, strings.TrimPrefix(backend.URL, "http://"), port))
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.2:%d/", port)) // any address of this host
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("through the listener: %s", resp.Status)
	}
	want := fmt.Sprintf("services[user].listen: 0.0.0.0:%d is open to other hosts", port)
	for _, args := range [][]string{{"status"}, {"check", a.config}, {"check", "--json", a.config}, {"doctor", "--config", a.config}} {
		out, _, code := a.cli(args...)
		if out = strings.Join(strings.Fields(out), " "); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%q: %d, without %q: %s", args, code, want, out)
		}
	}
	if log := a.logTail(1000); !strings.Contains(log, want) || !strings.Contains(log, "[WARN]") {
		t.Errorf("the log says nothing:\n%s", log)
	}
}

// Root of a container is root only if its user namespace is the host's: the kernel tells the agent who the caller is outside. Into the admin socket's folder
// nobody looks from a container that hasn't mounted it; here even its mode is opened.
func TestRootOfAContainer(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	if out, err := exec.Command("setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups", "unshare", "--user", "--map-root-user", "true").CombinedOutput(); err != nil {
		t.Skipf("no user namespaces for ordinary users here: %v: %s", err, out)
	}
	a := startAgent(t, `- {name: user, backends: ["10.0.0.1:80"]}`)
	if out, err := exec.Command("chmod", "0666", a.admin).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	self := copyOfThisTest(t, a.dir)
	contained := func(env []string, argv ...string) (string, int) {
		return a.asNobody(env, append([]string{"/usr/bin/unshare", "--user", "--map-root-user"}, argv...)...)
	}
	if out, code := contained(nil, "/usr/bin/id", "-u"); code != 0 || strings.TrimSpace(out) != "0" {
		t.Fatalf("it is not root in there: %d %s", code, out)
	}
	if out, code := contained(nil, binary, "lookup", "user"); code != 0 || !strings.Contains(out, "10.0.0.1:80") {
		t.Errorf("it may ask: %d %s", code, out)
	}
	for _, socket := range []string{a.socket, a.admin} {
		out, code := contained([]string{reloadAs + "=" + socket}, self, "-test.run=^TestReloadAsThisUser$", "-test.v")
		if code != 0 || !strings.Contains(out, "reload ended with "+codes.PermissionDenied.String()) {
			t.Errorf("root of a container changes the agent by %s: %d %s", socket, code, out)
		}
	}
	// Without a user namespace of its own it is the host's root, and may no more than others on the socket that is mounted.
	if code := reloadCode(t, a.socket); code != codes.PermissionDenied {
		t.Errorf("the host's root changes the agent on the open socket: %v", code)
	}
}
