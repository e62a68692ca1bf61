package etcd

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// moods is a client of an etcd without keys that is in a mood.
type moods struct {
	stub

	down  *atomic.Bool // reads fail
	short *atomic.Bool // watches end as soon as they are made
	reads *atomic.Int64
	from  *atomic.Int64 // the revision that the last watch began at
}

// spinning is more reads than anybody makes who waits between them. From then on they take until they are given up: in a bubble no time goes by while somebody reads over and over,
// and its test would not end.
const spinning = 10_000

func (c moods) Page(ctx context.Context, _, _ string, _ int64, _ int) (*clientv3.GetResponse, error) {
	if c.reads.Add(1) > spinning {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if c.down.Load() {
		return nil, errors.New("etcdserver: request timed out")
	}
	return &clientv3.GetResponse{Header: &pb.ResponseHeader{ClusterId: 7, Revision: 1}}, nil
}

func (c moods) Watch(_ context.Context, _ string, from int64) <-chan Response {
	c.from.Store(from)
	out := make(chan Response, 2)
	out <- Response{Header: &pb.ResponseHeader{ClusterId: 7, Revision: 1}, Created: true}
	if c.short.Load() {
		out <- Response{Err: errors.New("etcdserver: no leader")}
	}
	return out
}

func (moods) Heard() time.Time { return time.Now() }
func (moods) Elsewhere()       {}

// memory is Keys that know revisions only.
type memory struct {
	prefix string

	mu sync.Mutex

	keys map[string]int64
	read []time.Time // well
}

func (m *memory) Read(ctx context.Context, l *Link) (Position, error) {
	keys := map[string]int64{}
	at, err := l.ReadAll(ctx, m.prefix, func(kvs []*mvccpb.KeyValue) error {
		for _, kv := range kvs {
			keys[string(kv.Key)] = kv.ModRevision
		}
		return nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.keys, m.read = keys, append(m.read, time.Now())
	}
	return at, err
}

func (m *memory) Apply(_ context.Context, _ *Link, events []*mvccpb.Event) error {
	for _, e := range events {
		if key := string(e.Kv.Key); e.Type == mvccpb.Event_DELETE {
			delete(m.keys, key)
		} else {
			m.keys[key] = e.Kv.ModRevision
		}
	}
	return nil
}

func (m *memory) Inventory() (count int, newest int64, known bool) {
	for _, rev := range m.keys {
		newest = max(newest, rev)
	}
	return len(m.keys), newest, true
}

func (*memory) Confirm()         {}
func (*memory) Well()            {}
func (*memory) Ended(error) bool { return false }

// readings is how often, and when last, m was read.
func (m *memory) readings() (n int, last time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n = len(m.read); n > 0 {
		last = m.read[n-1]
	}
	return n, last
}

// following is some Followers of an etcd in a mood, in a bubble.
type following struct {
	down, short atomic.Bool
	reads, from atomic.Int64
	links       *Links
	all         []*memory
}

func follow(t *testing.T, n int) *following {
	f := &following{}
	client := moods{down: &f.down, short: &f.short, reads: &f.reads, from: &f.from}
	f.links = New(Options{Etcd: &Config{Endpoints: []string{"x"}}, Dial: func(context.Context, Config, func(error)) (Client, error) { return client, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.links.Run(ctx) })
	for range n {
		m := &memory{prefix: "p/"}
		f.all = append(f.all, m)
		wg.Go(func() { (&Follower{Links: f.links, Prefix: m.prefix, Keys: m}).Run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return f
}

// When etcd is well again after a loss, nobody waits for the rest of a back-off that had grown to half a minute (1.4): the first of many who has an answer has the others go on.
func TestBackAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, 20)
		synctest.Wait()
		for _, cause := range []*atomic.Bool{&f.down, &f.short} {
			cause.Store(true)
			l, err := f.links.Get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l.Fail(errors.New("the watches end")) // once; then each by itself
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			cause.Store(false)
			began := time.Now()
			for !f.links.Status().Connected {
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			first := time.Since(began)
			time.Sleep(wellAfter)
			synctest.Wait()
			for i, m := range f.all {
				if n, last := m.readings(); n == 0 || last.Before(began) {
					t.Fatalf("%v after the first answer, which came after %v, keys %d are not known yet", wellAfter, first, i)
				}
			}
		}
	})
}

// The watch begins at the revision that was read, not after it: etcd tells no progress on a watch for what isn't there yet (1.2; TestProgressOnQuietEtcd of discovery has
// it of etcd).
func TestWatchBeginsWhereItWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, 1)
		synctest.Wait()
		if n, _ := f.all[0].readings(); n != 1 || f.from.Load() != 1 {
			t.Errorf("read %d times at revision 1, watched from %d", n, f.from.Load())
		}
	})
}

