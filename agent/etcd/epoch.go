package etcd

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maxLives bounds how many lives of one cluster are told apart.
const maxLives = 1 << 16

// errNewEpoch ends a link because etcd began another life: whoever watches or writes looks at everything anew.
var errNewEpoch = errors.New("etcd was replaced or restored from a backup")

// epochs tells the lives of etcd apart (SEMANTICS 1.5). Revisions compare only within one. A cluster restored from a backup may have its old id and lower
// revisions; so an epoch is the cluster's id plus the number of its lives that were seen to end. That number is in every list, and so in the spool, from which the
// next start learns it. Safe for concurrent use.
type epochs struct {
	tell func(epoch uint64, now, was int64) // of another epoch, at revision now; called under the lock

	mu sync.Mutex

	seen    bool // an answer has come
	cluster uint64
	epoch   uint64
	highest int64            // revision seen in epoch
	spooled map[uint64]int64 // until the first answer: the highest revision of each epoch that a spooled list is of
	count   uint64           // of changes
}

// remember notes the epoch and revision of a spooled list.
func (e *epochs) remember(epoch uint64, revision int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.seen && epoch == e.epoch:
		e.highest = max(e.highest, revision)
	case !e.seen && epoch != 0:
		if e.spooled == nil {
			e.spooled = make(map[uint64]int64)
		}
		e.spooled[epoch] = max(e.spooled[epoch], revision)
	}
}

// see takes the header of a linearizable answer. It shows all that had happened when it was asked for, when asked was the highest revision seen: a lower one is of
// another life. What was seen since then proves nothing: answers may overtake each other.
//
// The caller holds e.mu.
func (e *epochs) see(h *pb.ResponseHeader, asked int64) (epoch uint64, changed bool) {
	if !e.seen {
		changed = e.first(h)
	} else if h.ClusterId != e.cluster {
		e.begin(h, h.ClusterId)
		changed = true
	} else if h.Revision < asked {
		e.begin(h, e.epoch+1)
		changed = true
	}
	e.highest = max(e.highest, h.Revision)
	return e.epoch, changed
}

// first takes the first answer of all: it goes on with the newest spooled life of its cluster, unless its revision is below that. It has nothing to end.
func (e *epochs) first(h *pb.ResponseHeader) (changed bool) {
	e.seen, e.cluster, e.epoch = true, h.ClusterId, h.ClusterId
	known := false
	for epoch := range e.spooled {
		if life := epoch - h.ClusterId; life < maxLives { // one of a lower number wraps around
			known = true
			e.epoch = max(e.epoch, epoch)
		}
	}
	e.highest = e.spooled[e.epoch]
	switch {
	case known && h.Revision < e.highest:
		e.begin(h, e.epoch+1)
	case !known && len(e.spooled) > 0:
		e.begin(h, h.ClusterId)
	}
	e.spooled = nil
	return false
}

func (e *epochs) begin(h *pb.ResponseHeader, epoch uint64) {
	was := e.highest
	e.cluster, e.epoch, e.highest = h.ClusterId, epoch, h.Revision
	e.count++
	if e.tell != nil {
		e.tell(epoch, h.Revision, was)
	}
}

// raise takes the header of any other answer: what it shows has happened, but more may have. The caller holds e.mu.
func (e *epochs) raise(h *pb.ResponseHeader) {
	if e.seen && h.GetClusterId() == e.cluster {
		e.highest = max(e.highest, h.GetRevision())
	}
}

func (e *epochs) changes() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count
}

// Seen is the highest revision seen of etcd's present life: what See has to know of the moment when an answer was asked for.
func (l *Link) Seen() int64 {
	l.epochs.mu.Lock()
	defer l.epochs.mu.Unlock()
	return l.epochs.highest
}

// See notes the header of a linearizable answer, which was asked for when Seen was asked, and returns its epoch. Another epoch than before ends the link, so that all who use it look at everything anew; the
// error is that, or why the link had ended before.
func (l *Link) See(h *pb.ResponseHeader, asked int64) (epoch uint64, err error) {
	l.epochs.mu.Lock() // until the link has ended: of several answers of another life, only the first begins an epoch
	defer l.epochs.mu.Unlock()
	if err := context.Cause(l.ctx); err != nil {
		return 0, err // the answer may be of the life before
	}
	epoch, changed := l.epochs.see(h, asked)
	if changed {
		l.fail(errNewEpoch)
		return 0, errNewEpoch
	}
	return epoch, nil
}

// Saw notes the header of an answer that need not be the newest: of a watch, or a serializable read.
func (l *Link) Saw(h *pb.ResponseHeader) {
	l.epochs.mu.Lock()
	defer l.epochs.mu.Unlock()
	if l.ctx.Err() == nil {
		l.epochs.raise(h)
	}
}

// Remember notes the epoch and revision of a list that was spooled, before etcd is asked.
func (k *Links) Remember(epoch uint64, revision int64) { k.epochs.remember(epoch, revision) }
