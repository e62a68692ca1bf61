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
	wait time.Duration       // a new connection's longest, until its first byte or until it fails, on a quiet machine
	away time.Duration       // that passes beside it on any machine: a drain limit, a watchdog
	ends map[string][]string // what may fail, by kind, and how; "*" is any kind
	gap  time.Duration       // how long callers may be refused, where they may; 0 = for as long as the action takes
}

const (
	// quiet is the load per core up to which a wait says something about the agent; above, whoever could run waits for a CPU as a rule.
	quiet = 1.0
	// busyWait is what a busy machine may make of any wait: a bit less than the second after which the kernel sends a SYN again that found no listener or a full backlog, which
	// has nothing to do with how busy it is.
	busyWait = 900 * time.Millisecond
)

// limit is the longest wait that is allowed where a machine of that load makes a connection that avoids the agent wait for as long as control.
func (r rule) limit(load float64, control time.Duration) time.Duration {
	return r.away + scale(r.wait, load) + 2*control
}

// scale is what a machine of that load may make of d.
func scale(d time.Duration, load float64) time.Duration {
	if load <= quiet {
		return d
	}
	return max(busyWait, time.Duration(float64(d)*load))
}

// judge says what in a report breaks the rule. The load is that of the machine, per core.
func (r rule) judge(got report, load float64) (complaints []string) {
	for _, k := range kinds() {
		t := got[k.name]
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
		if most := scale(r.gap, load); r.gap > 0 && t.gap() > most {
			complaints = append(complaints, fmt.Sprintf("%s: refused for %v, more than %v", k.name, t.gap(), most))
		}
		if most := r.limit(load, longestOf(got, control)); k.fresh && max(t.longest(), t.Fails) > most {
			complaints = append(complaints, fmt.Sprintf("%s: waited for %v, more than %v", k.name, max(t.longest(), t.Fails), most))
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
	drain := rule{wait: 50 * time.Millisecond, away: 5 * time.Second}
	lenient := rule{wait: 50 * time.Millisecond, ends: map[string][]string{stream: {unavailable}, "*": {cut}}}
	short := rule{wait: time.Second, gap: 100 * time.Millisecond, ends: map[string][]string{"api": {refused}}}
	refuse := func(r report, d time.Duration) {
		r["api"].Failed[refused], r["api"].Refused.First, r["api"].Refused.Last = 2, time.Unix(0, 0), time.Unix(0, 0).Add(d)
	}
	fail := func(kind, how string) func(report) {
		return func(r report) { r[kind].Failed[how]++ }
	}
	wait := func(kind string, d time.Duration) func(report) {
		return func(r report) { r[kind].Waits[1] = d }
	}
	for _, c := range []struct {
		name   string
		rule   rule
		change func(report)
		load   float64
		want   string // begins so; empty = no complaint
	}{
		{"all well", strict, func(report) {}, 0, ""},
		{"one failed", strict, fail("grpc", unavailable), 0, "grpc: 1 of 2 calls failed: unavailable"},
		{"the stream ended", strict, fail(stream, cut), 0, "stream: 1 of 2 calls failed: cut"},
		{"the stream ended as it may", lenient, fail(stream, unavailable), 0, ""},
		{"the stream ended otherwise", lenient, fail(stream, hung), 0, "stream: 1 of 2 calls failed: hung"},
		{"a call ended as the stream may", lenient, fail("grpc", unavailable), 0, "grpc: 1 of 2"},
		{"a call ended as each may", lenient, fail("grpc", cut), 0, ""},
		{"a backend failed by itself", strict, fail(control, refused), 0, "control: 1 of 2"},
		{"a long wait", strict, wait("tcp new", 60*time.Millisecond), 0, "tcp new: waited for 60ms, more than 54ms"},
		{"a long wait on a busy machine", strict, wait("tcp new", 600*time.Millisecond), 2, ""},
		{"a SYN that was sent again", strict, wait("tcp new", time.Second), 2, "tcp new: waited for 1s, more than 904ms"},
		{"a long wait on a very busy machine", strict, wait("tcp new", 1900*time.Millisecond), 40, ""},
		{"what a drain takes", drain, wait("tcp new", 5050*time.Millisecond), 0, ""},
		{"a drain that takes longer", drain, wait("tcp new", 5060*time.Millisecond), 0, "tcp new: waited for 5.06s, more than 5.054s"},
		{"no load makes a drain longer", drain, wait("tcp new", 6*time.Second), 10, "tcp new: waited for 6s, more than 5.904s"},
		{"the machine itself waits", strict, func(r report) { wait("tcp new", 90*time.Millisecond)(r); wait(control, 30*time.Millisecond)(r) }, 0, ""},
		{"a long wait for a failure", lenient, func(r report) { r["tcp new"].Failed[cut]++; r["tcp new"].Fails = time.Second }, 0, "tcp new: waited for 1s"},
		{"refused for a while", short, func(r report) { refuse(r, 90*time.Millisecond) }, 0, ""},
		{"refused for longer", short, func(r report) { refuse(r, 110*time.Millisecond) }, 0, "api: refused for 110ms"},
		{"a kept connection waits", strict, wait("grpc", time.Second), 0, ""},
		{"nobody called", strict, func(r report) { delete(r, "http") }, 0, "http: no calls"},
		{"no stream", strict, func(r report) { delete(r, stream) }, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good()
			c.change(r)
			got := c.rule.judge(r, c.load)
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
