package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// sampleFollow and sampleList use every field.
func sampleFollow() Follow {
	return Follow{Name: "user", Prefix: "prod/services/user/", Format: "grpc-naming"}
}

func sampleList() *service.List {
	return &service.List{
		Service: "user", Source: service.FromSpool, Epoch: 1<<63 + 5, Revision: 42, Confirmed: time.Unix(1700000000, 123),
		Backends: []service.Backend{
			{Addr: mustAddr("10.0.0.1:80"), Weight: 100, Key: "prod/services/user/a", Created: 3, Modified: 7},
			{Addr: mustAddr("10.0.0.2:8080"), Host: "db-1", Weight: 1, Draining: true, Zone: "eu-1a", Region: "eu", Metadata: map[string]string{"v": "1", "": "x"}, Key: "prod/services/user/b"},
			{Addr: mustAddr("[2001:db8::1]:65535"), Weight: 1<<32 - 1, Metadata: map[string]string{"v": "1", "": "x"}},
		},
		Bad: []service.BadRecord{{Key: "prod/services/user/c", Reason: "the value is empty"}}, BadCount: 7,
	}
}

func TestSpoolFileRoundTrip(t *testing.T) {
	tiers := sampleList() // what came later than version 1's first file
	tiers.Backends[1].Priority, tiers.Backends[2].Priority = 1<<16-1, 7
	for _, l := range []*service.List{sampleList(), tiers, {Service: "user", Source: service.FromSpool, Confirmed: time.Unix(1, 0), Backends: []service.Backend{}}} {
		got, err := decodeSpool(encodeSpool(sampleFollow(), l), sampleFollow())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, l) {
			t.Errorf("got  %+v\nwant %+v", got, l)
		}
	}
}

// The file that the first release wrote is read by every later one.
func TestSpoolFileOfVersion1(t *testing.T) {
	data, err := os.ReadFile("testdata/user.list")
	if errors.Is(err, os.ErrNotExist) && os.Getenv("UPDATE") != "" {
		data, err = encodeSpool(sampleFollow(), sampleList()), os.MkdirAll("testdata", 0o755)
		err = errors.Join(err, os.WriteFile("testdata/user.list", data, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeSpool(data, sampleFollow())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sampleList()) {
		t.Errorf("got  %+v\nwant %+v", got, sampleList())
	}
}

// seal puts a right header before body.
func seal(body []byte, version uint32) []byte {
	b := append([]byte(spoolMagic), make([]byte, spoolHeader-8)...)
	binary.BigEndian.PutUint32(b[8:], version)
	binary.BigEndian.PutUint64(b[12:], uint64(len(body)))
	binary.BigEndian.PutUint64(b[20:], xxhash.Sum64(body))
	return append(b, body...)
}

// A later release may add fields of any type, to the list and to a backend.
func TestSpoolFileUnknownFields(t *testing.T) {
	body := encodeSpool(sampleFollow(), sampleList())[spoolHeader:]
	unknown := func(b []byte) []byte {
		b = protowire.AppendVarint(protowire.AppendTag(b, 100, protowire.VarintType), 7)
		b = protowire.AppendFixed64(protowire.AppendTag(b, 101, protowire.Fixed64Type), 7)
		b = protowire.AppendFixed32(protowire.AppendTag(b, 1, protowire.Fixed32Type), 7)
		return protowire.AppendString(protowire.AppendTag(b, 102, protowire.BytesType), "new")
	}
	body = unknown(body)
	last := service.Backend{Addr: mustAddr("[2001:db8::2]:80"), Weight: 5}
	body = protowire.AppendTag(body, fieldBackend, protowire.BytesType)
	body = protowire.AppendBytes(body, unknown(appendBackend(nil, &last)))
	got, err := decodeSpool(seal(body, spoolVersion), sampleFollow())
	if err != nil {
		t.Fatal(err)
	}
	want := sampleList()
	want.Backends = append(want.Backends, last)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Every cut and every flipped byte is found out.
func TestSpoolFileTorn(t *testing.T) {
	data := encodeSpool(sampleFollow(), sampleList())
	for n := range data {
		if _, err := decodeSpool(data[:n], sampleFollow()); !errors.Is(err, errUnreadable) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		broken := bytes.Clone(data)
		broken[n] ^= 0x40
		if _, err := decodeSpool(broken, sampleFollow()); !errors.Is(err, errUnreadable) {
			t.Fatalf("flipped at %d: %v", n, err)
		}
	}
}

func FuzzSpoolBody(f *testing.F) {
	f.Add(encodeSpool(sampleFollow(), sampleList())[spoolHeader:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		l, err := decodeBody(body, sampleFollow())
		if err != nil {
			return
		}
		for i, b := range l.Backends {
			if !b.Addr.IsValid() || b.Addr.Port() == 0 || b.Weight == 0 || i > 0 && l.Backends[i-1].Addr.Compare(b.Addr) >= 0 {
				t.Errorf("backend %+v", b)
			}
		}
		if l.Confirmed.IsZero() { // a body without it; then the time of the file counts
			l.Confirmed = time.Unix(1, 0)
		}
		again, err := decodeSpool(encodeSpool(sampleFollow(), l), sampleFollow())
		if err != nil || !reflect.DeepEqual(l, again) && !strings.Contains(fmt.Sprint(l), "map[]") {
			t.Errorf("written again: %v\n%+v\n%+v", err, l, again)
		}
	})
}

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

// spoolFull spools services with backends each, as a fleet has them, and returns how to follow them.
func spoolFull(t testing.TB, dir string, services, backends int) []Follow {
	t.Helper()
	s := newSpool(dir, hclog.NewNullLogger())
	var follows []Follow
	for i := range services {
		f := Follow{Name: fmt.Sprintf("service-%d", i), Prefix: fmt.Sprintf("services/service-%d/", i), Format: "grpc-naming"}
		l := &service.List{Service: f.Name, Epoch: 1, Revision: 1000, Confirmed: time.Now()}
		for j := range backends {
			a := mustAddr(fmt.Sprintf("10.%d.%d.%d:8080", i>>8, i&255, j))
			l.Backends = append(l.Backends, service.Backend{
				Addr: a, Weight: 100, Zone: "eu-1a", Metadata: map[string]string{"version": fmt.Sprint("v", j%2)}, Key: f.Prefix + a.String(), Created: 100, Modified: 200,
			})
		}
		s.put(f, l)
		follows = append(follows, f)
	}
	s.flush()
	if s.trouble() != "" {
		t.Fatal(s.trouble())
	}
	return follows
}

// 1,000 services with 100 backends each are read in well under 100 ms.
func BenchmarkLoadSpool(b *testing.B) {
	dir := b.TempDir()
	follows := spoolFull(b, dir, 1000, 100)
	b.ReportAllocs()
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		d, err := New(Config{SpoolDir: dir, OnList: func(time.Time, *service.List) {}})
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range follows {
			d.Set(f)
		}
		begin := cpuTime()
		b.StartTimer()
		d.LoadSpool(time.Now())
		used += cpuTime() - begin
	}
	b.ReportMetric(float64(used)/float64(b.N)/1e6, "cpu-ms/op")
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
		big.Backends = append(big.Backends, service.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 80), Weight: 1, Key: "k"})
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
