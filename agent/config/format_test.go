package config

import (
	"slices"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/format"
)

// What the file may name is what discovery can read.
func TestFormatsAreThoseOfDiscovery(t *testing.T) {
	if got, want := formats(), format.Names(); !slices.Equal(got, want) {
		t.Errorf("the configuration knows %q, discovery reads %q", got, want)
	}
}
