package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

var wholeGoals = flag.Bool("goals", false, "TestGoals measures with 1,000 services of 100 backends and fails if a goal is missed, which takes a machine with nothing else to do; else with a tenth of both, and it judges no figure")

// The goals, for 1,000 services of 100 backends.
const (
	goalFirstAnswer = 100 * time.Millisecond
	goalChange      = 20 * time.Millisecond // p99
	goalResident    = 100 << 10             // KiB
)

// goal fails the test if what was measured is more than its goal, in a run of -goals.
func goal[T time.Duration | float64](t *testing.T, what string, got, most T) {
	t.Helper()
	if *wholeGoals && got > most {
		t.Errorf("goal missed: %s %v, at most %v wanted (%s)", what, got, most, loadNow())
	}
}

// TestGoals measures what a large host costs: how soon a change in etcd reaches a pick, the first answer of a start without etcd, and memory. The binary is the one
// that is tested, with the race detector if the tests have it: figures count without.
func TestGoals(t *testing.T) {
	t.Parallel()
	services, backends, samples := 100, 10, 50
	if *wholeGoals {
		services, backends, samples = 1000, 100, 1000
	}
	own := etcdtest.Start(t, etcdtest.Config{})
	edit := etcdClient(t, own.Endpoints()...)
	base := namespace(t) + "services/"
	var config strings.Builder
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		fmt.Fprintf(&config, "- {name: %s, prefix: services/%s/, probe: {type: none}}\n", name, name)
		var ops []clientv3.Op
		for j := range backends {
			addr := fmt.Sprintf("10.%d.%d.%d:80", i>>8, i&255, j)
			ops = append(ops, clientv3.OpPut(base+name+"/"+addr, `{"Op":0,"Addr":"`+addr+`","Metadata":{"weight":100,"zone":"eu-1a"}}`))
		}
		if _, err := edit.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	a := startAgent(t, config.String(), own.Endpoints()...)
	last := fmt.Sprintf("s%d", services-1)
	poll(t, "all lists are there", func() bool { return len(a.addresses(last)) == backends && a.all(services, backends) })
	heap, _ := a.metric("go_memstats_heap_alloc_bytes")
	resident := a.resident()
	t.Logf("%d services of %d backends, %s: RSS %.0f KiB, heap with garbage %.0f KiB (%.0f B per backend)", services, backends, loadNow(), resident, heap/1024,
		heap/float64(services*backends))
	goal(t, "RSS in KiB with lists from etcd", resident, goalResident)

	took, written := a.changes(edit, base, services, samples)
	p99 := quantile(took, 99)
	t.Logf("a put until a pick over the API finds it, %s: p50 %v, p99 %v, at most %v; until etcd itself had answered, p50 %v, p99 %v", loadNow(), quantile(took, 50), p99, quantile(took, 100),
		quantile(written, 50), quantile(written, 99))

	goal(t, "p99 of a change until it is picked", p99, goalChange)
	own.Stop()
	a.stop()
	var starts []time.Duration
	for range 5 {
		began := time.Now()
		a.launch()
		if l := a.firstList(last); len(l.GetBackends()) < backends || l.GetProvenance().GetSource() != "spool" {
			t.Errorf("first answer %v", l.GetProvenance())
		}
		starts = append(starts, time.Since(began))
		resident = a.resident()
		t.Logf("start without etcd: first answer after %v, %v of CPU time, RSS %.0f KiB", starts[len(starts)-1], a.cpu(), resident)
		goal(t, "RSS in KiB after a start from the spool", resident, goalResident)
		a.stop()
	}
	slices.Sort(starts)
	t.Logf("first answer, %s: median %v", loadNow(), starts[len(starts)/2])
	goal(t, "median of the first answer", starts[len(starts)/2], goalFirstAnswer)
}

// cpu is the CPU time of the agent up to now (proc(5), stat: fields 14 and 15, in ticks of 10 ms).
func (a *agent) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.pid()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	var ticks time.Duration
	for i, field := range strings.Fields(rest) {
		if i == 11 || i == 12 {
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks += time.Duration(n)
		}
	}
	return ticks * 10 * time.Millisecond
}

// loadNow is the machine's, beside which figures of time are to be read.
func loadNow() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load unknown"
	}
	return "load " + strings.Fields(string(b))[0]
}

// all reports whether every service has its list.
func (a *agent) all(services, backends int) bool {
	ctx, cancel := context.WithTimeout(a.t.Context(), 5*time.Second)
	defer cancel()
	r, err := a.cachedLookup().Services(ctx, &lbagentv1.ServicesRequest{})
	if err != nil || len(r.GetServices()) != services {
		return false
	}
	return !slices.ContainsFunc(r.GetServices(), func(s *lbagentv1.ServiceInfo) bool { return int(s.GetBackends()) != backends })
}

// firstList asks until there is an answer.
func (a *agent) firstList(service string) *lbagentv1.ListResponse {
	ctx, cancel := context.WithTimeout(a.t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(a.socket); err == nil {
			c := a.lookup()
			if l, err := c.List(ctx, &lbagentv1.ListRequest{Service: service}, grpc.WaitForReady(true)); err == nil {
				return l
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

// quantile is a percentile of some times, which it sorts.
func quantile(times []time.Duration, percent int) time.Duration {
	slices.Sort(times)
	return times[min(len(times)-1, len(times)*percent/100)]
}

// changes puts one backend after another into services, with a weight that draws nearly all picks, and returns how long each took to be picked, and how long of that etcd took
// to write it.
func (a *agent) changes(edit *clientv3.Client, base string, services, samples int) (took, written []time.Duration) {
	a.t.Helper()
	c := a.cachedLookup()
	for i := range samples {
		name := fmt.Sprintf("s%d", i*7919%services)
		addr := fmt.Sprintf("10.200.%d.%d:80", i>>8, i&255)
		began := time.Now()
		if _, err := edit.Put(a.t.Context(), base+name+"/new", `{"Op":0,"Addr":"`+addr+`","Metadata":{"weight":100000000}}`); err != nil {
			a.t.Fatal(err)
		}
		written = append(written, time.Since(began))
		for found := false; !found; {
			r, err := c.Pick(a.t.Context(), &lbagentv1.PickRequest{Service: name})
			if err != nil {
				a.t.Fatal(err)
			}
			found = slices.ContainsFunc(r.GetPicks(), func(p *lbagentv1.Picked) bool { return p.GetAddress() == addr })
			if time.Since(began) > patience {
				a.t.Fatalf("%s: %s is not picked", name, addr)
			}
		}
		took = append(took, time.Since(began))
	}
	return took, written
}
