package health

import (
	"fmt"
	"strings"
	"time"
)

// Kind is a verdict; of several that apply, the smallest wins (2.8).
type Kind uint8

// Every verdict, in order of precedence. Draining, Muted and Orphaned come from the list or the operator, the others from this package.
const (
	Draining Kind = iota
	Muted
	Orphaned
	Down
	Unreachable
	Ejected
	Up
)

// Kinds is every Kind in order of precedence.
const Kinds = 7

// String is the word used in the API, in metrics and in logs.
func (k Kind) String() string {
	return [...]string{"draining", "muted", "orphaned", "down", "unreachable", "ejected", "up"}[k]
}

// Usable reports whether new calls go there outside panic. An orphan is used like a listed backend (1.10).
func (k Kind) Usable() bool { return k == Up || k == Orphaned }

// Part is one verdict that applies to a backend, with its evidence.
type Part struct {
	Kind  Kind
	Soft  bool // panic ignores it: a failed probe with an answer, a rate, a streak (2.9)
	Since time.Time
	Cause string    // the evidence: `5 failures in a row`, `probe failed 3 times`
	Last  string    // the last error, as it was seen: `connection reset`
	At    time.Time // when Last was seen
	// Failing is true for an orphan that health has found down, unreachable or ejected: it weighs less than orphaned (2.8), but such a one gets no calls, no more than
	// a listed backend would (1.10).
	Failing bool
	// Observed is true if `eject: observe` keeps the backend in: all but the consequence is as if it were ejected. Such a part never wins.
	Observed bool
	By       Reason    // of Ejected: what found it
	Next     time.Time // next trial or probe, or the end of a mute; zero if none is planned
}

// Usable reports whether new calls go there outside panic.
func (p *Part) Usable() bool { return p.Kind.Usable() && !p.Failing }

// Words is the part as a sentence for a person at time now:
// `ejected: 5 failures in a row, last "connection reset", 12 s ago, trial in 3 s` (2.8).
func (p Part) Words(now time.Time) string {
	clauses := p.evidence(now)
	if p.Last == "" && p.lasts() {
		clauses = append(clauses, "for "+Ago(now.Sub(p.Since)))
	}
	if plan := p.plan(now); plan != "" {
		clauses = append(clauses, plan)
	}
	return p.name() + behind(clauses)
}

// Standing is the part as a sentence for a person at time now who is told elsewhere what is planned: `ejected for 12 s: 5 failures in a row, last "connection reset", 12 s ago`.
func (p Part) Standing(now time.Time) string {
	head, clauses := p.name(), p.evidence(now)
	if p.lasts() || p.Kind == Up && !p.Since.IsZero() {
		head += " for " + Ago(now.Sub(p.Since))
	}
	if plan := p.plan(now); plan != "" && p.Kind == Muted {
		clauses = append(clauses, plan)
	}
	return head + behind(clauses)
}

// Told is the part as a sentence that is read later, beside the time now at which it was told: it has no "ago", and the trial that is planned is a span from then:
// `ejected: 5 failures in a row, last "connection reset", trial after 3 s`.
func (p Part) Told(now time.Time) string {
	past := p
	past.At = time.Time{}
	clauses := past.evidence(now)
	if wait := p.Next.Sub(now); p.Kind == Ejected && wait > 0 {
		clauses = append(clauses, "trial after "+Ago(wait))
	}
	return p.name() + behind(clauses)
}

func (p *Part) name() string {
	if p.Observed {
		return "would be " + p.Kind.String()
	}
	return p.Kind.String()
}

// evidence is the cause, and the last error with its age.
func (p *Part) evidence(now time.Time) []string {
	var clauses []string
	if p.Cause != "" {
		clauses = append(clauses, p.Cause)
	}
	if p.Last != "" {
		clauses = append(clauses, fmt.Sprintf("last %q", p.Last))
		if !p.At.IsZero() {
			clauses = append(clauses, Ago(now.Sub(p.At))+" ago")
		}
	}
	return clauses
}

// lasts reports whether it is worth saying for how long it has been so; the cause of a mute says that itself.
func (p *Part) lasts() bool { return !p.Since.IsZero() && p.Kind != Up && p.Kind != Muted }

// plan is what comes next.
func (p *Part) plan(now time.Time) string {
	if p.Next.IsZero() {
		return ""
	}
	what := "probe"
	switch p.Kind {
	case Ejected:
		what = "trial"
	case Muted:
		what = "ends"
	}
	if wait := p.Next.Sub(now); wait > 0 {
		return what + " in " + Ago(wait)
	}
	return what + " due"
}

func behind(clauses []string) string {
	if len(clauses) == 0 {
		return ""
	}
	return ": " + strings.Join(clauses, ", ")
}

// Ago is d in the words of causes, coarse enough for a person: `340 ms`, `12 s`, `5 min`, `3 h`, `4 d`.
func Ago(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// worst is the part that wins, nil if there is none. parts is in order of precedence.
func worst(parts []Part) *Part {
	var p *Part
	for i := range parts {
		switch {
		case parts[i].Observed:
		case p == nil:
			p = new(parts[i])
		default:
			p.Soft = p.Soft && parts[i].Soft
		}
	}
	return p
}
