package config

import (
	"strings"
	"testing"
)

// TestWarnings: each listener that other hosts can reach is told, and no other.
func TestWarnings(t *testing.T) {
	for listen, want := range map[string]bool{`""`: false, `"127.0.0.1:9900"`: false, `"127.0.0.2:9900"`: false, `"[::1]:9900"`: false, `":9900"`: true, `"0.0.0.0:9900"`: true, `"10.0.0.1:9900"`: true, `"[::]:9900"`: true} {
		got := mustParse(t, "api: {listen: "+listen+"}\n").Warnings()
		if (len(got) == 1 && strings.HasPrefix(got[0], "api.listen: "+strings.Trim(listen, `"`)+" is open to other hosts")) != want || len(got) > 1 {
			t.Errorf("%s: %q", listen, got)
		}
	}
	got := mustParse(t, "services: [{name: a, backends: [\"10.0.0.1:80\"], listen: [7001, \"10.0.0.9:7001\", \"unix:/run/a.sock\"]}]\n").Warnings()
	if len(got) != 1 || !strings.Contains(got[0], "services[a].listen: 10.0.0.9:7001 is open") {
		t.Errorf("%q", got)
	}
}
