package etcd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Who has something to lose need not wait for the back-off of others.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		k := New(Options{Etcd: &Config{Endpoints: []string{"http://127.0.0.1:1"}}, Dial: func(context.Context, Config, func(error)) (Client, error) {
			dials++
			return nil, errors.New("no")
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = k.Run(ctx)
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		before := dials
		for range 10 {
			k.Hurry()
			synctest.Wait()
		}
		if dials != before+10 {
			t.Errorf("%d dials after 10 hurries", dials-before)
		}
		cancel()
		<-done
	})
}
