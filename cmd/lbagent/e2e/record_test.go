package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

const (
	// recordVariable names the folder into which TestRecordCorpus writes; unset, it is skipped.
	recordVariable = "LBAGENT_RECORD"

	preface      = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	recordedMost = 8 << 10 // bytes of a direction of a connection that are kept, in whole frames
)

// TestRecordCorpus records what real clients send to the relay and what real servers answer it, as seeds for the fuzz targets of HTTP/2:
//
//	LBAGENT_RECORD=$PWD/agent/proxy/h2/testdata/corpus go test -run TestRecordCorpus ./cmd/lbagent/e2e
//
// CLIENT-CASE.bin is a client's side of a connection, server/NAME-CASE.bin a server's, both from their first byte.
func TestRecordCorpus(t *testing.T) {
	dir := os.Getenv(recordVariable)
	if dir == "" {
		t.Skipf("records only with %s=FOLDER", recordVariable)
	}
	if err := os.MkdirAll(filepath.Join(dir, "server"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newPeers(t)
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "small"), bytes.Repeat([]byte("0123456789abcdef"), 40), 0o644); err != nil {
		t.Fatal(err)
	}
	servers := map[string]string{
		"grpc-go": p.goServer(t), "grpc-core": p.coreServer(t), "grpc-js": p.nodeServer(t), "node": p.http2Server(t),
		"nghttpd": p.nghttpServer(t, files, "--trailer=x-trailer: 1", "--echo-upload"), "nghttpd-padding": p.nghttpServer(t, files, "--padding=50"),
	}
	python := func(name string) session {
		return func(addr string) error { return p.script(t, name, addr, python, foreign+"client.py") }
	}
	node := func(name string) session {
		return func(addr string) error { return p.script(t, name, addr, p.node, foreign+"client.js") }
	}
	program := func(name string, args ...string) session {
		path := testneed.Program(t, name, "curl or nghttp2-client")
		return func(addr string) error {
			url := "http://" + addr + "/small"
			_, err := attempt(t, patience, nil, append(append([]string{path}, args...), url)...)
			return err
		}
	}
	for name, s := range goSessions() {
		record(t, servers["grpc-go"], s, filepath.Join(dir, "grpc-go-"+name+".bin"), filepath.Join(dir, "server", "grpc-go-"+name+".bin"))
	}
	for _, name := range []string{"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "custom_metadata", "much_metadata", "every_status_code",
		"special_status_message", "deadline", "cancel_after_begin", "cancel_after_first_response", "gzip", "keepalive", "parallel_unary"} {
		record(t, servers["grpc-core"], python(name), filepath.Join(dir, "grpc-core-"+name+".bin"), filepath.Join(dir, "server", "grpc-core-"+name+".bin"))
		record(t, servers["grpc-js"], node(name), filepath.Join(dir, "grpc-js-"+name+".bin"), filepath.Join(dir, "server", "grpc-js-"+name+".bin"))
	}
	for name, s := range map[string]session{
		"curl-get":        program("curl", "-sS", "--http2-prior-knowledge"),
		"curl-head":       program("curl", "-sSI", "--http2-prior-knowledge"),
		"curl-post":       program("curl", "-sS", "--http2-prior-knowledge", "--data-binary", strings.Repeat("y", 700), "-H", "cookie: a=1; b=2"),
		"nghttp-get":      program("nghttp"),
		"nghttp-many":     program("nghttp", "--multiply=8"),
		"nghttp-windows":  program("nghttp", "--window-bits=8", "--connection-window-bits=17", "--header-table-size=0"),
		"nghttp-post":     program("nghttp", "--data="+filepath.Join(files, "small"), "--trailer=x-sent: 1"),
		"nghttp-padding":  program("nghttp", "--padding=50", "--data="+filepath.Join(files, "small")),
		"nghttp-continue": program("nghttp", "--expect-continue", "--data="+filepath.Join(files, "small")),
		"h2load":          program("h2load", "-n20", "-c1", "-m5"),
	} {
		record(t, servers["nghttpd"], s, filepath.Join(dir, name+".bin"), filepath.Join(dir, "server", "nghttpd-"+name+".bin"))
	}
	for _, name := range []string{"small_padded_frames", "extension_frames", "reset_with_code", "fields", "settings_amid_a_stream"} {
		s := func(addr string) error {
			_, err := attempt(t, patience, p.environment(), p.node, foreign+"http2.js", addr, name)
			return err
		}
		record(t, servers["node"], s, filepath.Join(dir, "node-"+name+".bin"), filepath.Join(dir, "server", "node-"+name+".bin"))
	}
	record(t, servers["nghttpd-padding"], program("nghttp", "--multiply=8"), "", filepath.Join(dir, "server", "nghttpd-padded.bin"))
}

// session is one connection of a client to addr.
type session func(addr string) error

