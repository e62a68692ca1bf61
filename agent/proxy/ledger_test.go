package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
)

// books is a ledger whose alarm rings when the test lets time pass.
type books struct {
	ledger

	now   time.Time
	rings time.Time // zero: nothing is armed
	log   *event.Log
	table *table.Table
	svc   *table.Service
}

func newBooks(t testing.TB, addrs ...string) *books {
	t.Helper()
	b := &books{now: time.Now(), log: event.NewLog(4 * 1000)}
	b.ledger = ledger{events: b.log, alarm: func(d time.Duration) { b.rings = b.now.Add(d) }}
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(1)})
	if err != nil {
		t.Fatal(err)
	}
	b.table = tab
	tab.SetSpec(b.now, table.Spec{Name: "user", InUse: true})
	b.svc = tab.Lookup("user")
	b.list(addrs...)
	return b
}

func (b *books) list(addrs ...string) {
	l := &service.List{Service: "user", Source: service.FromStatic, Confirmed: b.now}
	for _, a := range addrs {
		l.Backends = append(l.Backends, &service.Backend{Addr: netip.MustParseAddrPort(a), Weight: 100})
	}
	slices.SortFunc(l.Backends, func(a, b *service.Backend) int { return a.Addr.Compare(b.Addr) })
	b.table.Apply(b.now, l)
}

func (b *books) of(addr string) *account {
	be := b.svc.View().Find(netip.MustParseAddrPort(addr))
	return b.account(b.svc, be.State, be.Addr)
}

// pass lets time pass, a tenth of a second at a time, and does f each time.
func (b *books) pass(d time.Duration, f func()) {
	for range d / (100 * time.Millisecond) {
		b.now = b.now.Add(100 * time.Millisecond)
		if !b.rings.IsZero() && !b.now.Before(b.rings) {
			b.rings = time.Time{}
			b.tick(b.now)
		}
		f()
	}
}

// churn opens and ends n connections.
func (b *books) churn(addr string, n int) {
	for range n {
		a := b.of(addr)
		b.up(b.now, a, protoTCP)
		b.down(a, connEnd{at: b.now, protocol: protoTCP, why: closedClient})
	}
}

func (b *books) told() (all []string) {
	events, _ := b.log.Since(0)
	for _, e := range events {
		all = append(all, e.Backend+" "+e.Detail)
	}
	return all
}

const addrOne, addrTwo = "10.0.0.1:80", "10.0.0.2:80"

func TestLedgerTellsEachOfFew(t *testing.T) {
	b := newBooks(t, addrOne)
	a := b.of(addrOne)
	b.up(b.now, a, protoH2)
	b.refused(b.now, a, "connection refused")
	b.down(a, connEnd{at: b.now, protocol: protoH2, lasted: 3 * time.Minute, why: closedIdle, idle: 5 * time.Minute})
	want := []string{
		addrOne + " connected (HTTP/2)",
		addrOne + " connect failed: connection refused",
		addrOne + " HTTP/2 connection ended after 3 min: idle for 5 min",
	}
	if got := b.told(); !slices.Equal(got, want) {
		t.Errorf("told %q", got)
	}
	b.now = b.now.Add(time.Second)
	b.pass(10*time.Second, func() { b.up(b.now, a, protoH2) }) // ten a second are not too many
	if got := b.told(); len(got) != 3+100 || slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "in the last") }) {
		t.Errorf("told %d: %q", len(got), got)
	}
}

