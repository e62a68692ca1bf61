package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestStagesStopInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		wait := func(name string, d time.Duration) stage {
			return stage{name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(d) // fake time: what a stage needs to stop
				order = append(order, name)
				return nil
			}}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err := runStages(ctx, hclog.NewNullLogger(), 10*time.Second, wait("proxy", 5*time.Second), wait("api", 0), wait("discovery", time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"proxy", "api", "discovery"}; !slices.Equal(order, want) {
			t.Errorf("stopped in order %v, want %v", order, want)
		}
	})
}

func TestStagesEndWithTheFirstThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := false
		err := runStages(t.Context(), hclog.NewNullLogger(), time.Second,
			stage{"api", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil }},
			stage{"discovery", func(context.Context) error { return errors.New("disk on fire") }})
		if err == nil || !strings.Contains(err.Error(), "discovery: disk on fire") {
			t.Errorf("error %v doesn't name the stage and its reason", err)
		}
		if !stopped {
			t.Error("the other stage was left running")
		}
	})
}

func TestStagesDoNotWaitForeverForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		if err := runStages(ctx, hclog.NewNullLogger(), 3*time.Second, stage{"stuck", func(context.Context) error { <-release; return nil }},
			stage{"stuck as well", func(context.Context) error { <-release; return nil }}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("waited %v for a stuck stage, want the grace of 3 s", took)
		}
		close(release)
	})
}
