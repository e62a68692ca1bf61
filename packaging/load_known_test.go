package packaging

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lbagent/lbagent/agent/service"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// known is what callers of the API are told of every service, without what passes with time.
func (s *story) known(t *testing.T) string {
	t.Helper()
	var services lbagentv1.ServicesResponse
	s.told(t, "lbagent services --json", &services)
	slices.SortFunc(services.Services, func(a, b *lbagentv1.ServiceInfo) int { return cmp.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, info := range services.Services {
		var list lbagentv1.ListResponse
		s.told(t, "lbagent list --json "+info.GetName(), &list)
		slices.SortFunc(list.Backends, func(a, b *lbagentv1.Backend) int { return cmp.Compare(a.Address, b.Address) })
		slices.Sort(info.Listeners)
		source := list.GetProvenance().GetSource()
		if source == string(service.FromSpool) { // the list of etcd that the process before wrote down, until etcd confirms it
			source = string(service.FromEtcd)
		}
		fmt.Fprintf(&b, "%s: %s, at %v, from %s, epoch %d\n", info.GetName(), info.GetOrigin(), info.GetListeners(), source, list.GetProvenance().GetEpoch())
		for _, one := range list.GetBackends() {
			weight := "any weight" // of one that is out it moves with each failed probe and call (3.3), and begins anew with a process
			if one.GetUsable() {
				weight = fmt.Sprint("weight ", one.GetWeight())
			}
			fmt.Fprintf(&b, "  %s %s, %s, usable %v\n", one.GetAddress(), one.GetVerdict(), weight, one.GetUsable())
		}
	}
	return b.String()
}

// unchanged complains if what was known is another thing now. Calls that fail move a weight, and it takes a minute to be whole again (3.3): that is none of the upgrade's where the
// machine is busy, nor where one was on its way already.
func (s *story) unchanged(t *testing.T, what, was, is string, seen report) {
	t.Helper()
	if !seen.fair() {
		return
	}
	if loadPerCore(t) > quiet || !whole(was) {
		was, is = weightless(was), weightless(is)
	}
	if was != is {
		t.Errorf("%s: what is known became\n%s\nand was\n%s", what, is, was)
	}
}

// whole reports whether each usable backend has all its weight.
func whole(known string) bool {
	return strings.Count(known, ", weight 100, usable true") == strings.Count(known, ", usable true")
}

func weightless(known string) string {
	return regexp.MustCompile(`weight [0-9.e-]+`).ReplaceAllString(known, "any weight")
}

func TestWeightless(t *testing.T) {
	const moved, moves = "  a up, weight 100, usable true\n  b up, weight 30.5, usable true\n  c down, any weight, usable false\n", "  a up, weight 1e-05, usable true\n  b up, weight 31, usable true\n  c down, any weight, usable false\n"
	if whole(moved) || whole(moves) || !whole("  a up, weight 100, usable true\n  c down, any weight, usable false\n") || weightless(moved) != weightless(moves) {
		t.Error(weightless(moved), weightless(moves))
	}
}

func (s *story) told(t *testing.T, command string, answer proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal([]byte(s.m.run(t, command)), answer); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}

// registered: etcd has what it had before, no key was gone meanwhile or written anew, and they hang on the same lease, which the process of now keeps alive (5.3).
func (s *story) registered(t *testing.T, before registry) {
	t.Helper()
	var got registry
	eventually(t, "the lease is kept alive", func() error {
		got = s.registry(t)
		passed := int64(got.at.Sub(before.at).Seconds())
		for key, was := range before.Keys {
			if is := got.Keys[key]; is.Left <= was.Left-passed+1 {
				return fmt.Errorf("%s has %d s left, and had %d %d s ago", key, is.Left, was.Left, passed)
			}
		}
		return nil
	})
	for key, was := range before.Keys {
		is := got.Keys[key]
		if is.Left = was.Left; is != was {
			t.Errorf("%s is %+v, and was %+v", key, is, was)
		}
	}
	if got.Gone != before.Gone {
		t.Errorf("%d keys were gone", got.Gone-before.Gone)
	}
}
