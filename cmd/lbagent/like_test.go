package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestLike(t *testing.T) {
	words := []string{"lookup", "list", "events", "explain", "mute", "unmute", "top", "tap", "doctor"}
	for word, want := range map[string]string{
		"lokup": "[lookup]", "LIST": "[list]", "lsit": "[list]", "event": "[events]", "expl": "[explain]", "explian": "[explain]", "mtue": "[mute]", "tpo": "[top]", "nosuch": "[]", "": "[]",
		"x": "[]", "docter": "[doctor]", "zzzzzzzzzzzzzz": "[]",
	} {
		if got := fmt.Sprint(like(word, words)); got != want {
			t.Errorf("%q is like %s, want %s", word, got, want)
		}
	}
	many := []string{"user-1", "user-2", "user-3", "user-4"}
	if got := like("user-9", many); len(got) != 3 {
		t.Errorf("like user-9 are %q", got)
	}
	if got := didYouMean("usr", []string{"user", "usr2"}); got != "; did you mean user or usr2?" {
		t.Error(got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 1}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// Every verb's flags are known to who mistypes one.
func TestMistypedFlags(t *testing.T) {
	for _, args := range [][]string{{"list", "--jsno", "user"}, {"tap", "--statsu", "5xx"}, {"top", "--onec"}, {"status", "--socke", "x"}, {"config", "get", "--jsn"}} {
		code, _, stderr := call(t, nil, args...)
		if code != exitUsage || !strings.Contains(stderr, "did you mean --") {
			t.Errorf("%q: exit code %d: %s", args, code, stderr)
		}
	}
}
