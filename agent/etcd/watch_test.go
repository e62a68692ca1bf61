package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

type serverStream = grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]

// peer is an etcd of which only watches work, as talk says.
type peer struct {
	pb.UnimplementedWatchServer

	talk func(s serverStream) error
}

func (p *peer) Watch(s serverStream) error { return p.talk(s) }

// dialPeer returns a client of it.
func dialPeer(t *testing.T, talk func(s serverStream) error) Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true})) // as etcd's
	pb.RegisterWatchServer(g, &peer{talk: talk})
	go g.Serve(l) //nolint:errcheck
	t.Cleanup(g.Stop)
	c, err := Dial(t.Context(), Config{Endpoints: []string{l.Addr().String()}}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// creates returns the next n watches that are asked for.
func creates(s serverStream, n int) ([]*pb.WatchCreateRequest, error) {
	var out []*pb.WatchCreateRequest
	for len(out) < n {
		r, err := s.Recv()
		if err != nil {
			return out, err
		}
		if c := r.GetCreateRequest(); c != nil {
			out = append(out, c)
		}
	}
	return out, nil
}

func eventOf(id int64, keys ...string) *pb.WatchResponse {
	r := &pb.WatchResponse{Header: &pb.ResponseHeader{}, WatchId: id}
	for _, k := range keys {
		r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(k)}})
	}
	return r
}

func created(id int64) *pb.WatchResponse {
	return &pb.WatchResponse{Header: &pb.ResponseHeader{}, WatchId: id, Created: true}
}

// sendAll sends in order.
func sendAll(s serverStream, all ...*pb.WatchResponse) error {
	for _, r := range all {
		if err := s.Send(r); err != nil {
			return err
		}
	}
	return nil
}

// next is the next response of a watch; one that is closed gives errClosed's kin.
func next(t *testing.T, w <-chan Response) (r Response, ok bool) {
	t.Helper()
	select {
	case r, ok = <-w:
		return r, ok
	case <-time.After(30 * time.Second):
		t.Fatal("nothing comes on the watch")
		return r, false
	}
}

// mustGet checks that the watch of prefix begins with Created and one event, its own.
func mustGet(t *testing.T, w <-chan Response, prefix string) {
	t.Helper()
	if r, ok := next(t, w); !ok || !r.Created {
		t.Fatalf("%s: first response %+v, %v", prefix, r, ok)
	}
	if r, ok := next(t, w); !ok || len(r.Events) != 1 || string(r.Events[0].Kv.Key) != prefix+"key" {
		t.Fatalf("%s: second response %+v, %v", prefix, r, ok)
	}
}

// All watches are asked for at once, however long etcd takes for each: of a thousand on a slow etcd the last must not wait for a thousand answers.
func TestWatchesAreAskedForAtOnce(t *testing.T) {
	const n = 100
	c := dialPeer(t, func(s serverStream) error {
		first, err := creates(s, 1)
		if err == nil {
			err = sendAll(s, created(first[0].WatchId), eventOf(first[0].WatchId, string(first[0].Key)+"key"))
		}
		rest, err2 := creates(s, n-1) // answered when all are here, the last one first
		slices.Reverse(rest)
		for _, r := range rest {
			err = errors.Join(err, sendAll(s, created(r.WatchId), eventOf(r.WatchId, string(r.Key)+"key")))
		}
		<-s.Context().Done()
		return errors.Join(err, err2)
	})
	var all []<-chan Response
	for i := range n {
		all = append(all, c.Watch(t.Context(), fmt.Sprintf("p%d/", i), 1))
	}
	for i, w := range all {
		mustGet(t, w, fmt.Sprintf("p%d/", i))
	}
}

// A peer that gives watches its own numbers, and answers in any order, is asked for one after the other, or watches would be taken for each other. etcd's grpc-proxy is such a
// peer.
func TestWatchesOfPeerWithOwnNumbers(t *testing.T) {
	const n = 20
	c := dialPeer(t, func(s serverStream) error {
		in := make(chan *pb.WatchCreateRequest, n)
		go func() {
			for {
				r, err := creates(s, 1)
				if err != nil {
					close(in)
					return
				}
				in <- r[0]
			}
		}()
		id := int64(0)
		for r := range in {
			batch := []*pb.WatchCreateRequest{r}
			for quiet := time.After(5 * time.Millisecond); quiet != nil; {
				select {
				case r, ok := <-in:
					if ok {
						batch = append(batch, r)
					}
				case <-quiet:
					quiet = nil
				}
			}
			for _, r := range slices.Backward(batch) {
				if err := sendAll(s, created(id), eventOf(id, string(r.Key)+"key")); err != nil {
					return err
				}
				id++
			}
		}
		return nil
	})
	var all []<-chan Response
	for i := range n {
		all = append(all, c.Watch(t.Context(), fmt.Sprintf("p%d/", i), 1))
	}
	for i, w := range all {
		mustGet(t, w, fmt.Sprintf("p%d/", i))
	}
}

