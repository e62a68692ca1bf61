package discovery

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
)

func testSpool(t *testing.T) (*spool, *logBuffer) {
	log := &logBuffer{}
	return newSpool(filepath.Join(t.TempDir(), "spool"), hclog.New(&hclog.LoggerOptions{Output: log})), log
}

// generation is a sample list that differs from others in its revision.
func generation(n int) *service.List {
	l := sampleList()
	l.Revision = int64(n)
	return l
}

// A broken file is set aside, with a message, and the generation before it is read (1.8).
func TestSpoolKeepsLastGeneration(t *testing.T) {
	newer := seal(nil, spoolVersion+1)
	foreign := encodeSpool(Follow{Name: "other", Prefix: sampleFollow().Prefix, Format: sampleFollow().Format}, &service.List{Service: "other", Confirmed: time.Unix(1, 0)})
	for name, content := range map[string][]byte{"torn": encodeSpool(sampleFollow(), generation(2))[:100], "empty": {}, "newer": newer, "foreign": foreign, "text": []byte("hello, world, this is no spool file")} {
		t.Run(name, func(t *testing.T) {
			s, log := testSpool(t)
			for n := range 3 {
				s.put(sampleFollow(), generation(n))
				s.flush()
			}
			file := s.path("user", listSuffix)
			if l := s.load(sampleFollow(), time.Now()); l == nil || l.Revision != 2 {
				t.Fatalf("loaded %+v", l)
			}
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if l := s.load(sampleFollow(), time.Now()); l == nil || l.Revision != 1 {
				t.Fatalf("loaded %+v, want the generation before", l)
			}
			if got, err := os.ReadFile(file + badSuffix); err != nil || !bytes.Equal(got, content) {
				t.Errorf("set aside: %v", err)
			}
			if !strings.Contains(log.String(), "setting a spool file aside") {
				t.Error("no message")
			}
			if err := os.WriteFile(s.path("user", prevSuffix), content, 0o600); err != nil {
				t.Fatal(err)
			}
			if l := s.load(sampleFollow(), time.Now()); l != nil {
				t.Errorf("loaded %+v of two broken files", l)
			}
			s.put(sampleFollow(), generation(9))
			s.flush()
			if l := s.load(sampleFollow(), time.Now()); l == nil || l.Revision != 9 {
				t.Errorf("loaded %+v after all", l)
			}
		})
	}
}

// A list of another prefix or format is not revived, and not set aside.
func TestSpoolOfAnotherPrefix(t *testing.T) {
	s, _ := testSpool(t)
	s.put(sampleFollow(), sampleList())
	s.flush()
	for _, change := range []func(*Follow){func(f *Follow) { f.Prefix = "other/" }, func(f *Follow) { f.Format = "plain" }} {
		f := sampleFollow()
		change(&f)
		if l := s.load(f, time.Now()); l != nil {
			t.Errorf("%+v: loaded %+v", f, l)
		}
	}
	if l := s.load(sampleFollow(), time.Now()); l == nil {
		t.Error("the file is gone")
	}
}

// The time of the file is when the list was confirmed, but never in the future.
func TestSpoolConfirmed(t *testing.T) {
	s, _ := testSpool(t)
	s.put(sampleFollow(), sampleList())
	s.flush()
	now := time.Unix(1800000000, 0)
	load := func() time.Time { return s.load(sampleFollow(), now).Confirmed }
	if got := load(); !got.Equal(sampleList().Confirmed) {
		t.Errorf("confirmed %v", got)
	}
	s.confirm("user", now.Add(-time.Hour))
	s.flush()
	if got := load(); !got.Equal(now.Add(-time.Hour)) {
		t.Errorf("confirmed %v", got)
	}
	s.confirm("user", now.Add(time.Hour))
	s.flush()
	if got := load(); !got.Equal(now) {
		t.Errorf("confirmed %v, now is %v", got, now)
	}
}

// Every valid name has files of its own, in the folder.
func TestSpoolPaths(t *testing.T) {
	s := newSpool("/spool", nil)
	long := strings.Repeat("x", service.MaxNameLength)
	seen := map[string]string{}
	for _, name := range []string{".", "..", "a", "a.list", "a.list.prev", "a.list.prev.list", ".tmp-1", "A", "a:b@c_d-e", long, long[1:], long[:200], long[:201], long[:252] + "y"} {
		for _, suffix := range []string{listSuffix, prevSuffix, listSuffix + badSuffix, prevSuffix + badSuffix} {
			p := s.path(name, suffix)
			if other, ok := seen[p]; ok {
				t.Errorf("%s: %s and %s", p, name, other)
			}
			seen[p] = name
			if filepath.Dir(p) != "/spool" || len(filepath.Base(p)) > 255 {
				t.Errorf("%s: %s", name, p)
			}
		}
	}
}

