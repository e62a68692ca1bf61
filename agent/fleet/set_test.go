package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVanished: 1.9 for the fleet. More than half of three or more that go at once, or all there are, are kept; what somebody says to have removed is believed.
func TestVanished(t *testing.T) {
	begin := time.Unix(1000, 0)
	for _, c := range []struct {
		name    string
		have    int      // a, b, c ...
		steps   []string // "1s -a -b" at a second: those go; "+a" is written; "!a" is said to be removed
		entries string
		held    string
	}{
		{"one of three", 3, []string{"0s -a"}, "b c", ""},
		{"two of three", 3, []string{"0s -a -b"}, "a b c", "a b"},
		{"half of four", 4, []string{"0s -a -b"}, "c d", ""},
		{"more than half of five", 5, []string{"0s -a -b -c"}, "a b c d e", "a b c"},
		{"all of one", 1, []string{"0s -a"}, "a", "a"},
		{"all of two", 2, []string{"0s -a -b"}, "a b", "a b"},
		{"one of two", 2, []string{"0s -a"}, "b", ""},
		{"one by one, quickly", 4, []string{"0s -a", "2s -b", "4s -c"}, "a b c d", "a b c"},
		{"one by one, slowly", 4, []string{"0s -a", "11s -b", "22s -c"}, "d", ""},
		{"the last one, slowly", 2, []string{"0s -a", "11s -b"}, "b", "b"},
		{"on purpose", 3, []string{"0s !a !b -a -b"}, "c", ""},
		{"all on purpose", 3, []string{"0s !a !b !c -a -b -c"}, "", ""},
		{"said afterwards", 3, []string{"0s -a -b", "60s !a !b"}, "c", ""},
		{"said of one", 3, []string{"0s -a -b", "60s !a"}, "b c", "b"},
		{"written again", 3, []string{"0s -a -b", "60s +a +b"}, "a b c", ""},
		{"a swap", 3, []string{"0s -a -b -c +d +e +f"}, "d e f", ""},
		{"what is held stays so", 3, []string{"0s -a -b", "60s -c"}, "a b c", "a b c"},
		{"and may be removed alone later", 4, []string{"0s -a -b -c", "60s +x +y +z", "120s -x"}, "a b c d y z", "a b c"},
		{"on purpose does not count as lost", 5, []string{"0s !a !b -a -b -c"}, "d e", ""},
	} {
		s := newSet()
		for i := range c.have {
			key := string(rune('a' + i))
			s.put(key, "text", 1)
			s.entries[key] = Entry{Key: key, Now: "text", Good: "good " + key, Modified: 1}
		}
		for _, step := range c.steps {
			words := strings.Fields(step)
			d, err := time.ParseDuration(words[0])
			if err != nil {
				t.Fatal(err)
			}
			now := begin.Add(d)
			for _, w := range words[1:] {
				switch key := w[1:]; w[0] {
				case '-':
					s.remove(now, key)
				case '+':
					s.put(key, "text", 2)
				case '!':
					s.removed[key] = true
				}
			}
			s.settle(now)
			if held, released := s.settle(now); len(held)+len(released) > 0 {
				t.Errorf("%s: settling twice: %v %v", c.name, held, released)
			}
		}
		var keys []string
		for key, e := range s.entries {
			keys = append(keys, key)
			if key <= "c" && e.Good != "good "+key {
				t.Errorf("%s: %s lost its last good form: %q", c.name, key, e.Good)
			}
		}
		slices.Sort(keys)
		if got := strings.Join(keys, " "); got != c.entries {
			t.Errorf("%s: entries %q, want %q", c.name, got, c.entries)
		}
		if got := strings.Join(s.heldKeys(), " "); got != c.held {
			t.Errorf("%s: held %q, want %q", c.name, got, c.held)
		}
	}
}

func TestHeldSentence(t *testing.T) {
	var keys []string
	for i := range 7 {
		keys = append(keys, fmt.Sprint("s", i))
	}
	for _, want := range []string{"7 items", "s0 s1 s2 s3 s4 (and 2 more)", `"lbagent config rm --vanished s0 s1 s2 s3 s4"`} {
		if got := heldSentence(keys); !strings.Contains(got, want) {
			t.Errorf("%q: no %q", got, want)
		}
	}
}

// 1.9: between the moment when keys vanish and the one when it is decided what to think of that, they are in force: a reload, or the spool, may ask just then.
func TestGoneButNotDecided(t *testing.T) {
	now := time.Unix(1e9, 0)
	read := func(keys ...string) map[string]Entry {
		out := make(map[string]Entry)
		for _, k := range keys {
			out[k] = Entry{Key: k, Now: k, Modified: 1}
		}
		return out
	}
	for name, c := range map[string]struct {
		left        []string
		after, held int
	}{
		"all":      {nil, 4, 4},
		"most":     {[]string{"a"}, 4, 3},
		"only one": {[]string{"a", "b", "c"}, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSet()
			s.install(now, read("a", "b", "c", "d"), nil)
			s.settle(now)
			s.install(now, read(c.left...), nil)
			if n := len(s.all()); n != 4 {
				t.Errorf("undecided, %d of 4 are in force", n)
			}
			held, _ := s.settle(now)
			if n := len(s.all()); n != c.after || len(held) != c.held {
				t.Errorf("decided, %d are in force and %d held, want %d and %d", n, len(held), c.after, c.held)
			}
			// What was written anew before it was decided is there once.
			s.install(now, read("a", "b", "c", "d"), nil)
			if n := len(s.all()); n != 4 {
				t.Errorf("back, there are %d", n)
			}
		})
	}
}
