package etcd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// stub is a client that has a connection and does nothing.
type stub struct{ Client }

func (stub) Ready(context.Context) error    { return nil }
func (stub) Progress(context.Context) error { return nil }
func (stub) Close()                         {}

// A client that served is followed by another one at once, however short its life was, since who lost one after the other to restores or new passwords must not wait for
// the sum of them; but not over and over (1.4).
func TestNextLink(t *testing.T) {
	for name, served := range map[string]bool{"that served": true, "that didn't": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var longest time.Duration
				var lost time.Time
				k := New(Options{Etcd: &Config{Endpoints: []string{"http://127.0.0.1:1"}}, Dial: func(context.Context, Config, func(error)) (Client, error) {
					if !lost.IsZero() {
						longest = max(longest, time.Since(lost))
					}
					return stub{}, nil
				}})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = k.Run(ctx)
				}()
				end := func() {
					l, err := k.Get(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if served {
						k.OK()
					}
					time.Sleep(time.Second)
					lost = time.Now()
					l.Fail(errNewEpoch)
				}
				for range BudgetMost {
					end()
				}
				if served != (longest < MinBackoff) {
					t.Errorf("the longest wait was %v", longest)
				}
				for range 50 {
					end()
				}
				if longest < 2*MinBackoff {
					t.Errorf("after many the longest wait was %v", longest)
				}
				cancel()
				<-done
			})
		})
	}
}
