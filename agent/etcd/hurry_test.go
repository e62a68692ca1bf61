package etcd

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
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

// A client that waits to dial again makes way for one that dials now; one that is connected stays.
func TestHurryDials(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody is there
	var dials atomic.Int64
	k := New(Options{Etcd: &Config{Endpoints: []string{"http://" + l.Addr().String()}}, Dial: func(ctx context.Context, e Config, failed func(error)) (Client, error) {
		dials.Add(1)
		return Dial(ctx, e, failed)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.Run(ctx)
	}()
	defer func() { cancel(); <-done }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	go func() { _, _ = k.Get(ctx) }() // somebody who waits for a connection
	for dials.Load() < 3 {
		select {
		case <-tick.C:
			k.Hurry()
		case <-end:
			t.Fatalf("%d dials in a minute of hurry", dials.Load())
		}
	}
}
