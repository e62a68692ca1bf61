package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// Config is how to reach etcd.
type Config struct {
	Endpoints    []string
	Username     string
	PasswordFile string // read again for each new client (1.4)
	CAFile       string // this and the next two are read again for each connection
	CertFile     string
	KeyFile      string
	ServerName   string

	login *login               // that the clients of one Links share; nil = Dial makes one
	lost  func() time.Duration // for how long there has been no answer of etcd; nil = not known
}

// newLogin is the login of the user that e names; nil if it names none.
func (e *Config) newLogin() *login {
	if e.Username == "" || e.PasswordFile == "" {
		return nil
	}
	return newLogin(e.Username, e.PasswordFile)
}

// equal reports whether o says the same.
func (e *Config) equal(o *Config) bool {
	if e == nil || o == nil {
		return e == o
	}
	return slices.Equal(e.Endpoints, o.Endpoints) && e.Username == o.Username && e.PasswordFile == o.PasswordFile &&
		e.CAFile == o.CAFile && e.CertFile == o.CertFile && e.KeyFile == o.KeyFile && e.ServerName == o.ServerName
}

// clone is a copy with a login of its c.
func (e *Config) clone() *Config {
	if e == nil {
		return nil
	}
	c := *e
	c.Endpoints, c.login = slices.Clone(e.Endpoints), e.newLogin()
	return &c
}

// Client is what discovery asks of etcd. These few methods are faked where time matters; the real ones are tested against a real etcd.
//
// A prefix ends in /; what doesn't is one key (SEMANTICS 1.2).
type Client interface {
	// Ready returns when there is a connection.
	Ready(ctx context.Context) error
	// Page reads the keys of prefix that are not below from, in order, at most limit, at revision rev; rev 0 is a linearizable read of now.
	Page(ctx context.Context, prefix, from string, rev int64, limit int) (*clientv3.GetResponse, error)
	// Newest reads, linearizable, how many keys prefix has and the one that was written last.
	Newest(ctx context.Context, prefix string) (*clientv3.GetResponse, error)
	// Watch returns what happens to prefix from revision rev on; first comes a response with Created. A broken stream ends it: it does not resume.
	Watch(ctx context.Context, prefix string, rev int64) <-chan Response
	// Heard is when the last response came on any watch; zero if none did.
	Heard() time.Time
	// LeaseLives says whether a lease is neither expired nor revoked.
	LeaseLives(ctx context.Context, lease int64) (bool, error)
	// Progress asks for a response on each watch. Its error says that there is no connection.
	Progress(ctx context.Context) error
	// Elsewhere leaves the endpoint that is connected for another one, if there is one.
	Elsewhere()
	// Everywhere lets all endpoints be tried again.
	Everywhere()
	// Raw is the client itself, for those who write; nil in a fake.
	Raw() *clientv3.Client
	Close()
}

// How the real client talks to etcd (SEMANTICS 1.3).
const (
	KeepaliveTime    = 10 * time.Second
	KeepaliveTimeout = 5 * time.Second
	dialTimeout      = 5 * time.Second
	maxMessage       = 64 << 20 // of an answer; a larger page is read in smaller ones
)

// reconnect is grpc's pace of dialing one endpoint: with a jitter of 1 a wait is uniform from 0 to twice the delay, so at most 200 ms at first and 1.5 s later. That is
// for as long as an outage is short: see pace.
func reconnect() grpcbackoff.Config {
	return grpcbackoff.Config{BaseDelay: MinBackoff, Multiplier: 2, Jitter: 1, MaxDelay: 750 * time.Millisecond}
}

// pickFirst has one connection, to the first endpoint that answers in an order of chance: an endpoint that is dead, or accepts and says nothing, holds up nobody
// for more than 250 ms, and a fleet spreads over the members. clientv3's own round robin asks all endpoints in turn: of a member that hangs, every third call
// would wait until keepalive finds out.
const pickFirst = `{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}`

