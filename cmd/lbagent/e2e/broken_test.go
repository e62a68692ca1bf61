package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/testneed"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The ways in which each breakage is met: through the port by gRPC and by HTTP, and by Pick, a call of one's own and Report, from Python.
const (
	byGRPC   = "grpc"
	byHTTP   = "http"
	byAsking = "asked"
)

const (
	fair = 0.25 // four backends

	// unseen is the share below which a backend's failures hardly matter: a quarter of the fair one.
	unseen = fair / 4
)

// breakage is one thing that happens to one of four backends.
type breakage struct {
	name  string
	hurt  func(*victim)
	mend  func(*victim)
	shows map[string]string // by way: what events and explain have to say, an expression
	out   []string          // the ways in which it is taken out: nobody gets it who asks from then on. In the others it stays in, with less of a share
	most  map[string]int    // by way: failed calls; none where nothing stands
	share float64           // while it is broken it has at most as much; 0: nothing
}

func breakages(t *testing.T) []*breakage {
	return []*breakage{{
		name: "killed", out: []string{byGRPC, byHTTP, byAsking},
		hurt:  func(v *victim) { v.host.kill() },
		mend:  func(v *victim) { v.host.start() },
		shows: all(`now (unreachable|down|ejected): (?s:.*)"connection refused"`),
		most:  map[string]int{byGRPC: brokenWorkers, byHTTP: brokenWorkers, byAsking: 60},
	}, {
		name: "stopped", out: []string{byGRPC, byHTTP, byAsking},
		hurt:  func(v *victim) { v.host.signal(syscall.SIGSTOP) },
		mend:  func(v *victim) { v.host.signal(syscall.SIGCONT) },
		shows: map[string]string{byGRPC: `now (unreachable|down|ejected): (?s:.*)no SETTINGS within`, byHTTP: `now (down|ejected): (?s:.*)no answer within 1 s`, byAsking: `now (unreachable|down|ejected): (?s:.*)no SETTINGS within`},
		most:  map[string]int{byGRPC: 5 * brokenWorkers, byHTTP: 5 * brokenWorkers, byAsking: 60},
	}, {
		name: "dropped", out: []string{byGRPC, byHTTP, byAsking},
		hurt: func(v *victim) {
			ip, _, _ := strings.Cut(v.addr[byGRPC], ":")
			network(t, "nft", fmt.Sprintf("add rule inet cut in ip daddr %s drop; add rule inet cut in ip saddr %[1]s drop", ip))
		},
		mend:  func(*victim) { network(t, "nft", "flush chain inet cut in") },
		shows: all(`now (unreachable|down|ejected): (?s:.*)timeout`),
		most:  map[string]int{byGRPC: 5 * brokenWorkers, byHTTP: 5 * brokenWorkers, byAsking: 60},
	}, {
		name: "misled", out: []string{byGRPC, byHTTP, byAsking}, // its record says the port of another program
		hurt: func(v *victim) {
			for _, way := range []string{byGRPC, byHTTP, byAsking} {
				v.list(way, v.addr[way], v.other)
				v.bad[way] = v.other
			}
		},
		mend: func(v *victim) {
			for _, way := range []string{byGRPC, byHTTP, byAsking} {
				v.list(way, v.other, v.addr[way])
			}
		},
		shows: map[string]string{byGRPC: `now (unreachable|down): (?s:.*)not an HTTP/2 answer`, byHTTP: `now (down|ejected): (?s:.*)not an HTTP answer`,
			byAsking: `now (down|ejected): (?s:.*)not an HTTP/2 answer`},
		most: map[string]int{byHTTP: 5 + brokenWorkers, byAsking: 60},
	}, {
		name: "failing", out: []string{byGRPC, byHTTP}, share: unseen,
		hurt:  func(v *victim) { v.host.become(failing) },
		mend:  func(v *victim) { v.host.become(well) },
		shows: map[string]string{byGRPC: `now ejected: \d failures in a row, last "gRPC UNAVAILABLE"`, byHTTP: `now ejected: \d failures in a row, last "HTTP 503"`, byAsking: `dynamic weight is cut from \d+ to \d+ %: (\d+ of|as many failures in a row)`},
	}, {
		name: "half", share: unseen,
		hurt:  func(v *victim) { v.host.become(half) },
		mend:  func(v *victim) { v.host.become(well) },
		shows: all(`dynamic weight is cut from \d+ to \d+ %: (\d+ of the last \d+ calls succeeded|as many failures in a row)`),
	}, {
		name: "slow", share: fair / 2,
		hurt:  func(v *victim) { v.host.become(slow) },
		mend:  func(v *victim) { v.host.become(well) },
		shows: all(`latency \d{3,} ms`),
	}}
}

