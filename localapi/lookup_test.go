package localapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Every way in which a pick can fail has a code, a reason and a sentence of its own.
func TestPickErrors(t *testing.T) {
	follow := func(_ context.Context, name string, _ uint32) error {
		switch name {
		case "unknown":
			return fmt.Errorf("%w: etcd has no key under services/unknown/", ErrUnknownService)
		case "many":
			return fmt.Errorf("%w: uid 7 has 64", ErrTooManyServices)
		}
		return errors.New("etcd is not configured")
	}
	r := newRig(t, func(c *Config) { c.Follow = follow; c.Limits.FirstList = 20 * time.Millisecond })
	r.table.SetSpec(time.Now(), specOf("listless"))
	r.set("empty")
	r.set("out", 1, 2)
	for _, id := range []int{1, 2} {
		r.judge("out", id, health.Part{Kind: health.Muted, Cause: "by hand"})
	}
	for _, c := range []struct {
		service string
		code    codes.Code
		reason  string
		says    string
	}{
		{"unknown", codes.NotFound, reasonUnknown, "etcd has no key under services/unknown/"},
		{"many", codes.ResourceExhausted, reasonTooManyServices, "uid 7 has 64"},
		{"else", codes.Unavailable, reasonNotReady, "etcd is not configured"},
		{"listless", codes.Unavailable, reasonNotReady, "listless: no list has come yet"},
		{"empty", codes.Unavailable, reasonNoBackend, "lbagent: empty: 0 backends, 0 usable"},
		{"out", codes.Unavailable, reasonNoBackend, "lbagent: out: 2 backends, 0 usable; 10.0.0.1:80 muted: by hand"},
	} {
		for _, count := range []uint32{0, 10} {
			_, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: c.service, Count: count})
			code, reason := reasonOf(err)
			if code != c.code || reason != c.reason || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v (%s), want %v %s with %q", c.service, err, reason, c.code, c.reason, c.says)
			}
		}
	}
}

// The first ask follows a service in the name of its caller, and waits for the first list.
func TestOnDemand(t *testing.T) {
	var r *rig
	uids := make(chan uint32, 10)
	follow := func(_ context.Context, name string, uid uint32) error {
		r.table.SetSpec(time.Now(), specOf(name))
		uids <- uid
		if name != "late" {
			go r.set(name, 9)
		}
		return nil
	}
	r = newRig(t, func(c *Config) { c.Follow = follow; c.Limits.FirstList = 10 * time.Second })
	p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "new"})
	if err != nil || p.Picks[0].Address != "10.0.0.9:80" {
		t.Fatal(p, err)
	}
	if code, text := ask(t, r.cfg.Socket, "GET", "/v1/services/new.too/pick", ""); code != 200 {
		t.Fatal(code, text)
	}
	for range 2 {
		if uid := <-uids; uid != uint32(os.Getuid()) {
			t.Errorf("followed for uid %d", uid)
		}
	}
	// The caller's deadline is shorter than the agent's patience.
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	_, err = r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "late"})
	if code, _ := reasonOf(err); code != codes.DeadlineExceeded {
		t.Error(err)
	}
	// One that is removed while its first list is awaited.
	r.table.Remove(time.Now(), "late")
	done := make(chan error)
	go func() {
		_, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "late"})
		done <- err
	}()
	<-uids // of the ask with the short deadline
	<-uids
	r.table.Remove(time.Now(), "late")
	err = <-done
	if code, reason := reasonOf(err); code != codes.NotFound || reason != reasonUnknown {
		t.Error(err)
	}
}

// Who asks for a service without a list has it come now, if it can, and waits no longer than that takes; of one that has a list nothing has to come.
func TestHasten(t *testing.T) {
	var r *rig
	hastened := make(chan string, 10)
	r = newRig(t, func(c *Config) {
		c.Limits.FirstList = 10 * time.Second
		c.Hasten = func(name string) {
			r.set(name, 9)
			hastened <- name
		}
	})
	for _, name := range []string{"picked", "watched"} {
		r.table.SetSpec(time.Now(), specOf(name))
	}
	p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "picked"})
	if err != nil || p.Picks[0].Address != "10.0.0.9:80" {
		t.Fatal(p, err)
	}
	w, err := r.lookup().Watch(testContext(t), &lbagentv1.WatchRequest{Service: "watched"})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := w.Recv(); err != nil || len(v.Backends) != 1 {
		t.Fatal(v, err)
	}
	if _, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user"}); err != nil {
		t.Fatal(err)
	}
	close(hastened)
	var got []string
	for name := range hastened {
		got = append(got, name)
	}
	if !slices.Equal(got, []string{"picked", "watched"}) {
		t.Errorf("hastened %v", got)
	}
}