// A backend whose connections come and go by the hundred is told of by ten events, then by one after a second and one every 10 s, in which nothing is missing. Others are
// told of as ever; and so is it, once it's quiet.
func TestLedgerSumsUpMany(t *testing.T) {
	b := newBooks(t, addrOne, addrTwo)
	b.pass(time.Minute, func() { b.churn(addrOne, 10) }) // 100 connections a second
	b.up(b.now, b.of(addrTwo), protoTCP)
	all := b.told()
	if n := len(all); n < 10+5 || n > 10+8+1 {
		t.Errorf("%d events of a minute: %q", n, all)
	}
	if all[len(all)-1] != addrTwo+" connected (TCP)" {
		t.Errorf("the other backend: %q", all[len(all)-1])
	}
	if want := addrOne + " in the last 10 s: 1000 connected; 1000 ended: 1000 x ended by the client; 0 open"; !slices.Contains(all, want) {
		t.Errorf("no %q in %q", want, all)
	}
	b.pass(2*sumsEvery, func() {})
	connected := 0
	for _, s := range b.told() {
		var n int
		switch s = strings.TrimPrefix(s, addrOne+" "); {
		case s == "connected (TCP)":
			connected++
		case strings.HasPrefix(s, "in the last "):
			if _, err := fmt.Sscanf(s[strings.Index(s, ": ")+2:], "%d connected", &n); err != nil {
				t.Errorf("%q: %v", s, err)
			}
			connected += n
		}
	}
	if connected != 6000 {
		t.Errorf("%d connections were told of, of 6000", connected)
	}
	if b.rings != (time.Time{}) || len(b.hushed) != 0 {
		t.Error("the alarm rings on although nobody is left to be told of")
	}
	before := len(b.told())
	b.up(b.now, b.of(addrOne), protoTCP)
	if all := b.told(); len(all) != before+1 || all[before] != addrOne+" connected (TCP)" {
		t.Errorf("after the storm: %q", all[before:])
	}
}

func TestLedgerSumSaysEachCause(t *testing.T) {
	b := newBooks(t, addrOne)
	b.churn(addrOne, 5) // ten events
	a := b.of(addrOne)
	for range 3 {
		b.up(b.now, a, protoTCP)
	}
	b.down(a, connEnd{at: b.now, why: closedError, detail: "reset by the backend"})
	b.down(a, connEnd{at: b.now, why: closedFIN})
	b.refused(b.now, a, "no route to host")
	b.refused(b.now, a, "connection refused")
	b.pass(1100*time.Millisecond, func() {})
	want := addrOne + " in the last 1 s: 3 connected; 2 ended: 1 x closed by the backend, 1 x broken; 2 x connect failed, last: connection refused; 1 open"
	if all := b.told(); all[len(all)-1] != want {
		t.Errorf("%q, want %q", all[len(all)-1], want)
	}
}

// Backends that left the list are forgotten, but for those with a connection, however many come and go.
func TestLedgerForgets(t *testing.T) {
	t.Parallel() // it waits
	b := newBooks(t)
	b.list("10.9.9.9:80")
	kept := b.of("10.9.9.9:80")
	b.up(b.now, kept, protoH2)
	most := 0
	for i := range 5000 {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80).String()
		b.list(addr)
		b.now = b.now.Add(time.Minute)
		b.churn(addr, 1)
		most = max(most, len(b.backends))
	}
	if most > 2*firstSweep {
		t.Errorf("%d backends are kept of a list with one", most)
	}
	if b.backends[kept.state] != kept {
		t.Error("a backend with an open connection was forgotten")
	}
	b.down(kept, connEnd{at: b.now})
	b.sweep()
	if b.backends[kept.state] != nil {
		t.Error("a backend without a connection that left is kept")
	}
}

