package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startsWithin bounds how long a program may take until it accepts: an etcd on a loaded machine takes seconds.
	startsWithin = 20 * time.Second
	// endsWithin is how long a program may take to end after SIGTERM: lbagent drains for 5 s.
	endsWithin = 7 * time.Second
)

// process is a running program.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	output *strings.Builder // stderr, and stdout unless it is piped; read after exited only
}

// startProcess starts argv and waits until it accepts at listen, "unix:PATH" or HOST:PORT.
func startProcess(ctx context.Context, listen string, env []string, argv ...string) (*process, error) {
	p := newProcess(exec.CommandContext(ctx, argv[0], argv[1:]...))
	p.cmd.Stdout = p.output
	if err := p.start(env); err != nil {
		return nil, err
	}
	if err := p.accepts(ctx, listen); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func newProcess(cmd *exec.Cmd) *process {
	p := &process{cmd: cmd, exited: make(chan struct{}), output: &strings.Builder{}}
	cmd.Stderr = p.output
	return p
}

func (p *process) start(env []string) error {
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.cmd.Path, err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code of a process that was told to end says nothing
		close(p.exited)
	}()
	return nil
}

// accepts returns nil once somebody accepts at listen, an error if the process ends before or takes too long.
func (p *process) accepts(ctx context.Context, listen string) error {
	network, addr := "tcp", listen
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		network, addr = "unix", path
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(startsWithin)
	for {
		if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr); err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended before it listened on %s: %s", p.cmd.Path, listen, p.output.String())
		case <-deadline:
			return fmt.Errorf("%s does not listen on %s after %v", p.cmd.Path, listen, startsWithin)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(endsWithin):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// cpu is the user and system time that all threads of the process have used. It is the sum that /proc/PID/stat shows in ticks of 10 ms, in nanoseconds: the
// process's CPU clock, which any process may read (clock_getcpuclockid(3)). nil is no process, which uses none.
func (p *process) cpu() (time.Duration, error) {
	if p == nil {
		return 0, nil
	}
	return cpuOf(p.cmd.Process.Pid)
}

func cpuOf(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED: what the scheduler has counted
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// rss is the memory of the process that is in RAM, in bytes (proc(5), VmRSS).
func (p *process) rss() (int64, error) {
	return field(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "VmRSS:")
}

// field reads a line "NAME  NUMBER kB" of a file in /proc, in bytes.
func field(path, name string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %s %w", path, name, err)
			}
			return n << 10, nil
		}
	}
	return 0, errors.New(path + " has no line " + name)
}

// program finds a program by flag or PATH; Debian keeps daemons out of an ordinary user's PATH.
func program(flag, name, debianPackage string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("no program %s; Debian has it in the package %s", name, debianPackage)
}

// freePort is a loopback address that nobody listens on now, below the ports that the kernel takes for outgoing connections, of which a benchmark makes many.
func freePort() (addr string, err error) {
	for range 100 {
		addr = fmt.Sprintf("127.0.0.1:%d", 30000+rand.IntN(2000))
		var l net.Listener
		if l, err = net.Listen("tcp4", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", fmt.Errorf("find a free port: %w", err)
}
