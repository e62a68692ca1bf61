package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// child is one real process of the demo.
type child struct {
	name string
	pid  int
	gone chan struct{} // closed when the process has been reaped: its sockets are closed by then
	read chan struct{} // closed when all that it wrote to stdout has been seen
}

// spawn starts argv with stdout going to onLine, line by line, and stderr to a file in dir. The kernel kills the child if this process dies, and a Ctrl-C in
// the terminal reaches only the demo (own process group), which then ends its children in order.
func spawn(dir, name string, onLine func(string), argv ...string) (*child, error) {
	errors, err := os.OpenFile(logFile(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer errors.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer w.Close()

	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = w, errors
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, pid: cmd.Process.Pid, gone: make(chan struct{}), read: make(chan struct{})}
	go func() {
		defer close(c.read)
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			onLine(lines.Text())
		}
	}()
	go func() {
		_ = cmd.Wait() // how it ended is in its log; that it ended is what counts
		close(c.gone)
	}()
	return c, nil
}

func logFile(dir, name string) string { return filepath.Join(dir, name+".log") }

// alive reports whether the process has not been reaped.
func (c *child) alive() bool {
	if c == nil {
		return false
	}
	select {
	case <-c.gone:
		return false
	default:
		return true
	}
}

// signal sends sig; nothing if the process is gone.
func (c *child) signal(sig syscall.Signal) {
	if c.alive() {
		_ = syscall.Kill(c.pid, sig)
	}
}

// stop ends the process with SIGTERM, after grace with SIGKILL, and returns when it is gone.
func (c *child) stop(grace time.Duration) {
	if !c.alive() {
		return
	}
	c.signal(syscall.SIGTERM)
	select {
	case <-c.gone:
	case <-time.After(grace):
		c.signal(syscall.SIGKILL)
		<-c.gone
	}
}

// until polls cond every 20 ms and returns nil once it holds, an error that names what after limit, or when ctx ends.
func until(ctx context.Context, limit time.Duration, what string, cond func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s: not within %v", what, limit))
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for !cond() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
