package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// What the story promises.
const (
	evenWhenWell    = 0.15             // every share, while all is well
	evenAfterReturn = 0.20             // every share, at most evenAgainIn after the killed are back
	evenAgainIn     = 30 * time.Second //
	joinedIn        = 5 * time.Second  // until an added backend gets calls
	longestWait     = 5 * time.Second  // for the callers of an agent that restarts (6.6)

	settle = 2 * time.Second // before shares are measured
	look   = 4 * time.Second // how far back a share looks: 1,600 calls at the default rate
	gone   = 10 * time.Second
)

// act is one scene: play changes the world, waits and returns the figures; an error is a broken promise.
type act struct {
	title string
	play  func(ctx context.Context, s *stage, now func(string)) (figures string, err error)
}

// acts are the story. now tells the person at the terminal what goes on.
var acts = [...]act{
	{"all is well", allWell},
	{"four of five killed", fourKilled},
	{"the four come back", fourReturn},
	{"a sixth joins", sixthJoins},
	{"etcd stops", etcdStops},
	{"the agent restarts without etcd", agentRestarts},
	{"etcd is back", etcdReturns},
}

func allWell(ctx context.Context, s *stage, now func(string)) (string, error) {
	now("five backends, registered in etcd; one gRPC connection to the agent's port on loopback")
	if err := pause(ctx, settle+2*look); err != nil {
		return "", err
	}
	w, even, err := untilEven(ctx, s, 2*look, evenWhenWell)
	figures := fmt.Sprintf("%d calls over %d connection, shares %v of even", w.total, s.caller.sums().dials, even)
	switch {
	case err != nil:
		return figures, err
	case s.caller.sums().dials != 1:
		return figures, errors.New("want one connection")
	}
	return figures, nil
}

func fourKilled(ctx context.Context, s *stage, now func(string)) (string, error) {
	victims, last := s.backends[:firstBackends-1], s.backends[firstBackends-1]
	k := s.killBackends(victims...)
	now(fmt.Sprintf("kill -9 for four backends; their keys stay in etcd, for the lease lives %.0f s; back in %v", leaseTTL.Seconds(), gone))
	if err := pause(ctx, gone); err != nil {
		return "", err
	}
	w := s.caller.since(k.reaped.Add(time.Second))
	failed := s.caller.sums().failed
	figures := fmt.Sprintf("%d calls went on to %s; %d in flight on the killed failed, longest wait %v", w.total, last.name, failed, w.longest.Round(time.Millisecond))
	if w.counts[last.name] != w.total {
		return figures, fmt.Errorf("answers by %v after the kill", w.counts)
	}
	// A second's grace at each end; a call takes 25 ms.
	if want := 0.95 * s.rate * w.span.Seconds(); float64(w.total) < want {
		return figures, fmt.Errorf("%d calls in %v, want %.0f", w.total, w.span.Round(time.Millisecond), want)
	}
	return figures, nil
}

func fourReturn(ctx context.Context, s *stage, now func(string)) (string, error) {
	now("the four are started again, at their old addresses")
	if err := s.startBackends(ctx, s.backends[:firstBackends-1]...); err != nil {
		return "", err
	}
	back := time.Now()
	_, even, err := untilEven(ctx, s, look, evenAfterReturn)
	figures := fmt.Sprintf("even again after %v, shares %v of even over the last %v", time.Since(back).Round(100*time.Millisecond), even, look)
	if err != nil {
		return figures, err
	}
	return figures, pause(ctx, settle)
}

func sixthJoins(ctx context.Context, s *stage, now func(string)) (string, error) {
	sixth := s.backends[firstBackends]
	now(fmt.Sprintf("%s registers itself in etcd; nothing else is told", sixth.name))
	if err := s.startBackends(ctx, sixth); err != nil {
		return "", err
	}
	joined := time.Now()
	err := until(ctx, joinedIn, fmt.Sprintf("%s has calls", sixth.name), func() bool { return s.caller.since(joined).counts[sixth.name] > 0 })
	figures := fmt.Sprintf("%s was called %v after it had registered", sixth.name, time.Since(joined).Round(time.Millisecond))
	if err != nil {
		return figures, err
	}
	return figures, pause(ctx, look+settle)
}

func etcdStops(ctx context.Context, s *stage, now func(string)) (string, error) {
	s.etcd.signal(syscall.SIGKILL)
	<-s.etcd.gone
	now("kill -9 for etcd; lists, probes and picks go on")
	if err := pause(ctx, settle+look); err != nil {
		return "", err
	}
	return evenNow(ctx, s, "with no etcd")
}

func agentRestarts(ctx context.Context, s *stage, now func(string)) (string, error) {
	now("SIGTERM for the agent while etcd is down; the next one has only its spool")
	began, old := time.Now(), s.agent.child.Load().pid
	if err := s.agent.stop(); err != nil {
		return "", err
	}
	down := time.Now()
	if err := s.agent.start(ctx); err != nil {
		return "", err
	}
	away := time.Since(down)
	source := s.agent.source(ctx)
	if err := pause(ctx, look+settle); err != nil {
		return "", err
	}
	w := s.caller.since(began)
	even, err := evenNow(ctx, s, "after it")
	figures := fmt.Sprintf("pid %d became %d in %v, list from the %s, longest wait of a call %v; %s",
		old, s.agent.child.Load().pid, away.Round(time.Millisecond), source, w.longest.Round(time.Millisecond), even)
	switch {
	case source != "spool":
		return figures, errors.New("want a list from the spool")
	case w.longest > longestWait:
		return figures, fmt.Errorf("want no call to wait over %v", longestWait)
	}
	return figures, err
}

func etcdReturns(ctx context.Context, s *stage, now func(string)) (string, error) {
	now("etcd starts again on its old data")
	if err := s.startEtcd(ctx); err != nil {
		return "", err
	}
	up := time.Now()
	err := until(ctx, 30*time.Second, "the list comes from etcd", func() bool { return s.agent.source(ctx) == "etcd" })
	took := time.Since(up)
	if err != nil {
		return "", err
	}
	if err := pause(ctx, look); err != nil {
		return "", err
	}
	even, err := evenNow(ctx, s, "since")
	return fmt.Sprintf("the list comes from etcd again after %v; %s", took.Round(time.Millisecond), even), err
}

// evenNow waits for even shares and tells them.
func evenNow(ctx context.Context, s *stage, when string) (string, error) {
	w, even, err := untilEven(ctx, s, look, evenAfterReturn)
	return fmt.Sprintf("%d calls %s, shares %v of even", w.total, when, even), err
}

// untilEven waits until every share of the calls of the last span is within part of even, at most evenAgainIn. It looks more than once because a process that
// a busy machine leaves without processor time for a moment is a slow backend in that moment, and gets fewer calls, as it should.
func untilEven(ctx context.Context, s *stage, span time.Duration, part float64) (w window, even spread, err error) {
	err = until(ctx, evenAgainIn, fmt.Sprintf("every share within %.0f %%", part*100), func() bool {
		w = s.caller.last(span)
		even = w.spreadOver(s.living())
		return even.within(part)
	})
	return w, even, err
}
