//go:build race

package sim

// seeds is how many seeds goals are tested with. The race detector makes a run ten times as long, and finds in one what it finds in three: all of it is one goroutine's.
const (
	seeds  = 1
	racing = true
)
