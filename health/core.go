package health

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// core decides every verdict. It has no goroutine, clock or socket: `now` comes in, changes and probes to run come out.
type core struct {
	inbox  *inbox
	random func() float64 // in [0, 1)
	stats  *stats
	log    hclog.Logger

	groups     map[string]*group
	generation uint64 // of setGroup calls: tells who is in the new set
	due        schedule
	urgent     []waiting // probes that are due and wait for the pace, oldest first: of backends of which something is to be found out,
	routine    []waiting // and of the others
	jobs       []probeJob
	unwatched  []*target // whose watch has to end
	suspicion  suspicion
	starts     int // probes started: every fourth is a routine one if there are any
	running    int // probes
	pace       pace
	gridFrom   time.Time            // where the grid of routine probes begins
	putOffAt   time.Time            // when the log last said that a probe could not be run
	rolling    []*target            // whose windows roll, since calls came lately (2.5)
	rolled     []*target            // room for the next list of them
	rollAt     time.Time            // when they do next; zero = there are none
	reporters  map[uint32]time.Time // when reports of a user ejected a backend last
	changes    []Change
}

// group is the targets that are capped together (2.6) and share options.
type group struct {
	name    string
	options Options
	active  bool
	targets []*target

	counted int // targets that are not draining: the whole of max_percent
	up      int // of these, those to which nothing applies
	ejected int // of these, those that are ejected
	held    []*target
	flooded bool // strained, when it was last looked at
}

// target is one backend under judgement. All but the first block belongs to the Monitor's goroutine.
type target struct {
	inbox  *inbox
	queued atomic.Bool
	below  *target // in the inbox; belongs to whoever set queued

	group      *group
	addr       netip.AddrPort
	state      *State
	generation uint64
	draining   bool
	gone       bool // no longer in its group

	// The parts (2.8), nil where they don't apply, and what the group's counters and OnChange have been told of them.
	down, unreachable, ejected *Part
	countsUp, countsEjected    bool
	heldBack, listed           bool // by the cap of 2.6; in group.held
	reported                   bool // ejected is by reports
	acquitted                  bool // what ends the ejection has come, and judge is to see it
	paroled, onParole          bool // a probe ends this ejection, ended the last one (State.parole)
	shown                      *Part
	untold                     bool // tell OnChange even if it is the same

	// Probes (2.1-2.3).
	http2         atomic.Bool // calls have shown that it speaks HTTP/2
	probeAt       time.Time   // zero = none planned
	probedAt      time.Time   // when the last one began
	doubted       atomic.Bool // a reported success contradicts what is known
	accused       bool        // reported failures in a row are as many as would eject
	suspected     bool        // and no probe was planned for it yet
	probing       bool
	waits         bool // in core.urgent or core.routine
	hurries       bool // in core.urgent
	passes, fails int  // in a row
	orphan        orphan
	restarted     bool // another life of a known address: one success will do (2.2)
	lastError     string
	lastErrorAt   time.Time
	watch         *watch // belongs to watches
	noWatch       int64  // it can't be watched until then, on the state's clock, as the next two are
	reached       int64  // when a probe last had an answer, whatever it said
	missed        int64  // when one last had none
	withheld      bool   // a verdict did not fall, since this host was under suspicion (2.10)

	// Hold-down and trial (2.7). The hold-down of an unreachable backend that nothing probes goes the same way.
	hold     time.Time // its end; zero = none
	holdOver bool      // the trial was offered
	rounds   int       // n of 2.7
	ended    time.Time // when the last ejection ended
	retries  int       // the same for an unreachable backend; it forgets at once
	trialEnd time.Time // when a claimed trial has failed; zero = none is claimed

	// The windows (2.5).
	stirred atomic.Bool // calls come: they are to roll, or do
	rolls   bool        // in core.rolling
	window  *window     // nil until then
	known   bool        // what its state has counted began before this target did, or its window

	dueAt time.Time // when core.tick has to look at it, if it is scheduled
	slot  int       // in core.due; -1 = not there
}

