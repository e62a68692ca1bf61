package proxy

import (
	"fmt"
	"time"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// closeCause is why a connection to a backend ended: few, for metrics, which have those of HTTP/2.
type closeCause uint8

const (
	closedIdle     closeCause = iota // nobody needed it (4.8)
	closedRemoved                    // the backend left, or drains (4.7)
	closedReplaced                   // no stream number was left
	closedGoaway                     // the backend said GOAWAY
	closedFIN                        // the backend closed it
	closedError                      // reset, timed out, unreachable
	closedProtocol                   // what came was no valid HTTP
	closedHang                       // no answer to PING (2.11)
	closedStop                       // this agent ends
	closeCauses

	// Not of HTTP/2, whose connections outlive calls and clients.
	closedClient = closeCauses     // the client ended it, or the call on it
	closedSpare  = closeCauses + 1 // enough others are idle, or others of its age were closed
	closedLast   = closeCauses + 2 // the backend said before that it keeps it for one call
	closedCall   = closeCauses + 3 // its call was given up from here
	closeKinds   = closeCauses + 4
)

// String is the word in metrics.
func (c closeCause) String() string {
	return [...]string{"idle", "backend_removed", "replaced", "goaway", "closed", "error", "protocol", "hang", "stop"}[c]
}

// short is the cause for a person, as one of several.
func (c closeCause) short() string {
	return [...]string{
		"idle", "backend removed or draining", "stream numbers used up", "GOAWAY", "closed by the backend", "broken", "invalid answer", "no answer to PING", "the agent stops",
		"ended by the client", "not needed", "one call each", "call given up",
	}[c]
}

// connEnd is how a connection to a backend ended.
type connEnd struct {
	at       time.Time
	protocol protocol
	lasted   time.Duration
	why      closeCause
	detail   string        // what is known beside why: an error, what its GOAWAY said
	calls    int           // that ran on it
	idle     time.Duration // for how long it had none; 0 = unknown
}

// words is the cause for a person who is woken at night, in full.
func (e *connEnd) words() string {
	switch e.why {
	case closedIdle:
		return "idle for " + health.Ago(e.idle)
	case closedReplaced:
		return "its stream numbers were used up, a new one takes over"
	case closedGoaway:
		if e.calls == 0 {
			return e.detail // as servers do it that stop, or that bound the age of connections
		}
		return e.detail + ", then closed" + e.under()
	case closedFIN, closedError:
		what := e.detail
		if what == "" && e.why == closedFIN {
			what = "closed by the backend"
		}
		return what + e.under()
	case closedProtocol:
		return "the backend sent no valid HTTP: " + e.detail
	case closedHang:
		return "no answer to PING, and nothing else came for " + health.Ago(e.idle) + e.under()
	case closedStop:
		return "the agent stops"
	case closedClient:
		return "ended by the client"
	case closedSpare:
		if e.detail != "" {
			return e.detail
		}
		return "enough others are idle"
	case closedLast:
		return "the backend keeps it for one call only"
	}
	return e.detail // closedRemoved, closedCall
}

// under says what the connection was doing, where that makes the difference between a restart that nobody noticed and calls that failed.
func (e *connEnd) under() string {
	switch {
	case e.calls == 1:
		return ", under a call"
	case e.calls > 1:
		return fmt.Sprintf(", under %d calls", e.calls)
	case e.idle > 0:
		return ", while idle"
	}
	return ""
}

// broken is what broke a connection, in words about the backend.
func broken(cause string) string {
	switch cause {
	case unix.ECONNRESET.Error(), unix.EPIPE.Error():
		return "reset by the backend"
	case unix.ETIMEDOUT.Error():
		return "the backend's host does not answer any more (connection timed out)"
	}
	return cause
}

// words is the protocol as people write it.
func (k protocol) words() string { return [...]string{"TCP", "HTTP/1.1", "HTTP/2"}[k] }

// leaving says why nothing new goes to a backend any more, and what runs there ends (4.7).
func leaving(v *table.View, b *table.Backend) string {
	switch {
	case v.Gone:
		return "the service was removed"
	case b == nil:
		return "removed from the list"
	case b.Verdict.Kind == health.Draining:
		return "its record says that it is out of service"
	}
	return "its record is a new one: it was restarted"
}
