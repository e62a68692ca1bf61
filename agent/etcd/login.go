package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// loginTimeout bounds a login. etcd computes for 50 ms over each password, so after its restart the last of a thousand hosts waits for most of a minute; whoever gave up
// before and came again would have etcd compute twice. A member that hangs is found sooner, by the keepalive, and one without a leader says so.
const loginTimeout = 2 * time.Minute

// errLoggingIn says that a call did not come to be made.
var errLoggingIn = errors.New("no answer yet")

// login is who we are to etcd: the token of a user, which all calls carry. clientv3 could do it, too, but it logs in anew for each stream, and for each of the calls that
// find the token expired, all at once. Here there is one login at a time, for all who wait, and its token serves the clients that come after, too: while all hosts
// log in etcd answers slowly, and who gave up waiting must not make it slower. Safe for concurrent use.
type login struct {
	name         string
	passwordFile string // read at each login (1.4)

	mu      sync.Mutex
	token   string   // empty before the first login, and if etcd wants none
	running *attempt // nil if no login is under way
	looked  time.Time
}

// attempt is one login.
type attempt struct {
	done chan struct{} // closed when it is over
	err  error
}

// GetRequestMetadata is what each call carries.
func (l *login) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if token := l.current(); token != "" && ctx.Value(nobody{}) == nil {
		return map[string]string{rpctypes.TokenFieldNameGRPC: token}, nil
	}
	return nil, nil
}

// RequireTransportSecurity: etcd itself lets passwords and tokens go in clear text, and says so in its documentation.
func (l *login) RequireTransportSecurity() bool { return false }

func (l *login) current() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.token
}

// call logs in again if a call finds its token expired, and makes it once more.
func (l *login) call(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == pb.Auth_Authenticate_FullMethodName {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	token := l.current()
	once, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := time.AfterFunc(staleAfter, func() {
		if l.isStale(once, cc, token) {
			cancel(errStale)
		}
	})
	err := invoke(once, method, req, reply, cc, opts...)
	look.Stop()
	if err == nil || !isExpired(rpctypes.Error(err)) && !errors.Is(context.Cause(once), errStale) {
		return err
	}
	if err := l.renew(ctx, cc, token); err != nil {
		return err
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// isExpired reports whether err says that etcd has forgotten who we are.
func isExpired(err error) bool {
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) || errors.Is(err, rpctypes.ErrUserEmpty)
}

// first returns when there is a token; a client before this one may have left it.
func (l *login) first(ctx context.Context, cc *grpc.ClientConn) error {
	if l.current() != "" {
		return nil
	}
	return l.renew(ctx, cc, "")
}

// forget has the next client log in anew; nil is nobody.
func (l *login) forget() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.token = ""
}

// renew returns when there is another token than old. It waits until ctx ends at most; the login goes on, for those who come later.
func (l *login) renew(ctx context.Context, cc *grpc.ClientConn, old string) error {
	l.mu.Lock()
	if l.token != old {
		l.mu.Unlock()
		return nil
	}
	a := l.running
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		l.running = a
		go l.run(a, cc)
	}
	l.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("log in to etcd as %s: %w: %w", l.name, errLoggingIn, ctx.Err())
	}
}

func (l *login) run(a *attempt, cc *grpc.ClientConn) {
	token, err := l.authenticate(cc)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.token = token
	}
	a.err, l.running = err, nil
	close(a.done)
}

// authenticate asks for a token; none is wanted if authentication is off. It ends with the client that cc is of.
func (l *login) authenticate(cc *grpc.ClientConn) (string, error) {
	password, err := os.ReadFile(l.passwordFile)
	if err != nil {
		return "", fmt.Errorf("read the password of etcd user %s: %w", l.name, err)
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(context.Background()), loginTimeout)
	defer cancel()
	r, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: l.name, Password: strings.TrimRight(string(password), "\r\n")}, grpc.WaitForReady(true))
	switch err = rpctypes.Error(err); {
	case errors.Is(err, rpctypes.ErrAuthNotEnabled):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("log in to etcd as %s: %w", l.name, err)
	}
	return r.Token, nil
}
