package discovery

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Keys that make backends together come, change and go in batches, in any order: what the events leave is what a whole read of the same keys finds, with
// the number of keys and the newest revision that etcd would name (1.3).
func TestJoinedKeysModel(t *testing.T) {
	values := map[string][]string{
		format.Traefik: {"http://10.0.0.1:1", "http://10.0.0.2:1", "3", "0", "", "x"},
		format.Patroni: {"pg1", "pg2", `{"conn_url":"postgres://10.0.0.1/p","role":"replica"}`, `{"conn_url":"postgres://10.0.0.2/p","role":"master"}`, "{", ""},
	}
	keys := map[string][]string{
		format.Patroni: {"/service/a/leader", "/service/a/members/pg1", "/service/a/members/pg2", "/service/a/status", "/service/b/members/pg1"},
	}
	for _, server := range []string{"loadbalancer/servers/0", "loadBalancer/servers/0", "loadbalancer/servers/1", "healthcheck"} {
		for _, field := range []string{"url", "weight", "tls"} {
			keys[format.Traefik] = append(keys[format.Traefik], "traefik/http/services/foo/"+server+"/"+field)
		}
	}
	for name := range values {
		for seed := range uint64(10) {
			rng := rand.New(rand.NewPCG(seed, 1))
			dec, _ := format.New(name, nil)
			have := map[string]*mvccpb.KeyValue{}
			var r records
			for rev := int64(1); rev < 60; rev++ {
				var batch []*mvccpb.Event
				for range 1 + rng.IntN(4) {
					key := keys[name][rng.IntN(len(keys[name]))]
					kv := &mvccpb.KeyValue{Key: []byte(key), CreateRevision: rev, ModRevision: rev, Lease: rev % 3}
					if rng.IntN(3) == 0 {
						delete(have, key)
						batch = append(batch, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: kv})
						continue
					}
					kv.Value = []byte(values[name][rng.IntN(len(values[name]))])
					if old := have[key]; old != nil {
						kv.CreateRevision = old.CreateRevision
					}
					have[key] = kv
					batch = append(batch, &mvccpb.Event{Kv: kv})
				}
				changes, _ := decodeEvents(dec, batch)
				r, _ = r.apply(changes)
				compareWithRead(t, fmt.Sprintf("%s, seed %d, revision %d", name, seed, rev), name, r, have)
			}
		}
	}
}

// compareWithRead holds r against the keys as a new decoder reads them.
func compareWithRead(t *testing.T, what, name string, r records, have map[string]*mvccpb.KeyValue) {
	t.Helper()
	dec, _ := format.New(name, nil)
	var all []*mvccpb.Event
	var newest int64
	for _, kv := range have {
		all = append(all, &mvccpb.Event{Kv: kv})
		newest = max(newest, kv.ModRevision)
	}
	changes, _ := decodeEvents(dec, all)
	want, _ := records{}.apply(changes)
	if len(r.hidden) > 0 {
		slices.SortFunc(r.hidden, better)
		slices.SortFunc(want.hidden, better)
	}
	if e := compare(r, want); e != nothing {
		t.Fatalf("%s: effect %d\ngot  %+v\nwant %+v", what, e, r, want)
	}
	for _, b := range r.shown {
		if lease := have[b.Key].Lease; b.Lease != lease {
			t.Fatalf("%s: %s has lease %d, want that of its key %d", what, b.Addr, b.Lease, lease)
		}
	}
	if n, m := r.keys(); n != len(have) || m != newest {
		t.Fatalf("%s: %d keys, newest %d; want %d, %d", what, n, m, len(have), newest)
	}
}

// A traefik service in a real etcd: one key changes at a time, each change reaches the right backend, and nothing has to be read again.
func TestTraefikFromEtcd(t *testing.T) {
	const server = "traefik/http/services/foo/loadbalancer/servers/"
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, server+"0/url", "http://10.0.0.1:80")
	put(t, c, server+"0/weight", "3")
	put(t, c, "traefik/http/services/foo/loadbalancer/passhostheader", "true")
	d := start(t, setup{Etcd: etcdAt(s)}, Follow{Name: "foo", Prefix: "traefik/http/services/foo/", Format: format.Traefik})
	shows := func(what, want string) {
		t.Helper()
		eventually(t, time.Minute, what, func() bool {
			l := d.last("foo")
			if l == nil {
				return false
			}
			var got []string
			for _, b := range l.Backends {
				got = append(got, fmt.Sprintf("%s=%d/%v", b.Addr, b.Weight, b.Draining))
			}
			return strings.Join(got, " ") == want
		})
	}
	shows("a whole read", "10.0.0.1:80=3/false")
	created := d.last("foo").Backends[0].Created
	put(t, c, server+"0/weight", "5")
	shows("another weight", "10.0.0.1:80=5/false")
	if b := d.last("foo").Backends[0]; b.Created != created || b.Key != server+"0/url" {
		t.Errorf("a weight made it another process: %+v", b)
	}
	put(t, c, server+"1/weight", "0")
	put(t, c, server+"1/url", "http://[2001:db8::1]:80")
	shows("a second one", "10.0.0.1:80=5/false [2001:db8::1]:80=1/true")
	del(t, c, server+"1/weight")
	shows("its weight is deleted", "10.0.0.1:80=5/false [2001:db8::1]:80=1/false")
	del(t, c, server+"0/url")
	shows("the first one's address is deleted", "[2001:db8::1]:80=1/false")
	del(t, c, server)
	put(t, c, server+"0/url", "http://10.0.0.9:80")
	shows("it comes back elsewhere, and finds its weight", "10.0.0.9:80=5/false [2001:db8::1]:80=1/false")
	if n := d.Status().Reads; n != 1 {
		t.Errorf("%d whole reads, want 1", n)
	}
}
