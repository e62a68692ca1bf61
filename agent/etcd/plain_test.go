package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What etcd's client and grpc say when etcd is refused, stopped, frozen or not trusted, and what a person reads.
func TestPlain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("keep the lease alive: %w", status.Error(codes.Unavailable, "keepalive ping failed to receive ACK within timeout")), "keep the lease alive: no answer to a keepalive"},
		{final(status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "graceful_stop"`)),
			"the stream broke: etcd ended the connection"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 10.1.1.1:2379: connect: connection refused"`), "dial tcp 10.1.1.1:2379: connect: connection refused"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of \"x509: ECDSA\")"`),
			`tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of "x509: ECDSA")`},
		{status.Error(codes.Unavailable, `error reading from server: read tcp 10.0.0.1:1->10.1.1.1:2379: read: connection reset by peer`), "read tcp 10.0.0.1:1->10.1.1.1:2379: read: connection reset by peer"},
		{fmt.Errorf("http://etcd-1:2379: %w", context.DeadlineExceeded), "http://etcd-1:2379: no answer in time"},
		{fmt.Errorf("mute fleet-wide: %w", rpctypes.ErrUserEmpty), "mute fleet-wide: etcd wants to know who asks, and no user is configured (etcd.username)"},
		{rpctypes.ErrPermissionDenied, "etcdserver: permission denied"},
		{errors.New("rpc error: code = Unavailable"), "rpc error: code = Unavailable"},
		{errors.New(`connection error: desc = "torn`), `connection error: desc = "torn`},
		{errors.New("the file ends: GEOF"), "the file ends: GEOF"},
	} {
		got := Plain(c.err)
		if got.Error() != c.want {
			t.Errorf("%q is said as\n%q, want\n%q", c.err, got, c.want)
		}
		if !errors.Is(got, c.err) {
			t.Errorf("%q is hidden", c.err)
		}
	}
	if Plain(nil) != nil {
		t.Error("nothing is something")
	}
}

func FuzzPlain(f *testing.F) {
	f.Add(`rpc error: code = Unavailable desc = connection error: desc = "transport: \"x\"", received prior goaway: EOF`)
	f.Fuzz(func(t *testing.T, text string) {
		if got := plainText(text); strings.Contains(got, "rpc error: code = ") && strings.Contains(got[strings.Index(got, "rpc error: code = "):], " desc = ") {
			t.Errorf("%q is said as %q", text, got)
		}
	})
}
