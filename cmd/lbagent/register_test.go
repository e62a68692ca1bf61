package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// late is what the fake agent says of the service "late": it does what it's asked for as soon as etcd lets it.
func late(service string) string {
	if service != "late" {
		return ""
	}
	return "etcd has not been told yet: etcdserver: no leader"
}

func (f *fakeAgent) Drain(_ context.Context, r *lbagentv1.DrainRequest) (*lbagentv1.DrainResponse, error) {
	return &lbagentv1.DrainResponse{Pending: late(r.GetService())}, nil
}

func (f *fakeAgent) Undrain(_ context.Context, r *lbagentv1.UndrainRequest) (*lbagentv1.UndrainResponse, error) {
	return &lbagentv1.UndrainResponse{WasDrained: true, Pending: late(r.GetService())}, nil
}

func (f *fakeAgent) Deregister(_ context.Context, r *lbagentv1.DeregisterRequest) (*lbagentv1.DeregisterResponse, error) {
	return &lbagentv1.DeregisterResponse{Pending: late(r.GetService())}, nil
}

// A script goes on when callers were told, and not before: also one that wants JSON. drain --wait waits after that (5.6), and not at all if it failed.
func TestPending(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	env := map[string]string{"LBAGENT_SOCKET": f.socket, "LBAGENT_ADMIN_SOCKET": f.socket}
	for _, verb := range []string{"drain", "undrain", "deregister"} {
		for _, c := range []struct {
			args string
			code int
		}{{"user", 0}, {"user --json", 0}, {"late", 1}, {"late --json", 1}} {
			code, stdout, stderr := call(t, env, append([]string{verb}, strings.Fields(c.args)...)...)
			if code != c.code || (code == 0) == strings.Contains(stderr, "no leader") {
				t.Errorf("%s %s: exit code %d, want %d\n%s%s", verb, c.args, code, c.code, stdout, stderr)
			}
			if strings.Contains(c.args, "--json") && !json.Valid([]byte(stdout)) {
				t.Errorf("%s %s: %q is no JSON", verb, c.args, stdout)
			}
		}
	}
	for _, more := range [][]string{nil, {"--json"}} {
		const wait = 300 * time.Millisecond
		began := time.Now()
		if code, _, stderr := call(t, env, append([]string{"drain", "user", "--wait", wait.String()}, more...)...); code != 0 || time.Since(began) < wait {
			t.Errorf("exit code %d after %v: %s", code, time.Since(began), stderr)
		}
		if code, _, _ := call(t, env, append([]string{"drain", "late", "--wait", "5s"}, more...)...); code != 1 {
			t.Errorf("exit code %d", code)
		}
	}
}
