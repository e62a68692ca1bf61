package agent

import (
	"os"

	"github.com/cespare/xxhash/v2"
)

// hostSeed is what this host's subsets depend on (3.9): the same over restarts and reinstallations of the agent, another on each host, also where hosts are copies
// that were made with one machine-id.
func hostSeed(node string) uint64 {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		id = nil // a container may have none: its name will do
	}
	return xxhash.Sum64String(string(id) + "\x00" + node)
}
