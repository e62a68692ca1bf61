package discovery

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/registrar"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The registrations of a world: the first ones stand in the configuration, the others come and go by the API. All are of one service, which is followed too.
const (
	own           = "own"
	ownConfigured = 3
	ownAll        = 6
	ownTTL        = 9 * time.Second
	// ownMargin is what a registration may be gone for, beyond a third of its lease's life after etcd is back (5.1): a call to the etcd that was before may have to end first.
	ownMargin = 6 * time.Second
)

// owns is this host's registrations, as they should be.
type owns struct {
	dir  string
	r    *registrar.Registrar
	stop func()

	weights  [ownAll]uint32 // 0 = not registered
	drained  bool
	theirs   map[int]string // the values of keys that a stranger holds
	restored time.Time      // from a backup, last
	grace    time.Time      // until then keys may hang on leases that this host knows nothing of any more

	took    []time.Duration // until all was as it should be
	losses  uint64          // of leases
	writes  uint64
	strange int // looks at strangers' keys
}

func ownReg(i int, weight uint32) registrar.Registration {
	return registrar.Registration{Service: own, Address: ownAddr(i).String(), Weight: weight, Probe: registrar.Probe{Type: "none"}}
}

func ownAddr(i int) netip.AddrPort { return mustAddr(fmt.Sprintf("10.7.0.%d:80", i+1)) }

func ownKey(i int) string { return fmt.Sprintf("services/%s/%s", own, ownAddr(i)) }

// value is what the key of registration i has to say; "" = it has to be gone.
func (o *owns) value(i int) string {
	if v, ok := o.theirs[i]; ok {
		return v
	}
	if o.weights[i] == 0 {
		return ""
	}
	_, v, err := format.Encode(format.GRPCNaming, format.Registration{Service: own, Addr: ownAddr(i), Weight: o.weights[i], Draining: o.drained})
	if err != nil {
		return err.Error()
	}
	return v
}

func (o *owns) configured() []registrar.Registration {
	var out []registrar.Registration
	for i := range ownConfigured {
		out = append(out, ownReg(i, o.weights[i]))
	}
	return out
}

// startOwn begins a life of the registrar on the agent's connection.
func (w *world) startOwn() {
	o := &w.own
	log := hclog.New(&hclog.LoggerOptions{Output: w.d.log, Level: hclog.Debug})
	r, err := registrar.New(registrar.Config{
		Log: log, Events: event.NewLog(100), Etcd: w.d.links, Dir: o.dir,
		Place: func(service, _ string) (registrar.Place, error) {
			return registrar.Place{Prefix: "services/" + service + "/", Format: format.GRPCNaming}, nil
		},
	})
	if err != nil {
		w.fail("registrar: %v", err)
	}
	r.Set(o.configured(), ownTTL)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			w.t.Errorf("registrar: %v", err)
		}
	}()
	o.r, o.stop = r, func() {
		cancel()
		<-done
		s := r.Stats()
		o.losses += s.LeaseLosses
		o.writes += s.Writes
		o.stop = func() {}
	}
	w.t.Cleanup(func() { o.stop() })
}

// ownOps are the steps that concern registrations.
func (w *world) ownOps() []op {
	return []op{
		{"our weight changes", 6, w.reweigh},
		{"we register", 8, w.register},
		{"we deregister", 6, w.deregister},
		{"we drain or undrain", 4, w.drainOwn},
		{"our key is deleted", 5, func() { w.onOurs(func(kv *mvccpb.KeyValue) clientv3.Op { return clientv3.OpDelete(string(kv.Key)) }) }},
		{"our key is edited", 5, w.edit},
		{"a stranger takes our key", 6, w.strangerComes},
		{"a stranger goes", 6, w.strangerGoes},
		{"our lease is revoked", 4, w.revokeOwn},
		{"we forget our lease", 1, w.loseState},
	}
}

func (w *world) reweigh() {
	i := w.rng.IntN(ownConfigured)
	w.own.weights[i] = uint32(1 + w.rng.IntN(50))
	w.own.r.Set(w.own.configured(), ownTTL)
}

func (w *world) register() {
	i, weight := ownConfigured+w.rng.IntN(ownAll-ownConfigured), uint32(1+w.rng.IntN(50))
	if err := w.own.r.Register(ownReg(i, weight), registrar.Who{}); err != nil {
		w.fail("register: %v", err)
	}
	w.own.weights[i] = weight
}

