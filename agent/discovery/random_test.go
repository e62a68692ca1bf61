package discovery

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	randomSteps = flag.Int("steps", 100, "steps of TestRandom; make random runs 10,000")
	randomGuard = flag.Bool("guard", true, "TestRandom with the two witnesses of 1.9")
	randomSeed  = flag.Uint64("seed", 0, "seed of TestRandom; 0 = a new one, which is printed")
)

func TestMain(m *testing.M) {
	etcdtest.Child()
	os.Exit(m.Run())
}

// TestRandom does to an etcd of three members, to the networks around it, and to the agent whatever comes in a year, in random order. At every moment, each list
// that is published is one that etcd had at the list's revision, and revisions don't go back unless etcd's did; whenever it is quiet, the lists become what etcd
// holds (SEMANTICS 1), and etcd what this host's registrations are (5). A seed gives the same steps again, though not the same microseconds.
func TestRandom(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	w := newWorld(t, seed)
	defer w.report()
	for w.step = 1; w.step <= *randomSteps && !t.Failed(); w.step++ {
		w.act()
		if w.rng.IntN(10) == 0 {
			w.quiet()
		}
	}
	w.quiet()
}

// The services of a world. steady has backends that never leave, beside others that come and go; idle never changes; in user anything may happen.
const (
	hold   = 10 * time.Minute
	steady = "steady"
	idle   = "idle"
	user   = "user"
)

// world is an etcd, an agent's discovery, and what is wrong at the moment.
type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	step int
	told []string // the last steps

	cluster  *etcdtest.Cluster
	admins   []*clientv3.Client // root, one per member, past the proxies
	d        *running
	spool    string
	password string // of the agent's user
	file     string // with it
	leases   []clientv3.LeaseID
	backup   backup
	tokens   int // that restored clusters have had

	gone     []bool // members that are stopped
	frozen   []bool
	isolated int    // a member, or -1
	cut      []bool // clients to that member
	held     bool   // no bytes pass between clients and members

	own      owns
	check    check
	slow     slow
	reads    uint64
	restarts int
	began    time.Time
}

type backup struct {
	file, password string
	theirs         map[int]string // of the keys of our registrations
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), isolated: -1, password: "pw0",
		gone: make([]bool, 3), frozen: make([]bool, 3), cut: make([]bool, 3),
		spool: t.TempDir(), file: filepath.Join(t.TempDir(), "password"), began: time.Now(),
	}
	w.cluster = etcdtest.StartCluster(t, 3, etcdtest.Config{Process: true, TokenTTL: time.Second})
	plain := w.cluster.Client(t, "", "")
	withAuth(t, plain, w.password)
	w.logIn()
	if _, err := w.admins[0].RoleGrantPermission(t.Context(), "reader", "services/own/", clientv3.GetPrefixRangeEnd("services/own/"), clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, w.file, w.password)
	c := w.admins[0]
	for i := range 3 {
		put(t, c, fmt.Sprintf("services/%s/keep%d", steady, i), record(fmt.Sprintf("10.1.0.%d:80", i+1), 100))
		put(t, c, fmt.Sprintf("services/%s/%d", idle, i), record(fmt.Sprintf("10.2.0.%d:80", i+1), 100))
	}
	w.check.init()
	w.slow.well = time.Now()
	go w.slow.stood.watch(t.Context())
	w.own.dir, w.own.theirs = t.TempDir(), map[int]string{}
	for i := range ownConfigured {
		w.own.weights[i] = 100
	}
	w.startAgent()
	w.quiet()
	w.save()
	return w
}

// logIn makes clients anew: tokens of before a restore are not refused, they hang.
func (w *world) logIn() {
	for _, c := range w.admins {
		c.Close()
	}
	w.admins = nil
	for i := range w.cluster.Members {
		w.admins = append(w.admins, w.cluster.Client(w.t, "root", "rootpw", i))
	}
}

