package discovery

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// dumb is what records should be, made the slow way: all keys in a map, the list built anew each time.
type dumb map[string]change

func (d dumb) apply(changes map[string]change) {
	for key, c := range changes {
		if c.other == nil && len(c.backends) == 0 {
			delete(d, key)
		} else {
			d[key] = c
		}
	}
}

func valuesOf(list []*service.Backend) (all []service.Backend) {
	for _, b := range list {
		all = append(all, *b)
	}
	return all
}

func (d dumb) shown() []service.Backend {
	type where struct {
		netip.AddrPort
		host string
	}
	best := map[where]service.Backend{}
	for _, c := range d {
		for _, b := range c.backends {
			at := where{b.Addr, b.Host}
			if o, ok := best[at]; !ok || b.Modified > o.Modified || b.Modified == o.Modified && b.Key > o.Key {
				best[at] = b
			}
		}
	}
	return slices.SortedFunc(maps.Values(best), func(a, b service.Backend) int { return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Host, b.Host)) })
}

func (d dumb) bad() (keys []string) {
	for key, c := range d {
		if c.other != nil && c.other.reason != "" {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// A key that lists several backends, one of them bad, is a bad key and gives the others (1.7); it counts once, and leaves as a whole.
func TestKeyThatIsBadInPart(t *testing.T) {
	dec, err := format.New(format.Kratos, nil)
	if err != nil {
		t.Fatal(err)
	}
	kv := &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 7, Value: []byte(`{"endpoints":["grpc://nowhere","grpc://10.0.0.1:1","grpc://Some.where:1"]}`)}
	c := decode(dec, nil, kv)
	if len(c.backends) != 2 || c.backends[1].Host != "some.where" || c.other == nil || !strings.Contains(c.other.reason, "no default port") {
		t.Fatalf("got %+v %+v", c.backends, c.other)
	}
	r, e := records{}.apply(map[string]change{"k": c})
	bad, count := r.bad()
	if keys, newest := r.keys(); e != content || len(r.shown) != 2 || r.shown[0].Host != "some.where" || count != 1 || bad[0].Key != "k" || keys != 1 || newest != 7 {
		t.Errorf("got %+v, effect %v, %d keys, newest %d", r, e, keys, newest)
	}
	if r, e = r.apply(map[string]change{"k": {}}); e != content || len(r.shown)+len(r.other) != 0 {
		t.Errorf("after its end: %+v, effect %v", r, e)
	}
}

func (d dumb) newest() (newest int64) {
	for _, c := range d {
		for _, b := range c.backends {
			newest = max(newest, b.Modified)
		}
		if c.other != nil {
			newest = max(newest, c.other.modified)
		}
	}
	return newest
}

// Random puts and deletes of keys with none, one or several backends, in batches: records say the same as the dumb map, and a change never writes what was shown.
func TestRecordsModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var r records
		want := dumb{}
		rev := int64(1)
		for step := range 60 {
			changes := map[string]change{}
			rev++
			for range 1 + rng.IntN(6) {
				changes[fmt.Sprintf("k%02d", rng.IntN(30))] = randomChange(rng, rev, want)
			}
			for key, c := range changes {
				for i := range c.backends {
					c.backends[i].Key = key
				}
			}
			old := r
			before := valuesOf(old.shown)
			next, effect := r.apply(changes)
			want.apply(changes)
			r = next
			if !reflect.DeepEqual(before, valuesOf(old.shown)) {
				t.Fatalf("seed %d step %d: the old records were written", seed, step)
			}
			if got := valuesOf(r.shown); !slices.EqualFunc(got, want.shown(), func(a, b service.Backend) bool { return reflect.DeepEqual(a, b) }) {
				t.Fatalf("seed %d step %d:\ngot  %+v\nwant %+v", seed, step, got, want.shown())
			}
			if n, newest := r.keys(); n != len(want) || newest != want.newest() {
				t.Fatalf("seed %d step %d: %d keys, newest %d; want %d, %d", seed, step, n, newest, len(want), want.newest())
			}
			bad, count := r.bad()
			if keys := want.bad(); count != len(keys) || len(bad) != min(len(keys), service.MaxBadRecords) || len(bad) > 0 && bad[0].Key != keys[0] {
				t.Fatalf("seed %d step %d: %d bad of %d: %v, want %v", seed, step, len(bad), count, bad, keys)
			}
			same := slices.EqualFunc(before, valuesOf(r.shown), func(a, b service.Backend) bool { a.Modified, b.Modified = 0, 0; return reflect.DeepEqual(a, b) })
			if same != (effect != content) && reflect.DeepEqual(old.other, r.other) {
				t.Fatalf("seed %d step %d: effect %d, but same is %v", seed, step, effect, same)
			}
		}
	}
}

func randomChange(rng *rand.Rand, rev int64, have dumb) change {
	switch rng.IntN(8) {
	case 0, 1, 2:
		return change{}
	case 3:
		return change{other: &other{reason: "bad", modified: rev}}
	case 4:
		return change{other: &other{modified: rev}}
	case 5: // the same again
		for _, c := range have {
			if len(c.backends) == 1 {
				b := c.backends[0]
				b.Modified = rev
				return change{backends: []service.Backend{b}}
			}
		}
	}
	var c change
	seen := map[int]bool{}
	for range 1 + rng.IntN(3) {
		n := rng.IntN(16)
		a, host := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 80), ""
		if n >= 12 { // not resolved yet
			a, host = netip.AddrPortFrom(netip.Addr{}, 80), fmt.Sprintf("h%d", n)
		}
		if !seen[n] {
			c.backends = append(c.backends, service.Backend{Addr: a, Host: host, Weight: uint32(1 + rng.IntN(2)), Created: rev, Modified: rev})
		}
		seen[n] = true
	}
	return c
}

