package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// What watchers may cost. Nothing of it costs anything while nobody watches.
const (
	maxWatchers = 12                     // pages that are kept up to date at once
	maxBehind   = 32                     // messages that a watcher may be behind before it is let go; it comes back and begins anew
	lookEvery   = time.Second            // how often the overview is made anew
	calmFor     = 200 * time.Millisecond // at least this between two looks, whatever happens
	beatEvery   = 5 * time.Second        // a page that hears nothing for three beats says that the agent is gone
	sendTimeout = 30 * time.Second       // for a message to a watcher; the first one of a large agent has about a megabyte
	firstEvents = 300                    // events that a new watcher gets
)

// watcher is one open page.
type watcher struct {
	after uint64      // the last event that it has
	out   chan []byte // closed when the watcher is let go
}

// live tells every watcher what changes. One goroutine makes the messages, once for all watchers; each watcher's own one writes them.
type live struct {
	page   *page
	places chan struct{} // one per watcher
	joins  chan *watcher
	leaves chan *watcher
	slot   chan struct{} // the history has a new slot
	ended  chan struct{} // closed when there will be no more messages

	// Owned by run.
	watchers map[*watcher]struct{}
	seen     *overview // what the watchers know; nil if there are none
	event    uint64    // the last event that they know
}

func newLive(p *page) *live {
	return &live{
		page: p, places: make(chan struct{}, maxWatchers), joins: make(chan *watcher), leaves: make(chan *watcher), slot: make(chan struct{}, 1),
		ended: make(chan struct{}), watchers: make(map[*watcher]struct{}),
	}
}

// run serves watchers until ctx ends.
func (l *live) run(ctx context.Context) {
	defer close(l.ended)
	look, beat := time.NewTicker(lookEvery), time.NewTicker(beatEvery)
	defer look.Stop()
	defer beat.Stop()
	for {
		var more <-chan struct{}
		if len(l.watchers) == 0 {
			l.seen = nil
			look.Stop()
			beat.Stop()
		} else {
			more = l.events()
		}
		select {
		case <-ctx.Done():
			return
		case w := <-l.joins:
			if len(l.watchers) == 0 {
				look.Reset(lookEvery)
				beat.Reset(beatEvery)
			}
			l.join(ctx, w)
		case w := <-l.leaves:
			delete(l.watchers, w)
		case <-l.slot:
			l.send(message("slot", "", l.page.history.last()))
		case <-look.C:
			l.look(ctx)
		case <-beat.C:
			l.send(message("beat", "", struct{}{}))
		case <-more:
			// What comes together is told together.
			if pause(ctx, calmFor) != nil {
				return
			}
			l.look(ctx)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// everything is the first message to a watcher.
type everything struct {
	Instance string          `json:"instance"` // differs after a restart
	Assets   string          `json:"assets"`   // differs if the page is another one: it loads itself anew
	Now      int64           `json:"now"`      // Unix ms
	Slot     float64         `json:"slot"`     // length in seconds
	Slots    int             `json:"slots"`
	Agent    json.RawMessage `json:"agent"`
	Problems []problem       `json:"problems"`
	Services []row           `json:"services"`
	Past     allLines        `json:"past"`
}

// changes are what differs from what a watcher has; what is absent is as it was.
type changes struct {
	Agent    json.RawMessage `json:"agent,omitempty"`
	Problems *[]problem      `json:"problems,omitempty"`
	Services []row           `json:"services,omitempty"`
	Gone     []string        `json:"gone,omitempty"`
}

func (l *live) join(ctx context.Context, w *watcher) {
	now := l.page.now()
	if l.seen == nil {
		o, err := l.page.see(ctx, now)
		if err != nil {
			l.page.log.Warn("the page can't be made", "error", err)
			close(w.out)
			return
		}
		l.seen = o
		if events, _ := l.page.events.Since(0); len(events) > 0 {
			l.event = events[len(events)-1].ID
		}
	}
	w.out <- message("all", "", everything{
		Instance: l.page.instance, Assets: l.page.assets.version, Now: now.UnixMilli(), Slot: slotLength.Seconds(), Slots: slots,
		Agent: l.seen.agent, Problems: l.seen.problems, Services: l.seen.services, Past: l.page.history.all(),
	}) // out has room
	events, _ := l.page.events.Since(w.after)
	for len(events) > 0 && events[len(events)-1].ID > l.event {
		events = events[:len(events)-1] // the others get it, too
	}
	events = worthShowing(events)
	w.out <- l.page.eventsMessage(events[max(0, len(events)-firstEvents):])
	l.watchers[w] = struct{}{}
}

// events tells the watchers of new ones, and returns a channel that is closed when there are more.
func (l *live) events() <-chan struct{} {
	events, more := l.page.events.Since(l.event)
	if len(events) > 0 {
		l.event = events[len(events)-1].ID
	}
	if events = worthShowing(events); len(events) > 0 {
		l.send(l.page.eventsMessage(events[max(0, len(events)-firstEvents):]))
	}
	return more
}

// worthShowing leaves out connections, as lbagent events does: a service that is refused makes tens of them a second, and nothing else would be left of firstEvents.
func worthShowing(events []event.Event) []event.Event {
	return slices.DeleteFunc(slices.Clone(events), func(e event.Event) bool { return e.Kind == event.Connection })
}

// send hands a message to every watcher; one that has no room for it is let go.
func (l *live) send(m []byte) {
	for w := range l.watchers {
		select {
		case w.out <- m:
		default:
			close(w.out)
			delete(l.watchers, w)
		}
	}
}

// look tells the watchers what is different now.
func (l *live) look(ctx context.Context) {
	if l.seen == nil {
		return
	}
	o, err := l.page.see(ctx, l.page.now())
	if err != nil {
		l.page.log.Warn("the page can't be made", "error", err)
		return
	}
	if c, any := o.since(l.seen); any {
		l.send(message("change", "", c))
	}
	l.seen = o
}

// since is what differs from old. Both have their services sorted by name.
func (o *overview) since(old *overview) (c changes, any bool) {
	if !bytes.Equal(o.agent, old.agent) {
		c.Agent, any = o.agent, true
	}
	if !slices.Equal(o.problems, old.problems) {
		c.Problems, any = &o.problems, true
	}
	was := make(map[string]*row, len(old.services))
	for i := range old.services {
		was[old.services[i].Name] = &old.services[i]
	}
	for i := range o.services {
		r := &o.services[i]
		if before := was[r.Name]; before == nil || *before != *r {
			c.Services, any = append(c.Services, *r), true
		}
		delete(was, r.Name)
	}
	for name := range was {
		c.Gone, any = append(c.Gone, name), true
	}
	return c, any
}
