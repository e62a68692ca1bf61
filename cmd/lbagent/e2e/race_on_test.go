//go:build race

package e2e

// raced says whether the agent under test is built with the race detector: as these tests are.
const raced = true
