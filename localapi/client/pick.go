package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Picked is the backend for one call.
type Picked struct {
	Address  string // host:port
	Host     string // the name it was resolved from; empty for a literal address
	Metadata map[string]string
}

// batch is what is left of the picks of one service.
type batch struct {
	mu sync.Mutex

	picks  []*lbagentv1.Picked
	spent  uint32 // of picks[0]
	until  time.Time
	asked  uint32 // size of the batch at hand
	taken  uint32 // of it
	filled time.Time
	want   uint32 // size of the next one
	file   []line // in place of picks while the agent is away; after until, one asks the agent beside
	filler *fill

	revoked bool // there was news after it was filled: what was left of it was dropped
	watched bool // somebody waits for news
}

// fill is one request under way; every pick that finds nothing waits for the same.
type fill struct {
	done chan struct{}
	err  error
}

// fileFor is how long picks are made from the file before the agent is asked again.
const fileFor = time.Second

// Pick returns a backend for one call. Most picks are spent from a batch and cost no round trip.
func (c *Client) Pick(ctx context.Context, service string) (Picked, error) {
	b, err := c.batchOf(service)
	if err != nil {
		return Picked{}, err
	}
	for {
		b.mu.Lock()
		now := time.Now()
		f := b.filler
		mine := f == nil && (b.file == nil || !now.Before(b.until))
		if p, ok := b.spend(now); ok {
			if b.file != nil && mine { // nobody waits for an agent that was away: ask beside
				b.filler = &fill{done: make(chan struct{})}
				f, want := b.filler, b.want
				if !c.beside(func() { c.fill(c.ctx, b, service, want, f) }) {
					b.filler = nil
				}
			}
			b.mu.Unlock()
			return p, nil
		}
		if mine {
			f = &fill{done: make(chan struct{})}
			b.filler = f
			b.size(now, c.cfg.MaxBatch)
		}
		want := b.want
		b.mu.Unlock()
		if mine {
			c.fill(ctx, b, service, want, f)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return Picked{}, ctx.Err()
		}
		if f.err != nil && (mine || ctx.Err() == nil && !cancelled(f.err)) {
			return Picked{}, f.err
		}
	}
}

// beside runs f in a goroutine that Close waits for; false if the client is closed.
func (c *Client) beside(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// cancelled reports whether a fill ended with its caller, which says nothing to those who waited for it.
func cancelled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func (c *Client) batchOf(service string) (*batch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	b := c.batches[service]
	if b == nil {
		b = &batch{want: 1}
		c.batches[service] = b
	}
	return b, nil
}

// spend takes one pick of what is there.
func (b *batch) spend(now time.Time) (Picked, bool) {
	if b.file != nil {
		return Picked{Address: draw(b.file)}, true
	}
	if len(b.picks) == 0 || !now.Before(b.until) {
		return Picked{}, false
	}
	p := b.picks[0]
	b.taken++
	if b.spent++; b.spent >= p.Count {
		b.picks, b.spent = b.picks[1:], 0
	}
	return Picked{Address: p.Address, Host: p.Host, Metadata: p.Metadata}, true
}

// size sets how much to ask for: twice as much if the last batch was gone in a tenth of its time, less if it was not spent.
func (b *batch) size(now time.Time, most uint32) {
	switch {
	case b.asked == 0 || b.revoked:
	case len(b.picks) == 0 && now.Sub(b.filled) < b.until.Sub(b.filled)/10:
		b.want = min(2*b.want, most)
	case b.taken < b.asked/2:
		b.want = max(1, b.taken)
	}
}

// fill asks the agent, or reads the file if there is none.
func (c *Client) fill(ctx context.Context, b *batch, service string, want uint32, f *fill) {
	asking, cancel := context.WithTimeout(ctx, c.patience)
	resp, err := c.lookup.Pick(asking, &lbagentv1.PickRequest{Service: service, Count: want})
	cancel()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	gone := err != nil && ctx.Err() == nil && away(err)
	var lines []line
	if gone {
		lines, _ = c.readList(service)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	defer close(f.done)
	now := time.Now()
	b.filler = nil
	b.picks, b.spent, b.taken, b.asked, b.filled, b.revoked = nil, 0, 0, 0, now, false
	switch {
	case c.ctx.Err() != nil:
		b.file, f.err = nil, ErrClosed
	case err == nil:
		b.picks, b.file, b.asked = resp.Picks, nil, want
		b.until = now.Add(resp.ValidFor.AsDuration())
		if want > 1 && !b.watched {
			b.watched = c.beside(func() { c.revoke(b, service) })
		}
	case len(lines) > 0:
		b.file, b.until = lines, now.Add(fileFor)
	case gone && b.file != nil: // the file went meanwhile; what it said is still all that is known
		b.until = now.Add(fileFor)
	default:
		b.file, f.err = nil, err
	}
}

// watchFor is how long a batch is watched that nobody asks for anew.
const watchFor = time.Minute

// revoke drops what is left of b when the agent has news of the service: a backend that is out is not called for the rest of a batch's time.
func (c *Client) revoke(b *batch, service string) {
	defer func() {
		b.mu.Lock()
		b.watched = false
		b.mu.Unlock()
	}()
	w, err := c.Watch(service)
	if err != nil {
		return // closed
	}
	defer w.Close()
	for {
		ctx, cancel := context.WithTimeout(c.ctx, watchFor)
		_, err := w.Next(ctx)
		cancel()
		b.mu.Lock()
		idle := time.Since(b.filled) >= watchFor
		if err == nil && b.file == nil { // the first list as well: nobody knows whether it is what the batch was cut from
			b.picks, b.revoked = nil, true
		}
		b.mu.Unlock()
		if idle || c.ctx.Err() != nil {
			return
		}
	}
}

// draw returns an address in proportion to weight; lines of weight 0 only if there are no others.
func draw(lines []line) string {
	sum := 0.0
	for _, l := range lines {
		sum += l.weight
	}
	if sum == 0 {
		return lines[rand.IntN(len(lines))].addr
	}
	x := rand.Float64() * sum
	for _, l := range lines {
		if x -= l.weight; x < 0 {
			return l.addr
		}
	}
	return lines[0].addr
}
