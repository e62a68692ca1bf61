package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"
)

// A small fleet, all kinds of authentication: every figure is there. What they are is not judged.
func TestFleet(t *testing.T) {
	binaries.once.Do(func() { binaries.build(context.Background()) })
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries.lbbench, "fleet", "--hosts", "5", "--services", "10", "--follows", "3", "--keys", "50",
		"--changes", "50", "--duration", "1s", "--bcrypt-cost", "4", "--json")
	var progress bytes.Buffer
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	var all []fleetResult
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(all) != 3 {
		t.Fatalf("%d kinds of authentication", len(all))
	}
	for _, r := range all {
		if r.StartMs <= 0 || r.StartCPU <= 0 || r.StartDials < 5 || r.Changes < 10 || r.EachMs.P50 <= 0 || r.LastMs.Max < r.LastMs.P50 || r.ChurnCPU <= 0 || r.HostsCPU <= 0 ||
			r.DownMs <= 0 || r.CurrentMs.P50 <= 0 || r.RestartCPU <= 0 || r.HostKiB == 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestFleetUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--hosts", "0"}, {"--hosts", "6001"}, {"--auth", "kerberos"}, {"--follows", "501"}, {"--keys", "1"}, {"--changes", "0"}, {"--duration", "1ms"}, {"--bcrypt-cost", "3"}, {"h2"},
	} {
		var out, errs bytes.Buffer
		if code := run(append([]string{"fleet"}, args...), &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%v: exit %d, %q", args, code, errs.String())
		}
	}
}
