package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/handoff"
)

// A crash loop (SEMANTICS 6.6). What dies before it can count itself, systemd's StartLimitBurst= counts.
const (
	loopStarts = 5               // so many starts in a minute, this one included, are a crash loop
	loopPause  = 5 * time.Second // between two of its starts
	loopOver   = time.Minute     // a process that was ready for so long is no part of one
)

// pacer is what a start in a crash loop waits for.
type pacer struct {
	sockets *handoff.Sockets
	tell    func(status string)
	log     func() hclog.Logger // asked if there is something to say: no configuration is known yet
	pause   time.Duration
}

// pace counts this start. If it is one of a crash loop, nobody shall wait for it: callers are refused, and the start goes on after a while. It returns the number of starts in the
// last minute then, else 0.
func (p pacer) pace(ctx context.Context, now time.Duration) (starts int) {
	starts, err := p.sockets.Started(now)
	if err != nil {
		p.log().Warn("starts can't be counted: a crash loop would not be noticed", "error", err)
		return 0
	}
	if starts < loopStarts {
		return 0
	}
	if err := p.sockets.Refuse(); err != nil {
		p.log().Warn("the service manager could not be told", "error", err)
	}
	p.tell(fmt.Sprintf("a crash loop: %d starts in the last minute; callers are refused, the next start is in %v", starts, p.pause))
	p.log().Error("a crash loop: callers are refused until the next start; the log above says why the agent ends", "starts", starts, "pause", p.pause)
	ctx, cancel := context.WithTimeout(ctx, p.pause)
	defer cancel()
	p.sockets.TurnAway(ctx)
	<-ctx.Done()
	return starts
}

// loopWords is what systemctl status says of the process that follows a crash loop.
func (a *Agent) loopWords() string {
	n := a.loop.Load()
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("after a crash loop (%d starts in a minute; the log says why): a crash ends its listeners until it was well for %v", n, loopOver)
}

func (a *Agent) loopWarnings() []string {
	if words := a.loopWords(); words != "" {
		return []string{"this process came " + words}
	}
	return nil
}

// outlive returns when ctx has ended; if that takes loopOver or longer, well is called then.
func outlive(ctx context.Context, well func()) {
	over := time.NewTimer(loopOver)
	defer over.Stop()
	select {
	case <-ctx.Done():
		return
	case <-over.C:
	}
	well()
	<-ctx.Done()
}

// well is called when this process has lived long enough to be no part of a crash loop.
func (a *Agent) well() {
	if !a.settle() {
		return
	}
	a.log.Info("the crash loop is over")
	a.events.Add(event.Event{Time: a.now(), Kind: event.Agent, Detail: "the crash loop is over"})
	a.tell(a.notifier.Status(a.summary(a.missing())))
}

// settle forgets the starts so far, and has the listeners kept if a crash loop was the reason that they weren't. It reports whether one was.
func (a *Agent) settle() (looped bool) {
	a.tell(a.sockets.Settled())
	if looped = a.loop.Swap(0) > 0; looped {
		a.keepListeners()
	}
	return looped
}
