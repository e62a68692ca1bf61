package discovery

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
)

const (
	soon   = 2 * time.Second // after it has become quiet lists have to be what etcd holds
	former = 3 * time.Second // longer after a restore from a backup, if nobody knows yet that the token is one of before: etcd doesn't say so (1.4)
)

// slow finds out what lists waited for that were late.
type slow struct {
	told     []string
	well     time.Time // the end of the last quiet
	restored bool      // since then
	stood    stood

	mu sync.Mutex

	client etcd.Client // the last that was made
	dials  int
}

// stood is for how long this process, and so most likely the agent and etcd, could not run although it wanted to: the machine was busy, or stood still.
type stood struct{ sum atomic.Int64 }

func (s *stood) watch(ctx context.Context) {
	const every, usual = 10 * time.Millisecond, 10 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if late := now.Sub(last) - every; late > usual {
			s.sum.Add(int64(late))
		}
		last = now
	}
}

func (s *stood) total() time.Duration { return time.Duration(s.sum.Load()) }

// dial is etcd.Dial, remembering the client.
func (s *slow) dial(ctx context.Context, e etcd.Config, failed func(error)) (etcd.Client, error) {
	c, err := etcd.Dial(ctx, e, failed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if err == nil {
		s.client = c
	}
	return c, err
}

// state is how the connection stands.
func (s *slow) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return "no client"
	}
	return fmt.Sprintf("client %d %v", s.dials, s.client.Raw().ActiveConnection().GetState())
}

// trace is one quiet.
type trace struct {
	began   time.Time
	log     int // bytes that were logged before
	samples []string
	next    time.Time
	slowest time.Duration // look at etcd
	stood   time.Duration // before
}

func (s *slow) begin(w *world) *trace {
	now := time.Now()
	return &trace{began: now, next: now, log: w.d.log.len(), stood: s.stood.total()}
}

// sample notes now and then what is not right, and how the connection stands.
func (t *trace) sample(w *world, what string) {
	if now := time.Now(); now.After(t.next) {
		t.next = now.Add(250 * time.Millisecond)
		name, _, _ := strings.Cut(what, " ")
		t.samples = append(t.samples, fmt.Sprintf("+%.2f %s, %s", now.Sub(t.began).Seconds(), name, w.slow.state()))
	}
}

// allowed is how long lists may take: no longer than soon, and as long again as etcd can't have been well before, since waits grow with an outage (1.4). A machine that is busy may
// take longer for anything.
func (t *trace) allowed(w *world) time.Duration {
	d := soon + t.began.Sub(w.slow.well) + 50*t.slowest
	if w.slow.restored {
		d += former
	}
	return d
}

// end tells of a quiet that was late: the steps before it, the connection, and what was logged. One that was later than the rules allow fails. Time that the machine stood
// is not counted; it returns the rest.
func (t *trace) end(w *world, took time.Duration) time.Duration {
	allowed := t.allowed(w)
	took = max(0, took-(w.slow.stood.total()-t.stood))
	defer func() { w.slow.well, w.slow.restored = time.Now(), false }()
	if took <= soon {
		return took
	}
	const before = 1500 // bytes of the log
	log := w.d.log.String()
	var steps []string
	for _, line := range w.told[max(0, len(w.told)-16):] {
		steps = append(steps, strings.Join(strings.Fields(line), " "))
	}
	late := fmt.Sprintf("LATE %v at step %d, %v are allowed, quiet since %s\nsteps: %s\nconnection: %s\nlog:\n%s", took.Round(time.Millisecond), w.step, allowed.Round(time.Millisecond), t.began.Format("15:04:05.000"),
		strings.Join(steps, "; "), strings.Join(t.samples, "; "), log[max(0, t.log-before):])
	if took > allowed {
		w.fail("%s", late)
	}
	w.slow.told = append(w.slow.told, late)
	return took
}
