package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// Ids of the people at the doors; only groupOfAdmins has a name, lbagent, and only for the agent.
const (
	uidOfAgent, groupOfAdmins, groupOfRegistrars = 64211, 64300, 64301
)

// people come to the doors.
func people() map[string]*syscall.Credential {
	return map[string]*syscall.Credential{
		"root":                {},
		"the agent's user":    {Uid: uidOfAgent, Gid: uidOfAgent},
		"a member of lbagent": {Uid: 64212, Gid: 64212, Groups: []uint32{5, groupOfAdmins}},
		"one by lbagent":      {Uid: 64213, Gid: groupOfAdmins}, // as after newgrp
		"register_allow user": {Uid: 64214, Gid: 64214},
		"register_allow crew": {Uid: 64215, Gid: 64215, Groups: []uint32{groupOfRegistrars}},
		"a stranger":          {Uid: 64216, Gid: 64216},
	}
}

func isAdmin(who string) bool {
	return slices.Contains([]string{"root", "the agent's user", "a member of lbagent", "one by lbagent"}, who)
}

// right is who may call something (DESIGN 6).
type right string

const (
	lookups    right = "every local user, on both sockets, and whoever reaches api.listen"
	everybody  right = "every local user, on both sockets"
	registrars right = "administrators on the admin socket, and whom register_allow names on the open one"
	admins     right = "administrators on the admin socket"
)

type doorRow struct {
	right   right
	request string
}

// doorRights is who may call what, with a request that gets as far as its handler and changes nothing. A method that isn't here fails TestDoors.
func doorRights() map[string]doorRow {
	const (
		registration = `{"registration":{"service":"shop","address":"127.0.0.1:1"}}` // never announced: loopback (5.5)
		unknown      = `{"service":"none","address":"127.0.0.1:1"}`
	)
	return map[string]doorRow{
		"lbagent.v1.LookupService/Pick":     {lookups, `{"service":"user"}`},
		"lbagent.v1.LookupService/List":     {lookups, `{"service":"user"}`},
		"lbagent.v1.LookupService/Watch":    {lookups, `{"service":"user"}`},
		"lbagent.v1.LookupService/Services": {lookups, `{}`},
		"lbagent.v1.LookupService/Report":   {lookups, `{"outcomes":[{"service":"none","address":"127.0.0.1:1","result":"RESULT_SUCCESS"}]}`},

		"lbagent.v1.StatusService/Status":  {everybody, `{}`},
		"lbagent.v1.StatusService/Explain": {everybody, `{"service":"user"}`},
		"lbagent.v1.StatusService/Events":  {everybody, `{}`},
		"lbagent.v1.StatusService/Mutes":   {everybody, `{}`},
		"lbagent.v1.StatusService/Stats":   {everybody, `{}`},

		"lbagent.v1.RegistryService/Register":   {registrars, registration},
		"lbagent.v1.RegistryService/Hold":       {registrars, registration},
		"lbagent.v1.RegistryService/Update":     {registrars, `{"service":"shop","address":"127.0.0.1:1","load":1}`},
		"lbagent.v1.RegistryService/Deregister": {registrars, `{"service":"shop","address":"127.0.0.1:1"}`},

		"lbagent.v1.AdminService/Reload":  {admins, `{}`},
		"lbagent.v1.AdminService/Mute":    {admins, unknown},
		"lbagent.v1.AdminService/Unmute":  {admins, unknown},
		"lbagent.v1.AdminService/Accept":  {admins, `{"service":"none"}`},
		"lbagent.v1.AdminService/Drain":   {admins, `{"service":"none"}`},
		"lbagent.v1.AdminService/Undrain": {admins, `{"service":"none"}`},
		"lbagent.v1.AdminService/Tap":     {admins, `{"service":"none"}`},
		"lbagent.v1.AdminService/Upgrade": {admins, `{}`}, // the agent's program is gone: see doorsAgent

		"grpc.health.v1.Health/Check": {lookups, `{}`},
		"grpc.health.v1.Health/List":  {lookups, `{}`},
		"grpc.health.v1.Health/Watch": {lookups, `{}`},

		"grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {lookups, `{"listServices":""}`},
		"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {lookups, `{"listServices":""}`},
	}
}

// What came of a try at a door.
const (
	in     = "in"     // the method's handler answered
	denied = "denied" // PERMISSION_DENIED, or 403
	shut   = "shut"   // the socket can't be connected to
	absent = "absent" // there is no such method, or path
)

// may is what has to come of a try. open says that the file rights of the admin socket have been taken away.
func may(who string, r right, door string, open bool) string {
	switch admin := door == "admin"; {
	case door == "tcp" && r == lookups:
		return in
	case door == "tcp":
		return denied
	case admin && !open && !isAdmin(who):
		return shut
	case r == everybody, r == lookups,
		admin && isAdmin(who),
		r == registrars && who == "register_allow user",           // wherever it comes from
		r == registrars && who == "register_allow crew" && !admin: // groups are looked at where register_allow is for
		return in
	}
	return denied
}

