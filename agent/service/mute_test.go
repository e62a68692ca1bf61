package service

import (
	"testing"
	"time"
)

func TestMuteCause(t *testing.T) {
	since := time.Date(2026, 3, 1, 13, 3, 5, 0, time.Local)
	for _, tt := range []struct {
		m    Mute
		last time.Duration
		want string
	}{
		{Mute{Author: "alice", Host: "web-1", Reason: "bad disk", Fleet: true}, time.Hour, `by alice on web-1 for 1 h (fleet): "bad disk", until 14:03`},
		{Mute{Author: "alice", Host: "web-1"}, 90 * time.Second, `by alice for 90 s (this host), until 13:04:35`},
		{Mute{Author: "bob", Host: "web-1", Reason: "a \x1b[2J\n\"b\""}, 15 * time.Minute, `by bob for 15 min (this host): "a \x1b[2J\n\"b\"", until 13:18`},
		{Mute{Author: "bob", Host: "web-1"}, 24 * time.Hour, `by bob for 1 d (this host), until 2026-03-02 13:03`},
		{Mute{Author: "bob", Host: "web-1"}, 90 * time.Minute, `by bob for 90 min (this host), until 14:33`},
		{Mute{Author: "bob", Host: "web-1"}, 5*time.Hour + 40*time.Minute + time.Second, `by bob for 6 h (this host), until 18:43`},
	} {
		tt.m.Since, tt.m.Until = since, since.Add(tt.last)
		if got := tt.m.Cause(); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.last, got, tt.want)
		}
	}
}
