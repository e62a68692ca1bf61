package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// The verbs, as a person and as a program sees them.
func TestVerbs(t *testing.T) {
	t.Parallel()
	bs := backends(t, 2, 0)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf(`
  - {name: user, backends: [%s], listen: [%d]}
  - {name: gone, backends: ["127.0.0.1:%d"], listen: [%d], probe: {type: none}}
`, join(addrs(bs)), port, freePort(t), freePort(t)))
	// One backend of user is dead: calls find out.
	bs[1].kill()
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	poll(t, "the dead backend is known", func() bool {
		c.burst(10, 2)
		for _, b := range a.list("user").GetBackends() {
			if b.GetAddress() == bs[1].addr {
				return !b.GetUsable()
			}
		}
		return false
	})

	listen := fmt.Sprintf("127.0.0.1:%d", port)
	for _, tt := range []struct {
		args string
		code int
		want []string // in stdout; with another code than 0 in stderr
	}{
		{"version", 0, []string{testVersion}},
		{"check " + a.config, 0, nil},
		{"services", 0, []string{"user", "gone", listen, "1/2"}},
		{"lookup user", 0, []string{bs[0].addr}},
		{"lookup user --count 10", 0, []string{bs[0].addr}},
		{"list user", 0, []string{bs[0].addr, "up", bs[1].addr, "refused"}},
		{"env user", 0, []string{"USER_ADDR=" + listen}},
		{"status", 0, []string{testVersion, "user"}},
		{"explain user", 0, []string{bs[0].addr, bs[1].addr, "refused"}},
		{"explain user " + bs[1].addr, 0, []string{bs[1].addr, "refused"}},
		{"events", 0, []string{"user", bs[1].addr}},
		{"lookup nosuch", 3, []string{"nosuch"}},
		{"list nosuch", 3, []string{"nosuch"}},
		{"lookup", 2, nil},
		{"nonsense", 2, []string{"nonsense"}},
		{"lookup user --nonsense", 2, []string{"nonsense"}},
		{"--help", 0, []string{"run", "lookup", "explain"}},
		{"lookup --help", 0, []string{"lookup SERVICE"}},
	} {
		t.Run(strings.ReplaceAll(tt.args, a.dir, ""), func(t *testing.T) {
			stdout, stderr, code := a.cli(strings.Fields(tt.args)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, tt.code, stdout, stderr)
			}
			text := stdout
			if tt.code != 0 {
				text = stderr
				if stdout != "" {
					t.Errorf("stdout of a failure: %q", stdout)
				}
			}
			for _, w := range tt.want {
				if !strings.Contains(text, w) {
					t.Errorf("no %q in\n%s", w, text)
				}
			}
			for line := range strings.Lines(stdout) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 100 && !strings.Contains(tt.args, "explain") && !strings.Contains(tt.args, "events") {
					t.Errorf("a line of %d columns: %s", n, line)
				}
			}
		})
	}
	for _, verb := range []string{"services", "lookup user", "list user", "status", "explain user", "version", "env user"} {
		t.Run(verb+" --json", func(t *testing.T) {
			stdout, stderr, code := a.cli(append(strings.Fields(verb), "--json")...)
			var v map[string]any
			if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || len(v) == 0 {
				t.Errorf("%d %v\n%s%s", code, err, stdout, stderr)
			}
		})
	}
}

// A verb without a daemon says so and fails.
func TestVerbsWithoutAgent(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "")
	_, stderr, code := a.cli("lookup", "user")
	if code != 1 || !strings.Contains(stderr, a.socket) {
		t.Errorf("%d %q, want 1 and the socket's path", code, stderr)
	}
}
