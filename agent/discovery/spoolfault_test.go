package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/service"
	"golang.org/x/sys/unix"
)

// What goes wrong is said once, the lists go on in memory, and all is written when the disk is well again (1.8).
func TestSpoolUnwritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		e := newFakeEtcd()
		d := startFake(t, e, setup{SpoolDir: dir}, naming("user"), naming("idle"))
		for i := range 20 {
			e.put("services/user/a", record(fmt.Sprintf("10.0.0.%d:80", i+1), 1))
			advance(t, spoolEvery)
		}
		if got := addrs(d.last("user")); got != "10.0.0.20:80" {
			t.Errorf("list %q", got)
		}
		if st := d.Status(); !strings.Contains(st.SpoolError, "spool") {
			t.Errorf("status %+v", st)
		}
		if n := strings.Count(d.log.String(), "cannot write the spool"); n != 1 {
			t.Errorf("said %d times", n)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		advance(t, spoolEvery)
		if st := d.Status(); st.SpoolError != "" {
			t.Errorf("status %+v", st)
		}
		for name, want := range map[string]string{"user": "10.0.0.20:80", "idle": ""} {
			if got := addrs(newSpool(dir, hclog.NewNullLogger()).load(naming(name), time.Now())); got != want {
				t.Errorf("%s: spooled %q, want %q", name, got, want)
			}
		}
	})
}

// Files, or the whole folder, are removed under us: the next change makes them again (1.8).
func TestSpoolRemovedUnderUs(t *testing.T) {
	s, _ := testSpool(t)
	for n, remove := range []string{s.dir, s.path("user", listSuffix), s.path("user", prevSuffix)} {
		s.put(sampleFollow(), generation(n))
		s.flush()
		if err := os.RemoveAll(remove); err != nil {
			t.Fatal(err)
		}
		s.put(sampleFollow(), generation(n+10))
		s.flush()
		if l := s.load(sampleFollow(), time.Now()); l == nil || l.Revision != int64(n+10) || s.trouble() != "" {
			t.Errorf("%s: loaded %+v, trouble %q", remove, l, s.trouble())
		}
	}
}

// The disk is full in the middle of a file: what was there stays, it is said, and nothing is left over (1.8).
func TestSpoolDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small disk")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	onDisk := func(revision int64) {
		t.Helper()
		if l := newSpool(dir, hclog.NewNullLogger()).load(sampleFollow(), time.Now()); l == nil || l.Revision != revision {
			t.Errorf("on disk is not revision %d: %v", revision, l != nil)
		}
	}
	log := &logBuffer{}
	s := newSpool(dir, hclog.New(&hclog.LoggerOptions{Output: log}))
	s.put(sampleFollow(), generation(1))
	s.flush()
	big := generation(2)
	for i := range 5000 {
		big.Backends = append(big.Backends, &service.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 80), Weight: 1, Key: "k"})
	}
	slices.SortFunc(big.Backends, byAddr)
	s.put(sampleFollow(), big)
	s.flush()
	if !strings.Contains(s.trouble(), "no space left") || strings.Count(log.String(), "cannot write the spool") != 1 {
		t.Errorf("trouble %q, log %s", s.trouble(), log.String())
	}
	onDisk(1)
	if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	s.flush()
	if s.trouble() != "" {
		t.Errorf("trouble %q", s.trouble())
	}
	onDisk(2)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s.put(sampleFollow(), generation(3))
	s.flush()
	if !strings.Contains(s.trouble(), "read-only") {
		t.Errorf("trouble %q", s.trouble())
	}
	onDisk(2)
}

// What is no file holds nobody up: a pipe without a writer in a list's place is set aside.
func TestSpoolOfPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "user.list")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readSpoolFile(path, nil); !errors.Is(err, errUnreadable) {
		t.Error(err)
	}
}
