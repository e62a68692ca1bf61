package localapi

import (
	"os"
	"os/user"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (r *rig) admin() lbagentv1.AdminServiceClient {
	return lbagentv1.NewAdminServiceClient(dial(r.t, r.cfg.AdminSocket))
}

// me is who runs the test.
func me(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// Muted by the API, a backend gets no picks, single or in batches, and everything that is asked says by whom and why; unmuted, it does.
func TestMute(t *testing.T) {
	r := newRig(t, nil)
	ctx, admin := testContext(t), r.admin()
	m, err := admin.Mute(ctx, &lbagentv1.MuteRequest{Service: "user", Address: addr(2).String(), Duration: durationpb.New(15 * time.Minute), Reason: "bad disk"})
	if err != nil {
		t.Fatal(err)
	}
	info := m.GetMute()
	if info.GetAuthor() != me(t) || info.GetHost() != "web-1" || info.GetReason() != "bad disk" || info.GetFleet() ||
		info.GetUntil().AsTime().Sub(info.GetSince().AsTime()) != 15*time.Minute || len(m.GetWarnings()) != 0 {
		t.Errorf("answer %v", m)
	}
	picks := func() (single, batch []string) {
		t.Helper()
		for range 100 {
			p, err := r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user"})
			if err != nil {
				t.Fatal(err)
			}
			single = append(single, p.GetPicks()[0].GetAddress())
		}
		p, err := r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range p.GetPicks() {
			batch = append(batch, one.GetAddress())
		}
		return single, batch
	}
	if single, batch := picks(); slices.Contains(single, addr(2).String()) || slices.Contains(batch, addr(2).String()) {
		t.Error("it is picked")
	}
	cause := "by " + me(t) + ` for 15 min (this host): "bad disk", until `
	e, err := r.status().Explain(ctx, &lbagentv1.ExplainRequest{Service: "user", Address: addr(2).String()})
	if err != nil {
		t.Fatal(err)
	}
	if got := e.GetBackends()[0].GetSentence(); !strings.HasPrefix(got, "gets no calls; muted: "+cause) || !strings.HasSuffix(got, ", ends in 14 min") {
		t.Errorf("explain says %q", got)
	}
	l, err := r.lookup().List(ctx, &lbagentv1.ListRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	if b := l.GetBackends()[1]; b.GetVerdict() != "muted" || b.GetUsable() || !strings.HasPrefix(b.GetCause(), "muted: "+cause) {
		t.Errorf("list %v", b)
	}
	st, err := r.status().Status(ctx, &lbagentv1.StatusRequest{})
	if err != nil || len(st.GetMutes()) != 1 || st.GetMutes()[0].GetAddress() != addr(2).String() {
		t.Errorf("status %v, %v", st.GetMutes(), err)
	}
	if code, text := ask(t, r.cfg.Socket, "GET", "/v1/mutes", ""); code != 200 || !strings.Contains(text, `"reason":"bad disk"`) {
		t.Errorf("json: %d %s", code, text)
	}
	if u, err := admin.Unmute(ctx, &lbagentv1.UnmuteRequest{Service: "user", Address: addr(2).String()}); err != nil || !u.GetWasMuted() {
		t.Errorf("%v, %v", u, err)
	}
	if single, batch := picks(); !slices.Contains(single, addr(2).String()) || !slices.Contains(batch, addr(2).String()) {
		t.Error("it isn't picked after the end")
	}
	// By JSON the same, with its own warnings.
	code, text := ask(t, r.cfg.AdminSocket, "POST", "/v1/admin/mute", `{"service": "user", "address": "10.9.9.9:80", "duration": "60s"}`)
	if code != 200 || !strings.Contains(text, "user has no backend 10.9.9.9:80 now") {
		t.Errorf("json: %d %s", code, text)
	}
	if code, text = ask(t, r.cfg.AdminSocket, "POST", "/v1/admin/unmute", `{"service": "user", "address": "10.9.9.9:80"}`); code != 200 || !strings.Contains(text, `"was_muted":true`) {
		t.Errorf("json: %d %s", code, text)
	}
}

// Every part of the verdict is explained, the weightiest first (2.8); golden, but for what the clock says.
func TestExplainMuted(t *testing.T) {
	r := newRig(t, nil)
	now := time.Now()
	r.judge("user", 1, health.Part{Kind: health.Ejected, Soft: true, Cause: "5 failures in a row"})
	l := listOf("user", 1, 2, 3, 4, 5)
	l.Backends[0].Draining = true
	r.table.SetMutes(now, []service.Mute{
		{Service: "user", Addr: addr(1), Author: "bob", Host: "web-1", Since: now, Until: now.Add(90 * time.Second)},
		{Service: "user", Addr: addr(1), Author: "alice", Host: "web-7", Reason: "bad disk", Since: now, Until: now.Add(time.Hour), Fleet: true},
	})
	r.table.Apply(now, l)
	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user", Address: addr(1).String()})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range e.GetBackends()[0].GetParts() {
		words := p.GetWords()
		if before, rest, ok := strings.Cut(words, "until "); ok {
			_, after, _ := strings.Cut(rest, ", ")
			words = before + "until TIME, " + after
		}
		got = append(got, p.GetVerdict()+" | "+words)
	}
	want := []string{
		"draining | draining for 0 ms: its record says that it is out of service",
		`muted | muted: by alice on web-7 for 1 h (fleet): "bad disk", until TIME, ends in 59 min`,
		"muted | muted: by bob for 90 s (this host), until TIME, ends in 89 s",
	}
	before, _, _ := strings.Cut(got[0], " for ")
	_, after, _ := strings.Cut(got[0], " ms: ")
	got[0] = before + " for 0 ms: " + after
	if !slices.Equal(got, want) {
		t.Errorf("parts\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if p := e.GetBackends()[0].GetParts()[1]; p.GetNext().AsTime().Sub(p.GetSince().AsTime()) != time.Hour {
		t.Errorf("part %v", p)
	}
}

// The last usable one may be muted; the answer, and whoever calls then, is told.
func TestMuteOfTheLast(t *testing.T) {
	r := newRig(t, nil)
	r.set("one", 1)
	m, err := r.admin().Mute(testContext(t), &lbagentv1.MuteRequest{Service: "one", Address: addr(1).String()})
	if err != nil || len(m.GetWarnings()) != 1 || !strings.HasPrefix(m.GetWarnings()[0], "NO BACKEND OF one IS USABLE NOW on this host") {
		t.Errorf("%v, %v", m.GetWarnings(), err)
	}
	_, err = r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "one"})
	if code, reason := reasonOf(err); code != codes.Unavailable || reason != reasonNoBackend ||
		!strings.Contains(err.Error(), "lbagent: one: 1 backend, 0 usable; 10.0.0.1:80 muted: by "+me(t)+" for 1 h (this host), until ") {
		t.Errorf("pick: %v", err)
	}
	if p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "one", Count: 5}); err == nil {
		t.Errorf("a batch: %v", p)
	}
}