func all(s string) map[string]string { return map[string]string{byGRPC: s, byHTTP: s, byAsking: s} }

// victim is the backend of a breakage's services that it happens to.
type victim struct {
	*breakage

	w     *brokenWorld
	host  *host
	addr  map[string]string // by way
	bad   map[string]string // by way: the address that is bad
	other string            // of another program

	hurtAt, mended time.Time
	seen           map[string]time.Time // by way: when the agent was seen to know
	full           map[string]time.Time // when it was seen to have all of its weight back
	low            map[string]float64   // its dynamic weight when it was mended
	reborn         map[string]bool
	said           map[string]string
}

func (v *victim) service(way string) string { return v.name + "-" + way }

// list takes the record of one address out of etcd, and brings another one in.
func (v *victim) list(way, old, next string) {
	unregister(v.w.t, v.w.etcd, v.service(way), old)
	register(v.w.t, v.w.etcd, v.service(way), next)
}

// brokenWorld is the agent, what it calls, and who calls it.
type brokenWorld struct {
	t       *testing.T
	a       *agent
	etcd    *clientv3.Client
	victims []*victim
	others  *host // of the three other backends of each service
	ledger  *ledger
	status  lbagentv1.StatusServiceClient
}

// Backends break in every way that there is, each met by callers through the port and by a Python program that picks and reports. Who is broken is out, or has next to
// nothing left, and the agent says why; no call fails beyond what it took to notice, and none on others. Mended, they have their share again.
func TestBrokenBackends(t *testing.T) {
	t.Parallel()
	if !forBroken(t) {
		return
	}
	w := newBrokenWorld(t, "slow_start: 2s, probe: {interval: 1s}, eject: {max: 4s}", breakages(t)...)
	stop := w.begin()
	w.hurt()
	w.each("the agent knows", (*victim).known)
	w.mend()
	w.each("it has its share again", (*victim).whole)
	stop()
	for _, v := range w.victims {
		for way := range v.addr {
			t.Run(v.service(way), func(t *testing.T) {
				for _, c := range v.judge(t, way) {
					t.Error(c)
				}
			})
		}
	}
}

// Whoever judges the agent by what its callers met would find it out if it did nothing: without all that L5 is for, backends that fail, half of the time or always, or are slow,
// keep their share.
func TestBrokenBackendsUnguarded(t *testing.T) {
	t.Parallel()
	if !forBroken(t) {
		return
	}
	some := slices.DeleteFunc(breakages(t), func(b *breakage) bool { return !slices.Contains([]string{failing, half, slow}, b.name) })
	w := newBrokenWorld(t, "policy: random, dynamic_weight: off, eject: {mode: off}, probe: {type: none}", some...)
	stop := w.begin()
	w.hurt()
	w.each("enough calls to know", func(v *victim, way string) bool {
		if _, n := share(w.ledger.among(v.service(way), v.hurtAt, time.Time{}), ""); n < 100 {
			return false
		}
		v.seen[way] = time.Now()
		return true
	})
	w.mend()
	stop()
	for _, v := range w.victims {
		for way := range v.addr {
			if v.name == slow && (way == byAsking || v.due(w.ledger.among(v.service(way), v.seen[way], v.mended), way) > unseen) {
				continue // batches go by latency, whatever the policy (3.5); and where all are slow, one that is slower has its share
			}
			all := strings.Join(v.judge(t, way), "\n")
			if !v.sharesTell(way) {
				continue
			}
			if !strings.Contains(all, "while it was broken and known to be it had ") || v.name != slow && !strings.Contains(all, "the agent says") {
				t.Errorf("%s: nothing was done about it, and the judge says only\n%s", v.service(way), all)
			}
			deeds := w.ledger.among(v.service(way), time.Time{}, v.mended)
			if n := len(blamed(deeds)); v.isOut(way) && strings.Contains(all, " ejections, want ") != (n > 5) {
				t.Errorf("%s: %d calls failed for nothing, and the judge says\n%s", v.service(way), n, all)
			}
			if n := len(faults(deeds)); v.isOut(way) && n <= 5 {
				t.Errorf("%s: only %d calls failed", v.service(way), n)
			}
		}
	}
}

