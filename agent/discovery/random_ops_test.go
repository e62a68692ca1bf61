package discovery

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type op struct {
	name   string
	weight int
	do     func()
}

// ops are all steps. None draws more random numbers, or fewer, for what happens to come of it: a seed repeats them.
func (w *world) ops() []op {
	return append(w.ownOps(), []op{
		{"put", 300, w.put},
		{"delete", 120, w.delete},
		{"put with a lease", 80, w.putLease},
		{"put garbage", 20, func() { w.write(clientv3.OpPut(w.key(user), "garbage")) }},
		{"put again as it is", 20, func() { w.write(clientv3.OpPut("services/"+steady+"/keep0", record("10.1.0.1:80", 100))) }},
		{"backend restarts", 30, w.backendRestarts},
		{"delete all", 10, func() { w.write(clientv3.OpDelete("services/"+user+"/", clientv3.WithPrefix())) }},
		{"many on one lease", 20, w.putMany},
		{"mass expiry", 20, w.expire},
		{"change elsewhere", 20, func() { w.write(clientv3.OpPut("elsewhere", "x")) }},
		{"compact", 20, w.compact},
		{"defragment", 4, w.defragment},
		{"cut clients off one member", 25, func() { w.cutClients(w.rng.IntN(3)) }},
		{"cut clients off all", 10, func() { w.cutClients(0, 1, 2) }},
		{"let no bytes pass", 8, w.hold},
		{"isolate a member", 12, w.isolate},
		{"stop a member", 10, w.stopMember},
		{"stop all members", 3, w.stopAll},
		{"freeze a member", 12, w.freeze},
		{"mend one thing", 60, w.mend},
		{"time passes", 10, func() { w.wait(time.Duration(w.rng.IntN(1500)) * time.Millisecond) }},
		{"password changes", 5, w.changePassword},
		{"tokens expire", 3, func() { w.wait(1500 * time.Millisecond) }},
		{"backup", 6, w.save},
		{"restore", 4, w.restore},
		{"agent restarts", 12, w.restartAgent},
		{"followed in another way", 5, w.refollow},
		{"accept", 10, w.accept},
		{"an orphan is dead", 15, w.orphanDies},
	}...)
}

// key is a random key of a service; few, so that they meet.
func (w *world) key(name string) string {
	return fmt.Sprintf("services/%s/%d", name, w.rng.IntN(15))
}

func (w *world) name() string { return []string{user, steady}[w.rng.IntN(2)] }

// addr is a random address; few, so that two keys may have the same.
func (w *world) addr() string { return fmt.Sprintf("10.0.0.%d:80", 1+w.rng.IntN(12)) }

// write does ops in one transaction if etcd can take them; whether it did is for etcd to say.
func (w *world) write(ops ...clientv3.Op) {
	if !w.quorum() {
		return
	}
	for _, o := range ops {
		if o.IsPut() {
			delete(w.check.died, string(o.KeyBytes()))
		}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	if _, err := w.admin().Txn(ctx).Then(ops...).Commit(); err != nil {
		w.note("write: %v", err)
	}
}

func (w *world) put() {
	w.write(clientv3.OpPut(w.key(w.name()), record(w.addr(), 1+w.rng.IntN(3))))
}

func (w *world) delete() { w.write(clientv3.OpDelete(w.key(w.name()))) }

// grant makes a lease; 0 if etcd can't.
func (w *world) grant(ttl int) clientv3.LeaseID {
	if !w.quorum() {
		return 0
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	l, err := w.admin().Grant(ctx, int64(ttl))
	if err != nil {
		w.note("grant: %v", err)
		return 0
	}
	return l.ID
}

func (w *world) putLease() {
	key, value, ttl := w.key(w.name()), record(w.addr(), 1), 1+w.rng.IntN(3)
	if l := w.grant(ttl); l != 0 {
		w.write(clientv3.OpPut(key, value, clientv3.WithLease(l)))
	}
}

// backendRestarts is a delete and a put, which may reach the agent as one.
func (w *world) backendRestarts() {
	key, value := w.key(user), record(w.addr(), 1)
	w.write(clientv3.OpDelete(key))
	w.write(clientv3.OpPut(key, value))
}

func (w *world) putMany() {
	name, n := w.name(), w.rng.IntN(200)
	l := w.grant(600)
	if l == 0 {
		return
	}
	w.leases = append(w.leases, l)
	var ops []clientv3.Op
	for i := range 20 {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("services/%s/many%d", name, i), record(fmt.Sprintf("10.3.%d.%d:80", n, i), 100), clientv3.WithLease(l)))
	}
	w.write(ops...)
}

