package e2e

import (
	"bytes"
	"context"
	wire "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// soakAs is set in a process that is a backend of the soak: "KIND NAME ADDR FILE". It can be killed, stopped and continued as no goroutine can.
const soakAs = "LBAGENT_E2E_SOAK_BACKEND"

// soakGrace is how long a backend that was asked to end lets calls go on; no call of the load takes as long.
const soakGrace = 20 * time.Second

const (
	idHeader    = "x-id"    // the call's number: its payload in both directions follows from it
	sizeHeader  = "x-size"  // bytes that the caller sends
	replyHeader = "x-reply" // bytes that it wants
	modeHeader  = "x-mode"

	soakMethod = "/e2e.Soak/Call"
	soakChunk  = 16 << 10
)

// pattern is the payload of one direction of a call: of a byte that is lost, doubled, or another call's, no part is the same.
func pattern(id uint64, direction byte) io.Reader {
	var seed [32]byte
	wire.BigEndian.PutUint64(seed[:], id)
	seed[8] = direction
	return rand.NewChaCha8(seed)
}

const (
	sent     = 'q' // by the caller
	answered = 'r'
)

// checker compares what comes with the pattern.
type checker struct {
	want io.Reader
	n    int64
	buf  [4096]byte
}

func newChecker(id uint64, direction byte) *checker { return &checker{want: pattern(id, direction)} }

func (c *checker) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), len(c.buf))
		if _, err := io.ReadFull(c.want, c.buf[:n]); err != nil {
			return 0, err
		}
		if !bytes.Equal(rest[:n], c.buf[:n]) {
			return 0, corruptError(c.n)
		}
		c.n += int64(n)
		rest = rest[n:]
	}
	return len(b), nil
}

// corruptError is the worst that can happen: the payload differs from about this byte on.
type corruptError int64

func (e corruptError) Error() string { return fmt.Sprintf("CORRUPT after byte %d", int64(e)) }

// What a backend notes of a call. The file outlives the process.
const (
	noteBegan   = 'b'
	noteCorrupt = 'c' // the caller's bytes are not those of the call
	noteShort   = 's' // they ended in good order before the last one
	noteLen     = 9
)

type soakServer struct {
	name  string
	notes *os.File
}

func (s *soakServer) note(kind byte, id uint64) {
	var b [noteLen]byte
	b[0] = kind
	wire.BigEndian.PutUint64(b[1:], id)
	if _, err := s.notes.Write(b[:]); err != nil { // one write: whole, whatever happens to the process
		panic(err)
	}
}

// verdict notes what became of the request's payload.
func (s *soakServer) verdict(id uint64, c *checker, want int64, err error) error {
	if _, corrupt := errors.AsType[corruptError](err); corrupt {
		s.note(noteCorrupt, id)
		return err
	}
	if err == nil && c.n != want {
		s.note(noteShort, id)
		return fmt.Errorf("SHORT: %d of %d bytes", c.n, want)
	}
	return err
}

// soakBackendMain is the process of a backend; it ends in good order on SIGTERM.
func soakBackendMain() int {
	var kind, s, addr, file = "", &soakServer{}, "", ""
	if _, err := fmt.Sscan(os.Getenv(soakAs), &kind, &s.name, &addr, &file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var err error
	if s.notes, err = os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ended, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	fmt.Println("ready")
	switch kind {
	case "grpc":
		s.serveGRPC(ended, l)
	case "web":
		s.serveHTTP(ended, l)
	case "tcp":
		s.serveTCP(ended, l)
	}
	return 0
}

func (s *soakServer) serveGRPC(ended context.Context, l net.Listener) {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "e2e.Soak", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: "Call", ClientStreams: true, ServerStreams: true, Handler: func(_ any, st grpc.ServerStream) error { return s.call(st) },
	}}}, s)
	go func() {
		<-ended.Done()
		hard := time.AfterFunc(soakGrace, srv.Stop)
		srv.GracefulStop()
		hard.Stop()
	}()
	_ = srv.Serve(l)
	srv.GracefulStop() // returns when all is over
}

