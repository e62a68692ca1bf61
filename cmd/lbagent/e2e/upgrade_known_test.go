package e2e

import (
	"fmt"
	"strings"
	"testing"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// What happened to weights goes over at an upgrade (3.3, 3.7, 6.3): a cut, and a slow start; also of a service that has no listener and is used by the API only.
func TestUpgradeKeepsWeights(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 4 {
		addr, _ := httpBackend(t, fmt.Sprint("b", i))
		all = append(all, addr)
	}
	port := freePort(t)
	services := func(n int) string {
		list := `"` + strings.Join(all[:n], `", "`) + `"`
		return fmt.Sprintf("- {name: web, protocol: http1, backends: [%[1]s], listen: [%[2]d], slow_start: 1h, eject: off}\n"+
			"- {name: asked, backends: [%[1]s], slow_start: 1h, eject: off}", list, port)
	}
	a := newAgent(t, services(3))
	a.install(testVersion, "")
	a.under(t)
	a.start()
	weights := func(service string) map[string]float64 {
		t.Helper()
		list, err := a.lookup().List(t.Context(), &lbagentv1.ListRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, b := range list.GetBackends() {
			out[b.GetAddress()] = float64(b.GetWeight())
		}
		return out
	}
	cut := func(w map[string]float64) bool { return w[all[0]] < w[all[1]]*0.7 }
	slow := func(w map[string]float64) bool { return len(w) == 4 && w[all[3]] < w[all[1]]*0.2 }

	names := []string{"web", "asked"}
	for _, name := range names {
		weights(name) // it is in use from now on
	}
	a.services = services(4)
	a.writeConfig()
	if _, stderr, code := a.cli("reload"); code != 0 {
		t.Fatal(stderr)
	}
	for _, name := range names {
		poll(t, name+": one is cut, and one begins slowly", func() bool {
			failed := &lbagentv1.Outcome{Service: name, Address: all[0], Result: lbagentv1.Result_RESULT_APPLICATION_ERROR, Count: 20}
			if _, err := a.lookup().Report(t.Context(), &lbagentv1.ReportRequest{Outcomes: []*lbagentv1.Outcome{failed}}); err != nil {
				t.Fatal(err)
			}
			w := weights(name)
			return w[all[0]] < w[all[1]]*0.1 && slow(w)
		})
	}
	a.install(nextVersion, "")
	<-a.upgrade()
	a.wantVersion(nextVersion)
	for _, name := range names {
		if w := weights(name); !cut(w) || !slow(w) {
			t.Errorf("%s: %v after the upgrade; %s was cut, %s began slowly", name, w, all[0], all[3])
		}
	}
}