// While etcd ends each watch as soon as it is made, each answer to a read is no sign that it is well: nobody is woken by those of others, and reads stay rare.
func TestShortWatchesOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, outage = 10, 10 * time.Minute
		f := follow(t, many)
		f.short.Store(true)
		synctest.Wait()
		l, err := f.links.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Fail(errors.New("the watches end"))
		time.Sleep(outage)
		if n, most := int(f.reads.Load()), many*(BudgetMost+2*int(outage/BudgetEvery)); n > most {
			t.Errorf("%d reads of %d prefixes in %v, more than %d", n, many, outage, most)
		}
	})
}

// What an audit finds on a prefix that always changes, and what the watch has told up to then, are of different moments: they are compared at the same revision, and nothing is
// read again unless something was lost (1.6).
func TestAuditWhileBusy(t *testing.T) {
	ev := func(rev int64, key string, del bool) *mvccpb.Event {
		kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}
		if del {
			return &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: kv}
		}
		return &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv}
	}
	for name, c := range map[string]struct {
		audit   inventory
		level   int64
		batches [][]*mvccpb.Event
		missed  bool
		pending bool
	}{
		"on its way":         {inventory{11, 2, 11}, 0, [][]*mvccpb.Event{{ev(11, "2", false)}}, false, false},
		"and more":           {inventory{11, 2, 11}, 0, [][]*mvccpb.Event{{ev(11, "2", false), ev(12, "3", false)}}, false, false},
		"in two batches":     {inventory{12, 3, 12}, 0, [][]*mvccpb.Event{{ev(11, "2", false)}, {ev(12, "3", false), ev(13, "3", true)}}, false, false},
		"level by progress":  {inventory{15, 2, 11}, 15, [][]*mvccpb.Event{{ev(11, "2", false)}}, false, false},
		"not level yet":      {inventory{15, 2, 15}, 14, [][]*mvccpb.Event{{ev(11, "2", false)}}, false, true},
		"lost put":           {inventory{11, 2, 11}, 0, [][]*mvccpb.Event{{ev(12, "3", false)}}, true, false},
		"lost put, quiet":    {inventory{11, 2, 11}, 12, [][]*mvccpb.Event{nil}, true, false},
		"lost delete":        {inventory{11, 0, 0}, 0, [][]*mvccpb.Event{{ev(12, "2", false)}}, true, false},
		"delete on its way":  {inventory{11, 0, 0}, 0, [][]*mvccpb.Event{{ev(11, "1", true), ev(12, "2", false)}}, false, false},
		"same key, rewriten": {inventory{12, 1, 12}, 0, [][]*mvccpb.Event{{ev(11, "1", false), ev(12, "1", false)}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Follower{Keys: &memory{keys: map[string]int64{"1": 10}}, at: Position{Revision: 10}, audit: &c.audit, level: c.level}
			var missed error
			for _, b := range c.batches {
				if missed = f.applyAudited(t.Context(), nil, b); missed != nil {
					break
				}
			}
			if errors.Is(missed, ErrMissed) != c.missed || (f.audit != nil) != c.pending {
				t.Errorf("error %v, pending %v", missed, f.audit != nil)
			}
		})
	}
}

// FollowWhere follows one prefix at a time, none while there is none, each with Keys of its own.
func TestFollowWhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, 0)
		var mu sync.Mutex
		prefix, changed := "", make(chan struct{})
		var made []*memory
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			FollowWhere(ctx, f.links, func() (string, <-chan struct{}) {
				mu.Lock()
				defer mu.Unlock()
				return prefix, changed
			}, func(prefix string) Keys {
				made = append(made, &memory{prefix: prefix})
				return made[len(made)-1]
			})
		}()
		for _, next := range []string{"", "a/", "", "b/", "c/"} {
			mu.Lock()
			prefix = next
			close(changed)
			changed = make(chan struct{})
			mu.Unlock()
			synctest.Wait()
		}
		cancel()
		<-done
		var got []string
		for _, m := range made {
			if n, _ := m.readings(); n != 1 {
				t.Errorf("%s was read %d times", m.prefix, n)
			}
			got = append(got, m.prefix)
		}
		if want := []string{"a/", "b/", "c/"}; !slices.Equal(got, want) {
			t.Errorf("followed %v, want %v", got, want)
		}
	})
}

// What ends the following of some keys is etcd's loss only if it isn't about these keys (1.4).
func TestIsOwn(t *testing.T) {
	for err, own := range map[error]bool{rpctypes.ErrPermissionDenied: true, errMixed: true, rpctypes.ErrCompacted: false, rpctypes.ErrNoLeader: false, ErrMissed: false} {
		if IsOwn(err) != own {
			t.Errorf("%v: %v, want %v", err, !own, own)
		}
	}
}