// etcdClient is the real client: one connection, one stream for all watches.
type etcdClient struct {
	c       *clientv3.Client
	watches *watches
	all     []string // endpoints
	where   *where
	own     *login // nil if it shares one, or there is no user
}

// newConfig is what every client of e has in common.
func newConfig(ctx context.Context, e Config, at *where, failed func(error)) clientv3.Config {
	return clientv3.Config{
		Endpoints:            e.Endpoints,
		Context:              ctx,
		DialKeepAliveTime:    KeepaliveTime,
		DialKeepAliveTimeout: KeepaliveTimeout,
		MaxCallRecvMsgSize:   maxMessage,
		MaxUnaryRetries:      3, // longer waits are ours to make
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect(), MinConnectTimeout: dialTimeout}),
			grpc.WithIdleTimeout(0),
			grpc.WithDisableServiceConfig(),
			grpc.WithDefaultServiceConfig(pickFirst),
			grpc.WithContextDialer(dialer(e, at, failed)),
			grpc.WithTransportCredentials(newHandshaker(e, at, failed)),
		},
	}
}

// Dial returns a client of e. With a user it logs in, which needs a connection. failed is told why an endpoint could not be reached, for a person to read.
func Dial(ctx context.Context, e Config, failed func(error)) (Client, error) {
	at := &where{}
	c := &etcdClient{all: e.Endpoints, where: at}
	cfg := newConfig(ctx, e, at, failed)
	who := e.login
	if who == nil {
		who = e.newLogin()
		c.own = who
	}
	door := func(ctx context.Context) (*clientv3.Client, error) {
		patient := newConfig(ctx, e, &where{}, failed)
		patient.DialKeepAliveTimeout = loginKeepalive
		return clientv3.New(patient)
	}
	if who != nil {
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithContextDialer(who.dialer(dialer(e, at, failed))), grpc.WithPerRPCCredentials(who),
			grpc.WithChainUnaryInterceptor(who.caller(door)), grpc.WithChainStreamInterceptor(who.streamer(door)))
	}
	var err error
	if c.c, err = clientv3.New(cfg); err != nil {
		c.own.close()
		return nil, fmt.Errorf("make a client of etcd: %w", err)
	}
	c.watches = newWatches(c.c)
	if who != nil {
		if err := who.first(ctx, door); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// Wrap is c as a Client, which stays with the endpoints of c.
func Wrap(c *clientv3.Client) Client {
	return &etcdClient{c: c, watches: newWatches(c), all: c.Endpoints(), where: &where{}}
}

// dialer dials TCP and unix sockets, at the pace that the outage of e allows.
func dialer(e Config, at *where, failed func(error)) func(context.Context, string) (net.Conn, error) {
	p := &pace{lost: e.lost}
	return func(ctx context.Context, addr string) (net.Conn, error) {
		network, endpoint := "tcp", addr
		if err := p.due(endpoint, time.Now()); err != nil {
			return nil, err
		}
		if path, ok := strings.CutPrefix(addr, "unix:"); ok {
			network, addr = "unix", strings.TrimPrefix(path, "//")
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			if ctx.Err() == nil {
				failed(err)
				p.failed(endpoint, err)
			}
			return nil, err
		}
		at.dial(endpoint, conn)
		return conn, nil
	}
}

func (e *etcdClient) Ready(ctx context.Context) error {
	conn := e.c.ActiveConnection()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Idle:
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, state) {
			return context.Cause(ctx)
		}
	}
}

// rangeEnd is the first key after those that prefix means.
func rangeEnd(prefix string) string {
	if strings.HasSuffix(prefix, "/") {
		return clientv3.GetPrefixRangeEnd(prefix)
	}
	return prefix + "\x00"
}

func (e *etcdClient) Page(ctx context.Context, prefix, from string, rev int64, limit int) (*clientv3.GetResponse, error) {
	return e.c.Get(ctx, from, clientv3.WithRange(rangeEnd(prefix)), clientv3.WithRev(rev), clientv3.WithLimit(int64(limit)))
}