// Explain follows nothing: it is for looking.
func TestExplainFollowsNothing(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Follow = func(context.Context, string, uint32) error { t.Error("followed"); return nil }
		c.Hints = func(string) []string { return []string{"set protocol: h2"} }
	})
	_, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "usr"})
	if code, reason := reasonOf(err); code != codes.NotFound || reason != reasonUnknown {
		t.Error(err)
	}
	_, err = r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user", Address: "10.9.9.9:1"})
	if code, _ := reasonOf(err); code != codes.NotFound {
		t.Error(err)
	}
	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user"})
	if err != nil || len(e.Hints) != 1 || len(e.Backends) != 5 || e.Backends[0].StaticWeight != 100 || e.Backends[0].Key == "" || len(e.Backends[0].Parts) != 1 {
		t.Error(e, err)
	}
	if want := "user: 5 of 5 backends usable; list from etcd at revision 42, confirmed "; !strings.HasPrefix(e.GetSummary(), want) {
		t.Error(e.GetSummary())
	}
}

// Explain says how much select: leaves out.
func TestExplainCountsWhatIsLeftOut(t *testing.T) {
	r := newRig(t, nil)
	r.table.Apply(time.Now(), &service.List{Service: "user", Source: service.FromEtcd, Epoch: 7, Revision: 43, LeftOut: 3})
	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user"})
	if want := []string{"select leaves out 3 of the 3 addresses that its records name"}; err != nil || !slices.Equal(e.GetHints(), want) {
		t.Errorf("%v, %v", e.GetHints(), err)
	}
}

// In panic soft verdicts are ignored, answers say so, and batches are good for a second only (2.9).
func TestPanicInAnswers(t *testing.T) {
	r := newRig(t, nil)
	for id := 1; id <= 4; id++ {
		r.judge("user", id, health.Part{Kind: health.Ejected, Soft: true, Cause: "5 failures in a row"})
	}
	r.judge("user", 4, health.Part{Kind: health.Unreachable, Cause: "3 connects failed"})
	ctx := testContext(t)
	p, err := r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 100})
	if err != nil || !p.Provenance.Panic || p.ValidFor.AsDuration() != time.Second {
		t.Fatal(p, err)
	}
	got := map[string]uint32{}
	for _, e := range p.Picks {
		got[e.Address] += e.Count
	}
	if len(got) != 4 || got["10.0.0.4:80"] != 0 || got["10.0.0.1:80"] != 25 {
		t.Error(got)
	}
	// One whose connect has just failed stays out while another remains.
	r.table.Lookup("user").View().Find(addr(1)).State.ConnectFailed(time.Now(), "connection refused")
	r.judge("user", 2, health.Part{Kind: health.Ejected, Soft: true, Cause: "6 failures in a row"}) // a new view, a new plan
	p, err = r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 99})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range p.Picks {
		if e.Address == "10.0.0.1:80" {
			t.Fatal(p.Picks)
		}
	}
	l, err := r.lookup().List(ctx, &lbagentv1.ListRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, false, true} {
		if l.Backends[i].Usable != want {
			t.Error(l.Backends[i])
		}
	}
	// With everybody unreachable all are tried, but for the one whose connect has just failed.
	for id := 1; id <= 5; id++ {
		r.judge("user", id, health.Part{Kind: health.Unreachable, Cause: "3 connects failed"})
	}
	if p, err = r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 100}); err != nil || distinct(p.Picks) != 4 {
		t.Error(p, err)
	}
}

// A batch whose every backend is excluded is one pick of last resort (4.1), as a single pick is.
func TestExcludeAll(t *testing.T) {
	r := newRig(t, nil)
	r.judge("user", 3, health.Part{Kind: health.Ejected, Soft: true})
	p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user", Count: 10,
		Exclude: []string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80", "10.0.0.5:80", "10.9.9.9:1"}})
	if err != nil || len(p.Picks) != 1 || p.Picks[0].Address != "10.0.0.3:80" || p.Picks[0].Count != 1 {
		t.Error(p, err)
	}
}

// A list that does not change says nevertheless how long ago its evidence is.
func TestCausesAge(t *testing.T) {
	r := newRig(t, nil)
	began := time.Now()
	r.judge("user", 2, health.Part{Kind: health.Down, Cause: "probe failed 3 times", Last: "connection refused", At: began, Since: began})
	v := r.table.Lookup("user").View()
	cause := func(after time.Duration) string { return r.backends(v, began.Add(after))[1].GetCause() }
	for _, tt := range []struct {
		after time.Duration
		want  string
	}{{2 * time.Second, "2 s ago"}, {2100 * time.Millisecond, "2 s ago"}, {30 * time.Second, "30 s ago"}} {
		if got := cause(tt.after); !strings.Contains(got, tt.want) {
			t.Errorf("after %v: %q, want %q", tt.after, got, tt.want)
		}
	}
}