// doorsAgent is an agent that runs as a user of its own, with the group lbagent on this host, and with the folders and file modes of the package.
func doorsAgent(t *testing.T, services string) *agent {
	t.Helper()
	testneed.Root(t)
	testneed.Program(t, "unshare", "util-linux")
	testneed.Program(t, "setpriv", "util-linux")
	a := newAgent(t, services, etcd.Endpoints()...)
	group := filepath.Join(a.dir, "group")
	if err := os.WriteFile(group, fmt.Appendf(nil, "root:x:0:\nlbagent:x:%d:\n", groupOfAdmins), 0o644); err != nil {
		t.Fatal(err)
	}
	a.wrapper = []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "$0" /etc/group && exec "$@"`, group,
		"setpriv", "--pdeathsig", "KILL", fmt.Sprintf("--reuid=%d", uidOfAgent), fmt.Sprintf("--regid=%d", uidOfAgent), fmt.Sprintf("--groups=%d", groupOfAdmins), "--"}
	if out, err := exec.CommandContext(t.Context(), a.wrapper[0], append(a.wrapper[1:], "true")...).CombinedOutput(); err != nil {
		testneed.Unmet(t, "a mount namespace and another user's process: %v: %s", err, out)
	}
	a.socket, a.admin = filepath.Join(a.dir, "run", "lbagent.sock"), filepath.Join(a.dir, "run-admin", "admin.sock")
	a.tcp = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a.extra = fmt.Sprintf("register_allow: [{user: \"64214\", services: [\"sh*\"]}, {group: \"%d\"}]\n", groupOfRegistrars)
	a.writeConfig()
	if err := os.Chown(a.dir, uidOfAgent, uidOfAgent); err != nil {
		t.Fatal(err)
	}
	// Without its program, an upgrade is tried and comes to nothing.
	raw, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	a.program = filepath.Join(a.dir, "lbagent")
	if err := os.WriteFile(a.program, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	a.start()
	if err := os.Remove(a.program); err != nil {
		t.Fatal(err)
	}
	return a
}

// visit has somebody do a job at the doors, in a process of their own; see doorsMain.
func (a *agent) visit(who *syscall.Credential, job doorJob) []string {
	a.t.Helper()
	out, err := a.visitor(who, job).CombinedOutput()
	if err != nil {
		a.t.Fatalf("visit: %v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// visitor is the process of a visit, not yet started.
func (a *agent) visitor(who *syscall.Credential, job doorJob) *exec.Cmd {
	a.t.Helper()
	exe := filepath.Join(a.dir, "e2e.test")
	if _, err := os.Stat(exe); err != nil {
		copyOfThisTest(a.t, a.dir)
	}
	job.Open, job.Admin, job.TCP = a.socket, a.admin, a.tcp
	raw, err := json.Marshal(job)
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.CommandContext(a.t.Context(), exe)
	cmd.Env = []string{"PATH=/usr/bin:/bin", raceOptions, doorsAs + "=" + string(raw)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// routesOf reads which request of the JSON face is which method, with {service} as "user".
func routesOf(t *testing.T) map[string]doorRoute {
	t.Helper()
	text, err := os.ReadFile("../../../localapi/lbagent/v1/routes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	routes := make(map[string]doorRoute)
	for _, m := range regexp.MustCompile(`selector: ([\w.]+)\.(\w+), (\w+): (?:"([^"]+)"|([^",}]+))`).FindAllStringSubmatch(string(text), -1) {
		routes[m[1]+"/"+m[2]] = doorRoute{strings.ToUpper(m[3]), m[4] + m[5]}
	}
	if n := strings.Count(string(text), "selector:"); n != len(routes) {
		t.Fatalf("%d of %d routes were read", len(routes), n)
	}
	return routes
}

// The doors as DESIGN 6 has them, with the built agent, real sockets and real users.
func TestDoors(t *testing.T) {
	t.Parallel()
	b := newBackend(t, "one", "127.0.0.1", 0)
	a := doorsAgent(t, fmt.Sprintf("- {name: user, backends: [%q], probe: off}", b.addr))
	d := &doors{agent: a, routes: routesOf(t), rows: doorRights()}
	t.Run("rights", d.rights)
	t.Run("files", d.files)
	d.openAdminDoor(t)
	t.Run("rights without file rights", d.rights)
	t.Run("forged", d.forged)
	t.Run("raw", d.raw)
	t.Run("many", d.many)
	t.Run("crowd", d.crowd)
	t.Run("flood", d.flood)
	if out := a.must("mute"); strings.Contains(out, b.addr) {
		t.Errorf("somebody muted: %s", out)
	}
	if log := a.logTail(1 << 20); strings.Contains(log, "panicked") {
		t.Error(log)
	}
}

type doors struct {
	*agent
	routes map[string]doorRoute
	rows   map[string]doorRow
	served []string // methods that the agent's reflection names
	open   bool     // the admin socket's file rights have been taken away
}

// tries are those of the methods with one of these rights.
func (d *doors) tries(of ...right) (out []doorTry) {
	for method, row := range d.rows {
		if slices.Contains(of, row.right) {
			out = append(out, doorTry{Method: method, Request: row.request, Route: d.routes[method]})
		}
	}
	return out
}

// rights: every method that the agent's reflection names, from every kind of user, at both sockets, in gRPC and in JSON.
func (d *doors) rights(t *testing.T) {
	for method := range d.routes {
		if _, ok := d.rows[method]; !ok {
			t.Errorf("%s has a path in JSON and no row in doorRights", method)
		}
	}
	d.served = d.visit(people()["root"], doorJob{Do: "list"})
	for _, method := range d.served {
		if _, ok := d.rows[method]; !ok {
			t.Errorf("%s has no row in doorRights", method)
		}
	}
	for method := range d.rows {
		if !slices.Contains(d.served, method) {
			t.Errorf("%s has a row in doorRights, and the agent doesn't serve it", method)
		}
	}
	tries := d.tries(lookups, everybody, registrars, admins)
	for who, cred := range people() {
		said := d.visit(cred, doorJob{Do: "try", Tries: tries})
		want := 0
		for _, try := range tries {
			for _, door := range []string{"open", "admin", "tcp"} {
				faces := []string{"grpc"}
				if try.Route.Path != "" {
					faces = append(faces, "json")
				}
				for _, face := range faces {
					want++
					at := fmt.Sprintf("%s %s %s: ", try.Method, door, face)
					if line := at + may(who, d.rows[try.Method].right, door, d.open); !slices.Contains(said, line) {
						t.Errorf("%s (file rights taken away: %v): want %q, got %q", who, d.open, line, linesWith(said, at))
					}
				}
			}
		}
		if len(said) != want {
			t.Errorf("%s: %d answers, want %d", who, len(said), want)
		}
	}
}

// files: the modes of what the agent makes, and what a stranger can do there.
func (d *doors) files(t *testing.T) {
	poll(t, "the files are there", func() bool {
		_, list := os.Stat(filepath.Join(d.dir, "run", "lists", "user"))
		_, good := os.Stat(filepath.Join(d.dir, "state", "config.good"))
		return list == nil && good == nil
	})
	secret := []string{filepath.Join(d.dir, "state")}
	for path, want := range map[string]struct {
		mode os.FileMode
		gid  uint32
	}{
		"run":                  {os.ModeDir | 0o755, uidOfAgent},
		"run/lbagent.sock":     {os.ModeSocket | 0o666, uidOfAgent},
		"run/lists":            {os.ModeDir | 0o755, uidOfAgent},
		"run/lists/user":       {0o644, uidOfAgent},
		"run-admin":            {os.ModeDir | 0o750, groupOfAdmins},
		"run-admin/admin.sock": {os.ModeSocket | 0o660, groupOfAdmins},
		"state":                {os.ModeDir | 0o750, uidOfAgent},
		"state/config.good":    {0o600, uidOfAgent},
	} {
		fi, err := os.Lstat(filepath.Join(d.dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); fi.Mode() != want.mode || st.Uid != uidOfAgent || st.Gid != want.gid {
			t.Errorf("%s: %v of %d:%d, want %v of %d:%d", path, fi.Mode(), st.Uid, st.Gid, want.mode, uidOfAgent, want.gid)
		}
		if strings.HasPrefix(path, "state/") {
			secret = append(secret, filepath.Join(d.dir, path))
		}
	}
	paths := []string{d.socket, d.admin, filepath.Join(d.dir, "run", "lists", "user"), filepath.Join(d.dir, "state", "config.good"), filepath.Join(d.dir, "run")}
	// Who may connect may open a socket's file for writing; there is nothing to write to (ENXIO).
	if did := d.visit(people()["a stranger"], doorJob{Do: "files", Paths: paths, Secret: secret}); !slices.Equal(did, []string{"that was all"}) {
		t.Errorf("a stranger\n%s", strings.Join(did, "\n"))
	}
}

// forged: an identity that only the gateway may tell, from outside in each spelling, with each restricted method.
func (d *doors) forged(t *testing.T) {
	tries := d.tries(registrars, admins)
	said := d.visit(people()["a stranger"], doorJob{Do: "forge", Tries: tries})
	if want := len(tries) * 3 * 8; len(said) != want {
		t.Errorf("%d answers, want %d", len(said), want)
	}
	for _, line := range said {
		// What gRPC itself doesn't take on the way is none of ours.
		if !strings.HasSuffix(line, ": "+denied) {
			t.Errorf("a stranger: %s", line)
		}
	}
}

// openAdminDoor takes away what file rights do for the admin socket: the agent doesn't rely on them.
func (d *doors) openAdminDoor(t *testing.T) {
	t.Helper()
	for path, mode := range map[string]os.FileMode{filepath.Dir(d.admin): 0o755, d.admin: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	d.open = true
}

func linesWith(lines []string, prefix string) (out []string) {
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}