// A key that names an address twice says it once.
func TestRecordsDuplicateInKey(t *testing.T) {
	b := service.Backend{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1, Key: "k", Modified: 5}
	r, effect := records{}.apply(map[string]change{"k": {backends: []service.Backend{b, b}}})
	if len(r.shown) != 1 || len(r.hidden) != 0 || effect != content {
		t.Errorf("%+v, effect %d", r, effect)
	}
}

// Of many bad keys the first are named, all are counted, and names are fit for a message.
func TestBadIsBounded(t *testing.T) {
	r := records{other: map[string]other{"\xff": {reason: "x"}, "waits": {}}}
	for i := range 1000 {
		r.other[fmt.Sprintf("k%04d", i)] = other{reason: "x"}
	}
	bad, count := r.bad()
	if count != 1001 || len(bad) != service.MaxBadRecords || bad[0].Key != "k0000" || bad[19].Key != "k0019" {
		t.Errorf("%d bad: %v", count, bad)
	}
	r = records{other: map[string]other{"\xff": {reason: "x"}}}
	if bad, _ := r.bad(); !strings.Contains(bad[0].Key, "\uFFFD") {
		t.Errorf("key %q", bad[0].Key)
	}
}

// A backend that is not in use takes at most 250 bytes, its key included, whatever the format: the metadata that many share is kept once.
func TestMemoryPerBackend(t *testing.T) {
	n := 20000
	if raced {
		n = 5000 // 1.25 MB are still far more than what else a heap does meanwhile
	}
	for name, record := range map[string]struct{ key, value string }{ // ADDR stands for the address
		format.GRPCNaming: {"services/user/ADDR", `{"Op":0,"Addr":"ADDR","Metadata":{"weight":100,"zone":"eu-1a","version":"v7"}}`},
		format.Kratos:     {"/microservices/user/ADDR", `{"id":"ADDR","name":"user","version":"v7","metadata":{"zone":"eu-1a","weight":"100"},"endpoints":["http://10.0.0.1:8000","grpc://ADDR?isSecure=false"]}`},
		format.Kitex:      {"kitex/registry-etcd/user/ADDR", `{"network":"tcp","address":"ADDR","weight":10,"tags":{"zone":"eu-1a","cluster":"blue"}}`},
		format.GoMicro:    {"/micro/registry/user/ADDR", `{"name":"user","version":"v7","endpoints":[],"nodes":[{"id":"ADDR","address":"ADDR","metadata":{"protocol":"grpc","registry":"etcd"}}]}`},
		format.RPCX:       {"/rpcx/user/tcp@ADDR", "weight=7&group=a&calls=1.5"},
	} {
		t.Run(name, func(t *testing.T) {
			dec, err := format.New(name, nil)
			if err != nil {
				t.Fatal(err)
			}
			before := heap()
			var fresh []*service.Backend
			var room []service.Backend
			for i := range n {
				a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 8080).String()
				c := decode(dec, room[:0], &mvccpb.KeyValue{
					Key: []byte(strings.ReplaceAll(record.key, "ADDR", a)), Value: []byte(strings.ReplaceAll(record.value, "ADDR", a)), CreateRevision: 7, ModRevision: int64(i),
				})
				room = c.backends
				fresh = appendCopies(fresh, c.backends)
			}
			r, _ := merge(nil, nil, fresh)
			used := heap() - before
			if len(r.shown) != n {
				t.Fatalf("%d backends", len(r.shown))
			}
			t.Logf("%d bytes per backend", used/int64(n))
			if used > 250*int64(n) {
				t.Errorf("%d bytes per backend", used/int64(n))
			}
			runtime.KeepAlive(r)
			runtime.KeepAlive(dec)
		})
	}
}

// heap is what is in use, after two collections: the first may leave finalizers to run.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkRecordsApply(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var fresh []*service.Backend
			for i := range n {
				a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
				fresh = append(fresh, &service.Backend{Addr: a, Weight: 100, Key: "services/user/" + a.String(), Created: int64(i), Modified: int64(i)})
			}
			one := *fresh[n/2]
			r, _ := merge(nil, nil, fresh)
			b.ReportAllocs()
			begin := cpuTime()
			for b.Loop() {
				one.Modified++
				one.Weight ^= 1
				r, _ = r.apply(map[string]change{one.Key: {backends: []service.Backend{one}}})
			}
			b.ReportMetric(float64(cpuTime()-begin)/float64(b.N), "cpu-ns/op")
		})
	}
}

// A whole list's keys are the same after they were put into one string, those of keys that list several backends, too.
func TestJoinKeys(t *testing.T) {
	want := []string{"a", "a", "services/user/b", "", "c", "a", "services/user/b"}
	list := make([]*service.Backend, len(want))
	for i := range list {
		list[i] = &service.Backend{Key: want[i]}
	}
	joinKeys(list)
	for i := range list {
		if list[i].Key != want[i] {
			t.Errorf("key %d is %q, want %q", i, list[i].Key, want[i])
		}
	}
	if unsafe.StringData(list[0].Key) != unsafe.StringData(list[1].Key) || unsafe.StringData(list[0].Key) == unsafe.StringData(want[0]) {
		t.Error("the same key of two backends is there twice, or where it was")
	}
}
