package localapi

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Whatever number of users ask, etcd is asked once for a service in 5 s, and only by those who want it.
func TestEtcdIsAskedSeldom(t *testing.T) {
	var asked, now, most atomic.Int64
	r := newRig(t, func(c *Config) {
		c.EtcdNow = func(_ context.Context, service string) (*lbagentv1.EtcdNow, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			asked.Add(1)
			if service == "sick" {
				return nil, errors.New("etcd could not be asked: permission denied")
			}
			return &lbagentv1.EtcdNow{Revision: 43, ListRevision: 42, Keys: 6, Missing: []string{"/x"}, MissingCount: 1}, nil
		}
	})
	r.set("sick", 1)
	explain := func(service string, etcdNow bool) *lbagentv1.EtcdNow {
		e, err := r.status().Explain(testContext(t), &lbagentv1.ExplainRequest{Service: service, EtcdNow: etcdNow})
		if err != nil {
			t.Error(err)
		}
		return e.GetEtcdNow()
	}
	if got := explain("user", false); got != nil || asked.Load() != 0 {
		t.Errorf("etcd is asked for who doesn't want it: %v", got)
	}
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if got := explain("user", true); got.GetRevision() != 43 || got.GetMissingCount() != 1 || got.GetAt() == nil || got.GetError() != "" {
				t.Errorf("got %v", got)
			}
		})
	}
	all.Wait()
	if n := asked.Load(); n < 1 || n > 2 { // a slow machine may take 5 s
		t.Errorf("etcd was asked %d times", n)
	}
	if got := explain("sick", true); got.GetError() != "etcd could not be asked: permission denied" || got.GetRevision() != 0 {
		t.Errorf("got %v", got)
	}
	if most.Load() != 1 {
		t.Errorf("etcd was asked %d times at once", most.Load())
	}
}

// Who can't get a turn has an explanation without it.
func TestEtcdNowWithoutATurn(t *testing.T) {
	s := &Server{asks: newEtcdNowTurn(), cfg: Config{EtcdNow: func(context.Context, string) (*lbagentv1.EtcdNow, error) { return nil, nil }}}
	<-s.asks.turn // somebody asks, and gets no answer
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if got := s.etcdNow(ctx, "user"); !strings.Contains(got.GetError(), "no turn to ask etcd") {
		t.Errorf("got %v", got)
	}
	if got := (&Server{}).etcdNow(ctx, "user"); got.GetError() == "" {
		t.Errorf("got %v", got)
	}
}
