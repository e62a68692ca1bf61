package packaging

import (
	"os"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/config"
)

// The DaemonSet's configuration is valid, and what only the agent's administrators may use stays inside its pod.
func TestDaemonSet(t *testing.T) {
	raw, err := os.ReadFile("examples/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(raw), "lbagent.yaml: |\n")
	text, workload, more := strings.Cut(rest, "---\n")
	if !found || !more {
		t.Fatal("no lbagent.yaml in it")
	}
	t.Setenv("NODE_NAME", "node-1")
	c, err := config.Parse("daemonset.yaml", []byte(strings.ReplaceAll(text, "\n    ", "\n")[4:]))
	if err != nil || c.Node.Name != "node-1" || len(c.Services) != 1 || len(c.Warnings()) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if strings.Contains(workload, "hostPath: {path: /run/lbagent-admin") || !strings.Contains(workload, "hostPath: {path: /run/lbagent,") {
		t.Error("the open socket's folder is the node's, that of the admin socket is the pod's")
	}
}
