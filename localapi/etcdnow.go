package localapi

import (
	"context"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	etcdNowWithin = 2 * time.Second        // to get a turn, and to ask: an explanation without it is better than none
	etcdNowLives  = 5 * time.Second        // how long an answer is good for all who ask for the same service
	etcdNowEvery  = 200 * time.Millisecond // from one read to the next, of all services: any local user may ask
)

// etcdNowTurn is what one needs to ask etcd: there is one turn.
type etcdNowTurn struct {
	turn chan struct{} // holds one while nobody asks
	next time.Time     // when the next may; of who has the turn
}

func newEtcdNowTurn() etcdNowTurn {
	t := etcdNowTurn{turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	return t
}

// etcdNow compares with what etcd has of a service. It costs a user's host at most a read of one service's keys each etcdNowEvery.
func (s *Server) etcdNow(ctx context.Context, name string) *lbagentv1.EtcdNow {
	if s.cfg.EtcdNow == nil {
		return &lbagentv1.EtcdNow{Error: "this agent can't ask"}
	}
	ctx, cancel := context.WithTimeout(ctx, etcdNowWithin)
	defer cancel()
	late := &lbagentv1.EtcdNow{Error: "no turn to ask etcd within 2 s: too many want to know"}
	select {
	case <-s.asks.turn:
	case <-ctx.Done():
		return late
	}
	defer func() { s.asks.turn <- struct{}{} }()
	now := s.now()
	if r, ok := s.compared.get(name); ok && now.Sub(r.GetAt().AsTime()) < etcdNowLives {
		return r
	}
	pause := time.NewTimer(s.asks.next.Sub(now))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return late
	}
	s.asks.next = s.now().Add(etcdNowEvery)
	r, err := s.cfg.EtcdNow(ctx, name)
	if err != nil {
		return &lbagentv1.EtcdNow{Error: err.Error()}
	}
	r.At = stamp(s.now())
	s.compared.put(name, r, s.isFollowed)
	return r
}