// All backends are gone for long enough that whoever waits longer each time waits longest. When one lives again, calls succeed within a second, by each way.
func TestAllBackendsGoneAndBack(t *testing.T) {
	t.Parallel()
	if !forBroken(t) {
		return
	}
	const (
		gone   = 8 * time.Second
		within = time.Second // a machine that is too busy to call often enough is given as many calls as that
		calls  = 50
	)
	w := newBrokenWorld(t, "slow_start: 2s, probe: {interval: 5s}, eject: {max: 60s}", &breakage{name: "gone"})
	v := w.victims[0]
	stop := w.begin()
	v.host.kill()
	w.others.kill()
	killed := time.Now()
	w.each("all calls fail", func(v *victim, way string) bool {
		deeds := w.ledger.among(v.service(way), killed.Add(gone), time.Time{})
		return len(deeds) >= 20 && len(faults(deeds)) == len(deeds)
	})
	v.host.start()
	back := time.Now()
	firsts := map[string]deed{}
	w.each("a call succeeds", func(v *victim, way string) bool {
		for _, d := range w.ledger.among(v.service(way), killed, time.Time{}) {
			if d.fault == "" && d.ended.After(back) && (firsts[way].ended.IsZero() || d.ended.Before(firsts[way].ended)) {
				firsts[way] = d
			}
		}
		return !firsts[way].ended.IsZero()
	})
	stop()
	for way, first := range firsts {
		took := first.ended.Sub(back)
		failed := len(faults(w.ledger.among(v.service(way), back, first.ended)))
		t.Logf("%s: the first success %v after the first that lived, %d calls failed meanwhile", way, took, failed)
		if took -= machine.lost(back, first.ended); took > within && failed > calls {
			t.Errorf("%s: the first success came %v after the first backend was back, %d calls after it", way, took, failed)
		}
	}
}

// forBroken reports whether the test goes on here, with all that it needs, in a network of its own.
func forBroken(t *testing.T) bool {
	t.Helper()
	testneed.Command(t, "python3-grpcio", python, "-c", "import grpc")
	testneed.Command(t, "python3-protobuf", python, "-c", "import google.protobuf")
	return inOwnNetwork(t)
}

// begin has everybody call, and waits until calls are even.
func (w *brokenWorld) begin() (stop func()) {
	w.t.Helper()
	began := time.Now()
	stop = w.call()
	w.each("its calls are even", func(v *victim, way string) bool {
		part, n := share(w.ledger.among(v.service(way), began, time.Time{}), v.addr[way])
		return n >= 40 && part > fair/2
	})
	return stop
}

func (w *brokenWorld) hurt() {
	for _, v := range w.victims {
		v.hurtAt = time.Now()
		v.breakage.hurt(v)
	}
}

// mend waits until enough calls have shown what is known, writes down what the agent says, and mends.
func (w *brokenWorld) mend() {
	w.t.Helper()
	w.each("enough calls say so", func(v *victim, way string) bool {
		_, n := share(w.ledger.among(v.service(way), v.seen[way], time.Time{}), "")
		return n >= 100
	})
	for _, v := range w.victims {
		for way := range v.addr {
			v.said[way] = v.says(way)
			v.low[way] = v.explain(way, v.bad[way]).GetWeightFactors().GetDynamic()
		}
		v.mended = time.Now()
		v.breakage.mend(v)
	}
}

