//go:build race

package sim

// Under the race detector goals are tested with one seed, and only a few.
const (
	seeds  = 1
	racing = true
)
