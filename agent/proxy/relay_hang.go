package proxy

import "time"

const (
	// hangSilence is how long a backend may send nothing while it has calls before it is asked by PING, and hangPatience the least time that it has to
	// answer (2.11).
	hangSilence  = time.Second
	hangPatience = time.Second
	// freePings may follow each other; one more may follow a new call; then one per pingEvery. gRPC servers forgive no more: each PING that comes within
	// 5 minutes of the one before, with no HEADERS or DATA of *theirs* in between, is a strike, but for the first, and the third strike ends the
	// connection (grpc-go's EnforcementPolicy, the C core's max_ping_strikes, Java's KeepAliveEnforcer). So what the backend sent counts here, not what
	// it was sent.
	freePings = 2
	// pingEvery is a bit more than the 5 minutes, as a PING may travel faster than the one before. A backend that complains gets twice that, and so on.
	pingEvery    = 5*time.Minute + 5*time.Second
	maxPingEvery = 4 * time.Hour
	// maxGrace bounds how often a connection is given more time because this loop itself was late.
	maxGrace = 3
	// hangLooks is how often it's looked at while a PING is out: a machine that stood still for the whole time of the answer, and not a bit longer, would otherwise not be seen to
	// have. A look that is late by half the time between two of them gives grace.
	hangLooks = 4
)

// hangWatch finds backends that have stopped to answer (2.11). It decides with the time and what it's told; the connection does what it says.
type hangWatch struct {
	silence time.Duration // hangSilence, but in tests whose backends are slow

	heard time.Time // when something was read, or the first stream after that began: silence counts from here
	asked bool      // a stream began since something was read

	out    bool // a PING is
	number uint64
	pinged time.Time // when the last PING went
	next   time.Time // when it is to be looked at again while one is
	grace  time.Time // the answer's time counts from here at the earliest
	graces int
	rtt    time.Duration // of the connect, then of PINGs: the last, or a slowly falling one

	used   int    // PINGs since the backend last sent HEADERS or DATA that were closer than pingEvery
	frames uint64 // HEADERS and DATA of the backend, as of the last look
	calls  uint64 // streams that were opened, as of the last PING
}

type hangVerdict uint8

const (
	hangNot  hangVerdict = iota // look again at the given time
	hangRest                    // likewise; it's so far away that what comes in between has to look anew
	hangPing                    // send a PING now
	hangDead
)

// opens notes that a stream begins.
func (w *hangWatch) opens(now time.Time) {
	if !w.asked {
		w.heard, w.asked = now, true
	}
}

// hears notes that something was read.
func (w *hangWatch) hears(now time.Time) { w.heard, w.asked = now, false }

// suspect reports whether nothing has been read since a PING went: it gets no new streams until it speaks, or is dead.
func (w *hangWatch) suspect() bool { return w.out && !w.heard.After(w.pinged) }

// look decides what is to be done now, while streams are open, or were opened and not a byte came since. frames counts HEADERS and DATA of the backend,
// calls the streams opened; every is the time between PINGs to a backend that sends nothing of its own.
func (w *hangWatch) look(now time.Time, frames, calls uint64, every time.Duration) (do hangVerdict, at time.Time) {
	if frames != w.frames {
		w.frames, w.used = frames, 0
		if w.out { // it may arrive after these frames were written, and count
			w.used = 1
		}
	}
	if w.out {
		if now.Sub(latest(w.next, w.heard)) > w.patience()/hangLooks/2 && w.graces < maxGrace { // this loop slept: who knows for how long the PING lay here
			return hangNot, w.wait(now)
		}
		due := latest(w.pinged, w.heard, w.grace).Add(w.patience())
		if now.Before(due) {
			return hangNot, w.looksAgain(now, due)
		}
		return hangDead, now
	}
	if due := w.heard.Add(w.silence); now.Before(due) {
		return hangNot, due
	}
	next := w.pinged.Add(every)
	switch {
	case w.pinged.IsZero() || !now.Before(next): // never a strike
		w.used = max(w.used, 1)
	case w.used < freePings || w.used == freePings && calls != w.calls && every == pingEvery:
		w.used++
	default:
		return hangRest, next
	}
	w.out, w.pinged, w.calls, w.graces = true, now, calls, 0
	w.number++
	return hangPing, w.looksAgain(now, now.Add(w.patience()))
}

// wait gives a PING that is out its whole time once more, and says when to look.
func (w *hangWatch) wait(now time.Time) time.Time {
	w.graces++
	w.grace = now
	return w.looksAgain(now, now.Add(w.patience()))
}

// looksAgain says when to look at a PING that is out, whose answer is due then.
func (w *hangWatch) looksAgain(now, due time.Time) time.Time {
	w.next = now.Add(w.patience() / hangLooks)
	if due.Before(w.next) {
		w.next = due
	}
	return w.next
}

// answers takes the answer to a PING; false if it is none that is awaited.
func (w *hangWatch) answers(now time.Time, number uint64) bool {
	if !w.out || number != w.number {
		return false
	}
	w.out = false
	rtt := max(now.Sub(w.pinged), 1)
	w.rtt = max(rtt, w.rtt-(w.rtt-rtt)/8)
	return true
}

// patience is the time that the answer to a PING may take.
func (w *hangWatch) patience() time.Duration { return max(hangPatience, 5*w.rtt) }

func latest(t time.Time, others ...time.Time) time.Time {
	for _, o := range others {
		if o.After(t) {
			t = o
		}
	}
	return t
}
