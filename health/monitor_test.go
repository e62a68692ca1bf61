package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// bubble is a running Monitor whose probes are answered by the test.
type bubble struct {
	*Monitor
	t *testing.T

	mu      sync.Mutex
	answers map[netip.AddrPort]outcome
	probed  map[netip.AddrPort]int
	changes []Change
}

func inBubble(t *testing.T, f func(b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, answers: map[netip.AddrPort]outcome{}, probed: map[netip.AddrPort]int{}}
		m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(_ time.Time, changes []Change) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.changes = append(b.changes, changes...)
		}})
		if err != nil {
			t.Fatal(err)
		}
		m.probe = func(ctx context.Context, _ Options, addr netip.AddrPort) outcome {
			select {
			case <-time.After(50 * ms):
			case <-ctx.Done():
				return outcome{kind: probeLocal, cause: "cancelled"}
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.probed[addr]++
			return b.answers[addr]
		}
		m.sweep, m.watches = nil, nil
		b.Monitor = m
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		f(b)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// advance lets time go by, and everything that follows from it happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bubble) answer(i int, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers[backend(i)] = o
}

// verdicts are what OnChange told since the last call.
func (b *bubble) verdicts() []Kind {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Kind
	for _, c := range b.changes {
		all = append(all, c.To.Kind)
	}
	b.changes = nil
	return all
}

func (b *bubble) want(kinds ...Kind) {
	b.t.Helper()
	if got := b.verdicts(); !slices.Equal(got, kinds) {
		b.t.Errorf("told %v, want %v", got, kinds)
	}
}

func targets(now time.Time, n int) fixed {
	all := make(fixed, n)
	for i := range all {
		all[i] = Target{Addr: backend(i), State: NewState(now)}
	}
	return all
}

// A crossing wakes the Monitor, a probe brings the backend back.
func TestMonitor(t *testing.T) {
	inBubble(t, func(b *bubble) {
		ts := targets(time.Now(), 4)
		b.SetActive("g", true) // in any order
		b.SetGroup("g", defaults(), ts)
		advance(0)
		b.answer(0, refused)
		for range 3 {
			ts[0].State.ConnectFailed(time.Now(), "connection refused")
		}
		advance(0)
		b.want(Unreachable)
		for range 5 {
			ts[1].State.Begin()
			ts[1].State.End(time.Now(), Failure, 0, true, "HTTP 503")
		}
		advance(0)
		b.want(Ejected)
		advance(1600 * ms) // the longest first hold-down, and a probe
		b.want(Up)
		b.answer(0, outcome{})
		advance(1300 * ms)
		b.want(Up)
		if s := b.Stats(); s.Targets != 4 || s.Ejections[ByStreak] != 1 || s.Probes == 0 {
			t.Errorf("stats %+v", s)
		}
		b.SetGroup("g", defaults(), nil)
		advance(0)
		if s := b.Stats(); s.Targets != 0 {
			t.Errorf("%d targets of a group that is gone", s.Targets)
		}
	})
}

// SetGroup and SetActive don't wait for OnChange, which may be waiting for those who call them.
func TestMonitorMailDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told, release := make(chan struct{}), make(chan struct{})
		m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(time.Time, []Change) {
			told <- struct{}{}
			<-release
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		o := defaults()
		o.Probe = ProbeNone
		ts := targets(time.Now(), 2)
		m.SetGroup("g", o, ts)
		synctest.Wait()
		for range 5 {
			ts[0].State.ConnectionLost(time.Now(), "connection reset")
		}
		<-told
		for range 1000 {
			m.SetGroup("g", o, ts)
			m.SetActive("g", true)
			m.SetActive("g", false)
		}
		if len(m.mail) != 1 {
			t.Errorf("%d letters for one group", len(m.mail))
		}
		close(release)
		cancel()
		<-done
	})
}

