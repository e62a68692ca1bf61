package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

const (
	// connsTold is how many connections of one backend are told one by one in a second; of more, only numbers are: after a second, and then every sumsEvery for as long
	// as there are as many.
	connsTold = 10
	sumsEvery = 10 * time.Second
	// endsKept is how many of a backend's ended connections are kept for Explain.
	endsKept = 4
	// firstSweep is how many backends a ledger has before it first looks for those that are gone.
	firstSweep = 64
)

// ledger knows the connections to backends: how many were opened, how they ended, and what of it has been told as an event. It decides with the time that it's told;
// whoever owns it (a loop, or HTTP/1.1 under a lock) serves its alarm. Connections that are only counted cost no allocation.
type ledger struct {
	events *event.Log
	alarm  func(time.Duration) // have tick called then

	backends map[*health.State]*account
	sweepAt  int
	hushed   []*account
}

// account is one backend in a ledger.
type account struct {
	svc   *table.Service
	state *health.State
	addr  netip.AddrPort

	open                   int
	opened, closed, failed uint64
	ends                   [endsKept]connEnd // the newest is ends[(closed-1)%endsKept]

	second time.Time // when the second began in which
	told   int       // so many were told
	hushed time.Time // since when only numbers are told; zero: each is
	span   time.Duration
	untold tally
}

// tally is what was not told one by one.
type tally struct {
	opened, failed int
	closed         [closeKinds]int
	refusal        string // of the last connect that failed
}

func (t *tally) total() int {
	n := t.opened + t.failed
	for _, closed := range t.closed {
		n += closed
	}
	return n
}

// account is that of a backend, a new one if it has none.
func (l *ledger) account(svc *table.Service, state *health.State, addr netip.AddrPort) *account {
	a := l.backends[state]
	if a != nil {
		return a
	}
	if l.backends == nil {
		l.backends, l.sweepAt = map[*health.State]*account{}, firstSweep
	}
	if len(l.backends) >= l.sweepAt {
		l.sweep()
	}
	a = &account{svc: svc, state: state, addr: addr}
	l.backends[state] = a
	return a
}

// sweep forgets the backends that their views no longer have. Each is looked at once for as many as have come since: it costs nothing that shows.
func (l *ledger) sweep() {
	for state, a := range l.backends {
		if v := a.svc.View(); a.open == 0 && a.hushed.IsZero() {
			if b := v.Find(a.addr); v.Gone || b == nil || b.State != state {
				delete(l.backends, state)
			}
		}
	}
	l.sweepAt = max(firstSweep, 2*len(l.backends))
}

// up notes that a connection is there.
func (l *ledger) up(now time.Time, a *account, k protocol) {
	a.open++
	a.opened++
	if l.may(now, a) {
		l.say(now, a, "connected ("+k.words()+")")
	} else {
		a.untold.opened++
	}
}

// refused notes a connect that failed.
func (l *ledger) refused(now time.Time, a *account, cause string) {
	a.failed++
	if l.may(now, a) {
		l.say(now, a, "connect failed: "+cause)
	} else {
		a.untold.failed++
		a.untold.refusal = cause
	}
}

// down notes the end of a connection that was up.
func (l *ledger) down(a *account, e connEnd) {
	a.open--
	a.ends[a.closed%endsKept] = e
	a.closed++
	if l.may(e.at, a) {
		l.say(e.at, a, e.protocol.words()+" connection ended after "+health.Ago(e.lasted)+": "+e.words())
	} else {
		a.untold.closed[e.why]++
	}
}

// may reports whether something of a is told by itself; else it is to be counted.
func (l *ledger) may(now time.Time, a *account) bool {
	if l.events == nil {
		return false
	}
	if !a.hushed.IsZero() {
		return false
	}
	if now.Sub(a.second) >= time.Second {
		a.second, a.told = now, 0
	}
	if a.told < connsTold {
		a.told++
		return true
	}
	a.hushed, a.span = now, time.Second
	if l.hushed = append(l.hushed, a); len(l.hushed) == 1 {
		l.alarm(time.Second)
	}
	return false
}

// tick tells the numbers that are due. A backend of which few connections came and went meanwhile is told of one by one again.
func (l *ledger) tick(now time.Time) {
	still := l.hushed[:0]
	for _, a := range l.hushed {
		if now.Sub(a.hushed) < a.span {
			still = append(still, a)
			continue
		}
		n := a.untold.total()
		if n > 0 {
			l.say(now, a, a.sum(now))
		}
		a.untold = tally{}
		if n > connsTold*int(a.span/time.Second) {
			a.hushed, a.span = now, sumsEvery
			still = append(still, a)
		} else {
			a.hushed = time.Time{}
		}
	}
	clear(l.hushed[len(still):])
	if l.hushed = still; len(still) > 0 {
		l.alarm(time.Second)
	}
}

func (l *ledger) say(now time.Time, a *account, detail string) {
	l.events.Add(event.Event{Time: now, Kind: event.Connection, Service: a.svc.Name(), Backend: a.addr.String(), Detail: detail})
}

// sum is what was not told one by one: `in the last 10 s: 120 connected; 118 ended: 100 x ended by the client, 18 x closed by the backend; 5 are open`.
func (a *account) sum(now time.Time) string {
	var parts []string
	if n := a.untold.opened; n > 0 {
		parts = append(parts, fmt.Sprintf("%d connected", n))
	}
	var ended []string
	all := 0
	for why, n := range a.untold.closed {
		if n > 0 {
			ended = append(ended, fmt.Sprintf("%d x %s", n, closeCause(why).short()))
			all += n
		}
	}
	if all > 0 {
		parts = append(parts, fmt.Sprintf("%d ended: %s", all, strings.Join(ended, ", ")))
	}
	if n := a.untold.failed; n > 0 {
		parts = append(parts, fmt.Sprintf("%d x connect failed, last: %s", n, a.untold.refusal))
	}
	return fmt.Sprintf("in the last %s: %s; %d open", health.Ago(now.Sub(a.hushed)), strings.Join(parts, "; "), a.open)
}