func (w *world) deregister() {
	i := ownConfigured + w.rng.IntN(ownAll-ownConfigured)
	if w.own.weights[i] == 0 {
		return
	}
	if _, err := w.own.r.Deregister(own, ownAddr(i).String(), registrar.Who{}); err != nil {
		w.fail("deregister: %v", err)
	}
	w.own.weights[i] = 0
}

func (w *world) drainOwn() {
	w.own.drained = !w.own.drained
	if !w.own.drained {
		w.own.r.Undrain(own)
	} else if err := w.own.r.Drain(own, false); err != nil {
		w.fail("drain: %v", err)
	}
}

// atKey is what etcd has at a key, nil if nothing or if it can't say.
func (w *world) atKey(key string) *mvccpb.KeyValue {
	if !w.quorum() {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	r, err := w.admin().Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return nil
	}
	return r.Kvs[0]
}

// onOurs does something to one of our keys if it is as it was when it was read, so that what comes late does nothing.
func (w *world) onOurs(do func(*mvccpb.KeyValue) clientv3.Op) {
	i := w.rng.IntN(ownAll)
	kv := w.atKey(ownKey(i))
	if _, stranger := w.own.theirs[i]; stranger || kv == nil || kv.Lease == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	if _, err := w.admin().Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision)).Then(do(kv)).Commit(); err != nil {
		w.note("write: %v", err)
	}
}

// edit writes to one of our keys by hand; but not after a restore that the registrar has not noticed yet, nor before it has learned that it wrote the key, since etcd's answer
// may be lost: then nothing tells it such a key from a stranger's (1.5, 5.5), and it stays (registrar's TestDeregisteredAfter). Keys with a lost answer that nobody edits must go.
func (w *world) edit() {
	noticed, status := w.own.r.Stats().LastOK.After(w.own.restored), w.own.r.Status()
	w.onOurs(func(kv *mvccpb.KeyValue) clientv3.Op {
		known := slices.ContainsFunc(status, func(s registrar.Status) bool { return s.Key == string(kv.Key) && s.Announced })
		w.note("edit %s (noticed %v, known %v)", kv.Key, noticed, known)
		if !noticed || !known {
			return clientv3.OpGet(string(kv.Key))
		}
		return clientv3.OpPut(string(kv.Key), "by hand")
	})
}

// strangerComes takes a key away: it deletes what is there and makes it anew, on no lease, which is how a person does it. It must succeed in the end: whose the key is
// has to be known.
func (w *world) strangerComes() {
	i := w.rng.IntN(ownAll)
	if _, there := w.own.theirs[i]; there || !w.quorum() {
		return
	}
	key, value := ownKey(i), record(fmt.Sprintf("10.8.0.%d:80", i+1), w.step)
	w.mustDo("a stranger comes", func(ctx context.Context, c *clientv3.Client) (bool, error) {
		if _, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Value(key), "!=", value)).Then(clientv3.OpDelete(key)).Commit(); err != nil {
			return false, err
		}
		if _, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit(); err != nil {
			return false, err
		}
		r, err := c.Get(ctx, key)
		return err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == value, err
	})
	w.own.theirs[i] = value
}

func (w *world) strangerGoes() {
	i := w.rng.IntN(ownAll)
	value, there := w.own.theirs[i]
	if !there || !w.quorum() {
		return
	}
	key := ownKey(i)
	w.mustDo("a stranger goes", func(ctx context.Context, c *clientv3.Client) (bool, error) {
		_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Value(key), "=", value)).Then(clientv3.OpDelete(key)).Commit()
		return err == nil, err
	})
	delete(w.own.theirs, i)
}

// mustDo repeats do until it says that it is done, on an etcd where nothing is wrong if the first try fails.
func (w *world) mustDo(what string, do func(ctx context.Context, c *clientv3.Client) (bool, error)) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	done, err := do(ctx, w.admin())
	cancel()
	if done {
		return
	}
	if err != nil {
		w.note("%s: %v", what, err)
		w.mendAll()
	}
	w.mustWrite(what, func(ctx context.Context, c *clientv3.Client) error {
		done, err := do(ctx, c)
		if err == nil && !done {
			err = fmt.Errorf("%s: not done", what)
		}
		return err
	})
}