// A Monitor with nothing in use and nothing pending doesn't wake.
func TestMonitorIdles(t *testing.T) {
	inBubble(t, func(b *bubble) {
		ts := targets(time.Now(), 50)
		b.SetGroup("g", defaults(), ts)
		advance(time.Minute)
		c := newCore(newInbox(), func() float64 { return 0.5 }, &stats{}, hclog.NewNullLogger())
		c.setGroup(time.Now(), "g", defaults(), targets(time.Now(), 50))
		if at, ok := c.next(time.Now()); ok {
			t.Errorf("wants to be woken at %v", at)
		}
		if n := b.Stats().Probes; n != 0 {
			t.Errorf("%d probes of a group that isn't in use", n)
		}
	})
}

// Run ends its probes with itself.
func TestMonitorEndsWithProbesRunning(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.SetGroup("g", defaults(), targets(time.Now(), 50))
		b.SetActive("g", true)
		for b.Stats().ProbesRunning == 0 {
			advance(10 * ms)
		}
	}) // synctest fails if a goroutine is left
}

// A real Monitor, real backends: one that is killed is out within seconds and back soon after it is.
func TestMonitorOverSockets(t *testing.T) {
	// An address of its own, so that nobody takes the port while the backend is dead.
	l, err := net.Listen("tcp", "127.0.0.77:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := addrOf(l)
	moved := make(chan Part, 10)
	m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(_ time.Time, changes []Change) {
		for _, c := range changes {
			moved <- c.To
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	o := defaults()
	o.Interval = 100 * ms
	m.SetGroup("g", o, fixed{{Addr: addr, State: NewState(time.Now())}})
	m.SetActive("g", true)
	wait := func(want ...Kind) Part {
		t.Helper()
		for {
			select {
			case p := <-moved:
				if slices.Contains(want, p.Kind) {
					return p
				}
			case <-time.After(2 * time.Minute):
				t.Fatalf("no verdict %v", want)
			}
		}
	}
	l.Close()
	if p := wait(Down); p.Last != "connection refused" {
		t.Errorf("down: %+v", p)
	}
	l, err = net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wait(Up)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// 2.1: a process that is stopped still accepts. Once calls have shown that a backend speaks HTTP/2, a tcp probe wants its SETTINGS; a backend that
// speaks something else under the same address by then isn't held to that.
func TestProbesOfWhatSpeaksHTTP2(t *testing.T) {
	var stopped, changed atomic.Bool
	addr := serve(t, func(_ int, c net.Conn) {
		switch {
		case changed.Load():
			fmt.Fprint(c, "220 a mail server\r\n")
		case !stopped.Load():
			c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // SETTINGS
		}
		io.Copy(io.Discard, c)
	})
	kinds := make(chan Kind, 100)
	m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(_ time.Time, changes []Change) {
		for _, c := range changes {
			kinds <- c.To.Kind
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() { m.Run(ctx) })
	defer running.Wait()
	defer cancel()
	o := Options{Probe: ProbeTCP, Interval: 20 * ms, Timeout: shortTimeout, Rise: 2, Fall: 3}
	state := NewState(time.Now())
	m.SetGroup("g", o, fixed{{Addr: addr, State: state}})
	m.SetActive("g", true)

	probed := func(n uint64) {
		for m.Stats().Probes < n {
			select {
			case k := <-kinds:
				t.Fatalf("became %v", k)
			case <-time.After(ms):
			}
		}
	}
	stopped.Store(true)
	probed(5) // accepting is enough for what is not known to speak HTTP/2
	stopped.Store(false)
	state.SpeaksHTTP2()
	probed(10)
	stopped.Store(true)
	until := func(want Kind) {
		t.Helper()
		for deadline := time.After(probeTimeout); ; {
			select {
			case got := <-kinds:
				if got == want {
					return
				}
			case <-deadline:
				t.Fatalf("never became %v", want)
			}
		}
	}
	until(Down)
	changed.Store(true)
	until(Up)
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a Monitor without Log and OnChange")
	}
}