// script runs one case of a client script, with small messages.
func (p *peers) script(t *testing.T, name, addr string, argv ...string) error {
	out, err := attempt(t, patience, p.environment("SIZES=small"), append(argv, p.protoset, addr, name)...)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// record runs a session through the relay, and keeps the first bytes of the client and of the server; a name that is empty is not kept.
func record(t *testing.T, server string, s session, clientFile, serverFile string) {
	t.Helper()
	t.Run(strings.TrimSuffix(filepath.Base(serverFile), ".bin"), func(t *testing.T) {
		back := newTap(t, server)
		port := freePort(t)
		startAgent(t, fmt.Sprintf("- {name: user, backends: [%q], listen: [%d], protocol: h2, probe: {type: none}}", back.addr, port))
		front := newTap(t, fmt.Sprintf("127.0.0.1:%d", port))
		if err := s(front.addr); err != nil {
			t.Fatal(err)
		}
		sent, _ := front.largest()
		_, answered := back.largest()
		head, ok := bytes.CutPrefix(sent, []byte(preface))
		if !ok {
			t.Fatalf("the client began with %.40q", sent)
		}
		if clientFile != "" {
			keep(t, clientFile, append([]byte(preface), wholeFrames(head, recordedMost-len(preface))...))
		}
		keep(t, serverFile, wholeFrames(answered, recordedMost))
	})
}

func keep(t *testing.T, name string, b []byte) {
	t.Helper()
	if len(b) < 50 {
		t.Fatalf("%s would be %d bytes", name, len(b))
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// wholeFrames are the first frames of b that fit into limit (RFC 9113, 4.1: a frame has a header of 9 bytes, which begins with the length of the rest).
func wholeFrames(b []byte, limit int) []byte {
	n := 0
	for len(b) >= n+9 {
		next := n + 9 + int(b[n])<<16 + int(b[n+1])<<8 + int(b[n+2])
		if next > min(len(b), limit) {
			break
		}
		n = next
	}
	return b[:n]
}

// tap is a TCP proxy that keeps what passes.
type tap struct {
	addr string

	mu    sync.Mutex
	conns []*tapped
}

type tapped struct{ sent, answered bytes.Buffer }

func newTap(t *testing.T, target string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{addr: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.pass(ctx, c, target) })
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); all.Wait() })
	return p
}

func (p *tap) pass(ctx context.Context, client net.Conn, target string) {
	defer client.Close()
	server, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	c := new(tapped)
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { copyHalf(server, client, &lockedWriter{mu: &p.mu, w: &c.sent}) })
	both.Go(func() { copyHalf(client, server, &lockedWriter{mu: &p.mu, w: &c.answered}) })
	both.Wait()
}

// copyHalf passes one direction on, its end included.
func copyHalf(to, from net.Conn, kept io.Writer) {
	_, _ = io.Copy(to, io.TeeReader(from, kept)) // a connection may break; what passed is kept
	_ = to.(*net.TCPConn).CloseWrite()
}

// largest are both directions of the connection on which most was sent: clients and the agent may have tried others.
func (p *tap) largest() (sent, answered []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if c.sent.Len() > len(sent) {
			sent, answered = bytes.Clone(c.sent.Bytes()), bytes.Clone(c.answered.Bytes())
		}
	}
	return sent, answered
}

// goSessions are grpc-go's; gRPC's own interop client has no small messages.
func goSessions() map[string]session {
	payload := func(n int) *grpc_testing.Payload { return &grpc_testing.Payload{Body: make([]byte, n)} }
	with := func(f func(context.Context, grpc_testing.TestServiceClient) error) session {
		return func(addr string) error {
			conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return errors.Join(f(ctx, grpc_testing.NewTestServiceClient(conn)), conn.Close())
		}
	}
	return map[string]session{
		"unary": with(func(ctx context.Context, c grpc_testing.TestServiceClient) error {
			_, err := c.EmptyCall(ctx, new(grpc_testing.Empty))
			for range 5 {
				_, e := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{ResponseSize: 300, Payload: payload(200)})
				err = errors.Join(err, e)
			}
			return err
		}),
		"metadata": with(func(ctx context.Context, c grpc_testing.TestServiceClient) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-grpc-test-echo-initial", "a", "x-grpc-test-echo-trailing-bin", "\x00\xff", "x-long", strings.Repeat("long ", 300))
			var err error
			for range 3 {
				_, e := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{ResponseSize: 1})
				err = errors.Join(err, e)
			}
			return err
		}),
		"gzip": with(func(ctx context.Context, c grpc_testing.TestServiceClient) error {
			_, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: payload(2000)}, grpc.UseCompressor(gzip.Name))
			if err == nil {
				return errors.New("the interop server has learned gzip: say so")
			}
			return nil
		}),
		"ping_pong": with(func(ctx context.Context, c grpc_testing.TestServiceClient) error {
			s, err := c.FullDuplexCall(ctx)
			if err != nil {
				return err
			}
			for n := range 5 {
				err = errors.Join(err, s.Send(&grpc_testing.StreamingOutputCallRequest{Payload: payload(n * 50), ResponseParameters: []*grpc_testing.ResponseParameters{{Size: int32(n * 40)}}}))
				_, e := s.Recv()
				err = errors.Join(err, e)
			}
			err = errors.Join(err, s.CloseSend())
			if _, e := s.Recv(); !errors.Is(e, io.EOF) {
				err = errors.Join(err, fmt.Errorf("ended with %w", e))
			}
			return err
		}),
		"cancel": with(func(ctx context.Context, c grpc_testing.TestServiceClient) error {
			cancelled, cancel := context.WithCancel(ctx)
			s, err := c.FullDuplexCall(cancelled)
			if err != nil {
				cancel()
				return err
			}
			err = s.Send(&grpc_testing.StreamingOutputCallRequest{ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 10}}})
			_, e := s.Recv()
			cancel()
			_, last := c.EmptyCall(ctx, new(grpc_testing.Empty))
			return errors.Join(err, e, last)
		}),
		"parallel": with(func(ctx context.Context, c grpc_testing.TestServiceClient) error {
			var wg sync.WaitGroup
			errs := make([]error, 10)
			for i := range errs {
				wg.Go(func() {
					_, errs[i] = c.UnaryCall(ctx, &grpc_testing.SimpleRequest{ResponseSize: 100, Payload: payload(i * 40)})
				})
			}
			wg.Wait()
			return errors.Join(errs...)
		}),
	}
}
