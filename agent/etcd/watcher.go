package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// maxBehind bounds the events that wait for the one who watches, beyond one response of any size: who is further behind reads all anew, which costs less.
const maxBehind = 100_000

// watcher is one watch.
type watcher struct {
	ctx context.Context // of who watches
	out chan Response   // to them

	// The stream's mu guards these.
	request    *pb.WatchCreateRequest // until it is sent
	id         int64                  // ours, until etcd has answered
	stop       func() bool            // of what happens when ctx ends
	parts      []*mvccpb.Event        // of a response that comes in fragments
	behind     []Response             // that out had no room for
	events     int                    // of behind
	delivering bool                   // a goroutine moves behind to out
	over       bool                   // nothing more comes
}

// put hands r on to who watches; it never waits. The caller holds s.mu.
func (s *watchStream) put(w *watcher, r Response) {
	if w.over {
		return
	}
	if w.events > 0 && w.events+len(r.Events) > maxBehind {
		w.behind, w.events = nil, 0
		s.end(w)
		return
	}
	if !w.delivering {
		select {
		case w.out <- r:
			if r.Err != nil {
				s.end(w)
			}
			return
		default:
		}
		w.delivering = true
		go s.deliver(w)
	}
	w.behind = append(w.behind, r)
	w.events += len(r.Events)
	if r.Err != nil {
		s.end(w)
	}
}

// end notes that nothing more comes, and closes out, or leaves that to deliver. The caller holds s.mu.
func (s *watchStream) end(w *watcher) {
	if w.over {
		return
	}
	w.over, w.parts = true, nil
	if w.stop != nil {
		w.stop()
	}
	if !w.delivering {
		close(w.out)
	}
}

// deliver hands on what who watches had no room for, until there is no more of it.
func (s *watchStream) deliver(w *watcher) {
	for {
		r, ok := s.next(w)
		if !ok {
			return
		}
		select {
		case w.out <- r:
		case <-w.ctx.Done():
		}
	}
}

// next is the next response to deliver; false if there is none.
func (s *watchStream) next(w *watcher) (r Response, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(w.behind) == 0 || w.ctx.Err() != nil {
		w.behind, w.events, w.delivering = nil, 0, false
		if w.over {
			close(w.out)
		}
		return r, false
	}
	r = w.behind[0]
	w.behind[0] = Response{}
	w.behind = w.behind[1:]
	w.events -= len(r.Events)
	return r, true
}
