package calls

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestTaps(t *testing.T) {
	var taps Taps
	if taps.Wants("user") || (*Taps)(nil).Wants("user") {
		t.Fatal("nobody is there, and somebody wants calls")
	}
	taps.Ended(&Record{Service: "user"})
	(*Taps)(nil).Ended(&Record{Service: "user"})
	got := map[string][]string{}
	add := func(name, service string) func() {
		return taps.Add(service, func(r *Record) { got[name] = append(got[name], r.Service+r.Path) })
	}
	removeAll, removeUser, removeCart := add("all", ""), add("user", "user"), add("cart", "cart")
	taps.Ended(&Record{Service: "user", Path: "/1"})
	removeAll()
	removeAll() // twice is once
	if taps.Wants("mail") || !taps.Wants("user") || !taps.Wants("cart") {
		t.Error("who wants which service is mixed up")
	}
	taps.Ended(&Record{Service: "cart", Path: "/2"})
	removeUser()
	taps.Ended(&Record{Service: "user", Path: "/3"})
	removeCart()
	if taps.all.Load() != nil {
		t.Error("all have gone, and calls are still looked at")
	}
	if s := fmt.Sprint(got); s != "map[all:[user/1] cart:[cart/2] user:[user/1]]" {
		t.Error(s)
	}
}

func TestTapsComeAndGoWhileCallsEnd(t *testing.T) {
	var taps Taps
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 500 {
				seen := false
				remove := taps.Add("user", func(*Record) { seen = true })
				_ = seen
				remove()
			}
		})
		all.Go(func() {
			for range 2000 {
				if taps.Wants("user") {
					taps.Ended(&Record{Service: "cart"})
				}
			}
		})
	}
	all.Wait()
	if taps.Wants("user") {
		t.Error("a tap is left")
	}
}

func TestFlagsAndFailures(t *testing.T) {
	for _, c := range []struct {
		r      Record
		flags  string
		failed bool
	}{
		{Record{Phase: Done, Status: 200, GRPC: -1}, "--", false},
		{Record{Phase: Done, Status: 404, GRPC: -1}, "--", false},
		{Record{Phase: Done, Status: 503, GRPC: -1}, "--", true},
		{Record{Phase: Done, Status: 200, GRPC: 0}, "--", false},
		{Record{Phase: Done, Status: 200, GRPC: 5}, "--", false},
		{Record{Phase: Done, Status: 200, GRPC: 14}, "--", true},
		{Record{Phase: Connect, By: Agent, Status: 503, GRPC: -1}, "AC", true},
		{Record{Phase: Wait, By: Client, Status: 499, GRPC: 1}, "CW", false},
		{Record{Phase: Wait, By: Backend, Status: 502, GRPC: -1}, "BW", true},
		{Record{Phase: Answer, By: Backend, Status: 499, GRPC: -1}, "BA", true},
		{Record{Phase: Request, By: Agent, Status: 431, GRPC: -1}, "AR", false},
		{Record{Phase: Done, By: Client, GRPC: -1}, "--", false}, // tcp
	} {
		if got := c.r.Flags(); got != c.flags {
			t.Errorf("%+v: flags %q, want %q", c.r, got, c.flags)
		}
		if got := c.r.Failed(); got != c.failed {
			t.Errorf("%+v: failed %v", c.r, got)
		}
	}
}

func TestTexts(t *testing.T) {
	if got := Text(strings.Repeat("\u00e4", 1<<16)); len(got) != MaxText {
		t.Errorf("%d bytes are left", len(got))
	}
	if got := Text("x" + strings.Repeat("\u00e4", 1<<16)); !strings.HasSuffix(got, "\u00e4?") || len(got) > MaxText {
		t.Errorf("a letter is cut in two: %q", got)
	}
	for target, want := range map[string]string{"/user?token=secret": "/user", "/user": "/user", "": "", "*": "*", "/\xff": "/?", "?a": ""} {
		if got := Path(target); got != want {
			t.Errorf("path of %q is %q, want %q", target, got, want)
		}
	}
}

// BenchmarkOff is what a call costs while nobody wants records.
func BenchmarkOff(b *testing.B) {
	var taps Taps
	for b.Loop() {
		if taps.Wants("user") {
			b.Fatal("somebody is there")
		}
	}
}
