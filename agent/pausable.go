package agent

import (
	"context"
	"sync"
)

// pausable is a stage that can be stopped for a while. The zero value runs.
type pausable struct {
	mu sync.Mutex

	paused  chan struct{} // closed by resume; nil: not paused
	cancel  context.CancelFunc
	stopped chan struct{} // closed when the run of now has ended; nil: none runs
}

// run calls f until ctx ends or f returns by itself, and again after each pause.
func (p *pausable) run(ctx context.Context, f func(context.Context) error) error {
	for {
		p.mu.Lock()
		paused := p.paused
		mine, cancel := context.WithCancel(ctx)
		stopped := make(chan struct{})
		if paused == nil {
			p.cancel, p.stopped = cancel, stopped
		}
		p.mu.Unlock()
		if paused == nil {
			err := f(mine)
			close(stopped)
			if ctx.Err() != nil || mine.Err() == nil {
				cancel()
				return err
			}
			p.mu.Lock()
			paused = p.paused
			p.mu.Unlock()
		}
		cancel()
		if paused == nil {
			continue
		}
		select {
		case <-paused:
		case <-ctx.Done():
			return nil
		}
	}
}

// pause returns when nothing runs.
func (p *pausable) pause() {
	p.mu.Lock()
	if p.paused == nil {
		p.paused = make(chan struct{})
	}
	cancel, stopped := p.cancel, p.stopped
	p.mu.Unlock()
	if cancel != nil {
		cancel()
		<-stopped
	}
}

// resume ends the pause.
func (p *pausable) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused != nil {
		close(p.paused)
		p.paused = nil
	}
}