// What is kept per service goes with the services.
func TestCacheForgets(t *testing.T) {
	r := newRig(t, nil)
	c := r.lookup()
	for i := range 300 {
		name := fmt.Sprintf("s%d", i)
		r.set(name, 1, 2)
		if _, err := c.Pick(testContext(t), &lbagentv1.PickRequest{Service: name, Count: 2}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.List(testContext(t), &lbagentv1.ListRequest{Service: name}); err != nil {
			t.Fatal(err)
		}
		r.table.Remove(time.Now(), name)
	}
	if p, a := len(r.plans.last), len(r.answers.last); p > 100 || a > 100 {
		t.Errorf("%d plans and %d answers are kept of 1 service", p, a)
	}
}

// A reported outcome reaches the backend's state, as hearsay.
func TestReport(t *testing.T) {
	r := newRig(t, nil)
	req := &lbagentv1.ReportRequest{}
	for range 20 {
		req.Outcomes = append(req.Outcomes, &lbagentv1.Outcome{Service: "user", Address: "10.0.0.1:80", Result: lbagentv1.Result_RESULT_CONNECT_FAILURE})
	}
	req.Outcomes = append(req.Outcomes, &lbagentv1.Outcome{Service: "user", Address: "10.9.9.9:80", Result: lbagentv1.Result_RESULT_SUCCESS},
		&lbagentv1.Outcome{Service: "user", Address: "10.0.0.2:80", Result: lbagentv1.Result_RESULT_SUCCESS, Count: 7})
	resp, err := r.lookup().Report(testContext(t), req)
	if err != nil || resp.Unknown != 1 {
		t.Fatal(resp, err)
	}
	now := time.Now()
	v := r.table.Lookup("user").View()
	one, two := v.Find(addr(1)).State.Snapshot(now), v.Find(addr(2)).State.Snapshot(now)
	if one.Failures != 20 || one.Streak != 0 || one.LastFailure != "reported: no connection" || one.Outstanding != 0 || one.Penalty < 9 {
		t.Errorf("%+v", one)
	}
	if two.Successes != 7 {
		t.Errorf("%+v", two)
	}
}

func TestReload(t *testing.T) {
	fail := errors.New("/etc/lbagent/lbagent.yaml:3: services[0].policy: \"p3c\": want p2c or round_robin\n/etc/lbagent/lbagent.yaml:9: no such key")
	r := newRig(t, func(c *Config) { c.Reload = func(context.Context) ([]string, error) { return nil, fail } })
	_, err := lbagentv1.NewAdminServiceClient(dial(t, r.cfg.AdminSocket)).Reload(testContext(t), &lbagentv1.ReloadRequest{})
	if code, reason := reasonOf(err); code != codes.FailedPrecondition || reason != reasonNotReloaded || !strings.Contains(err.Error(), fail.Error()) {
		t.Error(err)
	}
}

// distinct is the number of addresses in picks.
func distinct(picks []*lbagentv1.Picked) int {
	seen := map[string]bool{}
	for _, p := range picks {
		seen[p.Address] = true
	}
	return len(seen)
}

// Each pick of a batch counts for its service, as one that is asked for alone does.
func TestPicksAreCounted(t *testing.T) {
	r := newRig(t, nil)
	spec := specOf("keyed")
	spec.Policy = picker.Hash
	r.table.SetSpec(time.Now(), spec)
	r.set("keyed", 1, 2, 3)
	c, want := r.lookup(), map[string]uint64{}
	for _, ask := range []*lbagentv1.PickRequest{
		{Service: "user"}, {Service: "user", Count: 1}, {Service: "user", Count: 100}, {Service: "keyed", Count: 7, HashKey: "x"}, {Service: "keyed", Count: 5},
	} {
		if _, err := c.Pick(testContext(t), ask); err != nil {
			t.Fatal(err)
		}
		want[ask.Service] += uint64(max(1, ask.Count))
		if got := r.table.Lookup(ask.Service).Picks(); got != want[ask.Service] {
			t.Errorf("%v: %d picks are counted, want %d", ask, got, want[ask.Service])
		}
	}
	if got := r.Stats().Picks; got != want["user"]+want["keyed"] {
		t.Errorf("%d in all, want %v", got, want)
	}
}