// A watch that etcd refuses ends with the reason, and no other does. etcd doesn't say which one it refuses.
func TestRefusedWatch(t *testing.T) {
	for _, tt := range []struct {
		reason error
		is     func(error) bool
	}{
		{rpctypes.ErrGRPCPermissionDenied, IsDenied},
		{rpctypes.ErrGRPCInvalidAuthToken, IsAuth},
		{rpctypes.ErrGRPCAuthOldRevision, IsAuth},
		{rpctypes.ErrCompacted, func(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }},
	} {
		c := dialPeer(t, func(s serverStream) error {
			for i := range 3 {
				r, err := creates(s, 1)
				if err != nil {
					return err
				}
				if i == 1 {
					err = s.Send(&pb.WatchResponse{Header: &pb.ResponseHeader{}, WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true, CancelReason: tt.reason.Error()})
				} else {
					err = sendAll(s, created(r[0].WatchId), eventOf(r[0].WatchId, string(r[0].Key)+"key"))
				}
				if err != nil {
					return err
				}
			}
			<-s.Context().Done()
			return nil
		})
		a, b, d := c.Watch(t.Context(), "a/", 1), c.Watch(t.Context(), "b/", 1), c.Watch(t.Context(), "d/", 1)
		if r, ok := next(t, b); !ok || !tt.is(r.Err) {
			t.Errorf("%v: refused with %+v, %v", tt.reason, r, ok)
		}
		if r, ok := next(t, b); ok {
			t.Errorf("%v: then %+v", tt.reason, r)
		}
		mustGet(t, a, "a/")
		mustGet(t, d, "d/")
	}
}

// Who reads slowly holds up nobody else, and gets all in order; but not without limit.
func TestSlowWatcher(t *testing.T) {
	const n = 1000
	flood := make(chan int)
	c := dialPeer(t, func(s serverStream) error {
		asked, err := creates(s, 1)
		if err != nil {
			return err
		}
		slow := asked[0].WatchId
		err = s.Send(created(slow))
		if asked, err2 := creates(s, 1); err2 == nil {
			for i := range n {
				err = errors.Join(err, s.Send(eventOf(slow, fmt.Sprint(i))))
			}
			err = errors.Join(err, sendAll(s, created(asked[0].WatchId), eventOf(asked[0].WatchId, "quick/key")))
		}
		many := make([]string, 1000)
		for range <-flood {
			err = errors.Join(err, s.Send(eventOf(slow, many...)))
		}
		r, err2 := s.Recv()
		if r.GetCancelRequest().GetWatchId() != slow {
			err2 = errors.Join(err2, fmt.Errorf("not told that it was left: %v", r))
		}
		flood <- 0
		<-s.Context().Done()
		return errors.Join(err, err2)
	})
	slow := c.Watch(t.Context(), "slow/", 1)
	mustGet(t, c.Watch(t.Context(), "quick/", 1), "quick/")
	if r, ok := next(t, slow); !ok || !r.Created {
		t.Fatalf("first response %+v, %v", r, ok)
	}
	for i := range n {
		if r, ok := next(t, slow); !ok || len(r.Events) != 1 || string(r.Events[0].Kv.Key) != fmt.Sprint(i) {
			t.Fatalf("response %d: %+v, %v", i, r, ok)
		}
	}
	flood <- maxBehind/1000 + 10
	<-flood
	got := 0
	for r := range slow {
		if r.Err != nil {
			t.Errorf("the watch ended with %v", r.Err)
		}
		got += len(r.Events)
	}
	if got > 10_000 {
		t.Errorf("%d events came of a watch that was given up", got)
	}
}

