//go:build !race

package sim

const (
	seeds  = 3
	racing = false
)
