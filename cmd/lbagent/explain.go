package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// printBackend writes what is known of one backend: the sentence first, then every verdict that applies and what comes next, then the numbers, then its record.
func (a *app) printBackend(e *lbagentv1.BackendExplanation) {
	b := e.GetBackend()
	title := b.GetAddress()
	if b.GetHost() != "" {
		title += " (" + b.GetHost() + ")"
	}
	fmt.Fprintln(a.stdout, clean(title))
	paragraph(a.stdout, "  ", e.GetSentence())
	for i, p := range e.GetParts() {
		switch {
		case i > 0: // the sentence has said the first
			hanging(a.stdout, "  also ", p.GetWords()+a.since(p.GetSince(), " (since ", ")"))
		case p.GetSince() != nil:
			paragraph(a.stdout, "  ", a.since(p.GetSince(), p.GetVerdict()+" since ", ""))
		}
	}
	if words := e.GetOutlook().GetWords(); words != "" {
		hanging(a.stdout, "  next: ", words)
	}
	if e.GetSubsetReason() != "" {
		hanging(a.stdout, "  subset: ", strings.ToLower(strings.TrimPrefix(e.GetSubset().String(), "SUBSET_"))+", "+e.GetSubsetReason())
	}
	paragraph(a.stdout, "  ", weightWords(e))
	paragraph(a.stdout, "  ", a.callWords(e))
	a.printOutcomes(e)
	if words := recordWords(e); words != "" {
		paragraph(a.stdout, "  ", words)
	}
}

// since is a time and how long ago it was; empty if there is none.
func (a *app) since(t *timestamppb.Timestamp, before, after string) string {
	if t == nil {
		return ""
	}
	return before + t.AsTime().In(a.now().Location()).Format(time.DateTime) + ", for " + ago(a.now(), t) + after
}

// weightWords is the effective weight with each factor, those that change nothing too, and what else picks go by.
func weightWords(e *lbagentv1.BackendExplanation) string {
	words := fmt.Sprintf("weight %s (static %d", number(e.GetBackend().GetWeight()), e.GetStaticWeight())
	if f := e.GetWeightFactors(); f != nil {
		words += fmt.Sprintf(" x dynamic %.3g x slow start %.3g x zone %.3g x load %.3g", f.GetDynamic(), f.GetSlowStart(), f.GetZone(), f.GetLoad())
	}
	words += ")"
	if l := e.GetLatencyFactor(); l > 1 {
		words += fmt.Sprintf(", picked %.1f x less for its latency", l)
	}
	if e.GetPenalty() >= 0.1 {
		words += fmt.Sprintf(", penalty %.1f", e.GetPenalty())
	}
	return words
}

// callWords is what calls have shown.
func (a *app) callWords(e *lbagentv1.BackendExplanation) string {
	words := fmt.Sprintf("%d outstanding, %d succeeded, %d failed", e.GetOutstanding(), e.GetSuccesses(), e.GetFailures())
	if e.SuccessPercent != nil {
		words += fmt.Sprintf(", %.3g %% of %.3g in the last 10 s succeeded", e.GetSuccessPercent(), e.GetRecentCalls())
	}
	if l := e.GetLatency().AsDuration(); l > 0 {
		words += ", latency " + fine(l)
	}
	if e.GetStreak() > 0 {
		words += fmt.Sprintf(", %d failures in a row", e.GetStreak())
	}
	if t := e.GetLastSuccessAt(); t != nil {
		words += ", last success " + ago(a.now(), t) + " ago"
	}
	return words
}

// printOutcomes writes the last outcomes that were no success, or of an agent that doesn't tell them the last failure.
func (a *app) printOutcomes(e *lbagentv1.BackendExplanation) {
	if len(e.GetLastOutcomes()) == 0 && e.GetLastFailure() != "" {
		paragraph(a.stdout, "  ", fmt.Sprintf("last failure %s ago: %s", ago(a.now(), e.GetLastFailureAt()), e.GetLastFailure()))
	}
	for _, o := range e.GetLastOutcomes() {
		words := strings.ReplaceAll(o.GetResult(), "_", " ")
		if o.GetCause() != "" {
			words += ": " + o.GetCause()
		}
		if o.GetLatency() != nil {
			words += ", after " + fine(o.GetLatency().AsDuration())
		}
		if o.GetCount() > 1 {
			words += fmt.Sprintf(", %d calls", o.GetCount())
		}
		if o.GetReported() && !strings.HasPrefix(o.GetCause(), "reported") {
			words += ", reported"
		}
		hanging(a.stdout, "  "+pad(ago(a.now(), o.GetAt())+" ago", 9)+" ", words)
	}
}

// recordWords is what the list says of it.
func recordWords(e *lbagentv1.BackendExplanation) string {
	var parts []string
	if e.GetKey() != "" {
		key := "key " + e.GetKey()
		if e.GetRevision() > 0 {
			key += fmt.Sprintf(" at revision %d", e.GetRevision())
		}
		parts = append(parts, key)
	}
	if e.GetTier() != 0 {
		parts = append(parts, fmt.Sprintf("tier %d", e.GetTier()))
	}
	b := e.GetBackend()
	for _, place := range []struct{ name, is string }{{"zone", b.GetZone()}, {"region", b.GetRegion()}} {
		if place.is != "" {
			parts = append(parts, place.name+" "+place.is)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b.GetMetadata())) {
		parts = append(parts, k+"="+b.GetMetadata()[k])
	}
	return strings.Join(parts, ", ")
}
