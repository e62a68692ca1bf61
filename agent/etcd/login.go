package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// How a login is made. etcd computes for 50 to 100 ms over each password, over all that it was given at once, so after its restart all of a thousand hosts wait for a
// minute or two, and its answers to keepalives are late by many seconds meanwhile. Whoever gives up and comes again has etcd compute twice, which was found to never end.
const (
	loginTimeout   = 10 * time.Minute
	loginKeepalive = time.Minute     // more than KeepaliveTimeout, which would end each connection in that time; a member that hangs during a login is found by it
	loginBackoff   = 5 * time.Minute // the longest wait after logins whose connection was lost: fewer at once are what a busy etcd can do
)

// errLoggingIn says that a call did not come to be made.
var errLoggingIn = errors.New("no answer yet")

// login is who we are to etcd: the token of a user, which all calls carry. clientv3 could do it, too, but it logs in anew for each stream, and for each of the calls that
// find the token expired, all at once. Here there is one login at a time, for all who wait, and its token serves the clients that come after, too: while all hosts
// log in etcd answers slowly, and who gave up waiting must not make it slower. Safe for concurrent use.
type login struct {
	name         string
	passwordFile string // read at each login (1.4)

	// Logins outlive the client that they were begun for: it may be given up while etcd is busy with them.
	ctx context.Context
	end context.CancelFunc

	mu      sync.Mutex
	token   string        // empty before the first login, and if etcd wants none
	running *attempt      // nil if no login is under way
	lost    Backoff       // after logins that etcd was too busy for
	next    time.Time     // no login before
	good    time.Time     // when a call with the token had its answer last
	looking bool          // somebody finds out whether it is stale
	looked  time.Time     // and found it good
	dials   int           // connections so far: each may lead to another life of etcd, of which an earlier look tells nothing
	another chan struct{} // closed when there is another token; nil = nobody waits for that
}

// attempt is one login.
type attempt struct {
	done chan struct{} // closed when it is over
	err  error
}

// door opens the connection of one login, apart from that of everything else: see loginKeepalive. It lives as long as ctx.
type door func(ctx context.Context) (*clientv3.Client, error)

// newLogin is the login of a user, until close.
func newLogin(name, passwordFile string) *login {
	l := &login{name: name, passwordFile: passwordFile}
	l.ctx, l.end = context.WithCancel(context.Background())
	return l
}

// close ends a login under way; nil is nobody.
func (l *login) close() {
	if l != nil {
		l.end()
	}
}

// GetRequestMetadata is what each call carries.
func (l *login) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	nobody, _ := ctx.Value(looking{}).(bool)
	if token := l.current(); token != "" && !nobody {
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

// dialer is dial, noting each connection that is made.
func (l *login) dialer(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := dial(ctx, addr)
		if err == nil {
			l.mu.Lock()
			l.dials++
			l.looked = time.Time{}
			l.mu.Unlock()
		}
		return conn, err
	}
}

// caller returns what logs in again if a call finds its token expired, and makes it once more.
func (l *login) caller(d door) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if ctx.Value(looking{}) != nil {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		return l.call(ctx, d, cc, func(ctx context.Context) error { return invoke(ctx, method, req, reply, cc, opts...) })
	}
}

func (l *login) call(ctx context.Context, d door, cc *grpc.ClientConn, invoke func(context.Context) error) error {
	token, began := l.current(), time.Now()
	once, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := time.AfterFunc(staleAfter, func() {
		if l.awaitStale(once, cc, token, began) {
			cancel(errStale)
		}
	})
	err := invoke(once)
	look.Stop()
	if err == nil {
		l.wasGood(token)
		return nil
	}
	if !isExpired(rpctypes.Error(err)) && !errors.Is(context.Cause(once), errStale) {
		return err
	}
	if err := l.renew(ctx, d, token); err != nil {
		return err
	}
	return invoke(ctx)
}

// isExpired reports whether err says that etcd has forgotten who we are.
func isExpired(err error) bool {
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) || errors.Is(err, rpctypes.ErrUserEmpty)
}

// first returns when there is a token; a client before this one may have left it.
func (l *login) first(ctx context.Context, d door) error {
	if l.current() != "" {
		return nil
	}
	return l.renew(ctx, d, "")
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
func (l *login) renew(ctx context.Context, d door, old string) error {
	l.mu.Lock()
	if l.token != old {
		l.mu.Unlock()
		return nil
	}
	a := l.running
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		l.running = a
		go l.run(a, d, time.Until(l.next))
	}
	l.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("log in to etcd as %s: %w: %w", l.name, errLoggingIn, ctx.Err())
	}
}

func (l *login) run(a *attempt, d door, wait time.Duration) {
	Sleep(l.ctx, wait, nil)
	token, err := l.authenticate(d)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.token = token
		if l.another != nil {
			close(l.another)
			l.another = nil
		}
	}
	l.pace(time.Now(), err)
	a.err, l.running = err, nil
	close(a.done)
}

// pace decides when the next login may begin, after one that ended with err. One that etcd said nothing of, or took too long for, was too much.
func (l *login) pace(now time.Time, err error) {
	_, says := errors.AsType[rpctypes.EtcdError](err)
	if busy := errors.Is(err, rpctypes.ErrTimeout) || status.Code(err) == codes.Unavailable && !says; !busy {
		l.lost, l.next = Backoff{}, time.Time{}
		return
	}
	l.lost.max = loginBackoff
	l.next = now.Add(l.lost.Next())
}

// authenticate asks for a token; none is wanted if authentication is off.
func (l *login) authenticate(d door) (string, error) {
	password, err := os.ReadFile(l.passwordFile)
	if err != nil {
		return "", fmt.Errorf("read the password of etcd user %s: %w", l.name, err)
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(l.ctx), loginTimeout)
	defer cancel()
	c, err := d(ctx)
	if err != nil {
		return "", fmt.Errorf("make a client of etcd to log in: %w", err)
	}
	defer c.Close()
	r, err := pb.NewAuthClient(c.ActiveConnection()).Authenticate(ctx, &pb.AuthenticateRequest{Name: l.name, Password: strings.TrimRight(string(password), "\r\n")}, grpc.WaitForReady(true))
	switch err = rpctypes.Error(err); {
	case errors.Is(err, rpctypes.ErrAuthNotEnabled):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("log in to etcd as %s: %w", l.name, err)
	}
	return r.Token, nil
}
