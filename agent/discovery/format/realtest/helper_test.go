package realtest

import (
	"context"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// start runs an etcd and returns a client of it with its endpoints.
func start(t *testing.T) (*clientv3.Client, []string) {
	t.Helper()
	c := etcdtest.NewClient(t, etcdtest.Start(t, etcdtest.Config{}))
	return c, c.Endpoints()
}

// read is what package format finds under prefix, without the order in which etcd holds the keys.
func read(t *testing.T, c *clientv3.Client, name, prefix string, selected map[string][]string) []service.Backend {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := c.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	d, err := format.New(name, selected)
	if err != nil {
		t.Fatal(err)
	}
	var all []service.Backend
	for _, kv := range r.Kvs {
		t.Logf("%s = %s", kv.Key, kv.Value)
		if all, err = d.Append(all, string(kv.Key), kv.Value); err != nil {
			t.Errorf("%s: %v", kv.Key, err)
		}
	}
	return all
}

// expect fails the test unless package format reads exactly these backends.
func expect(t *testing.T, c *clientv3.Client, name, prefix string, want ...service.Backend) {
	t.Helper()
	if got := read(t, c, name, prefix, nil); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func backend(addr string, weight uint32, metadata ...string) service.Backend {
	b := service.Backend{Addr: netip.MustParseAddrPort(addr), Weight: weight}
	for i := 0; i < len(metadata); i += 2 {
		if b.Metadata == nil {
			b.Metadata = make(map[string]string)
		}
		b.Metadata[metadata[i]] = metadata[i+1]
	}
	return b
}

func in(zone string, b service.Backend) service.Backend {
	b.Zone = zone
	return b
}

func drained(b service.Backend) service.Backend {
	b.Draining = true
	return b
}

// registrations are what our registrar may want to write: IPv4 and IPv6, plain and with all there is to say.
func registrations() []format.Registration {
	return []format.Registration{
		{Service: "ours", Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Weight: 7, Zone: "a", Metadata: map[string]string{"version": "v1"}},
		{Service: "ours", Addr: netip.MustParseAddrPort("[2001:db8::1]:8080")},
	}
}

// write puts a registration into etcd as package format encodes it, and returns its key.
func write(t *testing.T, c *clientv3.Client, name string, r format.Registration) string {
	t.Helper()
	key, value, err := format.Encode(name, r)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, key, value)
	return key
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
}

// eventually fails the test unless ok is true within half a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within 30 s: %s", what)
		case <-tick.C:
		}
	}
}
