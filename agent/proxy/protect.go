package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/proxy/h2"
)

// protection is what the proxy did not put up with. The words are those of metrics.
type protection uint8

const (
	protectResets      protection = iota // streams opened and reset faster than calls are served (CVE-2023-44487, CVE-2025-8671)
	protectFrames                        // floods of frames that carry nothing (CVE-2019-9511 to -9518, CVE-2024-27316)
	protectHeaders                       // header lists over a limit, or too many of them kept
	protectMalformed                     // messages and frames that the protocol forbids
	protectStreams                       // more streams than were offered
	protectSlow                          // half a frame, no SETTINGS, nothing read: for too long
	protectConnections                   // client connections over limits.connections
	protectBuffered                      // streams and connections that had most parked, over limits.buffered
	protections
)

func (k protection) String() string {
	return [...]string{"resets", "frames", "headers", "malformed", "streams", "slow", "connections", "buffered"}[k]
}

// protectionOf is the kind of an error that ended an HTTP/2 connection.
func protectionOf(err error) protection {
	if e, ok := errors.AsType[*h2.Error](err); ok {
		switch e.Fault {
		case h2.FaultResets:
			return protectResets
		case h2.FaultFrames:
			return protectFrames
		case h2.FaultHeaders:
			return protectHeaders
		case h2.FaultStreams:
			return protectStreams
		}
	}
	return protectMalformed
}

// tellEvery is how often an event tells of one kind of protection of one service: an attack must not push all else out of the events, nor cost more by
// being told.
const tellEvery = 10 * time.Second

// guard counts one kind of protection of one service.
type guard struct {
	count  uint64
	told   time.Time // of the last event
	untold uint64    // since
}

// hit counts one more. If it is to be told, untold is the number of those that were not, since the last that was.
func (g *guard) hit(now time.Time) (tell bool, untold uint64) {
	g.count++
	if !g.told.IsZero() && now.Sub(g.told) < tellEvery {
		g.untold++
		return false, 0
	}
	untold = g.untold
	g.told, g.untold = now, 0
	return true, untold
}

// waryFor is for how long new connections have less budget after one was ended for a flood: whoever floods connects anew at once.
const waryFor = 10 * time.Second

// lastFlood is that of the clients of a service, or of a backend: the ones don't answer for the others.
type lastFlood struct{ at time.Time }

// note notes what a connection was ended for.
func (f *lastFlood) note(now time.Time, kind protection) {
	if kind == protectResets || kind == protectFrames {
		f.at = now
	}
}

// wary reports whether there was one lately.
func (f *lastFlood) wary(now time.Time) bool { return now.Sub(f.at) < waryFor }

// peer is who is at the other end of a connection: one of client and backend.
type peer interface {
	peer() (client, backend string)
}

// protect counts that service rt was protected from p, and tells of it by an event and a line, at most once per kind in 10 s: rare enough for their
// locks. detail says what the peer did and what came of it, limit how much it may do (0: nothing to say).
func (w *worker) protect(rt *route, kind protection, p peer, detail string, limit int) {
	now := w.loop.Now()
	tell, untold := w.statsOf(rt).guards[kind].hit(now)
	if !tell || w.proxy.events == nil {
		return
	}
	var client, backend string
	if p != nil { // else it's nobody who could be named
		client, backend = p.peer()
	}
	if client != "" {
		detail = "client " + client + ": " + detail
	}
	if limit > 0 {
		detail += " (limit " + strconv.Itoa(limit) + ")"
	}
	if untold > 0 {
		detail += fmt.Sprintf("; %d more since the last event of this kind (%s)", untold, kind)
	}
	w.proxy.log.Warn("a peer did what is not put up with", "service", rt.name, "backend", backend, "kind", kind.String(), "cause", detail)
	w.proxy.events.Add(event.Event{Time: now, Kind: event.Protection, Service: rt.name, Backend: backend, Detail: detail})
}
