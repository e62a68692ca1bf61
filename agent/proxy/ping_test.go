package proxy

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
)

// A loop that is held up doesn't answer, the others do.
func TestPing(t *testing.T) {
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10)})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Table: tab, Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	held, release := make(chan struct{}), make(chan struct{})
	p.workers[1].loop.Post(func() { close(held); <-release })
	<-held
	p.Ping(t.Context(), 0)
	done := make(chan struct{})
	go func() { p.Ping(t.Context(), 1); close(done) }()
	p.Ping(t.Context(), 0)
	select {
	case <-done:
		t.Error("a loop that is held up answered")
	case <-time.After(10 * time.Millisecond):
	}
	close(release)
	<-done
}
