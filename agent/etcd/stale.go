package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A token of before etcd was restored from a backup is not refused: etcd lets calls wait until its log, which began anew, is as long as the one was in which the token
// was given out, and that may take days. So a call that waits has somebody look.
const (
	staleAfter    = time.Second / 2  // without any answer; lower costs a slow etcd more looks, higher is the time without lists after a restore, as is the next
	stalePatience = time.Second / 2  // for an answer that costs etcd nothing, beyond four times as long as it took without the token
	lookEvery     = 10 * time.Second // at most on one connection, while the token is found good
	lookFor       = 10 * time.Second // whether etcd answers anybody
)

var errStale = errors.New("the token is of a former life of etcd")

// looking is the key of a context whose calls only look: true if they carry no token. Their errors have nobody log in.
type looking struct{}

// awaitStale returns true when the token of a call that waits since began is found stale, or another took its place: whoever waits with the old one may do so without
// end. It returns false when ctx ends.
func (l *login) awaitStale(ctx context.Context, cc *grpc.ClientConn, token string, began time.Time) bool {
	for {
		replaced := l.replaced(token)
		select {
		case <-replaced:
			return true
		default:
		}
		if l.isStale(ctx, cc, token, began) && ctx.Err() == nil {
			return true
		}
		again := time.NewTimer(staleAfter)
		select {
		case <-replaced:
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
		if ctx.Err() != nil {
			return false
		}
	}
}

// wasGood notes that a call with token had its answer.
func (l *login) wasGood(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token == token {
		l.good = time.Now()
	}
}

// replaced is closed when there is another token than that.
func (l *login) replaced(token string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.another == nil {
		l.another = make(chan struct{})
	}
	if l.token != token && l.token != "" {
		there := make(chan struct{})
		close(there)
		return there
	}
	return l.another
}

// streamer returns what watches over a stream until the first message comes on it: one that was opened with a stale token would be as silent as a call, and with it all watches that
// share it.
func (l *login) streamer(d door) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		return l.stream(ctx, d, cc, func(ctx context.Context) (grpc.ClientStream, error) { return open(ctx, desc, cc, method, opts...) })
	}
}

func (l *login) stream(ctx context.Context, d door, cc *grpc.ClientConn, open func(context.Context) (grpc.ClientStream, error)) (grpc.ClientStream, error) {
	token, began := l.current(), time.Now()
	own, cancel := context.WithCancelCause(ctx)
	s, err := open(own)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	silent, heard := context.WithCancel(own)
	time.AfterFunc(staleAfter, func() {
		if l.awaitStale(silent, cc, token, began) && l.renew(silent, d, token) == nil && silent.Err() == nil {
			cancel(errStale)
		}
	})
	return &silentStream{s, own, cancel, sync.OnceFunc(func() {
		heard()
		l.wasGood(token)
	}), heard, func() { _ = l.renew(own, d, token) }}, nil
}

// silentStream is a stream on which nothing may come.
type silentStream struct {
	grpc.ClientStream

	ctx    context.Context // of the stream
	cancel context.CancelCauseFunc
	first  func()             // is called with the first message
	heard  context.CancelFunc // ends the watching
	renew  func()             // logs in again: what was said on the stream can't be said once more for the caller, but the next one has a token
}

func (s *silentStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.first()
		return nil
	}
	s.heard()
	if isExpired(rpctypes.Error(err)) {
		s.renew()
	}
	if errors.Is(context.Cause(s.ctx), errStale) {
		err = status.Error(codes.Unavailable, errStale.Error())
	}
	s.cancel(nil)
	return err
}

// isStale reports whether token is what has a call wait since began: nobody had an answer with it since then, and etcd answers who says nothing (that it won't), but not
// who says it.
func (l *login) isStale(ctx context.Context, cc *grpc.ClientConn, token string, began time.Time) bool {
	l.mu.Lock()
	now := time.Now()
	look := token != "" && l.token == token && l.running == nil && !l.looking && l.good.Before(began) && now.Sub(l.looked) >= lookEvery
	l.looking = l.looking || look
	dials := l.dials
	l.mu.Unlock()
	if !look {
		return false
	}
	anybody, us := l.look(ctx, cc)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.looking = false; us && l.dials == dials {
		l.looked = now
	}
	return anybody && !us
}

// look finds out whether etcd answers anybody, and if so, whether it answers us.
func (l *login) look(ctx context.Context, cc *grpc.ClientConn) (anybody, us bool) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	if !answers(context.WithValue(ctx, looking{}, true), cc) || time.Since(began) > staleAfter {
		return false, false // or it is busy: a login would make it busier
	}
	ctx, cancel = context.WithTimeout(ctx, stalePatience+4*time.Since(began))
	defer cancel()
	us = answers(context.WithValue(ctx, looking{}, false), cc)
	return us || ctx.Err() != nil, us // without a connection there is nothing to be learned
}

// answers reports whether etcd says anything to a read that costs it next to nothing; a refusal is an answer.
func answers(ctx context.Context, cc *grpc.ClientConn) bool {
	_, err := pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: []byte{0}, Serializable: true, KeysOnly: true})
	if err == nil {
		return true
	}
	_, said := errors.AsType[rpctypes.EtcdError](rpctypes.Error(err))
	return said
}
