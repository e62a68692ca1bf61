package localapi

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/agent/testneed"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// forged is what the gateway would say of root on the admin socket.
const forged = "0 0 1 true true - -"

// tries is what one user can do at one socket, a line each: the answers of a lookup, of a mute and an unmute, and of a reload, on both faces, the reload also with a forged identity.
func tries(t testing.TB, socket string) string {
	var out strings.Builder
	cc := dial(t, socket)
	ctx := testContext(t)
	say := func(what string, err error) {
		code, reason := reasonOf(err)
		fmt.Fprintf(&out, "%s: %v %s\n", what, code, reason)
	}
	_, err := lbagentv1.NewLookupServiceClient(cc).Pick(ctx, &lbagentv1.PickRequest{Service: "user"})
	say("pick", err)
	if status.Code(err) == codes.Unavailable {
		return out.String() // no way in: the file rights
	}
	_, err = lbagentv1.NewAdminServiceClient(cc).Reload(ctx, &lbagentv1.ReloadRequest{})
	say("reload", err)
	_, err = lbagentv1.NewAdminServiceClient(cc).Reload(metadata.AppendToOutgoingContext(ctx, peerKey, forged), &lbagentv1.ReloadRequest{})
	say("forged reload", err)
	m, err := lbagentv1.NewAdminServiceClient(cc).Mute(ctx, &lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", OnBehalfOf: "eve"})
	say("mute", err)
	if author := m.GetMute().GetAuthor(); err == nil && strings.HasPrefix(author, "eve (") != (os.Getuid() == 0) {
		fmt.Fprintf(&out, "the mute is by %q\n", author) // only root may say for whom it acts
	}
	_, err = lbagentv1.NewAdminServiceClient(cc).Unmute(ctx, &lbagentv1.UnmuteRequest{Service: "user", Address: "10.0.0.1:80"})
	say("unmute", err)
	for _, verb := range []string{"mute", "unmute"} {
		code, _ := ask(t, socket, "POST", "/v1/admin/"+verb, `{"service": "user", "address": "10.0.0.1:80"}`, peerKey, forged)
		fmt.Fprintf(&out, "json %s: %d\n", verb, code)
	}
	for _, h := range [][]string{nil, {"Grpc-Metadata-" + peerKey, forged}, {peerKey, forged}, {"Grpc-Metadata-" + peerKey, forged, "Grpc-Metadata-" + peerKey, forged}} {
		code, _ := ask(t, socket, "POST", "/v1/admin/reload", "{}", h...)
		fmt.Fprintf(&out, "json reload: %d\n", code)
	}
	return out.String()
}

const (
	allowed = "pick: OK \nreload: OK \nforged reload: OK \nmute: OK \nunmute: OK \njson mute: 200\njson unmute: 200\njson reload: 200\njson reload: 200\njson reload: 200\njson reload: 200\n"
	refused = "pick: OK \nreload: PermissionDenied FORBIDDEN\nforged reload: PermissionDenied FORBIDDEN\n" +
		"mute: PermissionDenied FORBIDDEN\nunmute: PermissionDenied FORBIDDEN\njson mute: 403\njson unmute: 403\n" +
		"json reload: 403\njson reload: 403\njson reload: 403\njson reload: 403\n"
	noWayIn = "pick: Unavailable \n"
)

// The agent's own user (and root, when the test is root) may reload on the admin socket; nobody may on the open one, whatever it says it is.
func TestRightsOfSelf(t *testing.T) {
	r := newRig(t, nil)
	if got := tries(t, r.cfg.AdminSocket); got != allowed {
		t.Errorf("admin socket:\n%s", got)
	}
	if got := tries(t, r.cfg.Socket); got != refused {
		t.Errorf("open socket:\n%s", got)
	}
	if _, text := ask(t, r.cfg.Socket, "POST", "/v1/admin/reload", ""); !strings.Contains(text, "is served on the admin socket only ("+r.cfg.AdminSocket+")") {
		t.Error(text)
	}
}

const groupOfTest = 4242

// Another user may ask, and may change things only as a member of the group.
func TestRightsOfOthers(t *testing.T) {
	testneed.Root(t)
	r := newRig(t, func(c *Config) { c.AdminGID = groupOfTest })
	for _, m := range []struct {
		path string
		mode os.FileMode
		gid  uint32
	}{
		{filepath.Dir(r.cfg.Socket), 0o755, 0},
		{r.cfg.Socket, 0o666, 0},
		{filepath.Dir(r.cfg.AdminSocket), 0o750, groupOfTest},
		{r.cfg.AdminSocket, 0o660, groupOfTest},
	} {
		fi, err := os.Stat(m.path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := fi.Sys().(*syscall.Stat_t).Gid; fi.Mode().Perm() != m.mode || gid != m.gid {
			t.Errorf("%s has mode %v and group %d, want %v and %d", m.path, fi.Mode().Perm(), gid, m.mode, m.gid)
		}
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	member := &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{5, groupOfTest}}
	many := &syscall.Credential{Uid: 65534, Gid: 65534}
	for i := range uint32(200) { // more groups than the first look has room for
		many.Groups = append(many.Groups, 10000+i)
	}
	many.Groups = append(many.Groups, groupOfTest)
	check := func(who, socket string, cred *syscall.Credential, want string) {
		t.Helper()
		if got := asUser(t, r.dir, cred, "tries", socket); got != want {
			t.Errorf("%s at %s:\n%s\nwant:\n%s", who, socket, got, want)
		}
	}
	check("nobody", r.cfg.Socket, nobody, refused)
	check("nobody", r.cfg.AdminSocket, nobody, noWayIn)
	check("a member", r.cfg.AdminSocket, member, allowed)
	check("a member of many groups", r.cfg.AdminSocket, many, allowed)
	check("one whose own group it is", r.cfg.AdminSocket, &syscall.Credential{Uid: 65534, Gid: groupOfTest}, allowed)
	check("a member", r.cfg.Socket, member, refused)

	openToStrangers(t, r)
	check("nobody", r.cfg.AdminSocket, nobody, refused)
}

// openToStrangers takes away what file rights do for the admin socket: they are not what it hangs on.
func openToStrangers(t testing.TB, r *rig) {
	t.Helper()
	for path, mode := range map[string]os.FileMode{filepath.Dir(r.cfg.AdminSocket): 0o755, r.cfg.AdminSocket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// An agent that isn't root serves its own user, and doesn't fail on a group that it may not give files to.
func TestRightsOfUnprivilegedAgent(t *testing.T) {
	testneed.Root(t)
	if got := asUser(t, publicDir(t), &syscall.Credential{Uid: 65534, Gid: 65534}, "serve", ""); got != allowed {
		t.Error(got)
	}
}

// asUser runs TestHelper as another user and returns what it printed between the marks.
func asUser(t testing.TB, dir string, cred *syscall.Credential, what, socket string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies where only its maker may look.
	exe := filepath.Join(dir, "helper")
	if _, err := os.Stat(exe); err != nil {
		in, err := os.Open(self)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := os.OpenFile(exe, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, in); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(testContext(t), exe, "-test.run=^TestHelper$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LBAGENT_TEST_HELPER="+what, "LBAGENT_TEST_SOCKET="+socket, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("helper: %v\n%s", err, text)
	}
	_, rest, _ := strings.Cut(string(text), "<<<\n")
	said, _, ok := strings.Cut(rest, ">>>\n")
	if !ok {
		t.Fatalf("helper said:\n%s", text)
	}
	return said
}

// TestHelper is what asUser runs in another process; by itself it tests nothing.
func TestHelper(t *testing.T) {
	switch os.Getenv("LBAGENT_TEST_HELPER") {
	case "tries":
		fmt.Printf("<<<\n%s>>>\n", tries(t, os.Getenv("LBAGENT_TEST_SOCKET")))
	case "profile":
		code, text := ask(t, os.Getenv("LBAGENT_TEST_SOCKET"), "GET", "/debug/pprof/heap?debug=1", "")
		reason := ""
		if strings.Contains(text, `"reason":"`+reasonForbidden+`"`) {
			reason = reasonForbidden
		}
		fmt.Printf("<<<\n%d %s\n>>>\n", code, reason)
	case "serve":
		r := newRig(t, func(c *Config) { c.AdminGID = groupOfTest })
		fmt.Printf("<<<\n%s>>>\n", tries(t, r.cfg.AdminSocket))
	}
}

// The text form of a Peer comes back as it was, and nothing else is read as one.
func TestPeerText(t *testing.T) {
	for _, want := range []Peer{{UID: 4294967294, GID: 7, PID: 123, Socket: true}, {UID: 1, groups: "5,4294967295"}, {UID: RemoteUID, GID: RemoteUID, Addr: netip.MustParseAddr("2001:db8::1")}} {
		if got, err := parsePeer(want.String()); err != nil || got != want {
			t.Error(got, err)
		}
	}
	for _, bad := range []string{"", "0 0 1 true true -", "0 0 1 true true 1 1 -", "0 0 1 true true x -", "-1 0 1 true true - -", "0 0 1 yes true - -", "4294967296 0 1 true true - -", "0 0 1 true true - x", "0 0 1 true true - 10.0.0.1:80"} {
		if p, err := parsePeer(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, p)
		}
	}
}

// A method that nobody thought of is for administrators; by TCP there are lookups only.
func TestUnknownServiceIsForAdmins(t *testing.T) {
	user, remote := Peer{UID: 1000}, Peer{UID: RemoteUID, Addr: netip.MustParseAddr("127.0.0.1")}
	for service, want := range map[string][2]bool{
		"lbagent.v1.LookupService": {true, true}, "grpc.health.v1.Health": {true, true}, "grpc.reflection.v1.ServerReflection": {true, true},
		"lbagent.v1.StatusService": {true, false}, "lbagent.v1.AdminService": {}, "lbagent.v1.RegistryService": {}, "": {},
	} {
		if got := [2]bool{openTo(user, service), openTo(remote, service)}; got != want {
			t.Errorf("%q is open to a user and to a caller by TCP: %v, want %v", service, got, want)
		}
	}
}

// A handler that panics fails its own call only.
func TestPanic(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Status = func() *lbagentv1.StatusResponse { panic("mistake") } })
	if _, err := r.status().Status(testContext(t), &lbagentv1.StatusRequest{}); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	if code, _ := ask(t, r.cfg.Socket, "GET", "/v1/status", ""); code != 500 {
		t.Error(code)
	}
	if code, _ := ask(t, r.cfg.Socket, "GET", "/v1/services", ""); code != 200 {
		t.Error(code)
	}
}
