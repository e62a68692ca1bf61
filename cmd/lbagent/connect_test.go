package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAbsentAgents(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // what a crash leaves
	l.Close()
	tests := []struct {
		name, socket string
		verb         []string
		want         []string
	}{
		{"no socket", filepath.Join(dir, "nosuch.sock"), []string{"services"}, []string{"no agent is running here", "nosuch.sock", "systemctl start lbagent", "LBAGENT_SOCKET"}},
		{"no admin socket", filepath.Join(dir, "nosuch.sock"), []string{"reload"}, []string{"no agent is running here", "LBAGENT_ADMIN_SOCKET"}},
		{"stale socket", stale, []string{"list", "user"}, []string{"no agent answers on " + stale, "journalctl -u lbagent"}},
		{"no socket at all", dir, []string{"status"}, []string{"lbagent: "}},
		{"path too long", filepath.Join(dir, strings.Repeat("x", 200)), []string{"status"}, []string{"connect to the agent: ", "invalid argument"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := call(t, map[string]string{"LBAGENT_SOCKET": tt.socket, "LBAGENT_ADMIN_SOCKET": tt.socket}, tt.verb...)
			if code != exitFailure || stdout != "" {
				t.Errorf("exit code %d, stdout %q", code, stdout)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q:\n%s", want, stderr)
				}
			}
		})
	}
}

func TestForbiddenSockets(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused := &net.OpError{Op: "dial", Err: &os.SyscallError{Syscall: "connect", Err: syscall.EACCES}}
	if got := notConnected(socket, true, refused).Error(); !strings.Contains(got, "only root and the group "+groupOf(socket)+" may") || !strings.Contains(got, "usermod -aG") {
		t.Errorf("admin socket: %s", got)
	}
	if got := notConnected(socket, false, refused).Error(); !strings.Contains(got, "permission denied on "+socket) || !strings.Contains(got, "0666") {
		t.Errorf("open socket: %s", got)
	}
	if os.Geteuid() == 0 {
		return // root may connect to all
	}
	if err := os.Chmod(socket, 0); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := call(t, map[string]string{"LBAGENT_ADMIN_SOCKET": socket}, "reload"); code != 1 || !strings.Contains(stderr, "permission denied on "+socket) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestGroupOf(t *testing.T) {
	dir := t.TempDir()
	if got := groupOf(filepath.Join(dir, "nosuch", "nosuch.sock")); got != "lbagent" {
		t.Errorf("group of a socket that can't be seen is %q, want the packaged one", got)
	}
	if os.Geteuid() != 0 {
		return // chown is root's
	}
	socket := filepath.Join(dir, "a.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const unnamed = 987654
	if err := os.Chown(socket, 0, unnamed); err != nil {
		t.Fatal(err)
	}
	if got, want := groupOf(socket), fmt.Sprint(unnamed); got != want {
		t.Errorf("group is %q, want %q", got, want)
	}
}

// TestStuckAgents: an agent that accepts and says nothing, and one whose answer does not come, are both given up.
func TestStuckAgents(t *testing.T) {
	mute := filepath.Join(t.TempDir(), "mute.sock")
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	slow := startFake(t, &fakeAgent{})
	for socket, args := range map[string][]string{mute: {"lookup", "user"}, slow.socket: {"lookup", "slow"}} {
		var stderr strings.Builder
		a := &app{stdout: &output{w: &stderr}, stderr: &stderr, getenv: func(string) string { return socket }, now: moment, patience: 50 * time.Millisecond}
		began := time.Now()
		if code := a.execute(t.Context(), args); code != exitFailure || !strings.Contains(stderr.String(), "the agent on "+socket+" does not answer") {
			t.Errorf("%q: exit code %d: %s", args, code, stderr.String())
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%q took %v", args, took)
		}
	}
}

func TestOtherErrorsPass(t *testing.T) {
	for _, err := range []error{fs.ErrClosed, &codedError{exitNone, fs.ErrClosed}} {
		if got := explained("s", err); !errors.Is(got, err) {
			t.Errorf("explained(%v) is %v", err, got)
		}
	}
}