// revokeOwn ends the lease that our keys hang on.
func (w *world) revokeOwn() {
	kv := w.atKey(ownKey(w.rng.IntN(ownAll)))
	if kv == nil || kv.Lease == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	if _, err := w.admin().Revoke(ctx, clientv3.LeaseID(kv.Lease)); err != nil {
		w.note("revoke ours: %v", err)
	}
}

// loseState restarts the agent without what the registrar wrote down: what came by the API is gone with it, and our keys are those of nobody, until their lease ends.
func (w *world) loseState() {
	w.settled() // a key without our lease couldn't be told from a stranger's afterwards
	w.stopAgent()
	w.own.dir = w.t.TempDir()
	w.own.drained = false
	for i := ownConfigured; i < ownAll; i++ {
		w.own.weights[i] = 0
	}
	w.startAgent()
	w.forgive()
}

// forgive lets keys hang on leases that this host doesn't know, until those end: nobody keeps them alive.
func (w *world) forgive() { w.own.grace = time.Now().Add(ownTTL) }

// lookAtStrangers fails if a stranger's key isn't as he left it (5.5). That holds at every moment.
func (w *world) lookAtStrangers(kvs []*mvccpb.KeyValue) {
	for i, value := range w.own.theirs {
		n := slices.IndexFunc(kvs, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == ownKey(i) })
		w.own.strange++
		switch {
		case n < 0:
			w.fail("a stranger's key %s is gone", ownKey(i))
		case string(kvs[n].Value) != value || kvs[n].Lease != 0:
			w.fail("a stranger's key %s, %s, became %s", ownKey(i), value, kvs[n])
		}
	}
}

// wrongOwn says what differs between etcd and this host's registrations, "" if nothing: every one has its key and no other, all hang on one lease, which lives (5.1).
func (w *world) wrongOwn() string {
	var r *clientv3.GetResponse
	w.mustWrite("read", func(ctx context.Context, c *clientv3.Client) (err error) {
		r, err = c.Get(ctx, "services/"+own+"/", clientv3.WithPrefix())
		return err
	})
	w.lookAtStrangers(r.Kvs)
	want := map[string]string{}
	for i := range ownAll {
		if v := w.own.value(i); v != "" {
			want[ownKey(i)] = v
		}
	}
	got := map[string]string{}
	leases := map[int64]bool{}
	for _, kv := range r.Kvs {
		got[string(kv.Key)] = string(kv.Value)
		if kv.Lease != 0 {
			leases[kv.Lease] = true
		}
	}
	if !maps.Equal(got, want) {
		return fmt.Sprintf("etcd has\n%s\nand should have\n%s", sortedText(got), sortedText(want))
	}
	for lease := range leases {
		var ttl *clientv3.LeaseTimeToLiveResponse
		w.mustWrite("lease", func(ctx context.Context, c *clientv3.Client) (err error) {
			ttl, err = c.TimeToLive(ctx, clientv3.LeaseID(lease))
			return err
		})
		if ttl.TTL <= 0 || ttl.GrantedTTL != int64(ownTTL/time.Second) || len(leases) > 1 {
			return fmt.Sprintf("lease %x of %d has %d s left of %d s", lease, len(leases), ttl.TTL, ttl.GrantedTTL)
		}
	}
	return ""
}

func sortedText(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+" "+m[k])
	}
	return strings.Join(out, "\n")
}

// settled is settle on an etcd where nothing is wrong.
func (w *world) settled() {
	w.mendAll()
	w.settle(w.serves())
}

// settle waits until this host's registrations are in etcd, and measures it from the moment when etcd was well again. What is allowed is in proportion to how slowly
// the machine does anything now.
func (w *world) settle(back time.Time) {
	allowed := ownTTL/3 + ownMargin
	if left := w.own.grace.Sub(back); left > 0 {
		allowed += left
	}
	for {
		began := time.Now()
		what := w.wrongOwn()
		if what == "" {
			break
		}
		looking := time.Since(began) // some round trips
		if took := time.Since(back); took > allowed+50*looking {
			w.fail("registrations are not right %v after etcd is back, %v are allowed: %s\nstatus: %+v\nlog: %s", took, allowed, what, w.own.r.Status(), lastLines(w.d.log.String(), 40))
		}
		w.wait(5 * time.Millisecond)
	}
	took := time.Since(back)
	w.own.took = append(w.own.took, took)
	w.note("registrations right after %v", took.Round(time.Millisecond))
}
