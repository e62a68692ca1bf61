package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// message is what is posted; the man page documents it. Fields may be added, none changes its meaning.
type message struct {
	Version int       `json:"version"` // of this shape: 1
	Node    string    `json:"node"`
	Agent   string    `json:"agent"`   // its release
	Started time.Time `json:"started"` // node, started and an event's id name an event: one that is posted twice is the same one
	Dropped uint64    `json:"dropped"` // events since the start that were never posted
	Events  []entry   `json:"events"`
}

type entry struct {
	ID      uint64    `json:"id"`
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Service string    `json:"service,omitempty"`
	Backend string    `json:"backend,omitempty"`
	Detail  string    `json:"detail"`
}

func (n *Notifier) message(batch []event.Event, dropped uint64) message {
	m := message{Version: 1, Node: n.cfg.Node, Agent: n.cfg.Version, Started: n.cfg.Started.UTC(), Dropped: dropped, Events: make([]entry, len(batch))}
	for i := range batch {
		e := &batch[i]
		m.Events[i] = entry{e.ID, e.Time.UTC(), string(e.Kind), e.Service, e.Backend, e.Detail}
	}
	return m
}

// refusedError is an answer that says that the same post would never be taken.
type refusedError struct{ status string }

func (e *refusedError) Error() string { return "refused: " + e.status }

func isRefused(err error) bool {
	_, ok := errors.AsType[*refusedError](err)
	return ok
}

// post sends m. Whatever isn't 2xx is an error: a redirect is not followed, and what is wrong with the address or the rights can be mended while the events wait.
func (n *Notifier) post(ctx context.Context, to string, m message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode events: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return errors.New("make a request: the address can't be read") // the error has it whole
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "lbagent/"+n.cfg.Version)
	resp, err := n.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // it has the address whole, too
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection may be used again
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode == http.StatusBadRequest, resp.StatusCode == http.StatusRequestEntityTooLarge,
		resp.StatusCode == http.StatusUnsupportedMediaType, resp.StatusCode == http.StatusUnprocessableEntity:
		return &refusedError{resp.Status}
	}
	return fmt.Errorf("answered %s", resp.Status)
}
