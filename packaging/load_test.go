package packaging

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// around is the world around a machine's agent, as seen from the test.
type around struct {
	m       *machine
	ask     io.Writer
	answers *bufio.Scanner
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
	a := &around{m, ask, bufio.NewScanner(answers)}
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

// during does something under load, beside a stream and a transfer of that length, and judges what callers saw of it. Above a load of 1 per core the figures of waits are only figures,
// and a wait is judged by what no load explains.
func (a *around) during(t *testing.T, what string, long time.Duration, r rule, do func()) report {
	t.Helper()
	load := loadPerCore(t)
	var none any
	a.question(t, "begin "+long.String(), &none)
	begun := time.Now()
	<-time.After(time.Second) // calls of each kind go on
	do()
	took := time.Since(begun) - time.Second
	<-time.After(time.Second)
	got := report{}
	a.question(t, "end", &got)
	load = max(load, loadPerCore(t))
	t.Logf("%s, in %v, at a load of %.1f per core:%v", what, took.Round(time.Millisecond), load, got)
	if stood := longestOf(got, control); stood > standstill {
		t.Skipf("%s: not judged, since this machine stood still: a connection past the agent waited for %v", what, stood)
	}
	for _, complaint := range r.judge(got, load) {
		t.Errorf("%s: %s", what, complaint)
	}
	if t.Failed() {
		t.Logf("journal:\n%s", a.m.journal())
	}
	return got
}

// standstill is the longest wait of a connection past the agent with which the agent can be judged: after 2 s it takes a backend that says nothing for one that hangs, and where all
// processes wait for so long, it does what it should if backends are dead.
const standstill = 2 * time.Second

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