// etcd is told of a watch that was left; with the last one the stream ends, and the next watch has a new one. A stream that breaks ends all its watches, with why.
func TestLeftWatchAndBrokenStream(t *testing.T) {
	streams := make(chan serverStream, 4)
	end := make(chan error)
	left := make(chan int64, 4)
	c := dialPeer(t, func(s serverStream) error {
		streams <- s
		go func() {
			for {
				r, err := s.Recv()
				if err != nil {
					return
				}
				if w := r.GetCreateRequest(); w != nil {
					s.Send(created(w.WatchId)) //nolint:errcheck
				} else if w := r.GetCancelRequest(); w != nil {
					left <- w.WatchId
				}
			}
		}()
		select {
		case err := <-end:
			return err
		case <-s.Context().Done():
			return nil
		}
	})
	made := func(ctx context.Context, prefix string) <-chan Response {
		w := c.Watch(ctx, prefix, 1)
		if r, ok := next(t, w); !ok || !r.Created {
			t.Fatalf("first response %+v, %v", r, ok)
		}
		return w
	}
	one, leaveOne := context.WithCancel(t.Context())
	two, leaveTwo := context.WithCancel(t.Context())
	w1 := made(one, "a/")
	made(two, "b/")
	first := <-streams
	leaveOne()
	if r, ok := next(t, w1); ok {
		t.Errorf("of a watch that was left came %+v", r)
	}
	if id := <-left; id != firstID {
		t.Errorf("%d was left", id)
	}
	leaveTwo()
	select {
	case <-first.Context().Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the stream outlives its last watch")
	}

	w3, w4 := made(t.Context(), "c/"), made(t.Context(), "d/")
	<-streams
	end <- status.Error(codes.Unavailable, "etcdserver: no leader")
	for _, w := range []<-chan Response{w3, w4} {
		if r, ok := next(t, w); !ok || !isRefusal(r.Err) || !strings.Contains(r.Err.Error(), "no leader") {
			t.Errorf("the end of the stream is %+v, %v", r, ok)
		}
		if r, ok := next(t, w); ok {
			t.Errorf("after the end came %+v", r)
		}
	}
	made(t.Context(), "e/")
	<-streams
}

// What happens at one revision comes as one response, however large: etcd sends it in fragments, each below what a message may have.
func TestFragments(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	raw := etcdtest.NewClient(t, s)
	c, err := Dial(t.Context(), Config{Endpoints: s.Endpoints()}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	value := strings.Repeat("x", 1<<20)
	for i := range 6 {
		if _, err := raw.Put(t.Context(), fmt.Sprintf("big/%d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	w := c.Watch(t.Context(), "big/", 1)
	if r, ok := next(t, w); !ok || !r.Created {
		t.Fatalf("first response %+v, %v", r, ok)
	}
	if r, ok := next(t, w); !ok || len(r.Events) != 6 {
		t.Errorf("%d events at once, %v", len(r.Events), ok)
	}
}

// A client that was closed makes no watch, and leaves no stream behind.
func TestWatchOfClosedClient(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c, err := Dial(t.Context(), Config{Endpoints: s.Endpoints()}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	w := c.Watch(t.Context(), "a/", 1)
	if r, ok := next(t, w); !ok || !r.Created {
		t.Fatalf("first response %+v, %v", r, ok)
	}
	c.Close()
	if r, ok := next(t, w); !ok || r.Err == nil {
		t.Errorf("closing: %+v, %v", r, ok)
	}
	if r, ok := next(t, c.Watch(t.Context(), "a/", 1)); !ok || r.Err == nil {
		t.Errorf("closed: %+v, %v", r, ok)
	}
}

// etcd's own grpc-proxy, which answers in any order and joins equal watches.
func TestWatchesThroughGRPCProxy(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	raw := etcdtest.NewClient(t, s)
	proxied, end := grpcproxy.NewWatchProxy(raw.Ctx(), zap.NewNop(), raw)
	t.Cleanup(func() { raw.Close(); <-end })
	c := dialPeer(t, proxied.Watch)
	const n = 50
	var all []<-chan Response
	for i := range n {
		prefix := fmt.Sprintf("p%d/", i/2)
		all = append(all, c.Watch(t.Context(), prefix, 1))
		if _, err := raw.Put(t.Context(), prefix+"key", "value"); err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range all {
		prefix := fmt.Sprintf("p%d/", i/2)
		for got := 0; got < 2; {
			r, ok := next(t, w)
			if !ok || r.Err != nil { // the proxy ends a stream that takes nothing for 50 ms
				w, got = c.Watch(t.Context(), prefix, 1), 0
				continue
			}
			for _, e := range r.Events {
				if string(e.Kv.Key) != prefix+"key" {
					t.Fatalf("%s: %s", prefix, e.Kv.Key)
				}
				got++
			}
		}
	}
}
