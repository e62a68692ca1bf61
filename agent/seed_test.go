package agent

import "testing"

// A host's subsets are the same over restarts, and another's even if it is a copy with one machine-id (3.9).
func TestHostSeed(t *testing.T) {
	one := hostSeed("web-1")
	if again := hostSeed("web-1"); again != one {
		t.Errorf("the same host has %x, then %x", one, again)
	}
	if one == hostSeed("web-2") {
		t.Error("two hosts with one machine-id have the same")
	}
}
