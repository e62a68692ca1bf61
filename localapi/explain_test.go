package localapi

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Explain tells all that is known of a backend (2.8): its record, each part with since, the window, the last outcomes, what comes next; on both faces, of one too.
func TestExplainTellsAll(t *testing.T) {
	now := time.Now()
	var asked []string
	r := newRig(t, func(c *Config) {
		c.Outlooks = func(ctx context.Context, svc string, only netip.AddrPort) map[netip.AddrPort]health.Outlook {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("health may keep a caller for good")
			}
			asked = append(asked, svc+" "+only.String())
			return map[netip.AddrPort]health.Outlook{addr(2): {Probe: now.Add(time.Hour), Fails: 2, Trial: now.Add(time.Minute), HeldBack: true}}
		}
	})
	svc := r.table.Lookup("user")
	l := *svc.View().List
	l.Backends = slices.Clone(l.Backends)
	for i, b := range l.Backends {
		l.Backends[i] = new(*b)
	}
	l.Backends[1].Modified, l.Backends[1].Created, l.Backends[1].Priority = 41, 1, 3
	r.table.Apply(now, &l)
	state := svc.View().Find(addr(2)).State
	state.Begin()
	state.End(now.Add(-time.Second), health.Success, 3*time.Millisecond, true, "")
	state.Begin()
	state.End(now, health.AppError, 5*time.Millisecond, true, "HTTP 500")
	if _, err := r.lookup().Report(testContext(t), &lbagentv1.ReportRequest{Outcomes: []*lbagentv1.Outcome{
		{Service: "user", Address: "10.0.0.2:80", Result: lbagentv1.Result_RESULT_FAILURE, Count: 4},
	}}); err != nil {
		t.Fatal(err)
	}
	since := now.Add(-30 * time.Second)
	r.judge("user", 2, health.Part{Kind: health.Ejected, Soft: true, Cause: "5 failures in a row", Since: since})

	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	b := e.Backends[1]
	if b.Key != "/services/user/2" || b.Revision != 41 || b.CreatedRevision != 1 || b.Tier != 3 || b.Backend.Metadata["v"] != "1" || b.Backend.Zone != "eu-1a" {
		t.Errorf("the record: %v", b)
	}
	if len(b.Parts) == 0 || b.Parts[0].Verdict != "ejected" || !b.Parts[0].Since.AsTime().Equal(since) || !strings.Contains(b.Parts[0].Words, "5 failures in a row") {
		t.Errorf("the parts: %v", b.Parts)
	}
	if len(b.LastOutcomes) != 2 || b.LastOutcomes[0].Result != "failure" || !b.LastOutcomes[0].Reported || b.LastOutcomes[0].Count != 4 ||
		b.LastOutcomes[1].Result != "app_error" || b.LastOutcomes[1].Cause != "HTTP 500" || b.LastOutcomes[1].Latency.AsDuration() != 5*time.Millisecond {
		t.Errorf("the outcomes: %v", b.LastOutcomes)
	}
	if b.LastSuccessAt == nil || b.LatencyFactor != 1 || b.Latency == nil || b.SuccessPercent != nil {
		t.Errorf("measured: %v", b)
	}
	if o := b.Outlook; o == nil || !o.HeldBack || !o.NextProbe.AsTime().Equal(now.Add(time.Hour)) || !o.NextTrial.AsTime().Equal(now.Add(time.Minute)) ||
		!strings.HasPrefix(o.Words, "probe in 59 min, after 2 probes that failed; trial in 59 s, by a probe; held back") {
		t.Errorf("the outlook: %v", o)
	}
	if e.Backends[0].Outlook != nil || e.Backends[0].LastOutcomes != nil {
		t.Errorf("of one of which nothing is known: %v", e.Backends[0])
	}
	_, text := ask(t, r.cfg.Socket, "GET", "/v1/services/user/explain?address=10.0.0.2:80", "")
	for _, want := range []string{`"tier":3`, `"revision":"41"`, `"result":"app_error","cause":"HTTP 500","latency":"0.005s"`, `"held_back":true`, `"since":"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if got := strings.Join(asked, ", "); got != "user invalid AddrPort, user 10.0.0.2:80" {
		t.Errorf("health was asked for %s", got)
	}
}

// The success rate of the window comes from the health that judges by it (2.5).
func TestExplainWindow(t *testing.T) {
	r := newRig(t, nil)
	now := time.Now()
	var targets targetsOf
	for i := range r.table.Lookup("user").View().Len() {
		b := r.table.Lookup("user").View().Backend(i)
		targets = append(targets, health.Target{Addr: b.Addr, State: b.State})
	}
	s, err := health.NewStepper(health.Config{Log: r.cfg.Log, OnChange: func(time.Time, []health.Change) {}}, func() float64 { return 0.5 })
	if err != nil {
		t.Fatal(err)
	}
	s.SetGroup(now, "user", specOf("user").Health, targets)
	s.SetActive(now, "user", true)
	for i := range 40 {
		result := health.Success
		if i%10 == 0 {
			result = health.Timeout
		}
		targets[0].State.Begin()
		targets[0].State.End(now, result, 100*time.Millisecond, true, "deadline")
	}
	s.Step(now)
	s.Step(now.Add(1100 * time.Millisecond))
	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user", Address: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	if b := e.Backends[0]; b.RecentCalls != 40 || b.RecentFailed != 4 || b.SuccessPercent == nil || b.GetSuccessPercent() != 90 {
		t.Errorf("%v", b)
	}
}

type targetsOf []health.Target

func (t targetsOf) Len() int               { return len(t) }
func (t targetsOf) At(i int) health.Target { return t[i] }

// What other stages know of connections stands with each backend.
func TestExplainTellsConnections(t *testing.T) {
	at := timestamppb.New(time.Unix(1, 0))
	known := &lbagentv1.BackendConnections{Open: 2, Opened: 3, Closed: 1, LastEnded: []*lbagentv1.EndedConnection{{At: at, Protocol: "TCP", Cause: "closed by the backend"}}}
	r := newRig(t, func(c *Config) {
		c.Connections = func(_ context.Context, service string, only netip.AddrPort) map[netip.AddrPort]*lbagentv1.BackendConnections {
			if service != "user" || only.IsValid() && only != addr(2) {
				return nil
			}
			return map[netip.AddrPort]*lbagentv1.BackendConnections{addr(2): known}
		}
	})
	for _, one := range []string{"", addr(2).String()} {
		e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user", Address: one})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range e.GetBackends() {
			if got := b.GetConnections(); b.GetBackend().GetAddress() == addr(2).String() != proto.Equal(got, known) {
				t.Errorf("%s: %v", b.GetBackend().GetAddress(), got)
			}
		}
	}
}

// The sentence says in one look what a slow backend loses, and for how long a verdict has held.
func TestSentence(t *testing.T) {
	now := time.Now()
	r := newRig(t, nil)
	r.judge("user", 2, health.Part{Kind: health.Ejected, Cause: "5 failures in a row", Since: now.Add(-12 * time.Second)})
	v := r.table.Lookup("user").View()
	for _, b := range v.Backends() {
		switch want, got := "gets calls, weight 100, picked 2.5 x less for its latency; up", sentence(v, b, b.Verdict.Usable(), 2.5, now); b.Addr {
		case addr(1):
			if got != want {
				t.Errorf("%q, want %q", got, want)
			}
		case addr(2):
			if got != "gets no calls; ejected for 12 s: 5 failures in a row" {
				t.Error(got)
			}
		}
	}
}
