package localapi

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Explain shows each factor of a weight by itself (3.2), and batches follow what they make together (3.5).
func TestFactorsOfAWeight(t *testing.T) {
	r := newRig(t, nil)
	spec := *r.table.Lookup("user").Spec()
	spec.DynamicWeight, spec.SlowStart, spec.Zone, spec.Load = true, time.Minute, "here", true
	now := time.Now()
	r.table.SetSpec(now, spec)
	svc := r.table.Lookup("user")
	svc.Asked(now)
	l := *svc.View().List
	l.Backends = slices.Clone(l.Backends)
	for i, b := range l.Backends {
		l.Backends[i] = new(*b)
	}
	for i := range l.Backends {
		b := l.Backends[i]
		b.Modified, b.Zone = b.Modified+1, "here"
	}
	l.Backends[4].Zone = "there"
	r.table.Apply(now, &l)
	r.table.Second(now)
	for range 100 {
		b := svc.View().Backend(1).State
		b.Begin()
		b.End(now, health.AppError, 0, true, "HTTP 500")
	}
	now = now.Add(time.Second)
	r.table.Second(now)

	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []*lbagentv1.WeightFactors{{Dynamic: 1, Zone: 1}, {Dynamic: 0.01, Zone: 1}, {Dynamic: 1, Zone: 1}, {Dynamic: 1, Zone: 1}, {Dynamic: 1, Zone: 0.0816}} {
		b := e.Backends[i]
		f := b.WeightFactors
		if math.Abs(f.Dynamic-want.Dynamic) > 1e-3 || math.Abs(f.Zone-want.Zone) > 1e-3 || f.SlowStart != 1 || f.Load != 1 ||
			math.Abs(b.Backend.Weight-float64(b.StaticWeight)*f.Dynamic*f.Zone) > 1e-3 || b.Subset != lbagentv1.Subset_SUBSET_UNSPECIFIED {
			t.Errorf("%s: weight %v, factors %v", b.Backend.Address, b.Backend.Weight, f)
		}
	}
	if s := e.Backends[1].Sentence; !strings.HasPrefix(s, "gets calls, weight 1 (100 x dynamic 0.01);") {
		t.Errorf("sentence %q", s)
	}
	p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user", Count: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint32{}
	for _, one := range p.Picks {
		got[one.Address] += one.Count
	}
	if n := got["10.0.0.5:80"]; n < 254 || n > 274 { // 2 % of the static weight leave the zone, which has less by now
		t.Errorf("%v", got)
	}
	if n := got["10.0.0.2:80"]; n < 20 || n > 40 {
		t.Errorf("%v", got)
	}
}

// A key goes to one backend, a batch of it too; without the policy it means nothing (3.10).
func TestHashKey(t *testing.T) {
	r := newRig(t, nil)
	spec := *r.table.Lookup("user").Spec()
	spec.Policy = picker.Hash
	r.table.SetSpec(time.Now(), spec)
	ask := func(key string, count uint32, exclude ...string) *lbagentv1.PickResponse {
		t.Helper()
		p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user", HashKey: key, Count: count, Exclude: exclude})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	homes := map[string]bool{}
	for _, key := range strings.Fields("ann bob cid dan eve fay gus hal ida jon kim leo mia ned oda pam") {
		home := ask(key, 1).Picks[0].Address
		homes[home] = true
		if batch := ask(key, 50).Picks; len(batch) != 1 || batch[0].Address != home || batch[0].Count != 50 {
			t.Errorf("%s is at %s, a batch at %v", key, home, batch)
		}
		other := ask(key, 1, home).Picks[0].Address
		if other == home || ask(key, 1, home).Picks[0].Address != other {
			t.Errorf("%s without %s: %s", key, home, other)
		}
	}
	if len(homes) < 4 {
		t.Errorf("16 keys are at %v", homes)
	}
	if batch := ask("", 100); distinct(batch.Picks) != 5 {
		t.Errorf("a batch without a key: %v", batch)
	}
}

// Explain says who is in this host's subset (3.9); the others are no backends for callers.
func TestSubsetInAnswers(t *testing.T) {
	r := newRig(t, nil)
	var ids []int
	for i := 1; i <= 120; i++ {
		ids = append(ids, i)
	}
	r.set("user", ids...)
	spec := *r.table.Lookup("user").Spec()
	spec.Subset = 32
	r.table.SetSpec(time.Now(), spec)
	r.table.Lookup("user").Asked(time.Now())
	e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	inside := map[string]bool{}
	for _, b := range e.Backends {
		in := b.Subset == lbagentv1.Subset_SUBSET_INSIDE
		if in {
			inside[b.Backend.Address] = true
		}
		if in != b.Backend.Usable || in != (b.Backend.Weight > 0) || in == strings.Contains(b.Sentence, "gets no calls from this host, whose subset is 32 others") {
			t.Fatal(b)
		}
		reason := "the 32 of zone eu-1a that are inside come before it in this host's order"
		if in {
			reason = "one of the first 32 usable backends of zone eu-1a in this host's order"
		}
		if b.SubsetReason != reason {
			t.Fatalf("%v: %s", b.Subset, b.SubsetReason)
		}
	}
	if len(inside) != 32 || len(e.Hints) != 1 || e.Hints[0] != "this host calls a subset of 32 of the 120 backends" {
		t.Errorf("%d inside, hints %q", len(inside), e.Hints)
	}
	for i := 1; i <= 120; i++ { // one that is down is in no subset, and another one is
		if inside[addr(i).String()] {
			r.judge("user", i, health.Part{Kind: health.Down, Cause: "probe failed 3 times", Since: time.Now()})
			down, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: "user", Address: addr(i).String()})
			if err != nil {
				t.Fatal(err)
			}
			if b := down.Backends[0]; b.Subset != lbagentv1.Subset_SUBSET_OUTSIDE || b.SubsetReason != "a backend that is not usable is in no subset" {
				t.Errorf("%v: %s", b.Subset, b.SubsetReason)
			}
			r.judge("user", i, health.Part{Kind: health.Up})
			break
		}
	}
	p, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user", Count: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range p.Picks {
		if !inside[one.Address] {
			t.Errorf("%s is not in the subset", one.Address)
		}
	}
}
