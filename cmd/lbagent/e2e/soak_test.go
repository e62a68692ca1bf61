package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// soakFor is short in the ordinary run of all tests; `make soak` takes 10 minutes.
var soakFor = flag.Duration("soak", 12*time.Second, "how long TestSoak makes load")

const (
	// steady is from when on what the agent holds has to stay the same: of a shorter soak, only what is left afterwards says something.
	steady = 2 * time.Minute
	// calm is how long load goes on with nothing happening to anybody.
	calm = 3 * time.Second
)

// TestSoak makes mixed load while backends are killed, hung, ended, removed and returned every few seconds. No call fails but by the rules, no byte is lost or
// another call's, and nothing of it all is left behind.
func TestSoak(t *testing.T) {
	a := newAgent(t, "")
	a.etcd = etcd.Endpoints()
	c := newChaos(t, a)
	a.services = c.config()
	a.writeConfig()
	for _, b := range c.services["grpc"] {
		c.publish(b)
	}
	a.start()
	poll(t, "the list is there", func() bool { return len(a.addresses("grpc")) == 4 })
	fds, goroutines := a.atRest()

	l := newLoad(soakPorts(a))
	began := time.Now()
	l.start()
	held := a.sample(c.stop)
	c.start()
	<-time.After(*soakFor)
	c.end()
	<-time.After(calm)
	l.end()
	took := time.Since(began)

	judgeCalls(t, c, l, machine.between(began, time.Now()), took)
	held.judge(t)
	a.wantRest(c.all(), fds, goroutines)
	a.stop()
}

// judgeCalls complains of every call that failed without a reason, and of every byte that went wrong.
func judgeCalls(t *testing.T, c *chaos, l *load, late []lateness, took time.Duration) {
	t.Helper()
	j := &judge{incidents: c.incidents, names: c.byAddr(), late: late}
	var complaints []string
	j.touched, complaints = readNotes(t, c.all())
	for _, text := range complaints {
		t.Error(text)
	}
	allowed, broken, undecided := map[string]int{}, map[string][]string{}, 0
	for _, f := range l.failed {
		if i := j.allowed(&f); i != nil {
			allowed[f.service+" "+i.what.String()]++
		} else if j.undecided(&f) {
			undecided++
		} else {
			broken[f.shape] = append(broken[f.shape], j.story(&f))
		}
	}
	for shape, stories := range broken {
		t.Errorf("%s: %d calls failed that should not have:\n  %s", shape, len(stories), strings.Join(stories[:min(len(stories), 8)], "\n  "))
	}
	total, lines := l.total()
	if want := int64(soakFor.Seconds()) * 20; total < want {
		t.Errorf("%d calls were made, too few to say anything", total)
	}
	what := map[mishap]int{}
	for _, i := range c.incidents {
		what[i.what]++
	}
	t.Logf("%d calls in %v:\n%s\nmishaps %v, %d reloads; %d calls failed, allowed because a backend was %v; %d are not judged, since the machine was late, by %v at most",
		total, took.Round(time.Second), strings.Join(lines, "\n"), what, c.reloads, len(l.failed), allowed, undecided, mostLate(late, time.Time{}, time.Now()).Round(time.Millisecond))
}

// wantRest waits until all backends are up and nothing of the load is left.
func (a *agent) wantRest(all []*soakBackend, fds, goroutines int) {
	a.t.Helper()
	status := a.status()
	poll(a.t, "every backend is up, and nothing runs on it", func() bool { return a.allWell(status, len(all)) })
	poll(a.t, "no client is connected", func() bool { n, ok := a.metric("lbagent_proxy_connections"); return ok && n == 0 })
	nowFDs, nowGoroutines := a.held()
	defer func() {
		a.t.Logf("before and after: descriptors %d, %d; goroutines %d, %d; now %v", fds, nowFDs, goroutines, nowGoroutines, a.descriptors())
	}()
	const (
		slack = 8      // metrics, probes, this test's questions
		pipes = 2 * 16 // that a loop keeps for the next splice
	)
	poll(a.t, "nothing is left", func() bool {
		nowFDs, nowGoroutines = a.held()
		return nowFDs <= fds+slack+min(pipes, a.descriptors()["pipe"]) && nowGoroutines <= goroutines+slack
	})
}

// soakPorts are the listeners, by service.
func soakPorts(a *agent) map[string]int {
	if a.ports == nil {
		a.ports = map[string]int{"grpc": freePort(a.t), "web": freePort(a.t), "tcp": freePort(a.t)}
	}
	return a.ports
}

// allWell reports whether n backends are up with no call running.
func (a *agent) allWell(status lbagentv1.StatusServiceClient, n int) bool {
	up := 0
	for _, service := range []string{"grpc", "web", "tcp"} {
		e, err := status.Explain(a.t.Context(), &lbagentv1.ExplainRequest{Service: service})
		if err != nil {
			return false
		}
		for _, b := range e.GetBackends() {
			if b.GetBackend().GetVerdict() == "up" && b.GetOutstanding() == 0 {
				up++
			}
		}
	}
	return up == n
}

// held by the agent over time, one sample a second.
type samples struct {
	began time.Time
	at    []time.Time
	of    map[string][]float64
	done  sync.WaitGroup
}

// sample looks at the agent until stop is closed.
func (a *agent) sample(stop <-chan struct{}) *samples {
	s := &samples{began: time.Now(), of: map[string][]float64{}}
	s.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s.at = append(s.at, time.Now())
			entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.pid()))
			s.of["descriptors"] = append(s.of["descriptors"], float64(len(entries)))
			s.of["resident MiB"] = append(s.of["resident MiB"], a.resident()/1024)
			for name, metric := range map[string]string{"goroutines": "go_goroutines", "heap MiB": "go_memstats_heap_inuse_bytes"} {
				v, _ := a.metric(metric)
				if name == "heap MiB" {
					v /= 1 << 20
				}
				s.of[name] = append(s.of[name], v)
			}
		}
	})
	return s
}

// descriptors counts them by kind.
func (a *agent) descriptors() map[string]int {
	dir := fmt.Sprintf("/proc/%d/fd", a.pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		a.t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // it may be gone by now
			kind, _, _ := strings.Cut(to, ":")
			kinds[kind]++
		}
	}
	return kinds
}

// resident is VmRSS in KiB.
func (a *agent) resident() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.pid()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	v, _ := strconv.ParseFloat(strings.Fields(rest + " 0")[0], 64)
	return v
}

// judge compares the second quarter with the last: what grows without end has grown by then.
func (s *samples) judge(t *testing.T) {
	t.Helper()
	s.done.Wait()
	n := len(s.at)
	if n < 8 {
		return
	}
	for _, name := range []string{"descriptors", "goroutines", "heap MiB", "resident MiB"} {
		v := s.of[name]
		second, last := median(v[n/4:n/2]), median(v[n*3/4:])
		t.Logf("%-12s quarters %.0f %.0f %.0f %.0f, most %.0f", name, median(v[:n/4]), second, median(v[n/2:n*3/4]), last, slices.Max(v))
		if s.at[n-1].Sub(s.began) >= steady && last > second*1.15+10 {
			t.Errorf("%s grew from %.0f in the second quarter to %.0f in the last", name, second, last)
		}
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
