package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// maxUnlike is how many letters may be wrong in a word for another one to be meant by it: a third of it, at least one, at most three.
func maxUnlike(word string) int { return min(max(1, len(word)/3), 3) }

// like are the words that may be meant by one that isn't among them, the likeliest first, at most three.
func like(word string, all []string) []string {
	type candidate struct {
		word     string
		distance int
	}
	var found []candidate
	low := strings.ToLower(word)
	for _, w := range all {
		d := distance(low, strings.ToLower(w))
		if strings.HasPrefix(strings.ToLower(w), low) && len(word) >= 3 {
			d = min(d, 1)
		}
		if d <= maxUnlike(word) {
			found = append(found, candidate{w, d})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var out []string
	for _, f := range found[:min(3, len(found))] {
		out = append(out, f.word)
	}
	return out
}

// didYouMean is the end of a sentence about a word that nobody knows; empty if there is none like it.
func didYouMean(word string, all []string) string {
	found := like(word, all)
	if len(found) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(found, " or ") + "?"
}

// distance is how many letters have to be inserted, deleted, replaced, or swapped with their neighbours to make b of a (optimal string alignment).
func distance(a, b string) int {
	before, last, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(last[j]+1, next[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, last, next = last, next, before
	}
	return last[len(b)]
}

// likeServices adds to the answer that there is no such service the names of those that may be meant.
func likeServices(ctx context.Context, c *agentConn, err error) error {
	st, ok := status.FromError(err)
	name := details(st).GetMetadata()["service"]
	if err == nil || !ok || reason(st) != "SERVICE_UNKNOWN" || name == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	r, rerr := lbagentv1.NewLookupServiceClient(c).Services(ctx, &lbagentv1.ServicesRequest{})
	var names []string
	for _, s := range r.GetServices() {
		if s.GetName() == name {
			return err // it's something of that service that there isn't
		}
		names = append(names, s.GetName())
	}
	if rerr != nil {
		return err
	}
	return &codedError{exitNone, errors.New(st.Message() + didYouMean(name, names))}
}

// likeBackend does the same for a backend of a service.
func likeBackend(ctx context.Context, c *agentConn, req *lbagentv1.ExplainRequest, err error) error {
	st, ok := status.FromError(err)
	if !ok || reason(st) != "SERVICE_UNKNOWN" {
		return err
	}
	r, rerr := lbagentv1.NewStatusServiceClient(c).Explain(ctx, &lbagentv1.ExplainRequest{Service: req.GetService()})
	if rerr != nil {
		return err
	}
	var addresses []string
	for _, b := range r.GetBackends() {
		addresses = append(addresses, b.GetBackend().GetAddress())
	}
	return &codedError{exitNone, errors.New(st.Message() + didYouMean(req.GetAddress(), addresses))}
}

// likeFlags does the same for flags.
func likeFlags(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
	}
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, "--"+f.Name)
		}
	})
	return fmt.Errorf("%w%s", err, didYouMean("--"+unknown.GetSpecifiedName(), flags))
}