// newBrokenWorld has an agent with those defaults, and services of four backends for each breakage.
func newBrokenWorld(t *testing.T, defaults string, of ...*breakage) *brokenWorld {
	t.Helper()
	own, err := etcdtest.Run(etcdtest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	w := &brokenWorld{t: t, etcd: etcdClient(t, own.Endpoints()...), ledger: &ledger{deeds: map[string][]deed{}}}
	var others, services []string
	for i, b := range of {
		v := &victim{breakage: b, w: w, other: fmt.Sprintf("127.9.%d.1:99", i),
			addr: map[string]string{}, bad: map[string]string{}, seen: map[string]time.Time{}, full: map[string]time.Time{}, low: map[string]float64{}, reborn: map[string]bool{}, said: map[string]string{}}
		for k := range 4 {
			g, h := fmt.Sprintf("127.9.%d.%d:80", i, k+1), fmt.Sprintf("127.9.%d.%d:81", i, k+1)
			if k == 0 {
				v.host = newHost(t, "grpc", g, "http", h)
				others = append(others, "other", v.other)
				v.addr[byGRPC], v.addr[byHTTP], v.addr[byAsking] = g, h, g
				v.bad[byGRPC], v.bad[byHTTP], v.bad[byAsking] = g, h, g
			} else {
				others = append(others, "grpc", g, "http", h)
			}
			register(t, w.etcd, v.service(byGRPC), g)
			register(t, w.etcd, v.service(byAsking), g)
			register(t, w.etcd, v.service(byHTTP), h)
		}
		w.victims = append(w.victims, v)
		services = append(services,
			fmt.Sprintf("  - {name: %s, prefix: services/%[1]s/, protocol: h2, listen: [%d]}", v.service(byGRPC), 7000+i),
			fmt.Sprintf("  - {name: %s, prefix: services/%[1]s/, protocol: h2}", v.service(byAsking)),
			fmt.Sprintf("  - {name: %s, prefix: services/%[1]s/, protocol: http1, listen: [%d], probe: {type: http, path: %s}, timeout: {request: 2s}}",
				v.service(byHTTP), 7100+i, healthPath))
	}
	w.others = newHost(t, others...)
	w.a = newAgent(t, strings.Join(services, "\n"), own.Endpoints()...)
	w.a.extra = "defaults: {allow: [127.0.0.0/8], " + defaults + "}\n"
	w.a.writeConfig()
	w.a.start()
	w.status = w.a.status()
	return w
}

// call has everybody call, until stop is called.
func (w *brokenWorld) call() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var services []string
	for i, v := range w.victims {
		w.ledger.keepAt(ctx, &all, v.service(byGRPC), callGRPC(w.t, 7000+i))
		w.ledger.keepAt(ctx, &all, v.service(byHTTP), callHTTP(w.t, 7100+i))
		services = append(services, v.service(byAsking))
	}
	stopPython := w.ledger.ask(w.a, services)
	stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		stopPython()
	})
	w.t.Cleanup(stop)
	return stop
}

// each waits until cond has held once for every victim in every way.
func (w *brokenWorld) each(what string, cond func(v *victim, way string) bool) {
	w.t.Helper()
	type one struct {
		v   *victim
		way string
	}
	left := map[one]bool{}
	for _, v := range w.victims {
		for way := range v.addr {
			left[one{v, way}] = true
		}
	}
	began := time.Now()
	defer func() {
		for o := range left {
			w.t.Logf("%s: not of %s: %s", what, o.v.service(o.way), o.v.says(o.way))
		}
		w.t.Logf("%s: after %v", what, time.Since(began))
	}()
	pollFor(w.t, 3*patience, what, func() bool {
		for o := range left {
			if cond(o.v, o.way) {
				delete(left, o)
			}
		}
		return len(left) == 0
	})
}

// explain is what the agent says of a backend; nil if it doesn't know it.
func (v *victim) explain(way, addr string) *lbagentv1.BackendExplanation {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := v.w.status.Explain(ctx, &lbagentv1.ExplainRequest{Service: v.service(way), Address: addr})
	if err != nil || len(e.GetBackends()) != 1 {
		return nil
	}
	return e.GetBackends()[0]
}

// known reports whether the agent has drawn the conclusion that the breakage calls for, and notes when.
func (v *victim) known(way string) bool {
	e := v.explain(way, v.bad[way])
	knows := false
	switch {
	case v.isOut(way):
		knows = e != nil && !e.GetBackend().GetUsable()
	case v.name == slow:
		knows = e.GetLatency().AsDuration() > slowBy/2
	default:
		most := 0.5 // the penalty does the rest
		if way == byAsking {
			most = 0.08
		}
		knows = e != nil && e.GetWeightFactors().GetDynamic() < most
	}
	if knows {
		v.seen[way] = time.Now()
	}
	return knows
}

// sharesTell reports whether the machine ran well enough, while the agent knew of the breakage, for the share of who has little of it to say anything: where all wait for a processor, all
// are slow, and others fail as well.
func (v *victim) sharesTell(way string) bool {
	from, to := v.seen[way].Add(-lateBefore), v.mended
	return machine.most(from, to) < time.Second/2 && machine.lost(from, to) < to.Sub(from)/5
}

func (v *victim) isOut(way string) bool { return slices.Contains(v.out, way) }

// says is all that the agent tells of the backend: its events, and what explain says of it.
func (v *victim) says(way string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var b strings.Builder
	s, err := v.w.status.Events(ctx, &lbagentv1.EventsRequest{Service: v.service(way)})
	for err == nil {
		var e *lbagentv1.EventsResponse
		if e, err = s.Recv(); err == nil && e.GetBackend() == v.bad[way] {
			fmt.Fprintf(&b, "%s: %s\n", e.GetKind(), e.GetDetail())
		}
	}
	if !errors.Is(err, io.EOF) {
		v.w.t.Errorf("events: %v", err)
	}
	e := v.explain(way, v.bad[way])
	fmt.Fprintf(&b, "%s\nlatency %d ms, last failure %q, %v\n", e.GetSentence(), e.GetLatency().AsDuration().Milliseconds(), e.GetLastFailure(), e.GetWeightFactors())
	for _, p := range e.GetParts() {
		fmt.Fprintln(&b, p.GetWords())
	}
	return b.String()
}

