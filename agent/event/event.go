// Package event keeps what happened: bounded rings of events with subscribers that never hold up a writer.
package event

import (
	"strings"
	"sync"
	"time"
)

// Kind names what happened; the words are part of the API (`lbagent events`).
type Kind string

// Every kind of event.
const (
	Verdict  Kind = "verdict"  // a backend's verdict changed; Detail says from what to what and why
	List     Kind = "list"     // a service's list changed
	Orphan   Kind = "orphan"   // backends lost their keys in a way that looks like an accident and are kept, or such ones left (1.9, 1.10)
	Weight   Kind = "weight"   // a backend's dynamic weight (3.3) is half or twice of what was told last, or whole again; at most one in 10 s of each backend
	Panic    Kind = "panic"    // a service entered or left panic
	Fallback Kind = "fallback" // a service's fallback is used, or left (1.16)
	Source   Kind = "source"   // etcd was lost or is back, a list came from the spool
	Config   Kind = "config"   // a reload was applied or refused
	Listener Kind = "listener" // a listener was bound or closed
	Name     Kind = "name"     // host names of a service can't be resolved, or can be again (1.13); at most one a minute of each service
	Address  Kind = "address"  // an address of a list was refused (1.14): the first of each kind of a service
	Hang     Kind = "hang"     // a backend's connection was given up: no byte came, not even the answer to a PING
	Agent    Kind = "agent"    // start, ready, stop
	// Protection: a peer did what is not put up with, such as a flood; at most one per service and what it did in 10 s on each loop. Backend is set if that was it.
	Protection Kind = "protection"
	// Mute: a backend was muted or unmuted, or the time of a mute is over; Detail says by whom and why.
	Mute Kind = "mute"
	// Retry: a service's budget for retries is used up; at most one in 10 s.
	Retry Kind = "retry"
	// Suspicion: this host suspects itself rather than its backends, or trusts itself again (2.10).
	Suspicion Kind = "suspicion"
	// Registration: a service of this host came into etcd, left it, was drained; Detail says why.
	Registration Kind = "registration"
	// Connection: a connection to a backend was opened, ended, or could not be made; Detail says why. Beyond 10 a second of one backend they are told as numbers. The one
	// kind without a line in the log, and with a ring of its own.
	Connection Kind = "connection"
)

// Kinds is every Kind.
func Kinds() []Kind {
	return []Kind{
		Verdict, List, Orphan, Weight, Panic, Fallback, Source, Config, Listener, Name, Address, Hang, Agent, Protection, Mute, Retry, Suspicion, Registration, Connection,
	}
}

// Event is one thing that happened. Service and Backend are empty where they don't apply.
type Event struct {
	ID      uint64 // rises by one, from 1
	N       uint64 // likewise, among connections, or among all others: a gap says that some were lost
	Time    time.Time
	Kind    Kind
	Service string
	Backend string
	Detail  string // one sentence for a person
}

// Log keeps the last events. Safe for concurrent use.
type Log struct {
	mu sync.Mutex

	all         ring // of every other kind
	connections ring // however many there are, they push out nothing else
	last        uint64
	kinds       map[Kind]uint64 // how many there were
	wake        chan struct{}   // closed and replaced at each Add
}

// connectionShare is how much smaller the ring of connections is: they are the many, and what is known of each backend's last ones is kept with the backend.
const connectionShare = 4

// NewLog returns a Log that keeps the last size events, at least one, and beside them a quarter as many of connections.
func NewLog(size int) *Log {
	return &Log{
		all: ring{size: max(1, size)}, connections: ring{size: max(1, size/connectionShare)}, kinds: map[Kind]uint64{}, wake: make(chan struct{}),
	}
}

// Add appends e, whose ID it sets. It never blocks.
func (l *Log) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.ID = l.last
	l.kinds[e.Kind]++
	e.Detail = strings.ToValidUTF8(e.Detail, "?") // or nobody could be sent any
	if e.Kind == Connection {
		l.connections.add(e)
	} else {
		l.all.add(e)
	}
	close(l.wake)
	l.wake = make(chan struct{})
}

// Since returns the kept events with an ID above after, oldest first, and a channel that is closed when there are more. A reader that fell behind sees a gap in the
// IDs; so does one of old events, where those of connections are no longer kept.
func (l *Log) Since(after uint64) ([]Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one, other := l.all.since(after), l.connections.since(after)
	if one.len()+other.len() == 0 {
		return nil, l.wake
	}
	out := make([]Event, 0, one.len()+other.len())
	for one.len()+other.len() > 0 {
		if other.len() == 0 || one.len() > 0 && one.first().ID < other.first().ID {
			out = append(out, one.take())
		} else {
			out = append(out, other.take())
		}
	}
	return out, l.wake
}
