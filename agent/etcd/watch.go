package etcd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// firstID is where our numbers of watches begin: above those that a peer counts up from 0, so that an answer tells whose it is.
const firstID = 1 << 32

var (
	errConfused = errors.New("etcd answered for a watch that nobody asked for")
	errUnused   = errors.New("the last watch ended")
	errClosed   = errors.New("the client is closed")
)

// Response is what etcd says on a watch.
type Response struct {
	Header  *pb.ResponseHeader // nil with Err
	Events  []*mvccpb.Event    // none and not Created: progress
	Created bool               // the first one: the watch was made
	Err     error              // the last one: why the watch ended
}

// watches has all watches of a client on one stream of its connection (SEMANTICS 1.2). clientv3 does so, too; but it asks for one watch after the other, which takes a
// round trip for each, and keeps a goroutine for each. And it resumes them when the stream broke, from the revision after the last one it saw, which would be wrong
// twice: on a quiet etcd such a watch never gets a progress notice, and on a restored one, whose revisions are lower, it stays silent. Here watches end with
// their stream. Safe for concurrent use.
type watches struct {
	client pb.WatchClient
	ctx    context.Context // of every stream
	heard  atomic.Pointer[time.Time]

	streams sync.WaitGroup

	mu sync.Mutex

	stream *watchStream // the last one; nil before the first
	closed bool
}

func newWatches(c *clientv3.Client) *watches {
	return &watches{client: pb.NewWatchClient(c.ActiveConnection()), ctx: clientv3.WithRequireLeader(c.Ctx())}
}

// watch asks what happens from revision rev on to the keys from key to before end, until ctx ends; then, or after an Err, the channel is closed.
func (k *watches) watch(ctx context.Context, key, end string, rev int64) <-chan Response {
	w := &watcher{
		ctx: ctx, out: make(chan Response, 2),
		request: &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end), StartRevision: rev, Fragment: true},
	}
	for {
		s := k.current()
		if s == nil {
			w.out <- Response{Err: errClosed}
			close(w.out)
			return w.out
		}
		if s.add(w) { // else it broke just now
			return w.out
		}
	}
}

// current is a stream that didn't break yet; nil if the client is closed.
func (k *watches) current() *watchStream {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	if k.stream == nil || !k.stream.whole() {
		s := &watchStream{more: make(chan struct{}, 1), made: make(map[int64]*watcher)}
		ctx, cancel := context.WithCancel(k.ctx)
		s.cancel = cancel
		k.stream = s
		k.streams.Go(func() { s.run(ctx, k) })
	}
	return k.stream
}

// progress asks for a response on every watch.
func (k *watches) progress() {
	k.mu.Lock()
	s := k.stream
	k.mu.Unlock()
	if s != nil {
		s.progress()
	}
}

// close returns when no stream runs any more; what ends them is the end of ctx.
func (k *watches) close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.streams.Wait()
}

// watchStream is one stream and its watches.
type watchStream struct {
	cancel context.CancelFunc
	more   chan struct{} // there are requests

	mu sync.Mutex

	broken   error              // why nothing comes any more
	requests []*pb.WatchRequest // to be sent, in this order
	waiting  []*watcher         // not asked for yet
	asked    []*watcher         // not answered yet, in the order in which they were asked for
	made     map[int64]*watcher // by id
	lastID   int64              // of firstID
	oursHold bool               // the peer takes our ids
}

func (s *watchStream) whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken == nil
}

// run is the stream's life.
func (s *watchStream) run(ctx context.Context, k *watches) {
	err := s.talk(ctx, k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = rpctypes.Error(final(err))
	}
	for _, w := range s.made {
		s.put(w, Response{Err: s.broken})
	}
	for _, w := range slices.Concat(s.asked, s.waiting) {
		s.put(w, Response{Err: s.broken})
	}
	s.made, s.asked, s.waiting, s.requests = nil, nil, nil, nil
}

// talk opens the stream, and takes what comes until it breaks.
func (s *watchStream) talk(ctx context.Context, k *watches) error {
	var sending sync.WaitGroup
	defer sending.Wait()
	defer s.cancel()
	stream, err := k.client.Watch(ctx, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return err
	}
	sending.Go(func() { s.send(stream) })
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		k.heard.Store(new(time.Now()))
		if err := s.take(r); err != nil {
			return err
		}
	}
}

// send sends requests until the stream breaks: take must not wait for a peer that takes none.
func (s *watchStream) send(stream pb.Watch_WatchClient) {
	for {
		select {
		case <-s.more:
		case <-stream.Context().Done():
			return
		}
		s.mu.Lock()
		requests := s.requests
		s.requests = nil
		s.mu.Unlock()
		for _, r := range requests {
			if stream.Send(r) != nil {
				return // Recv says why
			}
		}
	}
}

