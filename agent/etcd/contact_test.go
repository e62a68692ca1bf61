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
