package etcd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// contact is what is known of how etcd answers. It tells a person once when etcd is lost, and once when it is back. Safe for concurrent use.
type contact struct {
	log    hclog.Logger
	events *event.Log

	mu sync.Mutex

	state      contactState
	since      time.Time // of the state
	last       time.Time // of the last answer
	lastError  string
	failedAt   time.Time // of lastError
	reconnects uint64
	well       chan struct{} // closed and replaced when etcd has answered again for a while; nil if nobody waits
	refused    bool          // it was told that etcd refuses the login
}

// Status is what is known of how etcd answers.
type Status struct {
	Configured  bool
	Connected   bool
	Endpoints   []string
	LastError   string // why etcd is lost; while it is connected, what failed in the last minute (one endpoint of several)
	LastContact time.Time
	Reconnects  uint64 // times that etcd was lost and came back
	Epochs      uint64 // times that it began another life (1.5)
}

// errorShown is how long an error is shown while etcd answers: an endpoint that is down fails again within MaxBackoff and a dial.
const errorShown = time.Minute

// wellAfter is the most for which etcd answers after a loss until those who wait for their next try go on, half of it the least: not all hosts of a fleet do at one moment. Lower has
// them try an etcd that is lost again at once, higher makes their lists late.
const wellAfter = time.Second

type contactState int

const (
	untried contactState = iota
	lost
	connected
)

// ok notes an answer of etcd.
func (c *contact) ok() {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = now
	if c.state == connected {
		return
	}
	if c.state == lost {
		c.log.Info("etcd answers again", "elapsed", now.Sub(c.since).Round(time.Millisecond), "cause", c.lastError)
		c.event(now, fmt.Sprintf("etcd answers again, after %v", now.Sub(c.since).Round(100*time.Millisecond)))
		c.reconnects++
		time.AfterFunc(wellAfter/2+rand.N(wellAfter/2), func() { c.tellWell(now) })
	}
	c.state, c.since, c.lastError, c.refused = connected, now, "", false
}

// again is closed when etcd was lost and has answered since for wellAfter: what waits for its next try needs not wait longer.
func (c *contact) again() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.well == nil {
		c.well = make(chan struct{})
	}
	return c.well
}

// tellWell closes what again returned, unless etcd was lost once more since then.
func (c *contact) tellWell(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.well != nil && c.state == connected && c.since.Equal(since) {
		close(c.well)
		c.well = nil
	}
}

// fail notes that etcd did not answer, or not as it should.
func (c *contact) fail(err error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastError, c.failedAt = Plain(err).Error(), now
	refused := errors.Is(err, rpctypes.ErrAuthFailed) && !c.refused // more than silence: a person has to mend it
	if c.state == lost && !refused {
		return
	}
	what := "etcd is lost; lists stay as they are"
	switch {
	case refused:
		what, c.refused = "etcd refuses the login; lists stay as they are", true
	case c.state == untried:
		what = "etcd does not answer; lists are those of the spool, if any"
	}
	c.log.Warn(what, "cause", c.lastError)
	c.event(now, what+": "+c.lastError)
	if c.state != lost {
		c.state, c.since = lost, now
	}
}

// silent reports whether there was no answer of etcd in the last d.
func (c *contact) silent(now time.Time, d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(c.last) >= d
}

// lostFor is for how long etcd has been lost; 0 if it isn't.
func (c *contact) lostFor() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != lost {
		return 0
	}
	return time.Since(c.since)
}

// failDial notes that one endpoint could not be reached, which is no loss while another answers.
func (c *contact) failDial(err error) {
	c.mu.Lock()
	isConnected := c.state == connected
	if isConnected {
		c.lastError, c.failedAt = Plain(err).Error(), time.Now()
	}
	c.mu.Unlock()
	if !isConnected {
		c.fail(err)
	}
}

// lose notes that there is no connection; what is known of the cause stays, and a dial that failed a moment ago is one.
func (c *contact) lose(err error) {
	c.mu.Lock()
	known := c.state == lost
	if c.lastError != "" && time.Since(c.failedAt) < ProgressEvery {
		err = errors.New(c.lastError)
	}
	c.mu.Unlock()
	if !known {
		c.fail(err)
	}
}

// reset forgets the state, since another etcd is asked from now on.
func (c *contact) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.lastError, c.refused = untried, "", false
}

// newEpoch tells that etcd's revisions begin anew: somebody replaced it, or restored a backup.
func (c *contact) newEpoch(epoch uint64, revision, was int64) {
	c.log.Warn("etcd was replaced or restored from a backup; all lists are read anew", "epoch", epoch, "revision", revision, "was", was)
	c.event(time.Now(), fmt.Sprintf("etcd was replaced or restored from a backup: revision %d after %d, epoch %d; all lists are read anew", revision, was, epoch))
}

func (c *contact) event(now time.Time, detail string) {
	if c.events != nil {
		c.events.Add(event.Event{Time: now, Kind: event.Source, Detail: detail})
	}
}

// fill sets what c knows in s.
func (c *contact) fill(s *Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Connected, s.LastContact, s.Reconnects = c.state == connected, c.last, c.reconnects
	if !s.Connected || time.Since(c.failedAt) < errorShown {
		s.LastError = c.lastError
	}
}
