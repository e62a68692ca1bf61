package etcdtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// childVariable holds, in the environment of a process that shall be an etcd, its Config as JSON.
const childVariable = "LBAGENT_ETCDTEST_CHILD"

// Child makes this process the etcd that its parent started it for, and does not return then. Any other process goes on.
func Child() {
	if text := os.Getenv(childVariable); text != "" {
		os.Exit(child(text))
	}
}

func child(text string) int {
	var cfg Config
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		cfg.Process = false
		var s *Server
		if s, err = Run(cfg); err == nil {
			fmt.Println("ready")
			io.Copy(io.Discard, os.Stdin) //nolint:errcheck // until the parent ends
			s.Close()
			return 0
		}
	}
	fmt.Println(err)
	return 1
}

// process is an etcd in a process of its own.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
}

// startProcess runs this program again as an etcd, and returns when that serves.
func startProcess(cfg Config) (*process, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	p := &process{cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a frozen one would not see the end of its input
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends that started the process
		defer runtime.UnlockOSThread()
		defer close(p.ended)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Process.Wait() //nolint:errcheck // it is killed, as a rule
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	timeout := time.AfterFunc(readyWithin, func() { p.cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	defer timeout.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		p.kill()
		return nil, fmt.Errorf("start etcd on %s: it said %q: %w", cfg.Addr, strings.TrimSpace(line), err)
	}
	return p, nil
}

// kill ends the process at once.
func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-p.ended
	p.stdin.Close()
}