// What a failed round leaves is kept, unless there is something newer by then.
func TestSpoolKeepsWhatIsNewer(t *testing.T) {
	s, _ := testSpool(t)
	s.put(sampleFollow(), generation(2))
	other := Follow{Name: "other", Prefix: "p/", Format: "plain"}
	s.settle(errors.New("disk full"), map[string]spooled{
		"user":  {follow: sampleFollow(), list: generation(1)},
		"other": {follow: other, list: &service.List{Service: "other", Confirmed: time.Unix(1, 0)}},
	})
	s.flush()
	if l := s.load(sampleFollow(), time.Now()); l == nil || l.Revision != 2 {
		t.Errorf("user: %+v", l)
	}
	if l := s.load(other, time.Now()); l == nil {
		t.Error("what the round left is lost")
	}
}

// Changes are written in one round per 5 s, and at the stop; a confirmation writes nothing; a service that is dropped leaves.
func TestSpoolRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		d := startFake(t, e, setup{SpoolDir: dir}, naming("user"))
		on := func() string { return addrs(newSpool(dir, hclog.NewNullLogger()).load(naming("user"), time.Now())) }
		if got := on(); got != "none" {
			t.Errorf("at once: %q", got)
		}
		advance(t, spoolEvery)
		if got := on(); got != "10.0.0.1:80" {
			t.Errorf("after a round: %q", got)
		}
		e.put("services/user/a", record("10.0.0.2:80", 1))
		advance(t, spoolEvery/2)
		if got := on(); got != "10.0.0.1:80" {
			t.Errorf("within the round: %q", got)
		}
		advance(t, spoolEvery/2)
		first, _ := os.Stat(filepath.Join(dir, "user.list"))
		advance(t, 10*time.Minute)
		second, _ := os.Stat(filepath.Join(dir, "user.list"))
		if !os.SameFile(first, second) {
			t.Error("written although nothing changed")
		}
		if age := time.Since(second.ModTime()); age > confirmEvery+etcd.ProgressEvery+spoolEvery {
			t.Errorf("stamped %v ago", age)
		}
		e.put("services/user/a", record("10.0.0.3:80", 1))
		synctest.Wait()
		d.stop()
		if got := on(); got != "10.0.0.3:80" {
			t.Errorf("after the stop: %q", got)
		}
	})
}

func TestSpoolRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		e := newFakeEtcd()
		d := startFake(t, e, setup{SpoolDir: dir}, naming("user"))
		for i := range 3 {
			e.put("services/user/a", record(fmt.Sprintf("10.0.0.%d:80", i+1), 1))
			advance(t, spoolEvery)
		}
		if files, _ := os.ReadDir(dir); len(files) != 2 {
			t.Errorf("files %v", files)
		}
		d.Remove("user")
		advance(t, spoolEvery)
		if files, _ := os.ReadDir(dir); len(files) != 0 {
			t.Errorf("files %v", files)
		}
		// Dropped and wanted again at once: it stays.
		d.Set(naming("user"))
		advance(t, spoolEvery)
		d.Remove("user")
		d.Set(naming("user"))
		advance(t, spoolEvery)
		if files, _ := os.ReadDir(dir); len(files) != 1 {
			t.Errorf("files %v", files)
		}
		// Wanted again when it has been dropped, but before the round that would have removed its file: it stays, too.
		d.Remove("user")
		synctest.Wait()
		d.Set(naming("user"))
		advance(t, 2*spoolEvery)
		if files, _ := os.ReadDir(dir); len(files) == 0 {
			t.Error("the file of a service that is followed was removed")
		}
	})
}

// A service that is wanted again while a round removes its file is written by the next.
func TestSpoolLoadWhileRemoved(t *testing.T) {
	s, _ := testSpool(t)
	s.put(sampleFollow(), sampleList())
	s.flush()
	s.remove("user")
	s.dirty, s.taken = make(map[string]spooled), s.dirty // a round has begun ...
	if l := s.load(sampleFollow(), time.Now()); l == nil {
		t.Fatal("no list")
	}
	s.removeFiles("user") // ... and comes to this file
	s.flush()
	if l := s.load(sampleFollow(), time.Now()); l == nil {
		t.Error("the list is lost")
	}
}

