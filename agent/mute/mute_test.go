package mute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// moment is some time of the wall clock.
func moment() time.Time { return time.Date(2026, 3, 1, 13, 3, 0, 0, time.UTC) }

// A mute of this host holds at once and to the moment of its end; told with who and why.
func TestHere(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	a := r.mute(now, Request{Address: "10.0.0.1:80", Reason: " bad\n disk\x07 "})
	r.want("at once", "user 10.0.0.1:80 here alice@web-1")
	if len(a.Warnings) != 0 || a.Mute.Reason != "bad  disk" || a.Mute.Until.Sub(a.Mute.Since) != DefaultFor || !a.Mute.Since.Equal(now) {
		t.Errorf("answer %+v", a)
	}
	r.mute(now, Request{Address: "10.0.0.2:80", For: 30 * time.Minute})

	if wait, busy := r.tick(now.Add(30*time.Minute - 300*time.Millisecond)); !busy || wait != 300*time.Millisecond {
		t.Errorf("looks again in %v, %v", wait, busy)
	}
	r.want("before the end of one", "user 10.0.0.1:80 here alice@web-1", "user 10.0.0.2:80 here alice@web-1")
	if wait, busy := r.tick(now.Add(30 * time.Minute)); !busy || wait != lookEvery {
		t.Errorf("looks again in %v, %v", wait, busy)
	}
	r.want("at the end of one", "user 10.0.0.1:80 here alice@web-1")
	if _, busy := r.tick(now.Add(time.Hour)); busy {
		t.Error("goes on looking although nothing is muted")
	}
	r.want("at the end of the other")
	calls := r.calls
	r.tick(now.Add(2 * time.Hour))
	if r.calls != calls {
		t.Error("the table was told again of nothing")
	}
	contains(t, "events", r.details(), `mute user 10.0.0.1:80: muted by alice for 1 h (this host): "bad  disk", until `)
	contains(t, "events", r.details(), "mute user 10.0.0.2:80: no longer muted, the time is over: it was by alice for 30 min (this host)")
}

// Muting again changes the end and who is to be asked; unmuting is never refused because there is nothing to unmute.
func TestAgainAndBack(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	r.mute(now, Request{Address: "10.0.0.1:80"})
	r.mute(now.Add(time.Minute), Request{Address: "10.0.0.1:80", For: 2 * time.Hour, Author: "bob"})
	r.want("again", "user 10.0.0.1:80 here bob@web-1")
	if list := r.List(); len(list) != 1 || !list[0].Until.Equal(now.Add(121*time.Minute)) {
		t.Errorf("list %+v", list)
	}
	if a := r.unmute(now, Request{Address: "10.0.0.1:80"}); !a.Was || len(a.Warnings) != 0 {
		t.Errorf("unmute %+v", a)
	}
	r.want("unmuted")
	contains(t, "events", r.details(), "unmuted by bob: it was muted by bob for 2 h")
	if a := r.unmute(now, Request{Address: "10.0.0.1:80"}); a.Was || len(a.Warnings) != 0 {
		t.Errorf("unmute of nothing %+v", a)
	}
}

// What an operator should know at once: the last one that is usable, one that isn't in the list, a service without list.
func TestWarnings(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	r.lists["two"] = []string{"10.0.0.1:80", "10.0.0.2:80"}
	r.lists["none"] = nil
	if a := r.mute(now, Request{Service: "two", Address: "10.0.0.1:80"}); len(a.Warnings) != 0 {
		t.Errorf("one of two: %q", a.Warnings)
	}
	contains(t, "the last one", r.mute(now, Request{Service: "two", Address: "10.0.0.2:80"}).Warnings, "NO BACKEND OF two IS USABLE NOW on this host")
	contains(t, "not listed", r.mute(now, Request{Address: "10.0.0.9:80"}).Warnings, "user has no backend 10.0.0.9:80 now, only 10.0.0.1:80, 10.0.0.2:80, ")
	contains(t, "empty list", r.mute(now, Request{Service: "none", Address: "10.0.0.9:80"}).Warnings, "none has no backend 10.0.0.9:80 now, only an empty list")
	contains(t, "no list", r.mute(now, Request{Service: "nosuch", Address: "10.0.0.9:80"}).Warnings, "service nosuch has no list on this host")
}

