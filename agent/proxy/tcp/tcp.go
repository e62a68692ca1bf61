// Package tcp decides what a relayed TCP connection does next: it is told counts, readiness and ends, and answers with actions. It knows no socket,
// no clock and no bytes (HTTP2.md 2).
package tcp

import "time"

const (
	// SpliceAfter is how much a direction carries through the process before it goes through the kernel: a small exchange is cheaper by read and
	// write than by two splices.
	SpliceAfter = 16 << 10
	// high and low bound what waits in the process for a slow reader, per direction: above high its sender isn't read, below low it is again.
	high = 128 << 10
	low  = 32 << 10
	// Linger is how long both peers may take to end after the relay sent FIN to both on its own account.
	Linger = time.Second
)

// Side is one of the two ends of a relayed connection.
type Side uint8

// The sides.
const (
	Client Side = iota
	Backend
)

// Other is the opposite side.
func (s Side) Other() Side { return 1 - s }

// Do is a set of actions; of one set, any order will do, except that Close and Reset come last.
type Do uint16

// Every action. Those on a side are named after what happens to its socket.
const (
	PauseClient Do = 1 << iota // stop reading it
	PauseBackend
	ResumeClient
	ResumeBackend
	SpliceClient // what the client sends goes to the backend through the kernel from now on
	SpliceBackend
	FinClient // end the direction towards it, after what was queued
	FinBackend
	Close      // both, in order
	Reset      // both, by RST
	LingerTime // call Expired after Linger
)

// on shifts an action on the client to side s.
func (d Do) on(s Side) Do { return d << s }

// Machine is one relayed connection.
type Machine struct {
	dir   [2]direction // by the side that sends
	open  bool         // the backend is connected
	ended bool         // Close or Reset was answered
	drain bool         // the relay ends it
}

// direction is what one side sends.
type direction struct {
	seen    uint64
	paused  bool
	spliced bool
	eof     bool // the sender's FIN was seen, and passed on
	left    int  // bytes not yet taken by the receiver's kernel
}

// Connected says that the backend is there. The client, paused until then, is read.
func (m *Machine) Connected() Do {
	m.open = true
	return ResumeClient
}

// Received says that n more bytes came from s, and that left bytes now wait for the other side.
func (m *Machine) Received(s Side, n, left int) Do {
	d := &m.dir[s]
	d.seen += uint64(n)
	d.left = left
	var do Do
	if !d.paused && left > high {
		d.paused = true
		do |= PauseClient.on(s)
	}
	if !d.spliced && d.seen >= SpliceAfter {
		d.spliced = true
		do |= SpliceClient.on(s)
	}
	return do
}

// Written says that s took bytes, and that left wait for it.
func (m *Machine) Written(s Side, left int) Do {
	d := &m.dir[s.Other()]
	d.left = left
	var do Do
	if d.paused && left < low {
		d.paused = false
		do |= ResumeClient.on(s.Other())
	}
	return do | m.finished()
}

// EOF says that s ended its direction. left bytes wait for the other side.
func (m *Machine) EOF(s Side, left int) Do {
	d := &m.dir[s]
	d.eof = true
	d.left = left
	if m.drain {
		return m.finished()
	}
	return FinClient.on(s.Other()) | m.finished()
}

// finished closes when both have ended and everything was taken.
func (m *Machine) finished() Do {
	for i := range m.dir {
		if d := &m.dir[i]; !d.eof || d.left > 0 {
			return 0
		}
	}
	return m.end(Close)
}

// Lost says that s broke: the other side learns it by a reset, as it would have without the relay.
func (m *Machine) Lost(Side) Do { return m.end(Reset) }

// NoBackend says that no candidate is left (4.5).
func (m *Machine) NoBackend() Do { return m.end(Reset) }

// Drained says that the backend is gone and the time that its connections had is over: FIN to both (4.7).
func (m *Machine) Drained() Do {
	switch {
	case m.ended || m.drain:
		return 0
	case !m.open:
		return m.end(Reset)
	}
	m.drain = true
	return FinClient | FinBackend | LingerTime
}

// Expired ends a drain whose peers don't end.
func (m *Machine) Expired() Do { return m.end(Close) }

func (m *Machine) end(how Do) Do {
	if m.ended {
		return 0
	}
	m.ended = true
	return how
}

// Draining reports whether the relay ends the connection on its own account.
func (m *Machine) Draining() bool { return m.drain }
