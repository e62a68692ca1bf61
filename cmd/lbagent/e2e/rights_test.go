package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// nobody is an unprivileged user on every Linux.
const nobody = 65534

// reloadAs is set in the process that TestReloadAsThisUser is run in by another user.
const reloadAs = "LBAGENT_E2E_RELOAD_SOCKET"

// asNobody runs a program as an unprivileged user.
func (a *agent) asNobody(env []string, argv ...string) (output string, code int) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=/", raceOptions, "LBAGENT_SOCKET=" + a.socket, "LBAGENT_ADMIN_SOCKET=" + a.admin}, env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		a.t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// Every local user may ask; only root, the agent's user and its group may change something: by the socket's mode, and by who is asking (DESIGN 6).
func TestAnUnprivilegedUser(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	a := startAgent(t, `- {name: user, backends: ["10.0.0.1:80"]}`)
	for path, want := range map[string]os.FileMode{a.socket: 0o666, a.admin: 0o660} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, fi.Mode().Perm(), want)
		}
	}

	if out, code := a.asNobody(nil, binary, "lookup", "user"); code != 0 || !strings.Contains(out, "10.0.0.1:80") {
		t.Errorf("lookup: %d %q", code, out)
	}
	if out, code := a.asNobody(nil, binary, "status"); code != 0 {
		t.Errorf("status: %d %q", code, out)
	}
	if out, code := a.asNobody(nil, binary, "reload"); code != 1 || !strings.Contains(strings.ToLower(out), "permission") {
		t.Errorf("reload: %d %q, want 1 and a word on permission", code, out)
	}

	// On the open socket the admin's service does not exist; on the admin socket, were its mode ever opened, the caller's uid decides.
	if err := os.Chmod(a.admin, 0o666); err != nil {
		t.Fatal(err)
	}
	self := copyOfThisTest(t, a.dir)
	for socket, allowed := range map[string][]codes.Code{
		a.socket: {codes.PermissionDenied, codes.Unimplemented},
		a.admin:  {codes.PermissionDenied},
	} {
		out, code := a.asNobody([]string{reloadAs + "=" + socket}, self, "-test.run=^TestReloadAsThisUser$", "-test.v")
		found := false
		for _, c := range allowed {
			found = found || strings.Contains(out, "reload ended with "+c.String())
		}
		if code != 0 || !found {
			t.Errorf("reload by %s: %d\n%s\nwant %v", socket, code, out, allowed)
		}
	}
	if code := reloadCode(t, a.socket); code != codes.PermissionDenied && code != codes.Unimplemented {
		t.Errorf("root reloads on the open socket: %v", code)
	}
	if code := reloadCode(t, a.admin); code != codes.OK {
		t.Errorf("root reloads on the admin socket: %v", code)
	}
}

// TestReloadAsThisUser is no test of its own: TestAnUnprivilegedUser runs it as another user.
func TestReloadAsThisUser(t *testing.T) {
	socket := os.Getenv(reloadAs)
	if socket == "" {
		return
	}
	fmt.Println("reload ended with", reloadCode(t, socket))
}

func reloadCode(t *testing.T, socket string) codes.Code {
	t.Helper()
	c, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = lbagentv1.NewAdminServiceClient(c).Reload(t.Context(), &lbagentv1.ReloadRequest{})
	return status.Code(err)
}

// copyOfThisTest puts this test's binary where another user may run it.
func copyOfThisTest(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "e2e.test")
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}
