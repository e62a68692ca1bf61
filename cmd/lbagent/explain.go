package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) explainVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain SERVICE [BACKEND]",
		Short: "why each backend is in or out, since when, and what is next",
		Long: `Says of a service where its list comes from and whether it is what etcd has at this moment; then a
sentence of each backend: why it gets calls or doesn't, since when, and what comes next; then the
numbers behind that. What etcd has is asked for at most once in 5 s of each service.`,
		GroupID:           groupWhy,
		Args:              exactly("SERVICE", "[BACKEND]"),
		ValidArgsFunction: a.completeBackend,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &lbagentv1.ExplainRequest{Service: args[0], EtcdNow: true}
			if len(args) > 1 {
				req.Address = args[1]
			}
			return a.askOrRead(cmd.Context(), args[0], asJSON, func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewStatusServiceClient(c).Explain(ctx, req)
				if err != nil && req.Address != "" {
					err = likeBackend(ctx, c, req, err)
				}
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				a.printExplanation(r)
				return nil
			}, a.printLeftList)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printExplanation(r *lbagentv1.ExplainResponse) {
	s := r.GetService()
	paragraph(a.stdout, "", r.GetSummary())
	how := fmt.Sprintf("policy %s, protocol %s", s.GetPolicy(), s.GetProtocol())
	if listeners := s.GetListeners(); len(listeners) > 0 {
		how += ", listens on " + strings.Join(listeners, " ")
	}
	paragraph(a.stdout, "  ", how)
	if now := r.GetEtcdNow(); now != nil && s.GetProvenance().GetSource() != "static" {
		a.printEtcdNow(now)
	}
	for _, hint := range r.GetHints() {
		paragraph(a.stdout, "  ", "hint: "+hint)
	}
	if len(r.GetBackends()) > 0 {
		fmt.Fprintln(a.stdout)
	}
	for _, b := range r.GetBackends() {
		a.printSentence(b)
	}
	for _, b := range r.GetBackends() {
		fmt.Fprintln(a.stdout)
		a.printBackend(b)
	}
	if n := r.GetBadRecordCount(); n > 0 {
		fmt.Fprintf(a.stdout, "\n%s of the list can't be read:\n", plural(n, "record"))
		t := table{head: []string{"KEY", "REASON"}}
		for _, bad := range r.GetBadRecords() {
			t.add(bad.GetKey(), bad.GetReason())
		}
		t.print(a.stdout)
		if more := int(n) - len(r.GetBadRecords()); more > 0 {
			fmt.Fprintf(a.stdout, "and %d more\n", more)
		}
	}
}

// printEtcdNow writes how the list stands beside etcd at this moment.
func (a *app) printEtcdNow(now *lbagentv1.EtcdNow) {
	if now.GetError() != "" {
		paragraph(a.stdout, "  ", "etcd now: not compared, "+now.GetError())
		return
	}
	words := fmt.Sprintf("etcd now: %s at revision %d", plural(now.GetKeys(), "key"), now.GetRevision())
	if at := ago(a.now(), now.GetAt()); at != "" && at != "0ms" && at != "0s" {
		words += ", " + at + " ago"
	}
	if now.GetMissingCount()+now.GetGoneCount()+now.GetChangedCount() == 0 {
		paragraph(a.stdout, "  ", words+", and the list knows just these")
		return
	}
	paragraph(a.stdout, "  ", fmt.Sprintf("%s; THE LIST DIFFERS, at revision %d (what is on its way is told so for a moment)", words, now.GetListRevision()))
	for _, kind := range []struct {
		what  string
		keys  []string
		count uint32
	}{
		{"in etcd, unknown to the list: ", now.GetMissing(), now.GetMissingCount()},
		{"in the list, gone from etcd: ", now.GetGone(), now.GetGoneCount()},
		{"written again since the list: ", now.GetChanged(), now.GetChangedCount()},
	} {
		if kind.count == 0 {
			continue
		}
		text := strings.Join(kind.keys, ", ")
		if more := int(kind.count) - len(kind.keys); more > 0 {
			text += fmt.Sprintf(", and %d more", more)
		}
		hanging(a.stdout, "    "+kind.what, text)
	}
}

// printSentence writes what is to be known of a backend first: why it is in or out, since when, and what comes next.
func (a *app) printSentence(e *lbagentv1.BackendExplanation) {
	words := e.GetSentence()
	if next := e.GetOutlook().GetWords(); next != "" {
		words += "; next: " + next
	}
	hanging(a.stdout, e.GetBackend().GetAddress()+"  ", words)
}

// printBackend writes the numbers of one backend: every verdict that applies, its weight, what calls have shown, and its record.
func (a *app) printBackend(e *lbagentv1.BackendExplanation) {
	b := e.GetBackend()
	title := b.GetAddress()
	if b.GetHost() != "" {
		title += " (" + b.GetHost() + ")"
	}
	fmt.Fprintln(a.stdout, clean(title))
	for i, p := range e.GetParts() {
		switch {
		case i > 0: // the sentence has said the first
			hanging(a.stdout, "  also ", p.GetWords())
		case p.GetSince() != nil:
			paragraph(a.stdout, "  ", p.GetVerdict()+" since "+p.GetSince().AsTime().In(a.now().Location()).Format(time.DateTime))
		}
	}
	if e.GetSubsetReason() != "" {
		hanging(a.stdout, "  subset: ", strings.ToLower(strings.TrimPrefix(e.GetSubset().String(), "SUBSET_"))+", "+e.GetSubsetReason())
	}
	paragraph(a.stdout, "  ", weightWords(e))
	paragraph(a.stdout, "  ", a.callWords(e))
	a.printOutcomes(e)
	a.printConnections(e.GetConnections())
	if words := recordWords(e); words != "" {
		paragraph(a.stdout, "  ", words)
	}
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
		words += ", " + plural(int(e.GetStreak()), "failure") + " in a row"
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

// printConnections writes how many there are, and how the last ones ended.
func (a *app) printConnections(c *lbagentv1.BackendConnections) {
	if c == nil {
		return
	}
	words := fmt.Sprintf("connections: %d open, %d opened, %d closed", c.GetOpen(), c.GetOpened(), c.GetClosed())
	if c.GetFailed() > 0 {
		words += fmt.Sprintf(", %d could not be made", c.GetFailed())
	}
	paragraph(a.stdout, "  ", words)
	for _, e := range c.GetLastEnded() {
		hanging(a.stdout, "  "+pad(ago(a.now(), e.GetAt())+" ago", 9)+" ", fmt.Sprintf("%s connection, after %s: %s", e.GetProtocol(), fine(e.GetLasted().AsDuration()), e.GetCause()))
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