// call reads all that the caller sends; it answers afterwards, in mode chat message by message, in mode hang never.
func (s *soakServer) call(st grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(st.Context())
	number := func(name string) int64 {
		n, err := strconv.ParseInt(strings.Join(md.Get(name), ""), 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	id, want, left, mode := uint64(number(idHeader)), number(sizeHeader), number(replyHeader), strings.Join(md.Get(modeHeader), "")
	s.note(noteBegan, id)
	if err := st.SetHeader(metadata.Pairs(nameHeader, s.name)); err != nil {
		return err
	}
	got, reply := newChecker(id, sent), pattern(id, answered)
	send := func(n int64) error {
		b := make([]byte, n)
		if _, err := io.ReadFull(reply, b); err != nil {
			return err
		}
		left -= n
		return st.SendMsg(wrapperspb.Bytes(b))
	}
	for {
		in := new(wrapperspb.BytesValue)
		err := st.RecvMsg(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if _, err := got.Write(in.GetValue()); err != nil {
			return status.Error(codes.DataLoss, s.verdict(id, got, want, err).Error())
		}
		if mode == "chat" && left > 0 {
			if err := send(min(left, int64(len(in.GetValue())))); err != nil {
				return err
			}
		}
	}
	if err := s.verdict(id, got, want, nil); err != nil {
		return status.Error(codes.DataLoss, err.Error())
	}
	if mode == "hang" {
		<-st.Context().Done()
		return status.FromContextError(st.Context().Err()).Err()
	}
	if mode == "unary" {
		return send(left)
	}
	for left > 0 {
		if err := send(min(left, soakChunk)); err != nil {
			return err
		}
	}
	return nil
}

// serveHTTP speaks HTTP/1.1 and HTTP/2 on one port.
func (s *soakServer) serveHTTP(ended context.Context, l net.Listener) {
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: s, Protocols: &both}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ended.Done()
		ctx, cancel := context.WithTimeout(context.Background(), soakGrace)
		defer cancel()
		_ = srv.Shutdown(ctx)
		// net/http forgets connections that it accepted in this moment: their calls are to be answered too.
		<-time.After(300 * time.Millisecond)
	}()
	_ = srv.Serve(l)
	<-done
}

func (s *soakServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	number := func(name string) int64 {
		n, err := strconv.ParseInt(r.Header.Get(name), 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	id, want, reply := uint64(number(idHeader)), number(sizeHeader), number(replyHeader)
	s.note(noteBegan, id)
	got := newChecker(id, sent)
	_, err := io.CopyBuffer(struct{ io.Writer }{got}, r.Body, make([]byte, soakChunk))
	if err = s.verdict(id, got, want, err); err != nil {
		http.Error(w, err.Error(), http.StatusTeapot)
		return
	}
	w.Header().Set(nameHeader, s.name)
	w.Header().Set(idHeader, r.Header.Get(idHeader))
	if r.Header.Get(modeHeader) != "chunked" {
		w.Header().Set("Content-Length", strconv.FormatInt(reply, 10))
	}
	_, _ = io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(pattern(id, answered), reply), make([]byte, soakChunk))
}

// tcpHead begins a connection: id, bytes that follow, bytes wanted, and whether the caller may go away in the middle.
type tcpHead struct {
	ID          uint64
	Size, Reply int64
	Cut         bool
}

const tcpName = 8 // bytes of the backend's name, which begin the answer

func (s *soakServer) serveTCP(ended context.Context, l net.Listener) {
	context.AfterFunc(ended, func() { l.Close() })
	var all sync.WaitGroup
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		all.Go(func() {
			defer c.Close()
			s.converse(c.(*net.TCPConn))
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(soakGrace):
	}
}

// converse reads and answers at the same time, ends its direction, and waits for the caller's end.
func (s *soakServer) converse(c *net.TCPConn) {
	var h tcpHead
	if err := wire.Read(c, wire.BigEndian, &h); err != nil {
		return // a probe
	}
	s.note(noteBegan, h.ID)
	name := append([]byte(s.name), make([]byte, tcpName)...)[:tcpName]
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := c.Write(name); err != nil {
			return
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(pattern(h.ID, answered), h.Reply), make([]byte, soakChunk)); err == nil {
			_ = c.CloseWrite()
		}
	})
	got := newChecker(h.ID, sent)
	_, err := io.CopyBuffer(struct{ io.Writer }{got}, struct{ io.Reader }{c}, make([]byte, soakChunk))
	if err != nil || !h.Cut {
		_ = s.verdict(h.ID, got, h.Size, err)
	}
	both.Wait()
}