// whole reports whether the backend has all of its weight again, and its share of the last calls since. What only its dynamic weight kept away would be back in 20 steps:
// once the first was taken, the process is one that was started anew (1.1).
func (v *victim) whole(way string) bool {
	e := v.explain(way, v.addr[way])
	if e == nil || e.GetBackend().GetVerdict() != "up" {
		return false
	}
	f := e.GetWeightFactors()
	if f.GetDynamic() < 1 && !v.reborn[way] && f.GetDynamic() > v.low[way]+0.04 {
		v.reborn[way] = true
		v.list(way, v.addr[way], v.addr[way])
		return false
	}
	if f.GetDynamic() < 1 || f.GetSlowStart() < 1 {
		return false
	}
	if v.full[way].IsZero() {
		v.full[way] = time.Now()
	}
	const last = 120
	deeds := v.w.ledger.among(v.service(way), v.full[way], time.Time{})
	part, n := share(deeds[max(0, len(deeds)-last):], v.addr[way])
	return n == last && part >= 0.7*fair
}

// due is the share that a slow backend has by its latency, which is the larger the slower the machine makes all of them (3.5).
func (v *victim) due(deeds []deed, way string) float64 {
	var others []time.Duration
	for _, d := range deeds {
		if d.backend != v.bad[way] {
			others = append(others, d.ended.Sub(d.chosen))
		}
	}
	if v.name != slow || len(others) == 0 {
		return 0
	}
	x := quantile(others, 50).Seconds()
	return x / (3*(slowBy.Seconds()+x) + x)
}

// judge judges all calls of one way, and says what is wrong with them.
func (v *victim) judge(t *testing.T, way string) (wrong []string) {
	complain := func(format string, a ...any) { wrong = append(wrong, fmt.Sprintf(format, a...)) }
	service := v.service(way)
	within := func(from, to time.Time) []deed { return v.w.ledger.among(service, from, to) }
	for _, f := range blamed(within(time.Time{}, v.hurtAt)) {
		if f.ended.Before(v.hurtAt) {
			complain("a call failed before anything was broken: %s", f.fault)
		}
	}
	if !regexp.MustCompile(v.shows[way]).MatchString(v.said[way]) {
		complain("the agent says\n%s\nwant %s", v.said[way], v.shows[way])
	}
	if way == byAsking || v.share > 0 {
		for _, f := range blamed(within(time.Time{}, time.Time{})) {
			if f.backend != v.bad[way] {
				complain("a call failed at %q: %s", f.backend, f.fault)
			}
		}
	}
	early, late := within(time.Time{}, v.seen[way]), within(v.seen[way], v.mended)
	part, n := share(late, v.bad[way])
	rounds := strings.Count(v.said[way], "now ejected")
	t.Logf("known after %v: %d of %d calls had failed; then %d of %d did, and it had a share of %.3f; its weight back %v after it was mended\n%s",
		v.seen[way].Sub(v.hurtAt), len(faults(early)), len(early), len(faults(late)), n, part, v.full[way].Sub(v.mended), v.said[way])
	if part > v.share+v.due(late, way) && (v.share == 0 || v.sharesTell(way)) {
		complain("while it was broken and known to be it had %.1f %% of %d calls", part*100, n)
	}
	switch f := blamed(within(time.Time{}, v.mended)); {
	case v.share == 0:
		if len(f) > v.most[way] {
			complain("%d calls failed, as %v; want %d at most", len(f), f[0], v.most[way])
		}
		if f := blamed(late); len(f) > 0 {
			complain("%d calls failed after it was out, as %v", len(f), f[0])
		}
	case v.isOut(way):
		if most := 5 + brokenWorkers*rounds; len(f) > most { // 2.5: 5 in a row and those that were on their way; then one after each trial, likewise
			complain("%d calls failed in %d ejections, want %d at most", len(f), rounds, most)
		}
	case v.name == slow:
		if len(f) > 0 {
			complain("%d calls failed, as %v", len(f), f[0])
		}
	}
	if f := blamed(within(v.mended, time.Time{})); len(f) > 0 {
		complain("%d calls failed after it was mended, as %v", len(f), f[0])
	}
	return wrong
}
