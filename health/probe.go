package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// probeKind is what a probe is evidence of.
type probeKind uint8

const (
	probePassed      probeKind = iota
	probeAnswered              // the backend answered, and says that it isn't well: soft evidence (2.9)
	probeUnreachable           // no connection, or no SETTINGS: counts as the unreachable kind too (2.4)
	probeSilent                // connected, but no answer
	probeLocal                 // this host could not probe: no evidence at all (2.3: later, never failed)
)

// outcome is how one probe ended; cause is in words, empty if it passed.
type outcome struct {
	kind    probeKind
	cause   string
	refused bool // the connect was: nobody listens there
	said    bool // by the backend itself, on a stream that was there to say it (2.1): it counts at once
	kept    bool // found on a connection that was there: says nothing about the way for a new one
}

// errClosed says that the peer ended the connection, or said GOAWAY, before its answer: that happens to a connection, not to a backend, so
// that the probe is run once more on a new one (2.1).
type errClosed struct{ cause string }

func (e errClosed) Error() string { return e.cause }

// errLate says that this process had no time for the probe.
var errLate = errors.New("this host was too slow to tell")

// errAnswer is an answer that fails the probe.
type errAnswer struct{ cause string }

func (e errAnswer) Error() string { return e.cause }

// prober runs probes, each on a connection of its own: that the way to a backend is open is half of what a probe has to find out, and nothing is
// kept for backends by the thousand.
type prober struct {
	dialer net.Dialer
}

func newProber() *prober {
	p := &prober{dialer: net.Dialer{KeepAlive: -1}}
	p.dialer.SetMultipathTCP(false)
	return p
}

// probe runs one probe of the backend at addr, within o.Timeout per connection.
func (p *prober) probe(ctx context.Context, o Options, addr netip.AddrPort) outcome {
	if o.Port != 0 {
		addr = netip.AddrPortFrom(addr.Addr(), o.Port)
	}
	err := p.once(ctx, o, addr)
	if _, closed := errors.AsType[errClosed](err); closed {
		err = p.once(ctx, o, addr)
	}
	if ctx.Err() != nil {
		return outcome{kind: probeLocal, cause: "cancelled"}
	}
	return classify(err, o)
}

// once is one attempt. If this process was stopped meanwhile, or had no processor, the time that is over says nothing about the backend (2.3).
func (p *prober) once(ctx context.Context, o Options, addr netip.AddrPort) error {
	begun := time.Now()
	err := p.attempt(ctx, o, addr)
	if isTimeout(err) && time.Since(begun) > o.Timeout+lateMost {
		return errLate
	}
	return err
}

func (p *prober) attempt(ctx context.Context, o Options, addr netip.AddrPort) error {
	deadline := time.Now().Add(o.Timeout)
	dialCtx, cancel := context.WithDeadline(ctx, deadline)
	conn, err := p.dialer.DialContext(dialCtx, "tcp", addr.String())
	cancel()
	if errors.Is(err, syscall.ECONNRESET) {
		return ended(err) // it was accepted first: what refuses a connect says ECONNREFUSED
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	if o.Probe == ProbeTCP && !o.HTTP2 {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	switch o.Probe {
	case ProbeTCP:
		return settingsProbe(conn)
	case ProbeHTTP:
		return httpProbe(conn, addr, o)
	case ProbeGRPC:
		return grpcProbe(conn, addr, o)
	}
	return errAnswer{fmt.Sprintf("probe type %q is unknown", o.Probe)}
}

// classify says what a probe's error is evidence of.
func classify(err error, o Options) outcome {
	if err == nil {
		return outcome{}
	}
	if e, ok := errors.AsType[errAnswer](err); ok {
		return outcome{kind: probeAnswered, cause: e.cause}
	}
	cause := Cause(err)
	op, dialing := errors.AsType[*net.OpError](err)
	dialing = dialing && op.Op == "dial"
	switch {
	case isLocal(err):
		return outcome{kind: probeLocal, cause: cause}
	case dialing:
		return outcome{kind: probeUnreachable, cause: cause, refused: errors.Is(err, syscall.ECONNREFUSED)}
	case o.Probe == ProbeTCP && o.HTTP2: // connected, but no SETTINGS
		if isTimeout(err) {
			cause = "no SETTINGS within " + Ago(o.Timeout)
		}
		return outcome{kind: probeUnreachable, cause: cause}
	case isTimeout(err):
		cause = "no answer within " + Ago(o.Timeout)
	}
	return outcome{kind: probeSilent, cause: cause}
}

// isLocal reports errors that say something about this host only.
func isLocal(err error) bool {
	if errors.Is(err, errLate) {
		return true
	}
	for _, local := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE} {
		if errors.Is(err, local) {
			return true
		}
	}
	return false
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// Cause is a network error in a few words for a person, without addresses: `connection refused`, `no route to host`, `timeout`.
func Cause(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		switch errno {
		case syscall.ECONNRESET:
			return "connection reset"
		case syscall.EPIPE:
			return "connection closed"
		case syscall.ETIMEDOUT:
			return "timeout"
		}
		return errno.Error()
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "connection closed"
	}
	return err.Error()
}

// ended tells the end of a connection from other errors.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errClosed{Cause(err)}
	}
	return err
}

// readError sorts what reading an answer ran into: the end of the connection, a network error, or an answer that makes no sense. overlong is true
// if the reader stopped since it had read enough.
func readError(err error, overlong bool, nonsense string) error {
	if overlong {
		return errAnswer{"answer too long"}
	}
	if closed, ok := errors.AsType[errClosed](ended(err)); ok {
		return closed
	}
	if _, network := errors.AsType[net.Error](err); network {
		return err
	}
	return errAnswer{nonsense}
}