// expire ends the leases that many keys hang on, all at once: to a watcher it is what an expiry is.
func (w *world) expire() {
	for _, l := range w.leases {
		if !w.quorum() {
			return
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		hung, err := w.admin().TimeToLive(ctx, l, clientv3.WithAttachedKeys())
		r, rerr := w.admin().Revoke(ctx, l)
		if err == nil && rerr == nil {
			for _, key := range hung.Keys {
				w.check.died[string(key)] = death{lease: int64(l), revision: r.Header.Revision}
			}
		} else if rerr != nil {
			w.note("revoke: %v", rerr)
		}
		cancel()
	}
	w.leases = nil
}

func (w *world) compact() {
	if !w.quorum() {
		return
	}
	w.compareLists() // as long as etcd knows
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
	defer cancel()
	c := w.admin()
	r, err := c.Get(ctx, "x")
	if err == nil {
		_, err = c.Compact(ctx, r.Header.Revision)
	}
	if err != nil {
		w.note("compact: %v", err)
	}
}

func (w *world) defragment() {
	i := w.rng.IntN(3)
	if w.gone[i] || w.frozen[i] {
		return
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
	defer cancel()
	if _, err := w.admins[i].Defragment(ctx, w.cluster.Members[i].Endpoint()); err != nil {
		w.note("defragment: %v", err)
	}
}

func (w *world) cutClients(members ...int) {
	for _, i := range members {
		w.cut[i] = true
		w.cluster.Members[i].Clients.Cut()
	}
}

func (w *world) hold() {
	w.held = true
	for _, m := range w.cluster.Members {
		m.Clients.Pause()
	}
}

func (w *world) isolate() {
	i := w.rng.IntN(3)
	if w.isolated < 0 {
		w.isolated = i
		w.cluster.Isolate(i)
	}
}

func (w *world) stopMember() {
	i := w.rng.IntN(3)
	w.gone[i], w.frozen[i] = true, false
	w.cluster.Members[i].Stop()
}

func (w *world) stopAll() {
	w.cluster.Stop()
	for i := range w.gone {
		w.gone[i], w.frozen[i] = true, false
	}
}

func (w *world) freeze() {
	i := w.rng.IntN(3)
	if w.gone[i] {
		return
	}
	w.frozen[i] = true
	if err := w.cluster.Members[i].Freeze(); err != nil {
		w.fail("freeze: %v", err)
	}
}

// mend ends one of the things that are wrong.
func (w *world) mend() {
	mends := []func() bool{
		func() bool { return w.thaw(w.rng.IntN(3)) },
		func() bool { return w.startMembers() },
		func() bool { return w.joinMembers() },
		func() bool { return w.healClients() },
	}
	mends[w.rng.IntN(len(mends))]()
}

func (w *world) mendAll() {
	for i := range w.frozen {
		w.thaw(i)
	}
	w.startMembers()
	w.joinMembers()
	w.healClients()
}

func (w *world) thaw(i int) bool {
	if !w.frozen[i] {
		return false
	}
	w.frozen[i] = false
	if err := w.cluster.Members[i].Thaw(); err != nil {
		w.fail("thaw: %v", err)
	}
	return true
}

// startMembers starts those that are stopped; with them a frozen one must run, or there would be nobody to vote.
func (w *world) startMembers() bool {
	for i := range w.frozen {
		w.thaw(i)
	}
	w.joinMembers()
	if err := w.cluster.Start(); err != nil {
		w.fail("start: %v", err)
	}
	clear(w.gone)
	return true
}

func (w *world) joinMembers() bool {
	if w.isolated < 0 {
		return false
	}
	w.cluster.Join(w.isolated)
	w.isolated = -1
	return true
}

func (w *world) healClients() bool {
	for i, m := range w.cluster.Members {
		w.cut[i] = false
		m.Clients.Resume()
		m.Clients.Heal()
	}
	w.held = false
	return true
}

// changePassword changes the agent's password in etcd, which ends its tokens, and then in the file.
func (w *world) changePassword() {
	if !w.quorum() {
		return
	}
	next := fmt.Sprintf("pw%d", w.step)
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	_, err := w.admin().UserChangePassword(ctx, "agent", next)
	if err != nil { // it may have been done all the same
		w.note("password: %v", err)
		w.mendAll()
		w.mustWrite("password", func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.UserChangePassword(ctx, "agent", next)
			return err
		})
	}
	w.password = next
	writeFile(w.t, w.file, next)
}

// mustWrite does what has to be done, on an etcd where nothing is wrong.
func (w *world) mustWrite(what string, do func(ctx context.Context, c *clientv3.Client) error) {
	w.t.Helper()
	until := time.Now().Add(time.Minute)
	for i := 0; ; i++ {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		err := do(ctx, w.admins[i%3])
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(until) {
			w.fail("%s: %v", what, err)
		}
		w.wait(20 * time.Millisecond)
	}
}

// save makes a backup.
func (w *world) save() {
	w.settled() // one of our keys that was edited couldn't be told from a stranger's after a restore
	next := backup{filepath.Join(w.t.TempDir(), fmt.Sprintf("backup%d", w.step)), w.password, maps.Clone(w.own.theirs)}
	w.mustWrite("backup", func(ctx context.Context, c *clientv3.Client) error { return etcdtest.Backup(ctx, c, next.file) })
	w.backup = next
}

// restore brings back the last backup, with the cluster's id or with another; half of the times while the agent can't see etcd.
func (w *world) restore() {
	hidden, other := w.rng.IntN(2) == 0, w.rng.IntN(2) == 0
	w.quiet() // what lists there are can be compared now only
	if hidden {
		w.cutClients(0, 1, 2)
	}
	token := ""
	if other {
		w.tokens++
		token = fmt.Sprintf("life%d", w.tokens)
	}
	w.cluster.Stop()
	w.collect() // what follows is of the next life
	if err := w.cluster.Restore(w.backup.file, token); err != nil {
		w.fail("restore: %v", err)
	}
	w.logIn()
	w.slow.restored = true
	w.check.lives++
	clear(w.check.died)
	maps.Copy(w.check.former, w.check.epochs)
	w.leases = nil
	w.own.theirs = maps.Clone(w.backup.theirs)
	w.own.restored = time.Now()
	w.forgive()
	w.password = w.backup.password
	writeFile(w.t, w.file, w.password)
}

// restartAgent ends discovery and begins another one, which has the same lists by the spool, whatever state etcd is in (1.8).
func (w *world) restartAgent() {
	w.stopAgent()
	before := map[string]string{}
	for _, name := range followed() {
		before[name] = describe(w.d.last(name))
	}
	w.startAgent()
	for name, want := range before {
		all := w.d.all(name)
		if want == "none" && len(all) == 0 {
			continue
		}
		if len(all) == 0 || all[0].Source != service.FromSpool || describe(all[0]) != want {
			w.fail("after a restart the list of %s is not that of before: %s\nbefore: %s", name, told(all), want)
		}
	}
}

// told is the first of some lists, for a person.
func told(all []*service.List) string {
	if len(all) == 0 {
		return "none"
	}
	return fmt.Sprintf("%s at revision %d: %s", all[0].Source, all[0].Revision, describe(all[0]))
}

func (w *world) stopAgent() {
	w.own.stop()
	w.d.stop()
	w.collect()
	clear(w.check.gone) // what the second witness says of orphans it says again in the next life
	w.restarts++
	w.reads += w.d.Status().Reads
}

func (w *world) refollow() {
	w.excuse(user)
	maps.DeleteFunc(w.check.gone, func(g gone, _ time.Time) bool { return g.service == user })
	w.d.Set(Follow{Name: user, Prefix: "services/" + user + "/", Format: "plain"})
	w.d.Set(w.follow(user))
}

// accept believes the lists that lost most of their keys (1.10).
func (w *world) accept() {
	for _, name := range []string{user, steady, own} {
		w.excuse(name)
		if _, err := w.d.Accept(name); err != nil {
			w.note("accept %s: %v", name, err)
		}
	}
}

// orphanDies has the second witness say of one orphan that it is gone (1.10).
func (w *world) orphanDies() {
	name, n := w.name(), w.rng.IntN(1000)
	w.collect()
	_, orphans := parted(w.d.last(name))
	if len(orphans) == 0 {
		return
	}
	b := orphans[n%len(orphans)]
	w.check.gone[gone{name, b.Addr.String()}] = b.Orphaned
	w.d.Gone(name, b.Addr, "connection refused")
}
