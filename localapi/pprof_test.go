package localapi

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

// Profiles are on the admin socket, also those that take longer than an answer or a request may; the open socket knows no such path.
func TestProfiles(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Body, c.Limits.Answer = 50*time.Millisecond, 50*time.Millisecond })
	for path, want := range map[string]string{
		"/debug/pprof/":                  "full goroutine stack dump",
		"/debug/pprof/goroutine?debug=2": "localapi.(*front).accept",
		"/debug/pprof/heap":              "\x1f\x8b", // gzip
		"/debug/pprof/profile?seconds=1": "\x1f\x8b",
		"/debug/pprof/cmdline":           "localapi",
	} {
		if code, text := ask(t, r.cfg.AdminSocket, "GET", path, ""); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %.200q", path, code, text)
		}
		if code, text := ask(t, r.cfg.Socket, "GET", path, ""); code != 404 || !strings.Contains(text, `{"error":{"code":5`) {
			t.Errorf("%s on the open socket: %d %.200q", path, code, text)
		}
	}
	if code, _ := ask(t, r.cfg.AdminSocket, "POST", "/debug/pprof/heap", ""); code != 405 {
		t.Error("a POST:", code)
	}
}

// On the admin socket, too, it is who asks that counts.
func TestProfilesAreForAdmins(t *testing.T) {
	testneed.Root(t)
	r := newRig(t, func(c *Config) { c.AdminGID = groupOfTest })
	openToStrangers(t, r)
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	if got, want := asUser(t, r.dir, nobody, "profile", r.cfg.AdminSocket), "403 FORBIDDEN\n"; got != want {
		t.Errorf("nobody gets %q", got)
	}
	member := &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{groupOfTest}}
	if got, want := asUser(t, r.dir, member, "profile", r.cfg.AdminSocket), "200 \n"; got != want {
		t.Errorf("a member gets %q", got)
	}
}
