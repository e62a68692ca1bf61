// Package client is the Go client of lbagent's local API: picks without a round trip each, watches, reports, and a grpc resolver for `lbagent:///service` (see
// NewResolverBuilder). While the agent is away it uses the lists that the agent left on disk, so that a restart is not seen by callers.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// DefaultSocket is where the packaged agent listens.
const DefaultSocket = "/run/lbagent/lbagent.sock"

// ErrClosed is what a closed Client or Watch returns.
var ErrClosed = errors.New("lbagent client: closed")

// Config says how to reach the agent. The zero value is the packaged agent.
type Config struct {
	// Socket is the agent's open socket; "" = DefaultSocket.
	Socket string
	// ListsDir is where the agent leaves its lists; "" = lists/ beside the socket.
	ListsDir string
	// MaxBatch bounds the picks asked for at once, 100 by default; 1 = ask for each pick. A larger batch costs fewer round trips and is spent by older knowledge,
	// at most 10 s. A client that picks seldom asks for few whatever this says.
	MaxBatch uint32
}

// Client talks to one agent, over one connection. Safe for concurrent use; one per process is enough.
type Client struct {
	cfg    Config
	conn   *grpc.ClientConn
	lookup lbagentv1.LookupServiceClient

	patience time.Duration // answerWithin, but in tests

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // watch goroutines

	mu sync.Mutex

	closed  bool
	watches map[string]*feed
	batches map[string]*batch
}

// answerWithin is how long a healthy agent may take: it answers from memory, and waits at most 1 s for a first list. After it the client falls back.
const answerWithin = 2 * time.Second

// New returns a Client. It doesn't connect before the first call, and the agent need not be there.
func New(cfg Config) (*Client, error) {
	if cfg.Socket == "" {
		cfg.Socket = DefaultSocket
	}
	if cfg.ListsDir == "" {
		cfg.ListsDir = filepath.Join(filepath.Dir(cfg.Socket), "lists")
	}
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 100
	}
	dialer := &net.Dialer{}
	conn, err := grpc.NewClient("passthrough:///lbagent",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", cfg.Socket)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket's file rights say who the agent is
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: answerWithin,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("lbagent client: %w", err)
	}
	c := &Client{
		cfg:     cfg,
		conn:    conn,
		lookup:  lbagentv1.NewLookupServiceClient(conn),
		watches: map[string]*feed{},
		batches: map[string]*batch{},

		patience: answerWithin,
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends every watch and the connection, and waits for the client's goroutines.
func (c *Client) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.cancel()
	err := c.conn.Close()
	c.wg.Wait()
	return err
}

// Lookup is the bare API, for what has no method here. Calls on it fall back to nothing.
func (c *Client) Lookup() lbagentv1.LookupServiceClient { return c.lookup }

// reportChunk keeps a request below the agent's 64 KiB whatever the names.
const reportChunk = 48 << 10

// Report tells the agent how calls went. Outcomes about backends that the agent doesn't know are counted and otherwise ignored.
func (c *Client) Report(ctx context.Context, outcomes ...*lbagentv1.Outcome) (unknown int, err error) {
	for len(outcomes) > 0 {
		n, size := 0, 0
		for n < len(outcomes) && n < 1000 {
			if size += proto.Size(outcomes[n]) + 4; size > reportChunk && n > 0 {
				break
			}
			n++
		}
		resp, err := c.lookup.Report(ctx, &lbagentv1.ReportRequest{Outcomes: outcomes[:n]})
		if err != nil {
			return unknown, err
		}
		unknown += int(resp.Unknown)
		outcomes = outcomes[n:]
	}
	return unknown, nil
}

// Reason is the reason of an answer of the agent, such as SERVICE_UNKNOWN or NO_USABLE_BACKEND; "" if err is none of the agent's.
func Reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == "lbagent" {
			return info.Reason
		}
	}
	return ""
}

// away reports whether err means that no agent answered, so that the lists on disk are what is known.
func away(err error) bool {
	switch reason := Reason(err); {
	case reason == "STOPPING", reason == "NOT_READY":
		return true
	case reason != "":
		return false
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}
