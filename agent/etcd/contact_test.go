package etcd

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/lbagent/lbagent/agent/event"
)

// A login that etcd refuses is told, once, also when etcd was lost before for another reason: silence ends by itself, this does not.
func TestContactTellsRefusedLogins(t *testing.T) {
	var log strings.Builder
	events := event.NewLog(10)
	c := &contact{log: hclog.New(&hclog.LoggerOptions{Output: &log}), events: events}
	refused := fmt.Errorf("log in to etcd as web: %w", rpctypes.ErrAuthFailed)
	for range 2 {
		c.ok()
		c.fail(errors.New("connection refused"))
		c.fail(errors.New("connection refused"))
		c.fail(rpctypes.ErrInvalidAuthToken) // ends by another login
		c.fail(refused)
		c.fail(errors.New("connection refused"))
		c.fail(refused)
	}
	said, _ := events.Since(0)
	want := []string{"etcd is lost", "etcd refuses the login", "etcd answers again", "etcd is lost", "etcd refuses the login"}
	if len(said) != len(want) || strings.Count(log.String(), "etcd refuses the login") != 2 {
		t.Fatalf("events %+v\nlog %s", said, log.String())
	}
	for i, e := range said {
		if !strings.HasPrefix(e.Detail, want[i]) {
			t.Errorf("event %d is %q, want %q", i, e.Detail, want[i])
		}
	}
}

// That there is no connection says less than the dial that failed a moment before, whether etcd was thought to be well then or lost already.
func TestContactKeepsTheDialsReason(t *testing.T) {
	events := event.NewLog(10)
	c := &contact{log: hclog.NewNullLogger(), events: events}
	c.ok()
	c.failDial(errors.New("connection refused"))
	c.lose(errors.New("no connection to etcd: none could be made"))
	var s Status
	c.fill(&s)
	if s.Connected || s.LastError != "connection refused" {
		t.Errorf("status %+v", s)
	}
	if said, _ := events.Since(0); len(said) != 1 || !strings.HasSuffix(said[0].Detail, ": connection refused") {
		t.Errorf("events %+v", said)
	}
	c.ok()
	c.lose(errors.New("no connection to etcd: the last one was ended"))
	if c.fill(&s); s.LastError != "no connection to etcd: the last one was ended" {
		t.Errorf("a reason of before: %+v", s)
	}
}
