package discovery

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// follower keeps one service's list. It is the etcd.Keys of its own goroutine, which owns all that follows the blank line.
type follower struct {
	d      *Discovery
	follow Follow
	after  <-chan struct{}    // closed when the follower before it, of the same service, has ended; nil if there is none
	cancel context.CancelFunc // set when it is started
	done   chan struct{}      // closed when it has ended
	given  chan struct{}      // closed when OnList has had a list of it
	keeps  atomic.Bool        // the guard keeps orphans

	seeding sync.Once // of seed

	fallback *follower                    // of the service's fallback, nil without; its goroutine gives spare
	parent   *follower                    // whose fallback this is; nil if it is none
	spare    atomic.Pointer[service.List] // the fallback's list of now, nil before its first
	trouble  atomic.Pointer[string]       // why etcd doesn't let it be followed, which is about this service only; nil if it does

	decoder *format.Decoder

	mu sync.Mutex // held while a list is made and OnList runs, whoever makes it. What follows is written under it, records, epoch and rev by the goroutine alone

	guard     guard
	records   records
	spooled   *service.List // what the spool had, less orphans, until etcd says what is; nil without
	epoch     uint64        // of records
	rev       int64         // of records
	confirmed time.Time     // when the list's source last said that it is so
	list      *service.List // the last one given to OnList
	joined    *service.List // the fallback's list that went with it
	late      bool          // it is time to give the fallback's alone
	held      bool          // the list of now waits for its first host names to be asked for
	names     names
	told      map[string]bool
	ended     bool // OnList belongs to the next follower of the service
}

func newFollower(d *Discovery, of Follow) *follower {
	f := &follower{d: d, follow: of, guard: guard{hold: of.Hold}, done: make(chan struct{}), given: make(chan struct{})}
	if of.Fallback != nil {
		f.fallback = newFollower(d, *of.Fallback)
		f.fallback.parent = f
	}
	return f
}

// become takes over a Follow that differs from f's in nothing that takes a new follower. The caller holds Discovery.mu.
func (f *follower) become(next Follow) bool {
	same := f.follow
	same.Hold = next.Hold
	if !reflect.DeepEqual(same, next) {
		return false
	}
	if f.follow.Hold == next.Hold {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.follow.Hold, f.guard.hold = next.Hold, next.Hold
	if next.Hold == 0 && !f.ended {
		f.let(time.Now(), f.guard.accept(), "guard is off")
	}
	f.d.poke()
	return true
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	defer f.end()
	defer f.stopNames()
	if f.after != nil {
		<-f.after
	}
	f.seed(time.Now())
	f.startNames(ctx)
	defer f.runFallback(ctx)()
	if f.follow.keys() == "" {
		if f.follow.named() || f.fallback != nil {
			<-ctx.Done()
		}
		return
	}
	dec, err := format.New(f.follow.Format, f.follow.Select)
	if err != nil {
		f.d.log.Error("cannot follow service", "service", f.follow.Name, "cause", err)
		return
	}
	f.decoder = dec
	with := etcd.Follower{Links: f.d.cfg.Etcd, Prefix: f.follow.keys(), Keys: f, Audits: &f.d.audits}
	with.Run(ctx)
}

func (f *follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	close(f.done)
}

// Well: see etcd.Keys.
func (f *follower) Well() {
	if f.trouble.Swap(nil) != nil {
		f.d.log.Info("service is followed again", "service", f.follow.Name)
		f.happened("its list can be read again")
	}
}

// Ended: see etcd.Keys.
func (f *follower) Ended(err error) (own bool) {
	f.d.log.Debug("reading the list again", "service", f.follow.Name, "cause", err)
	if errors.Is(err, etcd.ErrMissed) {
		f.d.repairs.Add(1)
		f.d.log.Warn("a list was out of date", "service", f.follow.Name, "cause", err)
	}
	if own = etcd.IsOwn(err); !own {
		return false
	}
	why := fmt.Sprintf("%s can't be read: %v", f.follow.keys(), err)
	if was := f.trouble.Swap(&why); was == nil || *was != why {
		f.d.log.Error("cannot follow service", "service", f.follow.Name, "cause", err)
		f.happened(why)
	}
	return true
}

// happened makes an event of what became of reading the list.
func (f *follower) happened(detail string) {
	if f.d.cfg.Events != nil {
		f.d.cfg.Events.Add(event.Event{Time: time.Now(), Kind: event.Source, Service: f.follow.Name, Detail: detail})
	}
}