func TestLedgerIsExplained(t *testing.T) {
	b := newBooks(t, addrOne, addrTwo)
	a := b.of(addrOne)
	for i := range 6 {
		b.up(b.now, a, protoTCP)
		b.down(a, connEnd{at: b.now.Add(time.Duration(i)), why: closedClient, protocol: protoTCP, detail: fmt.Sprint(i)})
	}
	b.up(b.now, a, protoH2)
	b.refused(b.now, a, "connection refused")
	b.up(b.now, b.of(addrTwo), protoTCP)
	all := b.ledger.of(b.svc.View(), netip.AddrPort{})
	got := all[netip.MustParseAddrPort(addrOne)]
	if len(all) != 2 || got.Open != 1 || got.Opened != 7 || got.Closed != 6 || got.Failed != 1 || len(got.Ends) != endsKept {
		t.Fatalf("%d backends, %+v", len(all), got)
	}
	for i, e := range got.Ends {
		if !e.At.Equal(b.now.Add(time.Duration(5 - i))) {
			t.Errorf("ends out of order: %+v", got.Ends)
		}
	}
	got.add(&Connections{Open: 1, Closed: 1, Ends: []End{{At: b.now.Add(time.Hour), Cause: "newest"}}})
	if got.Open != 2 || len(got.Ends) != endsKept || got.Ends[0].Cause != "newest" || !got.Ends[1].At.Equal(b.now.Add(5)) {
		t.Errorf("two loops: %+v", got)
	}
	if only := b.ledger.of(b.svc.View(), netip.MustParseAddrPort(addrTwo)); len(only) != 1 || only[netip.MustParseAddrPort(addrTwo)].Open != 1 {
		t.Errorf("only one: %+v", only)
	}
	b.list(addrTwo)
	if left := b.ledger.of(b.svc.View(), netip.AddrPort{}); len(left) != 1 {
		t.Errorf("a backend that left is explained: %+v", left)
	}
}

func TestEndWords(t *testing.T) {
	for _, c := range []struct {
		end  connEnd
		want string
	}{
		{connEnd{why: closedIdle, idle: 5 * time.Minute}, "idle for 5 min"},
		{connEnd{why: closedRemoved, detail: "removed from the list"}, "removed from the list"},
		{connEnd{why: closedReplaced}, "its stream numbers were used up, a new one takes over"},
		{connEnd{why: closedGoaway, detail: "GOAWAY NO_ERROR: max_age", idle: 1}, "GOAWAY NO_ERROR: max_age"},
		{connEnd{why: closedGoaway, detail: "GOAWAY", calls: 2}, "GOAWAY, then closed, under 2 calls"},
		{connEnd{why: closedFIN, idle: 1}, "closed by the backend, while idle"},
		{connEnd{why: closedFIN, calls: 1}, "closed by the backend, under a call"},
		{connEnd{why: closedError, detail: broken("connection reset by peer"), calls: 3}, "reset by the backend, under 3 calls"},
		{connEnd{why: closedError, detail: broken("connection timed out")}, "the backend's host does not answer any more (connection timed out)"},
		{connEnd{why: closedProtocol, detail: "x"}, "the backend sent no valid HTTP: x"},
		{connEnd{why: closedHang, idle: 4 * time.Second, calls: 1}, "no answer to PING, and nothing else came for 4 s, under a call"},
		{connEnd{why: closedStop}, "the agent stops"},
		{connEnd{why: closedClient}, "ended by the client"},
		{connEnd{why: closedSpare}, "enough others are idle"},
		{connEnd{why: closedLast}, "the backend keeps it for one call only"},
		{connEnd{why: closedCall, detail: "its call was given up"}, "its call was given up"},
	} {
		if got := c.end.words(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.end, got, c.want)
		}
	}
	for why := range closeKinds {
		if why.short() == "" {
			t.Errorf("cause %d has no short words", why)
		}
	}
}

// What is only counted costs no allocation: connections of TCP come as fast as calls do elsewhere.
func TestLedgerCountsWithoutAllocation(t *testing.T) {
	b := newBooks(t, addrOne)
	b.churn(addrOne, 100)
	if n := testing.AllocsPerRun(100, func() { b.churn(addrOne, 1) }); n > 0 {
		t.Errorf("%v allocations for a connection", n)
	}
}

// BenchmarkLedger is what one connection costs, from its beginning to its end, while there are too many to be told one by one.
func BenchmarkLedger(b *testing.B) {
	k := newBooks(b, addrOne)
	k.churn(addrOne, 100)
	b.ReportAllocs()
	for b.Loop() {
		k.churn(addrOne, 1)
	}
}
