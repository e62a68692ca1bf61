package agent

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The watchdog is fed while all parts answer, not while one is frozen, whichever it is, and again once it answers.
func TestWatchFeedsWhileAllAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 5 * time.Second
		thaw := make(chan struct{})
		var frozen atomic.Bool
		var fed, asked atomic.Int64
		var told atomic.Pointer[[]string]
		told.Store(new([]string{}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			watch(ctx, every, []vital{
				{"table", func(context.Context) {}},
				{"event loop 1", func(ctx context.Context) {
					asked.Add(1)
					if frozen.Load() {
						select {
						case <-thaw:
						case <-ctx.Done():
						}
					}
				}},
				{"health", func(context.Context) {}},
			}, func() { fed.Add(1) }, func(f []string) { told.Store(new(append(slices.Clone(*told.Load()), strings.Join(f, "+")))) })
		}()
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if fed.Load() != 3 || len(*told.Load()) > 0 {
			t.Errorf("well: fed %d times in 12 s, told %q", fed.Load(), *told.Load())
		}
		frozen.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if fed.Load() != 3 {
			t.Errorf("fed %d times more with a frozen part", fed.Load()-3)
		}
		if !slices.Equal(*told.Load(), []string{"event loop 1"}) || asked.Load() != 4 {
			t.Errorf("told %q, asked %d times", *told.Load(), asked.Load())
		}
		frozen.Store(false)
		close(thaw)
		time.Sleep(every + time.Second)
		synctest.Wait()
		if fed.Load() < 4 || !slices.Equal(*told.Load(), []string{"event loop 1", ""}) {
			t.Errorf("thawed: fed %d, told %q", fed.Load(), *told.Load())
		}
		cancel()
		<-done
	})
}

// Every part that Run starts answers; none does before.
func TestVitals(t *testing.T) {
	d := start(t, "")
	vitals := d.vitals()
	if len(vitals) < 4 {
		t.Fatalf("%d vital parts", len(vitals))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, v := range vitals {
		if v.ping(ctx); ctx.Err() != nil {
			t.Fatalf("%s does not answer", v.name)
		}
	}
}