func TestRefusals(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	for _, tt := range []struct {
		q    Request
		kind error
		want string
	}{
		{Request{Service: "a/b", Address: "10.0.0.1:80"}, ErrInvalid, `"a/b" is no name of a service`},
		{Request{Service: "", Address: "10.0.0.1:80"}, ErrInvalid, `"" is no name of a service`},
		{Request{Service: "user", Address: "10.0.0.1"}, ErrInvalid, `"10.0.0.1" is no address of a backend`},
		{Request{Service: "user", Address: "[fe80::1%eth0]:80"}, ErrInvalid, `is no address of a backend`},
		{Request{Service: "user", Address: "10.0.0.1:0"}, ErrInvalid, `is no address of a backend`},
		{Request{Service: "user", Address: "10.0.0.1:80", For: -time.Second}, ErrInvalid, "a mute lasts from 1s to 7 days, not -1s"},
		{Request{Service: "user", Address: "10.0.0.1:80", For: MaxFor + 1}, ErrInvalid, "has to leave the list"},
		{Request{Service: "user", Address: "10.0.0.1:80", Reason: strings.Repeat("ä", MaxReason+1)}, ErrInvalid, "a reason has at most 200 characters"},
		{Request{Service: "user", Address: "10.0.0.1:80", Fleet: true, Reason: " \n"}, ErrInvalid, "a fleet-wide mute needs a reason"},
		{Request{Service: "user", Address: "10.0.0.1:80", Fleet: true, Reason: "x"}, ErrNoFleet, "there is no etcd"},
	} {
		_, err := r.Mute(t.Context(), now, tt.q)
		if !errors.Is(err, tt.kind) || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.q, err, tt.want)
		}
	}
	r.want("after refusals")
	// An IPv4 address in IPv6's clothes is the one in the list.
	r.mute(now, Request{Address: "[::ffff:10.0.0.1]:80"})
	r.want("mapped", "user 10.0.0.1:80 here alice@web-1")
}

// Memory is bounded; one more is refused, the same again is not, and there is always a way back.
func TestMostOfAHost(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	for i := range maxHere {
		one, err := r.check(now, &Request{Service: "user", Address: fmt.Sprintf("10.1.%d.%d:80", i/200, i%200+1), Author: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		r.hosts[keyOf(&one)] = one
	}
	if _, err := r.Mute(t.Context(), now, Request{Service: "user", Address: "10.0.0.1:80"}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one too many: %v", err)
	}
	r.mute(now, Request{Address: "10.1.0.1:80", For: 2 * time.Hour})
	r.unmute(now, Request{Address: "10.1.0.2:80"})
	r.mute(now, Request{Address: "10.0.0.1:80"})
	if n := len(r.held()); n != maxHere {
		t.Errorf("%d are muted", n)
	}
}

// A thousand at once are a few events and a number.
func TestStormIsTold(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	for i := range 100 {
		r.mute(now, Request{Address: fmt.Sprintf("10.1.0.%d:80", i+1)})
	}
	before := len(r.details())
	r.tick(now.Add(time.Hour))
	got := r.details()[before:]
	if len(got) != toldAtOnce+1 || !strings.HasSuffix(got[toldAtOnce], "80 more mutes began or ended") {
		t.Errorf("%d events, the last %q", len(got), got[len(got)-1])
	}
}

// Run ends mutes on time by itself, and sleeps when there are none.
func TestRunEndsMutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		advance(time.Hour)
		r.mute(time.Now(), Request{Address: "10.0.0.1:80", For: 90 * time.Second})
		r.mute(time.Now(), Request{Address: "10.0.0.2:80", For: 1500 * time.Millisecond})
		advance(1500*time.Millisecond - 1)
		r.want("before", "user 10.0.0.1:80 here alice@web-1", "user 10.0.0.2:80 here alice@web-1")
		advance(1)
		r.want("at the end of one", "user 10.0.0.1:80 here alice@web-1")
		advance(88500*time.Millisecond - 1)
		r.want("before the end of the other", "user 10.0.0.1:80 here alice@web-1")
		advance(1)
		r.want("at the end of the other")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// advance lets time go by in a bubble, and everything that follows from it happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// What holds is sorted, so that a person finds it.
func TestList(t *testing.T) {
	r, now := newRig(t, Config{}), moment()
	for _, addr := range []string{"10.0.0.2:80", "10.0.0.10:80", "10.0.0.1:81", "10.0.0.1:80", "[2001:db8::1]:80"} {
		r.mute(now, Request{Address: addr})
	}
	r.mute(now, Request{Service: "cart", Address: "10.0.0.1:80"})
	var got []string
	for _, m := range r.List() {
		got = append(got, m.Service+" "+m.Addr.String())
	}
	want := []string{"cart 10.0.0.1:80", "user 10.0.0.1:80", "user 10.0.0.1:81", "user 10.0.0.2:80", "user 10.0.0.10:80", "user [2001:db8::1]:80"}
	if !slices.Equal(got, want) {
		t.Errorf("list %q, want %q", got, want)
	}
}
