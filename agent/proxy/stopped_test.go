package proxy

import (
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// timeouts is how many of the last outcomes of a backend are timeouts.
func timeouts(s *health.State) (n int) {
	for _, o := range s.Outcomes() {
		if o.Result == health.Timeout {
			n++
		}
	}
	return n
}

// A loop that was stopped while a call was under way ends it when its time is over, and doesn't blame the backend: a machine that stands still would have half of its backends
// ejected by what was under way (2.5). Without that, it's a timeout.
func TestTimeoutOfStoppedLoop(t *testing.T) {
	const limit = 500 * time.Millisecond
	r := newRig(t, func(s *Service) { s.Request = limit })
	b := newGRPC(t)
	r.backends(b.addr)
	client, state := r.dial(), r.state(b.addr)
	call := func() chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := client.EmptyCall(timeout(t), &testpb.Empty{})
			ended <- err
		}()
		return ended
	}
	await(t, "a timeout", func() bool { <-call(); return timeouts(state) > 0 })
	var before int
	await(t, "a call under way when the loop stops", func() bool {
		ended, stopped, over := call(), false, false
		await(t, "it begins or ends", func() bool {
			select {
			case <-ended:
				over = true
			default:
			}
			r.onLoop(func(k *relay) {
				if k.calls == 1 && state.Outstanding() == 1 {
					before, stopped = timeouts(state), true
					<-time.After(3 * limit)
				}
			})
			return stopped || over
		})
		if !stopped {
			return false
		}
		if !over {
			<-ended
		}
		return true
	})
	r.quiet()
	if n := timeouts(state); n != before {
		t.Errorf("%d timeouts, %d before the loop stopped: %+v", n, before, state.Outcomes())
	}
}

// HTTP/1.1 has no loop: how late the timer is tells.
func TestTimeoutOfStoppedProcess(t *testing.T) {
	now := time.Now()
	for late, want := range map[time.Duration]health.Result{
		0: health.Timeout, 200 * time.Millisecond: health.Timeout, 400 * time.Millisecond: health.Neutral, 5 * time.Second: health.Neutral,
	} {
		began := now.Add(-time.Second - late)
		a := &attempt{x: &exchange{began: began, opts: &options{request: time.Second}}, picked: began, result: health.Timeout, sample: true}
		if a.excuse(now); a.result != want || a.sample != (want == health.Timeout) {
			t.Errorf("late by %v: %v, a sample: %v", late, a.result, a.sample)
		}
	}
}
