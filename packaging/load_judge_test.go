package packaging

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// rule is what an action may do to callers.
type rule struct {
	wait time.Duration       // a new connection's longest, until its first byte or until it fails, where nothing else goes on
	away time.Duration       // that passes beside it on any machine: a drain limit, a watchdog
	ends map[string][]string // what may fail, by kind, and how; "*" is any kind
	once bool                // it can't be repeated at once
}

const (
	// quiet is the load per core up to which a wait says something about the agent; above, whoever could run waits for a CPU as a rule.
	quiet = 1.0
	// noise is what a machine that others use, too, may make of any wait, in a second or two of bad luck.
	noise = 900 * time.Millisecond
	// tries is how often an action is repeated for the sake of its waits: what others do on the machine only adds to them, so the least of them is the agent's.
	tries = 3
	// again is how long the stream and the transfer of such a repetition are.
	again = 8 * time.Second
)

// run is what was seen of an action.
type run struct {
	ending
	load    float64       // of the machine, per core
	starved time.Duration // so long waited the threads of the agent's process for a CPU, in sum; that of the last one if there were several
}

// most is the longest wait that the machine explains, in sum with a connection that avoids the agent.
func (r rule) most(got run) time.Duration {
	most := max(noise, 2*r.wait)
	if got.load > quiet {
		most = max(most, time.Duration(float64(r.wait)*got.load), got.starved)
	}
	return r.away + most + 2*longestOf(got.Calls, control)
}

// faults is what in a run breaks the rule whatever the machine is like.
func (r rule) faults(got run) (complaints []string) {
	complaints = got.Lost.faults()
	for _, k := range kinds() {
		t := got.Calls[k.name]
		if t == nil || t.Calls == 0 {
			if k.every > 0 {
				complaints = append(complaints, k.name+": no calls")
			}
			continue
		}
		for _, how := range slices.Sorted(maps.Keys(t.Failed)) {
			if !slices.Contains(r.ends[k.name], how) && !slices.Contains(r.ends["*"], how) {
				complaints = append(complaints, fmt.Sprintf("%s: %d of %d calls failed: %s: %s", k.name, t.Failed[how], t.Calls, how, t.Said[how]))
			}
		}
		if most := r.most(got); r.wait > 0 && k.fresh && t.wait() > most {
			complaints = append(complaints, fmt.Sprintf("%s: waited for %v, more than %v, which no noise explains", k.name, t.wait(), most))
		}
	}
	return complaints
}

// standstill is the longest wait of a connection past the agent with which the agent can be judged: after 2 s it takes a backend that says nothing for one that hangs, and where all
// processes wait for so long, it does what it should if backends are dead.
const standstill = 2 * time.Second

// fair reports whether the agent can be judged by a run. It can't where the machine stood still; nor, if that was shorter, where the agent found that a backend hangs or is not up in time: one kind
// of call waits for longer than another.
func (r report) fair() bool {
	stood := longestOf(r, control)
	if stood <= standstill/4 {
		return true
	}
	for _, t := range r {
		for _, text := range t.Said {
			if strings.Contains(text, "hangs: nothing came for") || strings.Contains(text, "within timeout.connect") {
				return false
			}
		}
	}
	return stood <= standstill
}

// looks are the runs of one action.
type looks struct {
	rule
	base waits // when nothing happens

	runs  int
	calm  bool // one of them was on a quiet machine
	least waits
}

// waits are the longest of each kind that has a connection of its own for each call.
type waits map[string]time.Duration

// add keeps the lesser of what is known and what is in a report, without what the machine itself made a connection wait that avoids the agent, on both ways that go by it.
func (w waits) add(got report) {
	for _, k := range kinds() {
		if t := got[k.name]; k.fresh && t != nil {
			own := max(0, t.wait()-2*longestOf(got, control))
			if before, ok := w[k.name]; !ok || own < before {
				w[k.name] = own
			}
		}
	}
}

// take adds a run and returns what is wrong with it by itself: a call that fails does, whatever becomes of those of another run.
func (l *looks) take(got run) []string {
	if l.least == nil {
		l.least = waits{}
	}
	l.runs++
	l.calm = l.calm || got.load <= quiet
	l.least.add(got.Calls)
	return l.faults(got)
}