func newCore(b *inbox, random func() float64, s *stats, log hclog.Logger) *core {
	return &core{inbox: b, random: random, stats: s, log: log, groups: map[string]*group{}}
}

// setGroup takes a new set of targets, keeping what is known of those that stay.
func (c *core) setGroup(now time.Time, name string, o Options, targets Targets) {
	g := c.group(name)
	o = o.sane()
	reoptioned := g.options != o
	g.options = o
	c.generation++
	var fresh []*target
	n := 0
	if targets != nil {
		n = targets.Len()
	}
	next := make([]*target, n)
	for i := range next {
		is := targets.At(i)
		t := is.State.watch.Load()
		if t == nil || t.group != g || t.gone || t.generation == c.generation {
			t = &target{inbox: c.inbox, group: g, addr: is.Addr, state: is.State, slot: -1}
			fresh = append(fresh, t)
		}
		t.generation = c.generation
		next[i] = t
	}
	var left map[netip.AddrPort]*target
	for _, t := range g.targets {
		if t.generation == c.generation {
			continue
		}
		c.remove(t)
		if len(fresh) > 0 {
			if left == nil {
				left = make(map[netip.AddrPort]*target)
			}
			left[t.addr] = t
		}
	}
	g.targets = next
	for _, t := range fresh {
		c.add(now, t, left[t.addr])
	}
	for i, t := range next {
		if is := targets.At(i); is.Draining != t.draining || is.Orphan != t.orphan.is.Load() || reoptioned {
			if reoptioned {
				c.unwatch(t) // another service may be asked about, or another port
			}
			c.setDraining(t, is.Draining)
			t.orphan.set(is.Orphan)
			c.reoption(now, t)
			c.judge(now, t)
		}
	}
	for _, t := range fresh {
		c.judge(now, t)
	}
	c.reconsider(now, g)
	c.forget(g)
}

// setActive begins or ends the use of a group (2.3).
func (c *core) setActive(now time.Time, name string, active bool) {
	g := c.group(name)
	if g.active != active {
		g.active = active
		for _, t := range g.targets {
			if t.passes = 0; t.down == nil {
				t.fails = 0 // in a row, but not across a time without probes
			}
			if !active {
				c.stopRolling(t)
			}
			c.unwatch(t)
			c.planFirst(now, t)
			c.settle(now, t)
		}
	}
	c.forget(g)
}

func (c *core) group(name string) *group {
	g := c.groups[name]
	if g == nil {
		g = &group{name: name}
		c.groups[name] = g
	}
	return g
}

// forget drops a group that nobody talks of any more.
func (c *core) forget(g *group) {
	if len(g.targets) == 0 && !g.active {
		delete(c.groups, g.name)
	}
}

// add begins to watch t. old is the former life of its address, nil if there was none.
func (c *core) add(now time.Time, t *target, old *target) {
	c.stats.targets.Add(1)
	g := t.group
	g.counted++
	g.up++
	t.countsUp = true
	if v := t.state.Verdict(); v != nil {
		t.shown = v // it was watched before, left and is back: whoever knew that verdict has to learn the new one
	}
	t.state.limit.Store(g.options.limit())
	t.known = t.state.totals() != totals{}
	t.takeOver()
	if old != nil {
		t.restarted = true
		t.shown = old.shown
		t.untold = true // whoever showed the old life's verdict has to learn the new one's, be it the same
		if old.down != nil && g.options.probes() {
			t.down = &Part{Kind: Down, Soft: old.down.Soft, Since: now, Cause: "restarted, not probed yet", Last: old.down.Last, At: old.down.At}
		}
	}
	t.state.watch.Store(t)
	c.planFirst(now, t)
}

