package packaging

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// around is the world around a machine's agent, as seen from the test.
type around struct {
	m       *machine
	ask     io.Writer
	answers *bufio.Scanner

	strict bool  // actions that can't be repeated are judged by milliseconds, too
	base   waits // when nothing happens
	rows   []*row
}

// newAround starts the world in the machine's network.
func newAround(t *testing.T, m *machine) *around {
	t.Helper()
	m.run(t, "ip address add "+hostAddr+"/32 dev lo")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "nsenter", "-t", m.leader, "--net", "--", self)
	cmd.Env = append(os.Environ(), worldAs+"="+m.leader)
	cmd.Stderr = os.Stderr
	ask, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ask.Close()
		_ = cmd.Wait()
	})
	a := &around{m: m, ask: ask, answers: bufio.NewScanner(answers)}
	a.answers.Buffer(nil, 64<<20)
	var ready string
	a.answer(t, &ready)
	return a
}

func (a *around) question(t *testing.T, text string, answer any) {
	t.Helper()
	if _, err := fmt.Fprintln(a.ask, text); err != nil {
		t.Fatal(err)
	}
	a.answer(t, answer)
}

func (a *around) answer(t *testing.T, v any) {
	t.Helper()
	if !a.answers.Scan() {
		t.Fatal("the world has ended")
	}
	if err := json.Unmarshal(a.answers.Bytes(), v); err != nil {
		t.Fatal(err)
	}
}

// nothing is up to three runs in which nothing happens: what waits there are is this machine's, and no fault. The actions' are judged beside it.
func (a *around) nothing(t *testing.T) {
	t.Helper()
	l := looks{}
	for {
		got, fair := a.once(t, "nothing", 2*time.Second, func() {})
		if fair {
			a.judge(t, "nothing", l.take(got))
		} else {
			l.runs++
		}
		a.base = l.least
		if t.Failed() || l.runs == tries || fair && slices.Max(slices.Collect(maps.Values(l.least))) <= lossless.wait {
			return
		}
	}
}

// during does something under load, beside a stream and a transfer of that length, and judges what callers saw of it: failures at once, too long waits if all of three runs have
// them. An action that can't be repeated is judged by waits that no noise explains, and strictly in the long form only.
func (a *around) during(t *testing.T, what string, long time.Duration, r rule, do func()) report {
	t.Helper()
	l := looks{rule: r, base: a.base}
	for n := 1; ; n++ {
		got, fair := a.once(t, what, long, do)
		long = min(long, again) // what others do only adds to the waits: those are what it is repeated for
		last := n == tries || r.once
		if !fair {
			if last && l.runs == 0 {
				t.Skipf("%s: not judged, since this machine stood still", what)
			}
			if !last {
				continue
			}
		} else {
			a.judge(t, what, l.take(got))
		}
		slow := l.slow()
		if r.once && !a.strict {
			slow = nil
		}
		if last {
			a.judge(t, what, slow)
		}
		if last || len(slow) == 0 || t.Failed() {
			return got.Calls
		}
		t.Logf("%s: once more, since %s", what, strings.Join(slow, "; "))
	}
}

// judge complains.
func (a *around) judge(t *testing.T, what string, complaints []string) {
	t.Helper()
	for _, complaint := range complaints {
		t.Errorf("%s: %s", what, complaint)
	}
	if len(complaints) > 0 {
		t.Logf("journal:\n%s", a.m.journal())
	}
}

// once does something under load, and returns what callers saw of it. It is not fair to judge the agent by it if the machine stood still.
func (a *around) once(t *testing.T, what string, long time.Duration, do func()) (got run, fair bool) {
	t.Helper()
	a.alone(t)
	pid, before := a.pid(t), a.starved(t)
	got.load = loadPerCore(t)
	var none any
	a.question(t, "begin "+long.String(), &none)
	begun := time.Now()
	<-time.After(time.Second) // calls of each kind go on
	do()
	took := time.Since(begun) - time.Second
	<-time.After(time.Second)
	a.question(t, "end", &got.ending)
	got.load = max(got.load, loadPerCore(t))
	if got.starved = a.starved(t); a.pid(t) == pid {
		got.starved -= before
	}
	t.Logf("%s, in %v, at a load of %.1f per core, the agent's threads waited for a CPU for %v in sum:%v", what, took.Round(time.Millisecond), got.load, got.starved.Round(time.Millisecond), got.Calls)
	if fair = got.Calls.fair(); !fair {
		t.Logf("%s: this machine stood still: a connection past the agent waited for %v", what, longestOf(got.Calls, control))
	}
	a.line(what).add(got, fair)
	return got, fair
}

func (a *around) pid(t *testing.T) string { return a.m.run(t, "systemctl show -P MainPID lbagent") }

// alone waits until the process of before has drained: no upgrade begins while one does.
func (a *around) alone(t *testing.T) {
	t.Helper()
	eventually(t, "the end of the process of before", func() error {
		if n := a.m.run(t, "grep -lx lbagent /proc/[0-9]*/comm 2>/dev/null | wc -l"); n != "1" {
			return fmt.Errorf("%s processes", n)
		}
		return nil
	})
}

// loadPerCore is the machine's load of the last minute.
func loadPerCore(t *testing.T) float64 {
	t.Helper()
	var load float64
	if _, err := fmt.Sscan(read(t, "/proc/loadavg"), &load); err != nil {
		t.Fatal(err)
	}
	return load / float64(runtime.NumCPU())
}

// registry is what etcd has of what this host registers.
func (a *around) registry(t *testing.T) registry {
	t.Helper()
	got := registry{at: time.Now()}
	a.question(t, "registry", &got)
	return got
}
