package health

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Outlook is what is ahead of one backend: what the Monitor has in mind.
type Outlook struct {
	Probe   time.Time // the next probe; zero = none is planned: it runs, waits, or there are none
	Probing bool      // one runs
	Waits   bool      // one is due, and waits for the pace of 2.3
	NoProbe string    // why there are none, in words; "" = there are

	Trial        time.Time // the end of the hold-down (2.7); zero = there is none
	TrialByCall  bool      // the trial is the next call that may be retried; else it is a probe
	TrialOffered bool      // the hold-down is over
	TrialRuns    bool      // a call has claimed it

	HeldBack bool // it would be ejected, but for the cap of 2.6
	Passes   int  // probes in a row that passed, or
	Fails    int  // that failed
}

// Words is the outlook in words for a person at time now: `probe in 3 s, after 2 that failed; trial in 5 s, by a probe`.
func (o *Outlook) Words(now time.Time) string {
	var parts []string
	say := func(text string) { parts = append(parts, text) }
	in := func(t time.Time) string {
		if wait := t.Sub(now); wait > 0 {
			return "in " + Ago(wait)
		}
		return "due"
	}
	after := ""
	if o.Fails > 0 {
		after = ", after " + probesWord(o.Fails) + " that failed"
	}
	switch {
	case o.Probing:
		say("a probe runs" + after)
	case o.Waits:
		say("a probe is due and waits for its turn" + after)
	case !o.Probe.IsZero():
		say("probe " + in(o.Probe) + after)
	case o.NoProbe != "":
		say("not probed: " + o.NoProbe)
	}
	by := "by a probe"
	if o.TrialByCall {
		by = "by the next call"
	}
	switch {
	case o.TrialRuns:
		say("a call is its trial now")
	case o.TrialOffered:
		say("trial " + by)
	case !o.Trial.IsZero():
		say("trial " + in(o.Trial) + ", " + by)
	}
	if o.HeldBack {
		say("held back from ejection, since enough others are out or it is the last (eject.max_percent, panic_percent)")
	}
	return strings.Join(parts, "; ")
}

// Outlooks is what is ahead for the targets of a group, or for the one with that address if it is valid. It asks the Monitor's goroutine, and returns nil if that
// does not answer before ctx ends.
func (m *Monitor) Outlooks(ctx context.Context, group string, only netip.AddrPort) map[netip.AddrPort]Outlook {
	answer := make(chan map[netip.AddrPort]Outlook, 1) // if ctx has ended, nobody takes it
	m.ask(ctx, func(c *core) { answer <- c.outlooks(group, only) })
	select {
	case all := <-answer:
		return all
	default:
		return nil
	}
}

func (c *core) outlooks(group string, only netip.AddrPort) map[netip.AddrPort]Outlook {
	g := c.groups[group]
	if g == nil {
		return nil
	}
	out := make(map[netip.AddrPort]Outlook)
	for _, t := range g.targets {
		if !only.IsValid() || t.addr == only {
			out[t.addr] = t.outlook()
		}
	}
	return out
}

// outlook is what is planned for t.
func (t *target) outlook() Outlook {
	p := Outlook{Probe: t.probeAt, Probing: t.probing, Waits: t.waits, HeldBack: t.heldBack, Passes: t.passes, Fails: t.fails}
	switch {
	case t.probed():
	case !t.probes():
		p.NoProbe = "the service has no probe"
	default:
		p.NoProbe = "nobody uses the service"
	}
	if !t.hold.IsZero() {
		p.Trial, p.TrialByCall, p.TrialOffered = t.hold, !t.probes(), t.holdOver
		p.TrialRuns = t.state.trial.Load() == trialClaimed
	}
	return p
}

func probesWord(n int) string {
	if n == 1 {
		return "1 probe"
	}
	return fmt.Sprintf("%d probes", n)
}