// remove ends the watch of t. The state keeps its parts: they are the last that is known.
func (c *core) remove(t *target) {
	c.stats.targets.Add(-1)
	t.gone = true
	c.unwatch(t)
	t.state.watch.CompareAndSwap(t, nil)
	t.state.trial.Store(trialNone)
	t.probeAt, t.hold, t.trialEnd = time.Time{}, time.Time{}, time.Time{}
	c.due.remove(t)
	if !t.draining {
		t.group.counted--
	}
	c.count(t, false, false)
}

func (c *core) setDraining(t *target, draining bool) {
	if draining == t.draining {
		return
	}
	t.draining = draining
	if draining {
		t.group.counted--
	} else {
		t.group.counted++
	}
}

// reoption brings t in line with the group's options and its own draining.
func (c *core) reoption(now time.Time, t *target) {
	o := &t.group.options
	t.state.limit.Store(o.limit())
	if !t.probes() {
		t.down = nil
	}
	if t.ejected != nil && t.ejected.Observed != o.Observe {
		c.endEjection(now, t) // if it is still to be one, judge finds it again
	}
	if !t.hold.IsZero() && t.holdOver {
		t.state.trial.Store(trialNone) // offered again, in the way that the new options ask for
		t.hold, t.holdOver = now, false
	}
	c.planFirst(now, t)
}

// limit is the streak that ejects, for State.limit.
func (o *Options) limit() uint32 {
	if !o.Eject || o.Consecutive <= 0 {
		return 0
	}
	return uint32(o.Consecutive)
}

// rate is the success rate below which the windows eject.
func (o *Options) rate() int {
	if !o.Eject {
		return 0
	}
	return o.SuccessRate
}

// settle puts what is known of t in order: the parts in its state, the group's counters, the change to tell, the next look.
func (c *core) settle(now time.Time, t *target) {
	if t.gone {
		return
	}
	var parts []Part
	for _, p := range []*Part{t.down, t.unreachable, t.ejected} {
		if p != nil {
			p.Next = t.nextTry(p.Kind)
			parts = append(parts, *p)
		}
	}
	to := worst(parts)
	if len(parts) == 0 {
		t.state.parts.Store(nil)
	} else {
		t.state.parts.Store(&parts)
	}
	if !sameVerdict(to, t.shown) || t.untold {
		c.changes = append(c.changes, Change{Group: t.group.name, Addr: t.addr, State: t.state, From: orUp(t.shown), To: orUp(to)})
		if t.shown != nil && to == nil {
			t.state.bad().returned.Store(t.state.at(now)) // 3.7
			t.state.forgetLatency()
		}
		t.shown, t.untold = to, false
	}
	c.letGo(t)
	c.count(t, len(parts) == 0 && !t.draining, t.ejected != nil && !t.draining)
	c.relieve(now, t.group)
	c.due.set(t)
}

// sameVerdict reports whether two verdicts, of which nil is up, are the same to those who watch: cause and times may move silently.
func sameVerdict(a, b *Part) bool {
	return a == b || a != nil && b != nil && a.Kind == b.Kind && a.Soft == b.Soft
}

func orUp(p *Part) Part {
	if p == nil {
		return Part{Kind: Up}
	}
	return *p
}

// nextTry is when something may end that part.
func (t *target) nextTry(k Kind) time.Time {
	if k == Ejected || !t.probes() {
		return t.hold
	}
	return t.probeAt
}

// count keeps the group's counters.
func (c *core) count(t *target, up, ejected bool) {
	add := func(n *int, was, is bool) {
		if is && !was {
			*n++
		} else if was && !is {
			*n--
		}
	}
	add(&t.group.up, t.countsUp, up)
	add(&t.group.ejected, t.countsEjected, ejected)
	t.countsUp, t.countsEjected = up, ejected
}

// unwatch notes that t's watch is of no more use.
func (c *core) unwatch(t *target) {
	if t.watch != nil {
		c.unwatched = append(c.unwatched, t)
	}
}

func (c *core) takeChanges() []Change {
	changes := c.changes
	c.changes = nil
	return changes
}
