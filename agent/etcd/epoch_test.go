package etcd

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// What answers say of etcd's lives, and what lists of the spool said before (1.5).
func TestEpochs(t *testing.T) {
	const id = 1 << 63
	type answer struct {
		cluster  uint64
		revision int64
		raise    bool // not linearizable
		epoch    uint64
		changed  bool
	}
	for name, c := range map[string]struct {
		spooled map[uint64]int64
		answers []answer
		count   uint64
	}{
		"one life":      {nil, []answer{{id, 5, false, id, false}, {id, 5, false, id, false}, {id, 9, false, id, false}}, 0},
		"restored":      {nil, []answer{{id, 5, false, id, false}, {id, 4, false, id + 1, true}, {id, 4, false, id + 1, false}, {id, 5, false, id + 1, false}, {id, 3, false, id + 2, true}}, 2},
		"replaced":      {nil, []answer{{id, 5, false, id, false}, {9, 7, false, 9, true}, {9, 7, false, 9, false}}, 1},
		"a watch":       {nil, []answer{{id, 5, false, id, false}, {id, 9, true, 0, false}, {id, 8, false, id + 1, true}}, 1},
		"behind":        {nil, []answer{{id, 5, false, id, false}, {id, 2, true, 0, false}, {id, 5, false, id, false}}, 0},
		"from spool":    {map[uint64]int64{id + 2: 50}, []answer{{id, 50, false, id + 2, false}, {id, 49, false, id + 3, true}}, 1},
		"while off":     {map[uint64]int64{id + 2: 50, id + 1: 900}, []answer{{id, 49, false, id + 3, false}, {id, 49, false, id + 3, false}}, 1},
		"other cluster": {map[uint64]int64{id + 2: 50}, []answer{{8, 70, false, 8, false}, {8, 70, false, 8, false}}, 1},
		"static lists":  {map[uint64]int64{0: 0}, []answer{{id, 3, false, id, false}}, 0},
		"a lower id":    {map[uint64]int64{7: 50}, []answer{{8, 40, false, 8, false}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var e epochs
			for epoch, revision := range c.spooled {
				e.remember(epoch, revision)
			}
			for i, a := range c.answers {
				h := &pb.ResponseHeader{ClusterId: a.cluster, Revision: a.revision}
				if a.raise {
					e.raise(h)
					continue
				}
				if epoch, changed := e.see(h, e.highest); epoch != a.epoch || changed != a.changed {
					t.Errorf("answer %d: epoch %d (changed %v), want %d (%v)", i, epoch, changed, a.epoch, a.changed)
				}
			}
			if n := e.changes(); n != c.count {
				t.Errorf("%d new epochs, want %d", n, c.count)
			}
		})
	}
}

// A service that is followed later brings a spooled list of this life with it.
func TestEpochsRememberLate(t *testing.T) {
	var e epochs
	e.see(&pb.ResponseHeader{ClusterId: 7, Revision: 5}, 0)
	e.remember(7, 50)
	e.remember(9, 90)
	if epoch, changed := e.see(&pb.ResponseHeader{ClusterId: 7, Revision: 49}, 50); epoch != 8 || !changed {
		t.Errorf("epoch %d, changed %v", epoch, changed)
	}
}

// Another life ends the link, and an answer that came late, from before, is not taken for one of the new life (1.5).
func TestLinkSee(t *testing.T) {
	events := event.NewLog(10)
	k := New(Options{Log: hclog.NewNullLogger(), Events: events, Etcd: &Config{Endpoints: []string{"x"}}})
	l := newLink(t.Context(), nil, k.epochs)
	head := func(revision int64) *pb.ResponseHeader { return &pb.ResponseHeader{ClusterId: 7, Revision: revision} }
	if epoch, err := l.See(head(9), l.Seen()); epoch != 7 || err != nil {
		t.Fatal(epoch, err)
	}
	if _, err := l.See(head(3), l.Seen()); err == nil || l.ctx.Err() == nil {
		t.Fatalf("error %v, link %v", err, l.ctx.Err())
	}
	if _, err := l.See(head(9), l.Seen()); err == nil {
		t.Error("an ended link took an answer")
	}
	l.Saw(head(9))
	next := newLink(t.Context(), nil, k.epochs)
	if epoch, err := next.See(head(3), next.Seen()); epoch != 8 || err != nil {
		t.Errorf("epoch %d, error %v", epoch, err)
	}
	if n := k.Status().Epochs; n != 1 {
		t.Errorf("%d new epochs", n)
	}
	if all, _ := events.Since(0); len(all) != 1 || !strings.Contains(all[0].Detail, "revision 3 after 9, epoch 8") {
		t.Errorf("events %+v", all)
	}
}

// An answer that another one overtook is no restore: it shows what there was when it was asked for. Found by TestRandom of discovery, seed 20261122.
func TestAnswersOvertakeEachOther(t *testing.T) {
	var e epochs
	e.see(&pb.ResponseHeader{ClusterId: 7, Revision: 10}, 0)
	asked := e.highest
	e.see(&pb.ResponseHeader{ClusterId: 7, Revision: 12}, asked)
	e.raise(&pb.ResponseHeader{ClusterId: 7, Revision: 13})
	if epoch, changed := e.see(&pb.ResponseHeader{ClusterId: 7, Revision: 11}, asked); epoch != 7 || changed || e.highest != 13 {
		t.Errorf("epoch %d, changed %v, highest %d", epoch, changed, e.highest)
	}
	if epoch, changed := e.see(&pb.ResponseHeader{ClusterId: 7, Revision: 12}, 13); epoch != 8 || !changed {
		t.Errorf("epoch %d, changed %v: that is a restore", epoch, changed)
	}
}

// Of several answers of another life that come at the same time, over one client, the first one begins an epoch, and what the old life still says counts for nothing.
func TestOneRestoreOneEpoch(t *testing.T) {
	for range 300 {
		k := New(Options{})
		l := newLink(t.Context(), nil, k.epochs)
		if _, err := l.See(&pb.ResponseHeader{ClusterId: 7, Revision: 50}, 0); err != nil {
			t.Fatal(err)
		}
		asked := l.Seen()
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if i%4 == 3 {
					l.Saw(&pb.ResponseHeader{ClusterId: 7, Revision: 51})
				} else if _, err := l.See(&pb.ResponseHeader{ClusterId: 7, Revision: 4}, asked); !errors.Is(err, errNewEpoch) {
					t.Errorf("error %v, want that there is a new epoch", err)
				}
			})
		}
		all.Wait()
		if n := k.epochs.changes(); n != 1 || newLink(t.Context(), nil, k.epochs).Seen() != 4 {
			t.Fatalf("%d epochs began, and revision %d was seen", n, l.Seen())
		}
	}
}
