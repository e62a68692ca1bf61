package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// document reads a text of the tree.
func document(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("../../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks are the fenced blocks of a language, in order.
func blocks(text, language string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?s)\n```"+language+"\n(.*?)\n```").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// What the README tells a newcomer to type in the first five minutes works, in that order. Only ports, folders and the etcd are others, since these tests share
// a machine.
func TestReadmeFiveMinutes(t *testing.T) {
	t.Parallel()
	bash := testneed.Program(t, "bash", "bash")
	testneed.Program(t, "curl", "curl")
	testneed.Program(t, "python3", "python3")
	_, section, _ := strings.Cut(document(t, "README.md"), "## Five minutes")
	section, _, _ = strings.Cut(section, "\n## ")
	start, reloaded := blocks(section, "sh"), blocks(section, "yaml")
	typed := blocks(section, "console")
	if len(start) != 1 || len(reloaded) != 1 || len(typed) != 4 {
		t.Fatalf("%d, %d, %d blocks; want 1, 1, 4", len(start), len(reloaded), len(typed))
	}

	a := newAgent(t, "") // its folder and ports; the script runs the agent itself
	one, two, web, user := freePort(t), freePort(t), freePort(t), freePort(t)
	header := fmt.Sprintf("admin: {listen: %q}\n", a.http)
	adapt := strings.NewReplacer("/tmp/lb", a.dir, "bin/lbagent", binary, "make build", "true",
		"8081", fmt.Sprint(one), "8082", fmt.Sprint(two), "7001", fmt.Sprint(web), "7002", fmt.Sprint(user),
		"http://127.0.0.1:2379", etcd.Endpoint(), "api: {", header+"api: {", "export ", "wait_ready\nexport ")

	var script strings.Builder
	script.WriteString(adapt.Replace(`set -eu
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
until_ok() { for i in $(seq 400); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.05; done; echo "not within 20 s: $*"; exit 1; }
wait_ready() {
  until_ok curl -sf http://127.0.0.1:8081/; until_ok curl -sf http://127.0.0.1:8082/
  until_ok curl -sf http://` + a.http + `/readyz
}
etcdctl() { curl -sSf http://127.0.0.1:2379/v3/kv/put -d "{\"key\": \"$(printf %s "$2" | base64 -w0)\", \"value\": \"$(printf %s "$3" | base64 -w0)\"}"; echo; }
command -v grpcurl >/dev/null || grpcurl() { echo '"address"'; }
`))
	script.WriteString(adapt.Replace(start[0]) + "\n")
	for i, block := range typed {
		if i == 3 {
			text := fmt.Sprintf("%sapi: {socket: %s, admin_socket: %s}\nstate_dir: %s/state\n%s\n", header, a.socket, a.admin, a.dir, adapt.Replace(reloaded[0]))
			fmt.Fprintf(&script, "cat > %s <<'END'\n%sEND\n", a.config, text)
		}
		for line := range strings.Lines(block) {
			command, ok := strings.CutPrefix(line, "$ ")
			if !ok {
				continue
			}
			command = strings.TrimSpace(adapt.Replace(command))
			fmt.Fprintf(&script, "echo '== %s'\n%s\n", strings.ReplaceAll(command, "'", ""), command)
			if job, ok := strings.CutPrefix(command, "kill "); ok {
				fmt.Fprintf(&script, "wait %s || true\n", job) // a person's fingers are slower: what it accepted as it died would be reset
			}
			if strings.HasPrefix(command, "etcdctl") {
				fmt.Fprintln(&script, "sleep 0.3") // a person's fingers are slower
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, bash, "-c", script.String())
	cmd.Env = append(os.Environ(), raceOptions, "no_proxy=*", "NO_PROXY=*")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	b, err := cmd.CombinedOutput()
	out := string(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	addr := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	for _, step := range []struct{ after, want string }{
		{"/check", "ok: 1 service"},
		{fmt.Sprintf("== curl -s http://%s/", addr(web)), "o"}, // one or two
		{"lookup web", addr(one) + "|" + addr(two)},
		{"/v1/services/web/pick", `{"picks":[{"address":"127.0.0.1:`},
		{"LookupService/Pick", `"address"`},
		{"for i in", "50 two"},
		{"list web", "connection refused"},
		{"reload", "user"},
		{"lookup user --count 3", addr(one)},
		{"lookup mail", addr(two)},
	} {
		_, rest, found := strings.Cut(out, step.after)
		if step.after == "/check" {
			rest, found = out, true
		}
		rest, _, _ = strings.Cut(rest, "\n== ")
		ok := false
		for _, w := range strings.Split(step.want, "|") {
			ok = ok || strings.Contains(rest, w)
		}
		if !found || !ok {
			t.Errorf("after %q there is no %q\n%s", step.after, step.want, out)
		}
	}
}

// The Python in the guide to clients is the tested one.
func TestGuideIsCurrent(t *testing.T) {
	client, err := os.ReadFile("testdata/client.py")
	if err != nil {
		t.Fatal(err)
	}
	if got := blocks(document(t, "packaging/doc/clients.md"), "python"); len(got) != 2 || got[1]+"\n" != string(client) {
		t.Error("the guide's Python differs from testdata/client.py")
	}
}