// request has r sent. The caller holds s.mu.
func (s *watchStream) request(r *pb.WatchRequest) {
	s.requests = append(s.requests, r)
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *watchStream) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	waits := slices.ContainsFunc(s.requests, func(r *pb.WatchRequest) bool { return r.GetProgressRequest() != nil })
	if s.broken == nil && !waits {
		s.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	}
}

// add asks for w, when its turn comes; false if the stream broke.
func (s *watchStream) add(w *watcher) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return false
	}
	w.stop = context.AfterFunc(w.ctx, func() { s.leave(w) })
	s.waiting = append(s.waiting, w)
	s.ask()
	return true
}

// ask asks for those that wait: all at once if the peer takes our ids, by which its answers are told apart. etcd's grpc-proxy doesn't, and answers in any order: there, and until
// that is known, it is one at a time. The caller holds s.mu.
func (s *watchStream) ask() {
	for len(s.waiting) > 0 && (s.oursHold || len(s.asked) == 0) {
		w := s.waiting[0]
		s.waiting = s.waiting[1:]
		if w.over {
			continue
		}
		w.id = firstID + s.lastID
		s.lastID++
		w.request.WatchId = w.id
		s.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: w.request}})
		w.request = nil
		s.asked = append(s.asked, w)
	}
}

// leave ends w for the one who asked for it.
func (s *watchStream) leave(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(w)
	if s.made[w.id] == w {
		s.forget(w)
		s.tellGone(w.id)
	}
}

// tellGone has etcd end a watch.
func (s *watchStream) tellGone(id int64) {
	s.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

// forget drops a watch that was made. With the last one the stream ends: the next begins where calls go by then, which may be another member. The caller holds s.mu.
func (s *watchStream) forget(w *watcher) {
	delete(s.made, w.id)
	if len(s.made)+len(s.asked)+len(s.waiting) == 0 && s.broken == nil {
		s.broken = errUnused
		s.cancel()
	}
}

// take hands on what etcd said.
func (s *watchStream) take(r *pb.WatchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Created {
		return s.answer(r)
	}
	if r.WatchId == clientv3.InvalidWatchID { // progress of all
		for _, w := range s.made {
			if !w.delivering { // the next one will do
				s.put(w, Response{Header: r.Header})
			}
		}
		return nil
	}
	w := s.made[r.WatchId]
	if w == nil {
		return nil // it was left, and etcd has not heard of it
	}
	if r.Canceled || r.CompactRevision != 0 {
		s.put(w, Response{Err: reason(r)})
		s.forget(w)
		return nil
	}
	w.parts = append(w.parts, r.Events...)
	if r.Fragment {
		return nil
	}
	events := w.parts
	w.parts = nil
	s.put(w, Response{Header: r.Header, Events: events})
	if w.over { // it fell behind
		s.forget(w)
		s.tellGone(w.id)
	}
	return nil
}

// answer takes the answer to a watch that was asked for. The caller holds s.mu.
func (s *watchStream) answer(r *pb.WatchResponse) error {
	at := slices.IndexFunc(s.asked, func(w *watcher) bool { return w.id == r.WatchId })
	switch {
	case at >= 0:
		s.oursHold = true
	case len(s.asked) > 0 && (r.WatchId == clientv3.InvalidWatchID || len(s.asked) == 1):
		at = 0 // etcd names no watch that can't be made, but answers in order
	default:
		return errConfused
	}
	w := s.asked[at]
	s.asked = slices.Delete(s.asked, at, at+1)
	s.ask()
	w.id = r.WatchId
	switch {
	case r.Canceled || r.WatchId == clientv3.InvalidWatchID:
		s.put(w, Response{Err: reason(r)})
		s.forget(w)
	case w.over: // left meanwhile
		s.forget(w)
		s.tellGone(w.id)
	default:
		s.made[w.id] = w
		s.put(w, Response{Header: r.Header, Created: true})
	}
	return nil
}

// reason is why etcd ended a watch.
func reason(r *pb.WatchResponse) error {
	switch {
	case r.CompactRevision != 0:
		return rpctypes.ErrCompacted
	case r.CancelReason == "":
		return errors.New("etcd ended the watch")
	}
	text := r.CancelReason
	if _, what, ok := strings.Cut(text, " desc = "); ok { // the text of a grpc error
		text = what
	}
	return rpctypes.Error(errors.New(text))
}