// startAgent starts discovery: of services in the spool there is a list at once.
func (w *world) startAgent() {
	var follows []Follow
	for _, name := range followed() {
		follows = append(follows, w.follow(name))
	}
	w.d = startWith(w.t, setup{
		Etcd:     &etcd.Config{Endpoints: w.cluster.Endpoints(), Username: "agent", PasswordFile: w.file},
		SpoolDir: w.spool,
	}, w.slow.dial, follows...)
	w.check.seen = map[string]int{}
	w.startOwn()
}

// followed are the services of a world.
func followed() []string { return []string{steady, idle, user, own} }

// follow is how a service is followed.
func (w *world) follow(name string) Follow {
	f := naming(name)
	if *randomGuard {
		f.Hold = hold
	}
	return f
}

// note keeps what is done, for a person to read if it goes wrong.
func (w *world) note(format string, args ...any) {
	w.told = append(w.told, fmt.Sprintf("%8.3f %5d ", time.Since(w.began).Seconds(), w.step)+fmt.Sprintf(format, args...))
	if len(w.told) > 60 {
		w.told = w.told[1:]
	}
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d, step %d: %s\n%s", w.seed, w.step, fmt.Sprintf(format, args...), strings.Join(w.told, "\n"))
}

// admin is a client of a member that works as well as any can now.
func (w *world) admin() *clientv3.Client {
	for i := range w.admins {
		if !w.gone[i] && !w.frozen[i] && w.isolated != i {
			return w.admins[i]
		}
	}
	return nil
}

// quorum reports whether etcd can be written to.
func (w *world) quorum() bool {
	n := 0
	for i := range w.admins {
		if !w.gone[i] && !w.frozen[i] && w.isolated != i {
			n++
		}
	}
	return n >= 2
}

// act does one step.
func (w *world) act() {
	all := w.ops()
	total := 0
	for _, o := range all {
		total += o.weight
	}
	n := w.rng.IntN(total)
	for _, o := range all {
		if n -= o.weight; n < 0 {
			w.note("%s", o.name)
			w.check.count(o.name)
			o.do()
			break
		}
	}
	w.wait(time.Duration(w.rng.IntN(8)) * time.Millisecond)
	w.collect()
}

func (w *world) wait(d time.Duration) { <-time.After(d) }

// report says what was done, and how soon lists were right.
func (w *world) report() {
	took := slices.Clone(w.check.took)
	slices.Sort(took)
	at := func(p float64) time.Duration { return quantile(took, p) }
	late := 0
	for _, d := range took {
		if d > 2*time.Second {
			late++
		}
	}
	w.reads += w.d.Status().Reads
	w.own.stop()
	w.t.Logf("seed %d: %d steps in %v; %d times quiet, right after p50 %v, p90 %v, p99 %v, at most %v (%d over 2 s), beside %v that the machine stood; %d lists, %d of them compared with etcd at their revision, %d too old for that; "+
		"%d reads of whole prefixes, %d restarts of the agent, %d restores, %d backends orphaned (guard %v)", w.seed, w.step-1, time.Since(w.began).Round(time.Second), len(took), at(.5), at(.9), at(.99), at(1), late, w.slow.stood.total().Round(time.Millisecond),
		w.check.lists, w.check.compared, w.check.compacted, w.reads, w.restarts, w.check.lives, w.check.orphaned, *randomGuard)
	own := slices.Clone(w.own.took)
	slices.Sort(own)
	w.t.Logf("%d times registrations were waited for, right after p50 %v, p99 %v, at most %v; %d keys written, %d leases lost, %d looks at strangers' keys", len(own), quantile(own, .5), quantile(own, .99), quantile(own, 1),
		w.own.writes, w.own.losses, w.own.strange)
	w.t.Logf("%d backends had to be orphans by 1.9, and were; %d orphans had to leave by 1.10, and did", w.check.musts, w.check.gones)
	w.t.Logf("steps: %v", w.check.done)
	for _, s := range w.slow.told {
		w.t.Log(s)
	}
}

func quantile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))].Round(time.Millisecond)
}