func (e *etcdClient) Newest(ctx context.Context, prefix string) (*clientv3.GetResponse, error) {
	return e.c.Get(ctx, prefix, clientv3.WithRange(rangeEnd(prefix)), clientv3.WithLimit(1), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
}

// Watch: see watches.
func (e *etcdClient) Watch(ctx context.Context, prefix string, rev int64) <-chan Response {
	return e.watches.watch(ctx, prefix, rangeEnd(prefix), rev)
}

func (e *etcdClient) Progress(context.Context) error {
	if s := e.c.ActiveConnection().GetState(); s != connectivity.Ready {
		return fmt.Errorf("no connection to etcd: %s", stateWords(s))
	}
	e.watches.progress() // a stream that is stuck shows by its silence (1.3)
	return nil
}

// stateWords is why there is no connection, as far as gRPC tells.
func stateWords(s connectivity.State) string {
	switch s {
	case connectivity.Idle:
		return "the last one was ended"
	case connectivity.Connecting:
		return "one is being made"
	case connectivity.TransientFailure:
		return "none could be made"
	}
	return "it is closed"
}

func (e *etcdClient) LeaseLives(ctx context.Context, lease int64) (bool, error) {
	r, err := e.c.TimeToLive(ctx, clientv3.LeaseID(lease))
	if err != nil {
		return false, err
	}
	return r.TTL > 0, nil
}

// Elsewhere: see Client. The token stays good: all members know it.
func (e *etcdClient) Elsewhere() {
	now := e.where.connected()
	others := slices.DeleteFunc(slices.Clone(e.all), func(endpoint string) bool { return now != "" && strings.HasSuffix(endpoint, now) })
	if len(others) > 0 && len(others) < len(e.all) {
		e.c.SetEndpoints(others...)
	}
}

func (e *etcdClient) Everywhere() {
	if len(e.c.Endpoints()) < len(e.all) {
		e.c.SetEndpoints(e.all...)
	}
}

// Raw: see Client.
func (e *etcdClient) Raw() *clientv3.Client { return e.c }

func (e *etcdClient) Close() {
	e.own.close()
	e.c.Close()
	e.watches.close()
}

func (e *etcdClient) Heard() time.Time {
	if at := e.watches.heard.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

const brokenStream = "the stream broke: "

// final makes of an error that says that the stream broke, by its code, one that says so in words.
func final(err error) error {
	if c := status.Code(err); c == codes.Unavailable || c == codes.Internal {
		return errors.New(brokenStream + status.Convert(err).Message())
	}
	return err
}

// IsAuth reports whether err says that who we are is not, or no longer, known: a new client logs in again, with the password as it is now (1.4).
func IsAuth(err error) bool {
	for _, e := range []error{rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty, rpctypes.ErrAuthFailed, rpctypes.ErrUserNotFound} {
		if errors.Is(err, e) {
			return true
		}
	}
	return status.Code(err) == codes.Unauthenticated
}

// isHung reports whether err says that no answer came in time, although there is a connection. Other than a member that stands still it may be the token: one of
// before etcd was restored from a backup is not refused, but waits for the log to reach the place where it was given out.
func isHung(err error) bool {
	if errors.Is(err, errLoggingIn) {
		return false // etcd may have a thousand of them to do; this one goes on
	}
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// isRefusal reports whether err says that the member that was asked can't serve now: it has no leader, say. Another one may.
func isRefusal(err error) bool {
	if err == nil {
		return false
	}
	e, ok := errors.AsType[rpctypes.EtcdError](err)
	return ok && e.Code() == codes.Unavailable || strings.Contains(err.Error(), brokenStream+"etcdserver: ")
}

// IsDenied reports whether err is about one prefix only.
func IsDenied(err error) bool {
	return errors.Is(err, rpctypes.ErrPermissionDenied) || status.Code(err) == codes.PermissionDenied
}

// IsTooLarge reports whether an answer was larger than maxMessage; grpc has no better sign of it than its text.
func IsTooLarge(err error) bool {
	return err != nil && strings.Contains(err.Error(), "received message larger than max")
}
