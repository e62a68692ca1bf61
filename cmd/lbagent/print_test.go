package main

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func TestWrap(t *testing.T) {
	tests := []struct {
		in   string
		n    int
		want []string
	}{
		{"", 10, []string{""}},
		{"  ", 10, []string{""}},
		{"one", 10, []string{"one"}},
		{"one two three", 7, []string{"one two", "three"}},
		{"one  two", 3, []string{"one", "two"}},
		{"a-very-long-word b", 5, []string{"a-very-long-word", "b"}},
		{"größer grün", 6, []string{"größer", "grün"}},
	}
	for _, tt := range tests {
		if got := wrap(tt.in, tt.n); !slices.Equal(got, tt.want) {
			t.Errorf("wrap(%q, %d) = %q, want %q", tt.in, tt.n, got, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	tests := []struct {
		name string
		rows [][]string
		want string
	}{
		{"empty columns go", [][]string{{"a", "", "c"}, {"bb", "", ""}}, "ONE  THREE\na    c\nbb\n"},
		{"last column empty", [][]string{{"a", "b", ""}}, "ONE  TWO\na    b\n"},
		{"all empty", [][]string{{"", "", ""}}, "ONE\n\n"},
		{"nothing", nil, "ONE\n"},
		{"wide letters count once", [][]string{{"ä", "b", "c"}, {"xy", "b", "c"}}, "ONE  TWO  THREE\nä    b    c\nxy   b    c\n"},
		{"control characters", [][]string{{"\x1b[2J", "b\tc\rd", "\x00\n"}}, "ONE   TWO    THREE\n\uFFFD[2J  b c d  \uFFFD\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			(&table{head: []string{"ONE", "TWO", "THREE"}, rows: tt.rows}).print(&b)
			if b.String() != tt.want {
				t.Errorf("got\n%swant\n%s", b.String(), tt.want)
			}
		})
	}
}

// FuzzTable: whatever etcd holds, a table keeps its width unless one word is wider, has no line lost, and does nothing to a terminal.
func FuzzTable(f *testing.F) {
	f.Add("10.0.0.1:80", "up", "a long sentence about a backend that was ejected because of five failures in a row, and so on and on")
	f.Add("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535", strings.Repeat("x", 40), "short words all the way down to the very end of the line")
	f.Add("\x1b]0;title\x07", "\xff\xfe", "\u202e\u2028\n\n")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		var out strings.Builder
		(&table{head: []string{"A", "B", "C"}, rows: [][]string{{a, b, c}, {"x", "y", "z"}}}).print(&out)
		longest := 0
		for word := range strings.FieldsSeq(clean(c)) {
			longest = max(longest, utf8.RuneCountInString(word))
		}
		fixed := utf8.RuneCountInString(clean(a)) + utf8.RuneCountInString(clean(b)) + 4
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			if n := utf8.RuneCountInString(line); n > max(width, fixed, longest+4, longest+min(fixed, width)) {
				t.Errorf("%d columns: %q", n, line)
			}
			if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not printable: %q", line)
			}
		}
	})
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0ms", 850 * time.Millisecond: "850ms", 12 * time.Second: "12s", 119 * time.Second: "119s", 2 * time.Minute: "2m",
		119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 10000 * time.Hour: "416d",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestFine(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 12: "12ns", 123456: "123.46µs", 1234567: "1.23ms", 1234567890: "1.23s", 61234 * time.Millisecond: "1m1.23s",
	} {
		if got := fine(d); got != want {
			t.Errorf("fine(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestVariable(t *testing.T) {
	for name, want := range map[string]string{"user": "USER_ADDR", "a.b-c:d@e": "A_B_C_D_E_ADDR", "7up": "_7UP_ADDR", "X_1": "X_1_ADDR", "ü": "__ADDR"} {
		if got := variable(name); got != want {
			t.Errorf("variable(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestListenerOf(t *testing.T) {
	tests := []struct {
		listeners []string
		want      string
	}{
		{[]string{"unix:/a", "[::1]:1", "127.0.0.1:2"}, "127.0.0.1:2"},
		{[]string{"127.0.0.1:2", "127.0.0.1:3"}, "127.0.0.1:2"},
		{[]string{"unix:/a", "[::1]:1"}, "[::1]:1"},
		{[]string{"unix:/a", "unix:/b"}, "unix:/a"},
	}
	for _, tt := range tests {
		got, err := listenerOf([]*lbagentv1.ServiceInfo{{Name: "other", Listeners: []string{"127.0.0.1:9"}}, {Name: "user", Listeners: tt.listeners}}, "user")
		if err != nil || got != tt.want {
			t.Errorf("%q: %q, %v, want %q", tt.listeners, got, err, tt.want)
		}
	}
}

func TestDifferences(t *testing.T) {
	list := func(p *lbagentv1.Provenance, backends ...*lbagentv1.Backend) *lbagentv1.WatchResponse {
		return &lbagentv1.WatchResponse{Provenance: p, Backends: backends}
	}
	up := func(addr string, weight float64) *lbagentv1.Backend {
		return &lbagentv1.Backend{Address: addr, Verdict: "up", Usable: true, Weight: weight}
	}
	down := &lbagentv1.Backend{Address: "a", Verdict: "down", Cause: "down: probe failed 3 times", Weight: 1}
	forced := &lbagentv1.Backend{Address: "a", Verdict: "down", Cause: "down: probe failed 3 times", Weight: 1, Usable: true}
	tests := []struct {
		name      string
		old, next *lbagentv1.WatchResponse
		want      []string
	}{
		{"nothing", list(nil, up("a", 1)), list(nil, up("a", 1)), nil},
		{"added and removed", list(nil, up("a", 1)), list(nil, up("b", 2)), []string{"b added, up, weight 2", "a removed"}},
		{"weight", list(nil, up("a", 1)), list(nil, up("a", 0.25)), []string{"a weight 0.25, was 1"}},
		{"verdict", list(nil, up("a", 1)), list(nil, down), []string{"a down, was up: probe failed 3 times"}},
		{"used in panic", list(nil, down), list(nil, forced), []string{"a down, was down: used nevertheless; probe failed 3 times"}},
		{"panic", list(nil), list(&lbagentv1.Provenance{Panic: true}), []string{"PANIC: too few backends are usable, so doubtful ones get calls, too"}},
		{"source", list(&lbagentv1.Provenance{Source: "spool"}), list(&lbagentv1.Provenance{Source: "etcd", Revision: 3}), []string{"the list is now from etcd at revision 3, confirmed 0ms ago"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := differences(tt.old, tt.next); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
