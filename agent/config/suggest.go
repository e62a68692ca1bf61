package config

import (
	"slices"
	"strings"
)

// nearest returns the word of known that was probably meant by key, "" if none comes near.
func nearest(key string, known []string) string {
	if len(key) > 64 {
		return ""
	}
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	best, bestDistance := "", 3
	for _, k := range known {
		a, b := plain(key), plain(k)
		d := distance(a, b)
		switch shorter := min(len(a), len(b)); {
		case shorter >= 4 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)):
			d = min(d, 2) // password for password_file
		case d > 1 && shorter < 5:
			continue // two letters of four are another word
		}
		if d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the number of letters to add, drop, change or swap with their neighbour to turn a into b.
func distance(a, b string) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(row[j]+1, last[j+1]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// words is known in a fixed order, for messages.
func words[V any](known map[string]V) []string {
	all := make([]string, 0, len(known))
	for k := range known {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
