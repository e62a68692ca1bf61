package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is where a run took place: figures of different machines don't compare.
type machine struct {
	CPUs       int      `json:"cpus"`
	Kernel     string   `json:"kernel"`
	Programs   []string `json:"programs"`
	LoadBefore string   `json:"load_average_before"`
	LoadAfter  string   `json:"load_average_after"`
}

func describeMachine(ctx context.Context, o options) machine {
	m := machine{CPUs: runtime.NumCPU(), Kernel: runtime.GOOS, Programs: []string{runtime.Version()}, LoadBefore: loadAverage()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	for _, p := range []struct{ flag, name, ask string }{{o.haproxy, haproxy, "-v"}, {o.nginx, nginx, "-v"}, {"", "h2load", "--version"}} {
		path, err := program(p.flag, p.name, p.name)
		if err != nil {
			continue
		}
		if out, err := exec.CommandContext(ctx, path, p.ask).CombinedOutput(); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			m.Programs = append(m.Programs, strings.TrimSpace(line))
		}
	}
	return m
}

// loadAverage is how busy the machine is, over 1, 5 and 15 minutes.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg") // empty says that it isn't known
	fields := strings.Fields(string(b))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

func (m machine) String() string {
	return fmt.Sprintf("%d CPUs, %s, load average %s before, %s after\n%s", m.CPUs, m.Kernel, m.LoadBefore, m.LoadAfter, strings.Join(m.Programs, "; "))
}
