package health

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// What one process knows of a backend is what the next one knows, through JSON, a second later.
func TestDumpAndRestore(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := NewState(now)
	for range 3 {
		s.Begin()
		s.End(now, Success, 40*time.Millisecond, true, "")
	}
	s.ConnectFailed(now.Add(time.Second), "connection refused")
	s.Begin()
	s.End(now.Add(time.Second), Failure, 0, false, "HTTP 503")
	part := Part{Kind: Ejected, Soft: true, Since: now, Cause: "5 failures in a row", Last: "HTTP 503", At: now, Next: now.Add(time.Minute)}
	s.parts.Store(&[]Part{part})

	then := now.Add(2 * time.Second)
	raw, err := json.Marshal(s.Dump(then))
	if err != nil {
		t.Fatal(err)
	}
	var d Dump
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	later := then.Add(time.Second)
	r := Restore(later, then, d)
	is, want := r.Snapshot(later), s.Snapshot(later)
	if is.Latency != want.Latency || is.LatencyFresh != want.LatencyFresh || is.Successes != 3 || is.Failures != 2 || is.Streak != want.Streak || is.LastFailure != "HTTP 503" {
		t.Errorf("restored %+v\nwant %+v", is, want)
	}
	if diff := is.Penalty - want.Penalty; diff < -0.01 || diff > 0.01 || is.Penalty == 0 {
		t.Errorf("penalty %v, want %v", is.Penalty, want.Penalty)
	}
	if got := r.ConnectFailedAgo(later); got != 2*time.Second {
		t.Errorf("the last connect failed %v ago, want 2 s", got)
	}
	if v := r.Verdict(); v == nil || *v != part {
		t.Errorf("verdict %v, want %v", v, part)
	}

	// Whoever watches it takes the verdict over, with the end of its hold-down.
	c := newCore(newInbox(), func() float64 { return 0.5 }, new(stats), hclog.NewNullLogger())
	g := c.group("user")
	g.options = Options{Eject: true, Consecutive: 1}.sane()
	target := &target{inbox: c.inbox, group: g, state: r, slot: -1}
	c.add(later, target, nil)
	if target.ejected == nil || !target.hold.Equal(part.Next) {
		t.Errorf("ejected %v, hold-down until %v; want the dumped ones", target.ejected, target.hold)
	}
}
