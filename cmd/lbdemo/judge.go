package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// spread is how evenly calls were spread: the smallest and the largest share, as a ratio to an even one.
type spread struct{ low, high float64 }

// spreadOver judges w over exactly the named backends; a call answered by any other counts as nobody's, which the shares of the others then miss.
func (w window) spreadOver(names []string) spread {
	if w.total == 0 || len(names) == 0 {
		return spread{}
	}
	even := float64(w.total) / float64(len(names))
	s := spread{low: float64(w.total), high: 0}
	for _, n := range names {
		ratio := float64(w.counts[n]) / even
		s.low, s.high = min(s.low, ratio), max(s.high, ratio)
	}
	return s
}

// within reports whether every share is within part of even.
func (s spread) within(part float64) bool { return s.low >= 1-part && s.high <= 1+part }

func (s spread) String() string {
	return fmt.Sprintf("%+.0f..%+.0f %%", (s.low-1)*100, (s.high-1)*100)
}

// ledgerSize is how many calls a ledger remembers: those of more than a minute at full rate.
const ledgerSize = 1 << 15

// ledger is what one life of a backend says it took up: the ids of its last calls. It is read after that life's end to tell which calls were with it.
type ledger struct {
	mu sync.Mutex

	ids  [ledgerSize]uint64
	next int
}

// note takes a line of the backend's stdout: "begin ID".
func (l *ledger) note(line string) {
	text, ok := strings.CutPrefix(line, "begin ")
	if !ok {
		return
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids[l.next%ledgerSize] = id
	l.next++
}

func (l *ledger) has(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, have := range l.ids[:min(l.next, ledgerSize)] {
		if have == id {
			return true
		}
	}
	return false
}

// kill is one moment at which backends were killed.
type kill struct {
	sent      time.Time // before the first signal
	reaped    time.Time // after the last process was gone, its sockets with it
	dead      []life
	survivors []life
}

// life is one life of a backend.
type life struct {
	addr string
	seen *ledger
}

// excuses reports whether f was in flight on a killed backend at the moment of the kill, the only failure that the demo allows. It was made before the
// backends were gone and not answered before the signal. And a killed backend had taken it up; or nobody had, and the agent names a killed one as the
// backend that it lost: the call was in the sockets between them.
func (k kill) excuses(f failure) bool {
	if f.begun.After(k.reaped) || f.got.Before(k.sent) || status.Code(f.err) != codes.Unavailable {
		return false
	}
	named := false
	for _, l := range k.dead {
		if l.seen.has(f.id) {
			return true
		}
		named = named || strings.Contains(status.Convert(f.err).Message(), l.addr)
	}
	for _, l := range k.survivors {
		if l.seen.has(f.id) {
			return false
		}
	}
	return named
}

// excused reports whether any kill excuses f.
func excused(f failure, kills []kill) bool {
	for _, k := range kills {
		if k.excuses(f) {
			return true
		}
	}
	return false
}
