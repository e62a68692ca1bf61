package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Retry is services[].retry (SEMANTICS 4.2).
type Retry struct {
	On            []string // sorted; empty = off
	Max           int      // of one call; 0 = off
	BudgetPercent int      // of the service's calls, beside 3 per second
}

// Reconnect is services[].reconnect (4.10).
type Reconnect struct{ Base, Max time.Duration }

// RetryWords are what retry.on takes: gRPC statuses of an answer without a message, HTTP statuses, and reset: no answer at all. What says that the
// caller was wrong isn't among them, nor that its time is over.
func RetryWords() []string {
	return []string{"unavailable", "resource_exhausted", "aborted", "cancelled", "internal", "unknown", "429", "500", "502", "503", "504", "reset"}
}

func (r *Retry) decode(v value) {
	if v.isOff() {
		r.On = nil
		return
	}
	v.object(keys{
		"on":             r.on,
		"max":            func(v value) { v.integer(&r.Max, 0, 10) },
		"budget_percent": func(v value) { v.integer(&r.BudgetPercent, 1, 100) }, // without a budget there is none: an outage would be doubled
	})
}

func (r *Retry) on(v value) {
	allowed := "allowed: " + strings.Join(RetryWords(), ", ")
	r.On = nil // not those of defaults:
	if v.isOff() {
		return
	}
	v.list("a list is allowed, of: "+strings.Join(RetryWords(), ", "), func(v value) {
		s, ok := v.text(allowed, false)
		switch {
		case !ok:
		case !slices.Contains(RetryWords(), s):
			v.fail(allowed, "%s is unknown%s", v.quote(), didYouMean(s, RetryWords()[:6])) // no status is like another
		case slices.Contains(r.On, s):
			v.fail("once is allowed", "%s is written twice", v.quote())
		default:
			r.On = append(r.On, s)
		}
	})
	slices.Sort(r.On)
}

func (r *Reconnect) decode(v value) {
	found := v.object(keys{
		"base": func(v value) { v.duration(&r.Base, false, 10*time.Millisecond, time.Minute) },
		"max":  func(v value) { v.duration(&r.Max, false, 10*time.Millisecond, time.Hour) },
	})
	checkRange(v, found, r.Base, r.Max)
}

// checkRange refuses a base above its max, at the key that says so.
func checkRange(v value, found map[string]value, base, most time.Duration) {
	if most >= base {
		return
	}
	for _, k := range []string{"base", "max"} {
		if c, ok := found[k]; ok {
			v = c
		}
	}
	v.fail(fmt.Sprintf("max (%s) of at least base (%s) is allowed", short(most), short(base)), "base is longer than max")
}