// A list of which a whole read finds only other bad records is written, too: what a start without etcd says of them is what etcd said last (1.7, 1.8).
func TestSpoolOfBadRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dir := newFakeEtcd(), t.TempDir()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		for _, want := range []string{"", "b", "c"} { // another number of them, then others
			d := startFake(t, e, setup{SpoolDir: dir}, naming("user"))
			advance(t, spoolEvery+time.Second)
			if want != "" {
				e.disconnect()
				e.set(func() { delete(e.keys, "services/user/b") })
				e.put("services/user/"+want, "garbage")
				e.connect()
				advance(t, spoolEvery+time.Second)
			}
			d.stop()
			e.disconnect()
			d = startFake(t, e, setup{SpoolDir: dir}, naming("user"))
			l := d.last("user")
			if l == nil || l.Source != service.FromSpool || addrs(l) != "10.0.0.1:80" {
				t.Fatalf("from the spool: %+v", l)
			}
			var bad []string
			for _, r := range l.Bad {
				bad = append(bad, strings.TrimPrefix(r.Key, "services/user/"))
			}
			if got := strings.Join(bad, " "); got != want || l.BadCount != len(bad) {
				t.Errorf("%d bad records %q, want %q", l.BadCount, got, want)
			}
			d.stop()
			e.connect()
		}
	})
}

func TestSpoolSweep(t *testing.T) {
	s, _ := testSpool(t)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1800000000, 0)
	for _, name := range []string{"old.list", "old.list.prev", "old.list.bad", ".tmp-1", "mine.txt"} {
		for _, prefix := range []string{"", "new-"} {
			at := now.Add(-keepUnused - time.Second)
			if prefix != "" {
				at = now
			}
			file := filepath.Join(s.dir, prefix+name)
			if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chtimes(file, at, at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.sweep(now, nil)
	left, _ := filepath.Glob(filepath.Join(s.dir, "*"))
	hidden, _ := filepath.Glob(filepath.Join(s.dir, ".*"))
	if got := len(left) + len(hidden); got != 6 { // the new ones, and what is not ours
		t.Errorf("left %v %v", left, hidden)
	}
}

// A service that has its backends in the configuration now leaves no old list to be revived when it is read from etcd again.
func TestSpoolOfServiceThatBecameStatic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		d := startFake(t, e, setup{SpoolDir: dir}, naming("user"))
		advance(t, spoolEvery)
		d.Set(Follow{Name: "user", Static: []service.Backend{{Addr: mustAddr("10.0.0.9:80")}}})
		advance(t, spoolEvery)
		if files, _ := os.ReadDir(dir); len(files) != 0 {
			t.Errorf("files %v", files)
		}
	})
}

// However long a host was down, or etcd out of reach: the file of a service that is followed stays.
func TestSpoolSweepKeepsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		startFake(t, e, setup{SpoolDir: dir}, naming("user")).stop()
		advance(t, keepUnused+time.Hour)
		d := startFake(t, e, setup{SpoolDir: dir}, naming("user"))
		advance(t, 2*spoolEvery)
		d.stop()
		if got := addrs(newSpool(dir, hclog.NewNullLogger()).load(naming("user"), time.Now())); got != "10.0.0.1:80" {
			t.Errorf("spooled %q", got)
		}
	})
}

// A service that is followed in another way, and back, before its newest list is on disk: the list does not go back to the one on disk, and what is on disk in the
// end is that service's list, not the other way's (1.8). Found by TestRandom with seed 20261122.
func TestSpoolReadsWhatIsNotWrittenYet(t *testing.T) {
	s, _ := testSpool(t)
	f, other := sampleFollow(), sampleFollow()
	other.Format += "2"
	old, newer := generation(1), generation(2)
	s.put(f, old)
	s.write(time.Now(), false)
	s.put(f, newer)
	if l := s.load(f, time.Now()); l == nil || l.Revision != newer.Revision || l.Source != service.FromSpool {
		t.Errorf("loaded %+v", l)
	}
	s.put(other, old)
	if l := s.load(f, time.Now()); l == nil || l.Revision != old.Revision {
		t.Errorf("loaded %+v", l)
	}
	s.write(time.Now(), false)
	if l := s.load(f, time.Now()); l == nil {
		t.Error("the other way's list is on disk")
	}
}
