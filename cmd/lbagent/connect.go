package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	// reloadTimeout bounds a reload, which binds listeners.
	reloadTimeout = 30 * time.Second
	// completionTimeout bounds what pressing Tab costs.
	completionTimeout = time.Second
	// maxAnswer bounds an answer: 10,000 backends with their metadata.
	maxAnswer = 64 << 20
)

// agentConn is a connection to the running agent by one of its sockets.
type agentConn struct {
	*grpc.ClientConn
	socket string
	admin  bool
}

// ask connects to the socket that everybody may use and calls f, whose errors it explains.
func (a *app) ask(ctx context.Context, f func(context.Context, *agentConn) error) error {
	return a.dial(ctx, a.socket, false, f)
}

// change connects to the socket for administrators and calls f, whose errors it explains.
func (a *app) change(ctx context.Context, f func(context.Context, *agentConn) error) error {
	return a.dial(ctx, a.adminSocket, true, f)
}

// dial connects before grpc does, so that an absent agent is told from a failing one by the kernel's own error.
func (a *app) dial(ctx context.Context, socket string, admin bool, f func(context.Context, *agentConn) error) error {
	dialCtx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	first, err := new(net.Dialer).DialContext(dialCtx, "unix", socket)
	if err != nil {
		return notConnected(socket, admin, err)
	}
	var used atomic.Bool
	cc, err := grpc.NewClient("passthrough:///lbagent",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if used.CompareAndSwap(false, true) {
				return first, nil
			}
			if a.lasts { // another connection may be to another agent, which has to be noticed
				return nil, errAway
			}
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		first.Close()
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	defer first.Close() // if grpc never asked for it
	defer cc.Close()
	c := &agentConn{ClientConn: cc, socket: socket, admin: admin}
	return explained(socket, likeServices(ctx, c, f(ctx, c)))
}

// notConnected says what a person can do about a socket that can't be reached.
func notConnected(socket string, admin bool, err error) error {
	elsewhere := "If it listens elsewhere, say where by --socket PATH or LBAGENT_SOCKET."
	if admin {
		elsewhere = "If it listens elsewhere, say where by --admin-socket PATH or LBAGENT_ADMIN_SOCKET."
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &absentError{advise(fmt.Sprintf("no agent is running here: there is no socket %s", socket),
			`Start it with "systemctl start lbagent", or by hand with "lbagent run --config FILE".`, elsewhere)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &absentError{advise(fmt.Sprintf("no agent answers on %s: it has stopped, or it crashed", socket),
			`"systemctl status lbagent" and "journalctl -u lbagent" say why; "systemctl start lbagent" starts it.`, elsewhere)}
	case errors.Is(err, fs.ErrPermission) && admin:
		group := groupOf(socket)
		return advise(fmt.Sprintf("permission denied on %s: only root and the group %s may change the agent", socket, group),
			fmt.Sprintf(`Use sudo, or join the group with "usermod -aG %s $USER" and log in again.`, group))
	case errors.Is(err, fs.ErrPermission):
		return advise(fmt.Sprintf("permission denied on %s, although every local user may ask the agent", socket),
			"Its mode should be 0666, in a directory with mode 0755.")
	case errors.Is(err, context.DeadlineExceeded):
		return notAnswering(socket)
	}
	return fmt.Errorf("connect to the agent: %w", err)
}

func notAnswering(socket string) error {
	return &absentError{advise(fmt.Sprintf("the agent on %s does not answer", socket), `"systemctl status lbagent" and "journalctl -u lbagent" say what it is doing.`)}
}

// absentError says that there is no agent, or none that answers.
type absentError struct{ err error }

func (e *absentError) Error() string { return e.err.Error() }
func (e *absentError) Unwrap() error { return e.err }

// advised is an error with what a person can do about it, in sentences of their own.
type advised struct {
	what   string
	advice []string
}

func advise(what string, advice ...string) error { return &advised{what, advice} }

func (e *advised) Error() string { return e.what + "\n" + strings.Join(e.advice, "\n") }

// groupOf names the group that may use socket: the socket's own, or its directory's if the socket can't be seen.
func groupOf(socket string) string {
	const packaged = "lbagent"
	for _, path := range []string{socket, filepath.Dir(socket)} {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Gid == 0 {
			continue
		}
		gid := strconv.FormatUint(uint64(st.Gid), 10)
		if g, err := user.LookupGroupId(gid); err == nil {
			return g.Name
		}
		return gid
	}
	return packaged
}

// explained turns an RPC's error into a sentence and an exit code.
func explained(socket string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*codedError](err); ok {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	sentence := errors.New(st.Message())
	switch reason(st) {
	case "SERVICE_UNKNOWN", "NO_USABLE_BACKEND", "NOT_READY", "NOT_REGISTERED":
		return &codedError{exitNone, sentence}
	case "INVALID":
		return &codedError{exitUsage, sentence}
	case "":
	default:
		return sentence // the agent's own words
	}
	switch st.Code() {
	case codes.NotFound:
		return &codedError{exitNone, sentence}
	case codes.DeadlineExceeded:
		return notAnswering(socket)
	case codes.Unavailable: // in a crash loop the kernel takes connections that nobody will serve
		return &absentError{advise(fmt.Sprintf("the agent on %s went away: it stops, restarts or crashes", socket),
			`"systemctl status lbagent" and "journalctl -u lbagent" say which; if it is a restart, ask again.`)}
	case codes.Unimplemented:
		return fmt.Errorf("the agent on %s is of another release and can't do this: %s", socket, st.Message())
	}
	return sentence
}

// reason is the agent's word for what went wrong, "" if the error isn't the agent's.
func reason(st *status.Status) string { return details(st).GetReason() }

// details are the agent's own about an error; nil if it isn't the agent's.
func details(st *status.Status) *errdetails.ErrorInfo {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "lbagent" {
			return info
		}
	}
	return nil
}

// completeService completes the name of a service when Tab is pressed.
func (a *app) completeService(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	_ = a.ask(ctx, func(ctx context.Context, c *agentConn) error { // without an agent there is nothing to complete
		r, err := lbagentv1.NewLookupServiceClient(c).Services(ctx, &lbagentv1.ServicesRequest{})
		for _, s := range r.GetServices() {
			names = append(names, s.GetName())
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
