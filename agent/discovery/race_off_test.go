//go:build !race

package discovery

// raced says whether the tests are built with the race detector, under which large figures take long.
const raced = false
