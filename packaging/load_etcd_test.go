package packaging

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// registry is what etcd has of what this host registers.
type registry struct {
	Keys map[string]record
	Gone int64 // keys that went, since the world began

	at time.Time
}

// record is a key with the lease that it hangs on.
type record struct {
	Value              string
	Create, Mod, Lease int64
	Left               int64 // of the lease's life, in seconds
}

// lists are the keys of etcd before there is an agent: backends of the services, an item of the fleet, and a service that nobody has configured. One backend of "sick" is not there.
func lists() map[string]string {
	put := map[string]string{
		"lbagent/config/shared": `{name: shared, prefix: services/shared/, listen: [7004]}`,
	}
	list := func(service string, addrs ...string) {
		for _, addr := range addrs {
			put["services/"+service+"/"+addr] = fmt.Sprintf(`{"Op":0,"Addr":%q}`, addr)
		}
	}
	for _, service := range []string{"grpc", "web", "tcp"} {
		list(service, backendsOf(service)...)
	}
	list("shared", backendsOf("web")...)
	list("later", backendsOf("tcp")[0])
	list("sick", backendsOf("web")[0], hostAddr+":9099")
	return put
}

// witness counts the keys of this host that go.
func witness(c *clientv3.Client) *atomic.Int64 {
	n := new(atomic.Int64)
	for _, prefix := range ownPrefixes() {
		watch := c.Watch(context.Background(), prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithFilterPut())
		<-watch
		go func() {
			for r := range watch {
				n.Add(int64(len(r.Events)))
			}
		}()
	}
	return n
}

// ownPrefixes are of "own", which is in the configuration, and of "mine", which came by the API.
func ownPrefixes() []string { return []string{"services/own/", "services/mine/"} }

// readRegistry is what etcd has now.
func readRegistry(c *clientv3.Client, gone *atomic.Int64) (registry, error) {
	out := registry{Keys: map[string]record{}, Gone: gone.Load()}
	for _, prefix := range ownPrefixes() {
		got, err := c.Get(context.Background(), prefix, clientv3.WithPrefix())
		if err != nil {
			return out, err
		}
		for _, kv := range got.Kvs {
			left, err := c.TimeToLive(context.Background(), clientv3.LeaseID(kv.Lease))
			if err != nil {
				return out, err
			}
			out.Keys[string(kv.Key)] = record{string(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Lease, left.TTL}
		}
	}
	return out, nil
}
