package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// ServeHTTP keeps one page up to date by server-sent events: "all" first, then "change", "slot", "events" and "beat". Last-Event-ID spares the events that the page has.
func (l *live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case l.places <- struct{}{}:
		defer func() { <-l.places }()
	default:
		w.Header().Set("Retry-After", "10")
		writeText(w, http.StatusServiceUnavailable, fmt.Sprintf("%d pages are open already; close one", maxWatchers))
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // all of the request has come
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	me := &watcher{after: l.page.lastEvent(r.Header.Get("Last-Event-ID")), out: make(chan []byte, maxBehind)}
	select {
	case l.joins <- me:
	case <-l.ended:
		return
	case <-r.Context().Done():
		return
	}
	defer func() {
		select {
		case l.leaves <- me:
		case <-l.ended:
		}
	}()
	for {
		select {
		case m, ok := <-me.out:
			if !ok {
				return
			}
			_ = rc.SetWriteDeadline(time.Now().Add(sendTimeout))
			if _, err := w.Write(m); err != nil {
				return
			}
			if err := rc.Flush(); err != nil {
				return
			}
		case <-l.ended:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// message is one server-sent event. JSON has no line ends of its own.
func message(kind, id string, v any) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\n", kind)
	if id != "" {
		fmt.Fprintf(&b, "id: %s\n", id)
	}
	b.WriteString("data: ")
	if err := json.NewEncoder(&b).Encode(v); err != nil { // writes nothing then
		return []byte(": a message could not be written\n\n")
	}
	b.WriteString("\n")
	return b.Bytes()
}

// told is an event for the page.
type told struct {
	ID      uint64 `json:"id"`
	Time    int64  `json:"time"` // Unix ms
	Kind    string `json:"kind"`
	Service string `json:"service,omitempty"`
	Backend string `json:"backend,omitempty"`
	Detail  string `json:"detail"`
}

func (p *page) eventsMessage(events []event.Event) []byte {
	out, id := make([]told, len(events)), ""
	for i := range events {
		e := &events[i]
		out[i] = told{e.ID, e.Time.UnixMilli(), string(e.Kind), e.Service, e.Backend, e.Detail}
		id = p.instance + "-" + strconv.FormatUint(e.ID, 10)
	}
	return message("events", id, out)
}

// lastEvent is the event after which a page that comes back wants more; of another life of the agent, none of them is known here.
func (p *page) lastEvent(id string) uint64 {
	instance, number, _ := strings.Cut(id, "-")
	if instance != p.instance {
		return 0
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
