package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// TestHardening: by systemd's own count the service is exposed to 2.0 of 10 at most, also with a port below 1024.
func TestHardening(t *testing.T) {
	analyze := testneed.Program(t, "systemd-analyze", "systemd")
	unit := read(t, "../systemd/lbagent.service")
	for name, text := range map[string]string{
		"as installed":   unit,
		"with low ports": unit + read(t, "../systemd/low-ports.conf"),
	} {
		path := filepath.Join(t.TempDir(), "lbagent.service")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if strings.Contains(string(out), "Unknown key") || strings.Contains(string(out), "Failed to parse") {
			t.Errorf("%s:\n%s", name, out)
		}
	}
}

// TestUnitDirectives: the units say nothing that systemd 249, the oldest that we promise, doesn't know, and none of what is known to harm.
func TestUnitDirectives(t *testing.T) {
	known := map[string][]string{
		"Unit": strings.Fields("Description Documentation After Wants StartLimitIntervalSec StartLimitBurst StopPropagatedFrom PartOf StopWhenUnneeded DefaultDependencies"),
		"Service": strings.Fields(`Type NotifyAccess User Group EnvironmentFile ExecStart ExecStop RemainAfterExit SupplementaryGroups ExecReload Restart RestartSec TimeoutStartSec TimeoutStopSec
			WatchdogSec FileDescriptorStoreMax LimitNOFILE OOMScoreAdjust StateDirectory StateDirectoryMode LogsDirectory LogsDirectoryMode UMask CapabilityBoundingSet AmbientCapabilities
			NoNewPrivileges ProtectSystem ReadWritePaths ProtectHome ProtectProc PrivateDevices ProtectClock ProtectControlGroups ProtectHostname ProtectKernelLogs
			ProtectKernelModules ProtectKernelTunables LockPersonality MemoryDenyWriteExecute RemoveIPC RestrictAddressFamilies RestrictNamespaces
			RestrictRealtime RestrictSUIDSGID SystemCallArchitectures SystemCallFilter SystemCallErrorNumber`),
		"Socket":  strings.Fields("ListenStream FileDescriptorName Service SocketMode SocketUser SocketGroup Backlog TriggerLimitIntervalSec"),
		"Timer":   strings.Fields("OnCalendar AccuracySec Unit"),
		"Install": strings.Fields("WantedBy Also"),
	}
	// A backlog of 128; a socket that a stop removes; callers without uids.
	harmful := []string{"ProcSubset", "RuntimeDirectory", "PrivateUsers", "PrivateTmp"}
	units, err := filepath.Glob("../systemd/*.*")
	if err != nil || len(units) < 3 {
		t.Fatal(units, err)
	}
	for _, unit := range units {
		section := ""
		for line := range strings.Lines(read(t, unit)) {
			line = strings.TrimSpace(line)
			key, _, assigns := strings.Cut(line, "=")
			switch {
			case strings.HasPrefix(line, "["):
				section = strings.Trim(line, "[]")
			case strings.HasPrefix(line, "#") || !assigns || section == "": // sysusers.d and tmpfiles.d have no sections
			case slices.Contains(harmful, key) || !slices.Contains(known[section], key):
				t.Errorf("%s: [%s] %s", unit, section, line)
			}
		}
	}
}
