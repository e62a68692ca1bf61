package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
)

// stage is one component that runs for as long as the agent does.
type stage struct {
	name string
	run  func(context.Context) error
}

// runStages runs all stages at once until ctx ends or one of them returns, then stops them one after another in the order given: the next is stopped
// only when the one before has returned. Once grace has passed, counted from the first, nobody is waited for any more. So callers are let go before the lists that serve them are.
// The error names the stage that ended first, if ctx did not.
func runStages(ctx context.Context, log hclog.Logger, grace time.Duration, stages ...stage) error {
	type running struct {
		stage
		cancel context.CancelFunc
		done   chan error
	}
	ended := make(chan error, len(stages))
	all := make([]running, len(stages))
	for i, s := range stages {
		// Not a child of ctx: the order of stopping is decided below.
		stageCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		r := running{s, cancel, make(chan error, 1)}
		all[i] = r
		go func() {
			err := r.run(stageCtx)
			if stageCtx.Err() == nil {
				if err == nil {
					err = errors.New("ended by itself")
				}
				ended <- fmt.Errorf("%s: %w", r.name, err)
			}
			r.done <- err
		}()
	}

	var first error
	select {
	case <-ctx.Done():
	case first = <-ended:
	}
	over, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	for _, r := range all {
		r.cancel()
		select {
		case err := <-r.done:
			if err != nil && !errors.Is(err, context.Canceled) && first == nil {
				log.Warn("stage did not stop cleanly", "stage", r.name, "error", err)
			}
		case <-over.Done():
			log.Warn("stage did not stop in time", "stage", r.name, "grace", grace)
		}
	}
	return first
}

// after runs a stage once begin is closed.
func after(begin <-chan struct{}, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-begin:
			return run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// later runs a stage once the agent has settled, or has to end.
func later(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		settled := time.NewTimer(settling)
		defer settled.Stop()
		select {
		case <-settled.C:
		case <-ctx.Done():
		}
		return run(ctx)
	}
}
