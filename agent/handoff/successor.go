package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// handoffFD is where a successor finds its link, which the variable says.
const (
	handoffVar = "LBAGENT_HANDOFF"
	handoffFD  = 3
)

// Successor is the process that is to follow this one (SEMANTICS 6.3).
type Successor struct {
	PID int

	process *os.Process
	link    *link
}

// StartSuccessor starts binary. Its parent is this process's own, as for a service manager each process of a service is its child; so nobody here waits for it. It gets the
// environment of this process, but for what is this process's alone.
func StartSuccessor(binary string, args []string) (*Successor, error) {
	if os.Getpid() == 1 {
		return nil, errors.New("process 1 can't be followed by another one: restart the container instead")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "handoff")
	defer theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	l, err := newLink(os.NewFile(uintptr(pair[0]), "handoff"))
	if err != nil {
		return nil, err
	}
	env := []string{fmt.Sprintf("%s=%d", handoffVar, handoffFD)}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case handoffVar, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID": // without WATCHDOG_PID, the watchdog is for whoever is there
		default:
			env = append(env, v)
		}
	}
	process, err := os.StartProcess(binary, append([]string{binary}, args...), &os.ProcAttr{
		Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT},
	})
	if err != nil {
		l.close()
		return nil, err
	}
	return &Successor{PID: process.Pid, process: process, link: l}, nil
}

// Kill ends a successor that failed.
func (s *Successor) Kill() {
	_ = s.process.Kill() // it may have ended by itself
	s.link.close()
}

// Prepare gives it all that it needs, and returns its release once it is ready, or why it isn't by the end of ctx.
func (s *Successor) Prepare(ctx context.Context, release string, sockets []Listener, offer any) (string, error) {
	raw, err := json.Marshal(offer)
	if err != nil {
		return "", fmt.Errorf("write down what is known: %w", err)
	}
	defer s.within(ctx)()
	for len(sockets) > 0 {
		part := sockets[:min(len(sockets), mostFDsMsg)]
		sockets = sockets[len(part):]
		m := message{Step: stepListeners}
		var fds []int
		for _, l := range part {
			m.Names, fds = append(m.Names, l.Addr), append(fds, l.FD)
		}
		if err := s.link.send(m, fds...); err != nil {
			return "", s.explain(err)
		}
	}
	if err := s.link.send(message{Step: stepOffer, Release: release, Offer: raw}); err != nil {
		return "", s.explain(err)
	}
	m, err := s.link.want(stepReady)
	return m.Release, s.explain(err)
}

// Go has it serve, and returns once it does.
func (s *Successor) Go(ctx context.Context) error {
	defer s.within(ctx)()
	if err := s.link.send(message{Step: stepGo}); err != nil {
		return s.explain(err)
	}
	_, err := s.link.want(stepServing)
	return s.explain(err)
}

// Main tells it that it is the agent now. The link stays open for as long as this process lives: its end tells the successor that nothing drains any more.
func (s *Successor) Main() error {
	_ = s.process.Release()
	return s.link.send(message{Step: stepMain})
}

// within bounds what follows by ctx.
func (s *Successor) within(ctx context.Context) (done func()) {
	stop := context.AfterFunc(ctx, func() { s.link.deadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// explain says what an error of the link means.
func (s *Successor) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it (pid %d) was not ready in time", s.PID)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("it (pid %d) ended before it was ready; the log says why", s.PID)
	}
	return err
}

// Predecessor is the process that this one is to follow; nil if there is none.
type Predecessor struct {
	Release string

	offer json.RawMessage
	link  *link
}

// inheritFrom takes what a predecessor gives, if there is one.
func inheritFrom(s *Sockets) (*Predecessor, error) {
	if os.Getenv(handoffVar) == "" {
		return nil, nil
	}
	_ = os.Unsetenv(handoffVar)
	unix.CloseOnExec(handoffFD)
	if err := unix.SetNonblock(handoffFD, true); err != nil {
		return nil, fmt.Errorf("open the handoff: %w", err)
	}
	l, err := newLink(os.NewFile(handoffFD, "handoff"))
	if err != nil {
		return nil, err
	}
	p := &Predecessor{link: l}
	for {
		m, fds, err := l.receive()
		if err != nil {
			l.close()
			return nil, fmt.Errorf("take over from the agent before: %w", err)
		}
		for i, name := range m.Names {
			err = errors.Join(err, s.takeFrom(name, fds[i]))
		}
		if err != nil {
			p.Failed(err)
			return nil, fmt.Errorf("take over from the agent before: %w", err)
		}
		if m.Step == stepOffer {
			p.Release, p.offer = m.Release, m.Offer
			return p, nil
		}
	}
}

// takeFrom keeps a descriptor of the predecessor, by its address, or by its name if it is the API's or the record of starts.
func (s *Sockets) takeFrom(name string, fd int) error {
	s.again = true
	switch name {
	case API, Admin, startsName:
		return s.take(name, fd)
	}
	s.stored[fdName(name)] = struct{}{}
	return s.take(fdName(name), fd)
}

// Offer reads what the predecessor knows into v.
func (p *Predecessor) Offer(v any) error { return json.Unmarshal(p.offer, v) }

// Failed tells the predecessor why it has to go on.
func (p *Predecessor) Failed(err error) {
	_ = p.link.send(message{Step: stepFailed, Error: err.Error()})
	p.link.close()
}

// Ready says that this process could serve, and returns once it shall.
func (p *Predecessor) Ready(ctx context.Context, release string) error {
	return p.step(ctx, message{Step: stepReady, Release: release}, stepGo)
}

// Serving says that this process serves, and returns once the predecessor no longer does.
func (p *Predecessor) Serving(ctx context.Context) error {
	return p.step(ctx, message{Step: stepServing}, stepMain)
}

func (p *Predecessor) step(ctx context.Context, m message, next string) error {
	stop := context.AfterFunc(ctx, func() { p.link.deadline(time.Unix(1, 0)) })
	defer stop()
	if err := p.link.send(m); err != nil {
		return err
	}
	_, err := p.link.want(next)
	return err
}

// Ended returns when the predecessor has ended, or ctx has.
func (p *Predecessor) Ended(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { p.link.deadline(time.Unix(1, 0)) })
	defer stop()
	defer p.link.close()
	_, _ = io.Copy(io.Discard, onlyReader{p.link.conn})
}

// onlyReader keeps io.Copy from moving bytes in other ways.
type onlyReader struct{ net.Conn }
