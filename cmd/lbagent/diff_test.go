package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	for _, c := range []struct{ name, before, after, want string }{
		{"the same", "a b c", "a b c", ""},
		{"nothing before", "", "a b", "+ a,+ b"},
		{"nothing after", "a b", "", "- a,- b"},
		{"one changed", "a b c", "a x c", "  a,- b,+ x,  c"},
		{"far apart", "a 1 2 3 4 5 6 b", "x 1 2 3 4 5 6 y", "- a,+ x,  1,  2,...,  5,  6,- b,+ y"},
		{"in the middle of much", "1 2 3 4 5 6 7", "1 2 3 x 5 6 7", "...,  2,  3,- 4,+ x,  5,  6"},
		{"moved", "a b c", "c a b", "+ c,  a,  b,- c"},
		{"put in twice", "a b", "a a b b", "  a,+ a,+ b,  b"},
	} {
		if got := strings.Join(diff(split(c.before), split(c.after)), ","); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func split(s string) []string { return strings.Split(s, " ") }

// TestDiffIsRight: without "+" lines a comparison is what was before, without "-" lines what came after.
func TestDiffIsRight(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func() []string {
		out := make([]string, 1+r.IntN(30))
		for i := range out {
			out[i] = fmt.Sprint("l", r.IntN(6))
		}
		return out
	}
	for range 2000 {
		before, after := text(), text()
		var was, is []string
		for _, line := range changes(before, after) {
			if line[0] != '+' {
				was = append(was, line[2:])
			}
			if line[0] != '-' {
				is = append(is, line[2:])
			}
		}
		if fmt.Sprint(was) != fmt.Sprint(before) || fmt.Sprint(is) != fmt.Sprint(after) {
			t.Fatalf("%v\n%v\n%v", before, after, changes(before, after))
		}
	}
	large := strings.Split(strings.Repeat("x ", 5000), " ")
	other := strings.Split(strings.Repeat("y ", 5000), " ")
	if got := changes(large, other); len(got) != len(large)+len(other) {
		t.Errorf("too large to compare: %d lines", len(got))
	}
}