// slow is what took too long in every run so far.
func (l *looks) slow() (complaints []string) {
	if !l.calm {
		return nil
	}
	for _, kind := range slices.Sorted(maps.Keys(l.least)) {
		if most := l.away + l.wait + l.base[kind]; l.least[kind] > most {
			complaints = append(complaints, fmt.Sprintf("%s: waited for %v, more than %v, in each of %d runs", kind, l.least[kind], most, l.runs))
		}
	}
	return complaints
}

func longestOf(got report, kind string) time.Duration {
	if t := got[kind]; t != nil {
		return t.longest()
	}
	return 0
}

// good is a report of calls that all worked.
func good() report {
	r := report{}
	for _, k := range kinds() {
		r[k.name] = &tally{Calls: 2, Failed: map[string]int{}, Said: map[string]string{}, Waits: []time.Duration{time.Millisecond, 2 * time.Millisecond}}
	}
	return r
}

func TestLoadJudge(t *testing.T) {
	strict := rule{wait: 50 * time.Millisecond}
	drain := rule{wait: time.Second, away: 5 * time.Second}
	lenient := rule{wait: 50 * time.Millisecond, ends: map[string][]string{stream: {unavailable}, "*": {cut}}}
	none := rule{}
	type change = func(report)
	fail := func(kind, how string) change {
		return func(r report) { r[kind].Failed[how]++ }
	}
	wait := func(kind string, ms time.Duration) change {
		return func(r report) { r[kind].Waits[1] = ms * time.Millisecond }
	}
	both := func(all ...change) change {
		return func(r report) {
			for _, one := range all {
				one(r)
			}
		}
	}
	well := both()
	for _, c := range []struct {
		name string
		rule rule
		load float64
		base time.Duration // of "tcp new", in ms
		runs []change
		want string // of the first complaint of all; empty = there is none
	}{
		{"all well", strict, 0, 0, []change{well}, ""},
		{"one failed", strict, 0, 0, []change{fail("grpc", unavailable)}, "grpc: 1 of 2 calls failed: unavailable"},
		{"one failed in one of the runs", strict, 0, 0, []change{well, fail("grpc", unavailable), well}, "grpc: 1 of 2 calls failed: unavailable"},
		{"one was refused on a busy machine", strict, 30, 0, []change{fail("tcp new", refused), well}, "tcp new: 1 of 2 calls failed: refused"},
		{"the stream ended", strict, 0, 0, []change{fail(stream, cut)}, "stream: 1 of 2 calls failed: cut"},
		{"the stream ended as it may", lenient, 0, 0, []change{fail(stream, unavailable)}, ""},
		{"the stream ended otherwise", lenient, 0, 0, []change{fail(stream, hung)}, "stream: 1 of 2 calls failed: hung"},
		{"the transfer is another one than was sent", lenient, 0, 0, []change{fail(transfer, wrong), well}, "transfer: 1 of 2 calls failed: wrong"},
		{"a call ended as the stream may", lenient, 0, 0, []change{fail("grpc", unavailable)}, "grpc: 1 of 2"},
		{"a call ended as each may", lenient, 0, 0, []change{fail("grpc", cut)}, ""},
		{"a backend failed by itself", strict, 0, 0, []change{fail(control, refused)}, "control: 1 of 2"},
		{"a long wait", strict, 0, 0, []change{wait("tcp new", 60)}, "tcp new: waited for 56ms, more than 50ms, in each of 1 runs"},
		{"a long wait, once", strict, 0, 0, []change{wait("tcp new", 800), wait("tcp new", 40)}, ""},
		{"a long wait, always", strict, 0, 0, []change{wait("tcp new", 300), wait("tcp new", 200), wait("tcp new", 400)}, "tcp new: waited for 196ms, more than 50ms, in each of 3 runs"},
		{"one kind in one run, another in the next", strict, 0, 0, []change{wait("tcp new", 300), wait("grpc new", 300)}, ""},
		{"as long when nothing happens", strict, 0, 140, []change{wait("tcp new", 190)}, ""},
		{"longer than when nothing happens", strict, 0, 140, []change{wait("tcp new", 200)}, "tcp new: waited for 196ms, more than 190ms"},
		{"as long when nothing happens to another kind", strict, 0, 140, []change{wait("grpc new", 190)}, "grpc new: waited for 186ms, more than 50ms"},
		{"the machine itself waits", strict, 0, 0, []change{both(wait("tcp new", 90), wait(control, 30))}, ""},
		{"a long wait on a busy machine", strict, 2, 0, []change{wait("tcp new", 600), wait("tcp new", 600), wait("tcp new", 600)}, ""},
		{"a very long wait", strict, 0, 0, []change{well, wait("tcp new", 1000), well}, "tcp new: waited for 1s, more than 904ms, which no noise explains"},
		{"a very long wait on a busy machine", strict, 2, 0, []change{wait("tcp new", 1000)}, "tcp new: waited for 1s, more than 904ms"},
		{"a very long wait, as when nothing happens", strict, 0, 1000, []change{wait("tcp new", 1000)}, "tcp new: waited for 1s, more than 904ms"},
		{"a long wait on a very busy machine", strict, 40, 0, []change{wait("tcp new", 1900)}, ""},
		{"what a drain takes", drain, 0, 0, []change{wait("tcp new", 6000)}, ""},
		{"a drain that takes longer", drain, 0, 0, []change{wait("tcp new", 6100), wait("tcp new", 6050)}, "tcp new: waited for 6.046s, more than 6s"},
		{"no load makes a drain longer", drain, 1.5, 0, []change{wait("tcp new", 7100)}, "tcp new: waited for 7.1s, more than 7.004s"},
		{"a long wait for a failure", lenient, 0, 0, []change{func(r report) { r["tcp new"].Failed[cut]++; r["tcp new"].Fails = time.Second }}, "tcp new: waited for 1s"},
		{"a kept connection waits", strict, 0, 0, []change{wait("grpc", 1000)}, ""},
		{"nothing happens, slowly", none, 0, 0, []change{wait("tcp new", 3000)}, ""},
		{"nothing happens, and a call fails", none, 0, 0, []change{fail("tcp new", cut)}, "tcp new: 1 of 2 calls failed: cut"},
		{"nobody called", strict, 0, 0, []change{func(r report) { delete(r, "http") }}, "http: no calls"},
		{"no stream", strict, 0, 0, []change{func(r report) { delete(r, stream) }}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := looks{rule: c.rule, base: waits{"tcp new": c.base * time.Millisecond}}
			var got []string
			for _, change := range c.runs {
				r := good()
				change(r)
				got = append(got, l.take(run{ending{r, nil}, c.load, 0})...)
			}
			if c.rule.wait > 0 { // else they are no run that is judged by its waits
				got = append(got, l.slow()...)
			}
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) == 0 || !strings.HasPrefix(got[0], c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestLoadFair(t *testing.T) {
	for _, c := range []struct {
		stood time.Duration
		said  string
		want  bool
	}{
		{2 * time.Millisecond, "10.77.0.1:9002 connection lost: hangs: nothing came for 1 s, no answer to a PING either", true},
		{600 * time.Millisecond, "10.77.0.1:9002 connection lost: hangs: nothing came for 1 s, no answer to a PING either", false},
		{600 * time.Millisecond, "10.77.0.1:9001 up: no SETTINGS within timeout.connect (0 ms ago)", false},
		{2 * time.Millisecond, "10.77.0.1:9001 up: no SETTINGS within timeout.connect (0 ms ago)", true},
		{600 * time.Millisecond, "connection reset by peer", true},
		{2100 * time.Millisecond, "connection reset by peer", false},
	} {
		r := good()
		r[control].Waits[1], r[stream].Said[unavailable] = c.stood, c.said
		if got := r.fair(); got != c.want {
			t.Errorf("%v, %q: fair %v, want %v", c.stood, c.said, got, c.want)
		}
	}
}

// TestLoadMachine: what the kernel lost is a fault on any machine, a long wait is none where the agent's process had no CPU for as long.
func TestLoadMachine(t *testing.T) {
	slow := good()
	slow["api new"].Waits[1] = 3100 * time.Millisecond
	for _, c := range []struct {
		name string
		run  run
		want string
	}{
		{"well", run{ending{good(), nil}, 0, 0}, ""},
		{"a backlog was full", run{ending{good(), lost{"ListenDrops": 1}}, 20, time.Minute}, "the kernel counts ListenDrops: 1"},
		{"slow, and nothing says why", run{ending{slow, nil}, 2, 0}, "api new: waited for 3.1s, more than 2.004s"},
		{"slow, and the agent had no CPU", run{ending{slow, nil}, 2, 4 * time.Second}, ""},
		{"slow on a quiet machine, where threads wait a little very often", run{ending{slow, nil}, .3, 4 * time.Second}, "api new: waited for 3.1s, more than 2.004s"},
	} {
		l := looks{rule: rule{wait: time.Second}}
		if got := strings.Join(l.take(c.run), "; "); !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