func TestMuteIsRefused(t *testing.T) {
	r := newRig(t, nil)
	for _, tt := range []struct {
		q      *lbagentv1.MuteRequest
		code   codes.Code
		reason string
	}{
		{&lbagentv1.MuteRequest{Service: "user"}, codes.InvalidArgument, reasonInvalid},
		{&lbagentv1.MuteRequest{Service: "user", Address: "web:80"}, codes.InvalidArgument, reasonInvalid},
		{&lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", Duration: &durationpb.Duration{}}, codes.InvalidArgument, reasonInvalid},
		{&lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", Duration: durationpb.New(-time.Hour)}, codes.InvalidArgument, reasonInvalid},
		{&lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", Duration: &durationpb.Duration{Seconds: 1 << 62}}, codes.InvalidArgument, reasonInvalid},
		{&lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", Fleet: true}, codes.InvalidArgument, reasonInvalid},
		{&lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", Fleet: true, Reason: "x"}, codes.FailedPrecondition, reasonNoFleet},
	} {
		_, err := r.admin().Mute(testContext(t), tt.q)
		if code, reason := reasonOf(err); code != tt.code || reason != tt.reason {
			t.Errorf("%v: %v, want %v %s", tt.q, err, tt.code, tt.reason)
		}
	}
	for kind, want := range map[error]codes.Code{
		mute.ErrTooMany: codes.ResourceExhausted, mute.ErrNeedsForce: codes.FailedPrecondition, mute.ErrEtcd: codes.Unavailable, os.ErrClosed: codes.Internal,
	} {
		if got := status.Code(muteFailure("user", kind)); got != want {
			t.Errorf("%v is %v, want %v", kind, got, want)
		}
	}
	r = newRig(t, func(c *Config) { c.Mutes = nil })
	if _, err := r.admin().Mute(testContext(t), &lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("without mutes: %v", err)
	}
	if _, err := r.admin().Unmute(testContext(t), &lbagentv1.UnmuteRequest{Service: "user", Address: "10.0.0.1:80"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("without mutes: %v", err)
	}
	if m, err := r.status().Mutes(testContext(t), &lbagentv1.MutesRequest{}); err != nil || len(m.GetMutes()) != 0 {
		t.Errorf("without mutes: %v, %v", m, err)
	}
}

// Root may say for whom it acts; whoever else claims that stays who they are.
func TestAuthor(t *testing.T) {
	r := newRig(t, nil)
	m, err := r.admin().Mute(testContext(t), &lbagentv1.MuteRequest{Service: "user", Address: "10.0.0.1:80", OnBehalfOf: "alice\n"})
	want := me(t)
	if os.Getuid() == 0 {
		want = "alice (" + want + ")"
	}
	if err != nil || m.GetMute().GetAuthor() != want {
		t.Errorf("%q, %v, want %q", m.GetMute().GetAuthor(), err, want)
	}
}
