package table

import (
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

const (
	askedUse   = 5 * time.Minute // 2.3: a service that was asked for in this time is in use
	askedGrain = time.Second     // how exact the time of the last question is kept
)

// Service is one service of the table; the pointer is the same for as long as the service is followed.
type Service struct {
	name   string
	base   time.Time // asked counts from here, on the monotonic clock
	table  *Table
	up     health.Part // the verdict of all that are up
	median picker.Median
	busy   picker.Busy

	spec      atomic.Pointer[Spec]
	view      atomic.Pointer[View]
	confirmed atomic.Pointer[time.Time]
	asked     atomic.Int64
	active    atomic.Bool // what health was told last; written under Table.mu
	entered   [health.Kinds]atomic.Uint64
	picks     [pickShards]pickCount

	// Guarded by Table.mu.

	used         bool // it has been in use: its next view has a picker, all backends of that have states, and health knows of it
	subset       bool // it has a subset (3.9)
	slow         bool // backends are in their slow start (3.7)
	zones        []string
	ring         ring
	fallback     fallback
	muted        muted                          // nil if none
	left         map[netip.AddrPort]leftBackend // nil if none
	listVoice    voice
	verdictVoice voice
	weightVoice  voice
}

// leftBackend is a backend that left the list: if the same life of it is back before its drain is over, it goes on with its state (4.7).
type leftBackend struct {
	state   *health.State
	life    *life
	epoch   uint64
	created int64
	until   time.Time
}

// pickShards spreads the count of picks over cache lines, so that loops on several cores don't wait for each other's writes.
const pickShards = 8

type pickCount struct {
	atomic.Uint64

	_ [56]byte
}

func (t *Table) newService(now time.Time, spec *Spec) *Service {
	s := &Service{name: spec.Name, base: now.Add(-1), table: t, up: health.Part{Kind: health.Up}, muted: t.mutes[spec.Name]}
	s.median.Random = t.cfg.Random
	s.spec.Store(spec)
	s.view.Store(newView(now, s, &service.List{Service: spec.Name}, new(edit)))
	return s
}

// Name is the service's name.
func (s *Service) Name() string { return s.name }

// Spec is how it is treated now.
func (s *Service) Spec() *Spec { return s.spec.Load() }

// View is the view of now, never nil; before the first list it has Ready false.
func (s *Service) View() *View { return s.view.Load() }

// Age is the time since the list was last confirmed by its source (1.3); very long if it never was.
func (s *Service) Age(now time.Time) time.Duration {
	at := s.confirmed.Load()
	if at == nil {
		return 1<<63 - 1
	}
	return max(0, now.Sub(*at))
}

// confirm notes the later of what is known and at.
func (s *Service) confirm(at time.Time) {
	for {
		old := s.confirmed.Load()
		if old != nil && !at.After(*old) || s.confirmed.CompareAndSwap(old, &at) {
			return
		}
	}
}

// Asked notes that somebody used the service (2.3: asked in the last 5 min = in use). Views are to be loaded after it: the backends of a service that nobody has used
// yet have no states.
func (s *Service) Asked(now time.Time) {
	at := max(1, int64(now.Sub(s.base)))
	if last := s.asked.Load(); last == 0 || at-last >= int64(askedGrain) {
		s.asked.Store(at)
	}
	if v := s.View(); v.picker == nil && !v.Gone { // the view says it, since between the first use and its view others ask, too
		s.table.use(now, s)
	}
	if !s.active.Load() {
		s.poke()
	}
}

// Unasked is the time since somebody last asked for the service, or since it was made if nobody has.
func (s *Service) Unasked(now time.Time) time.Duration {
	return now.Sub(s.base) - time.Duration(s.asked.Load())
}

func (s *Service) askedWithin(now time.Time, d time.Duration) bool {
	asked := s.asked.Load()
	return asked != 0 && int64(now.Sub(s.base))-asked < int64(d)
}

// poke has Table.Run look at what there is to do.
func (s *Service) poke() {
	select {
	case s.table.wake <- struct{}{}:
	default:
	}
}

// Picks is the number of picks since the start (per caller kind is the caller's to count).
func (s *Service) Picks() uint64 {
	var n uint64
	for i := range s.picks {
		n += s.picks[i].Load()
	}
	return n
}

// CountPicks counts n picks: those of a batch are made without a pick each.
func (s *Service) CountPicks(n uint64) { s.picks[rand.Uint32()%pickShards].Add(n) }

// Entered is how often a backend of this service came to that verdict, for metrics.
func (s *Service) Entered(k health.Kind) uint64 { return s.entered[k].Load() }

// Median is the median of the backends' latencies (3.4), 0 if nothing was called in the last seconds.
func (s *Service) Median() time.Duration { return s.median.Get() }

// Changed returns the view of now and a channel that is closed when there is a newer one: the latest wins, a slow reader holds up nobody. A view
// that says Gone is the last; its channel is closed already.
func (s *Service) Changed() (*View, <-chan struct{}) {
	v := s.View()
	return v, v.next
}
