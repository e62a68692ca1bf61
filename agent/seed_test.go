package agent

import "testing"

// A host's subsets are the same over restarts, and another's even if it is a copy with one machine-id (3.9).
func TestHostSeed(t *testing.T) {
	if hostSeed("web-1") != hostSeed("web-1") {
		t.Error("the same host has two")
	}
	if hostSeed("web-1") == hostSeed("web-2") {
		t.Error("two hosts with one machine-id have the same")
	}
}
