package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// vital is a part of the agent without which it serves nobody. ping returns once that part has answered, or ctx has ended.
type vital struct {
	name string
	ping func(ctx context.Context)
}

// vitals are the goroutines that everything hangs on: each answers through its own mailbox, the API in memory. Nothing here asks the network or the disk: that etcd or a
// backend is gone is no reason to be restarted.
func (a *Agent) vitals() []vital {
	all := []vital{
		{"health", a.monitor.Ping},
		{"table", a.table.Ping},
		{"local api", a.api.Ping},
	}
	for i := range a.proxy.Loops() {
		all = append(all, vital{fmt.Sprintf("event loop %d", i), func(ctx context.Context) { a.proxy.Ping(ctx, i) }})
	}
	return all
}

// feedWatchdog feeds the service manager's watchdog for as long as every vital part answers.
func (a *Agent) feedWatchdog(ctx context.Context) error {
	every := a.notifier.Watchdog() / 2
	if every <= 0 {
		<-ctx.Done()
		return nil
	}
	feed := func() { a.tell(a.notifier.Alive()) }
	watch(ctx, every, a.vitals(), feed, func(frozen []string) {
		if len(frozen) == 0 {
			a.log.Warn("all parts answer again")
			a.tell(a.notifier.Status(a.summary(a.missing())))
			return
		}
		s := strings.Join(frozen, ", ") + " does not answer; the watchdog is not fed"
		a.log.Error("a part of the agent is frozen; the watchdog is not fed", "part", strings.Join(frozen, ", "))
		a.events.Add(event.Event{Time: a.now(), Kind: event.Agent, Detail: s})
		a.tell(a.notifier.Status(s))
	})
	return nil
}

// watch asks every part, and feeds once all have answered, every so often. A part that hasn't answered in that time stops the feeding until it does; tell names those that
// are frozen when there are others than before, none once all answer again. A frozen part is asked no second time.
func watch(ctx context.Context, every time.Duration, vitals []vital, feed func(), tell func(frozen []string)) {
	var pings sync.WaitGroup
	defer pings.Wait()
	answered := make([]chan struct{}, len(vitals)) // nil: nothing is asked
	told := ""
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for i, v := range vitals {
			if answered[i] == nil {
				answer := make(chan struct{})
				answered[i] = answer
				pings.Go(func() { v.ping(ctx); close(answer) })
			}
		}
		var frozen []string
		enough, cancel := context.WithTimeout(ctx, every)
		for i, v := range vitals {
			select {
			case <-answered[i]:
				answered[i] = nil
			default:
				select {
				case <-answered[i]:
					answered[i] = nil
				case <-enough.Done():
					frozen = append(frozen, v.name)
				}
			}
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		if now := strings.Join(frozen, ", "); now != told {
			told = now
			tell(frozen)
		}
		if len(frozen) > 0 {
			continue // the wait is over already
		}
		feed()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
