package localapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// gatewayConn marks the in-memory connection: only there is a caller's identity read from metadata.
type gatewayConn struct{ net.Conn }

type gatewayListener struct{ *bufconn.Listener }

// Accept marks what it accepts.
func (l gatewayListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, net.ErrClosed // bufconn has only this reason
	}
	return gatewayConn{c}, nil
}

// dialGateway returns the gateway's one connection to the gRPC server.
func (s *Server) dialGateway(mem *bufconn.Listener) (*grpc.ClientConn, error) {
	cc, err := grpc.NewClient("passthrough:///lbagent",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return mem.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithIdleTimeout(0),
		// This end is the agent as well: what a caller of the JSON face leaves unread would be here, up to the 16 MiB that windows grow to by measured bandwidth.
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connWindow),
	)
	if err != nil {
		return nil, fmt.Errorf("local api: gateway: %w", err)
	}
	return cc, nil
}

type httpConnKey struct{}

// httpServer returns the JSON face. No header of a request becomes metadata; who called comes from the connection.
func (s *Server) httpServer(cc *grpc.ClientConn) (*http.Server, error) {
	nothing := func(string) (string, bool) { return "", false }
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, jsonMarshaler()),
		runtime.WithIncomingHeaderMatcher(nothing),
		runtime.WithOutgoingHeaderMatcher(nothing),
		runtime.WithOutgoingTrailerMatcher(nothing),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
		runtime.WithErrorHandler(writeError),
		runtime.WithMetadata(func(ctx context.Context, _ *http.Request) metadata.MD {
			c := connOf(ctx)
			if c == nil {
				return nil // refused as unknown
			}
			return metadata.Pairs(peerKey, c.peer.String())
		}),
	)
	ctx := context.Background()
	if err := errors.Join(
		lbagentv1.RegisterLookupServiceHandler(ctx, mux, cc),
		lbagentv1.RegisterStatusServiceHandler(ctx, mux, cc),
		lbagentv1.RegisterAdminServiceHandler(ctx, mux, cc),
		lbagentv1.RegisterRegistryServiceHandler(ctx, mux, cc),
	); err != nil {
		return nil, fmt.Errorf("local api: gateway: %w", err)
	}
	return &http.Server{
		Handler:           s.bounded(noBrowsers(s.profiles(mux))),
		ReadHeaderTimeout: s.limits.FirstBytes,
		ReadTimeout:       s.limits.Body,
		IdleTimeout:       s.limits.IdleHTTP,
		MaxHeaderBytes:    s.limits.HeaderBytes,
		ErrorLog:          log.New(io.Discard, "", 0), // callers' mistakes only
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, httpConnKey{}, c)
		},
	}, nil
}

// bounded limits the body and the time of a request. A stream's answer has no end; a reader that is slow only holds up itself.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r.Context())
		if c != nil {
			c.serve()
		}
		rc := http.NewResponseController(w)
		body := &heldBody{ReadCloser: http.MaxBytesReader(w, r.Body, int64(s.limits.MessageBytes))}
		if c != nil {
			body.who, body.quota = c.peer.caller(), s.quotas[c.peer.door()].unfinished
			defer body.forget()
		}
		r.Body = body
		switch {
		case r.URL.Path == "/v1/registrations/hold":
			body.ended = func() { _ = rc.SetReadDeadline(time.Time{}) } // a holder that says nothing more is no slow one
		case wantsProfiles(r) && mayProfile(c): // it takes the seconds that it was asked for
			_ = rc.SetReadDeadline(time.Time{})
		case !endless(r.URL.Path):
			_ = rc.SetWriteDeadline(time.Now().Add(s.limits.Answer))
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		next.ServeHTTP(&answerWriter{ResponseWriter: w, rc: rc, gone: cancel}, r.WithContext(ctx))
	})
}

// heldBody counts what is held of a request's body until its answer ends.
type heldBody struct {
	io.ReadCloser
	who   caller
	quota *quota // nil: nobody counts
	held  int
	ended func() // all of it has come; nil: nobody wants to know
}

// Read fails if its caller has begun too much that it doesn't end.
func (b *heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.quota != nil {
		if b.quota.take(b.who, n) != within {
			return 0, errUnfinished
		}
		b.held += n
	}
	if err == io.EOF && b.ended != nil {
		b.ended()
	}
	return n, err
}

func (b *heldBody) forget() { b.quota.give(b.who, b.held) }

// endless reports whether the answer at a path is a stream, which may go on for as long as its reader wants.
func endless(path string) bool {
	switch path {
	case "/v1/events", "/v1/stats", "/v1/admin/tap":
		return true
	}
	return strings.HasPrefix(path, "/v1/services/") && strings.HasSuffix(path, "/watch")
}

// answerWriter ends the request when its reader has gone, and says nothing of it: the gateway would print a line for each `curl` that was stopped.
type answerWriter struct {
	http.ResponseWriter
	rc   *http.ResponseController
	gone context.CancelFunc
}

// Write never fails.
func (w *answerWriter) Write(p []byte) (int, error) {
	if _, err := w.ResponseWriter.Write(p); err != nil {
		w.gone()
	}
	return len(p), nil
}

// FlushError never fails.
func (w *answerWriter) FlushError() error {
	if err := w.rc.Flush(); err != nil {
		w.gone()
	}
	return nil
}

// marshaler writes one line of compact JSON per message, with the protos' field names and with defaults, so that `jq .usable` finds its 0.
type marshaler struct{ runtime.JSONPb }

func jsonMarshaler() *marshaler {
	return &marshaler{runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true},
		UnmarshalOptions: protojson.UnmarshalOptions{},
	}}
}

// Marshal is stable: protojson itself strews spaces at random, so that nobody compares its output.
func (m *marshaler) Marshal(v any) ([]byte, error) {
	raw, err := m.JSONPb.Marshal(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(len(raw) + 1)
	if err := json.Compact(&b, raw); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// Delimiter is empty: each message ends its line.
func (*marshaler) Delimiter() []byte { return []byte{} }

// writeError answers with {"error": google.rpc.Status}, the same that ends a stream.
func writeError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var custom *runtime.HTTPStatusError
	code := 0
	if errors.As(err, &custom) {
		code, err = custom.HTTPStatus, custom.Err
	}
	st := status.Convert(err)
	if code == 0 {
		code = runtime.HTTPStatusFromCode(st.Code())
	}
	buf, err := m.Marshal(map[string]proto.Message{"error": st.Proto()})
	if err != nil {
		http.Error(w, `{"error":{"code":13,"message":"the error could not be written"}}`, http.StatusInternalServerError)
		return
	}
	w.Header().Del("Trailer")
	w.Header().Del("Transfer-Encoding")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(buf)
}
