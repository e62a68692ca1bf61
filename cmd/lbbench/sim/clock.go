package sim

import "time"

// clock is virtual time: it jumps from one event to the next.
type clock struct {
	now  time.Duration // since the beginning
	seq  uint64
	todo []planned // a heap
}

// actor does something when its time has come.
type actor interface{ act() }

// deed is an actor for what happens seldom: it costs an allocation.
type deed func()

func (d deed) act() { d() }

type planned struct {
	at   time.Duration
	seq  uint64 // those of one moment act in the order in which they were planned
	what actor
}

func (e *planned) before(o *planned) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// plan has what act at that time, or now if it is past.
func (c *clock) plan(at time.Duration, what actor) {
	c.seq++
	c.todo = append(c.todo, planned{max(at, c.now), c.seq, what})
	for i := len(c.todo) - 1; i > 0; {
		parent := (i - 1) / 2
		if !c.todo[i].before(&c.todo[parent]) {
			break
		}
		c.todo[i], c.todo[parent] = c.todo[parent], c.todo[i]
		i = parent
	}
}

// after does what in a while.
func (c *clock) after(d time.Duration, what func()) { c.plan(c.now+d, deed(what)) }

// every does what each d, from at on.
func (c *clock) every(at, d time.Duration, what func()) {
	c.plan(at, deed(func() {
		what()
		c.every(at+d, d, what)
	}))
}

// next takes the first event out.
func (c *clock) next() planned {
	first, last := c.todo[0], len(c.todo)-1
	c.todo[0] = c.todo[last]
	c.todo[last] = planned{}
	c.todo = c.todo[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if c.todo[child].before(&c.todo[least]) {
				least = child
			}
		}
		if least == i {
			return first
		}
		c.todo[i], c.todo[least] = c.todo[least], c.todo[i]
		i = least
	}
}

// at is a time of this clock as the code under test sees it: any epoch will do, but it has to be the same in every run.
func (c *clock) at(d time.Duration) time.Time { return time.Unix(1_700_000_000, 0).Add(d) }

func (c *clock) time() time.Time { return c.at(c.now) }

// since is the time of t on this clock.
func (c *clock) since(t time.Time) time.Duration { return t.Sub(c.at(0)) }

// run lets time go by until end; false if it was told to stop before, which it asks now and then.
func (c *clock) run(end time.Duration, stop func() bool) bool {
	const stride = 1 << 14
	for n := 0; len(c.todo) > 0 && c.todo[0].at < end; n++ {
		if n%stride == 0 && stop() {
			return false
		}
		e := c.next()
		c.now = e.at
		e.what.act()
	}
	c.now = end
	return true
}
