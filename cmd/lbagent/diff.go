package main

import "slices"

// maxDiff bounds the work for one comparison: the product of the numbers of lines that differ.
const maxDiff = 4 << 20

// aroundDiff is how many lines that are the same are shown before and after one that isn't.
const aroundDiff = 2

// diff is how before became after: lines with "- ", "+ " or "  " in front, "..." for what is left out. Nothing if both are the same.
func diff(before, after []string) []string {
	if len(before) == 1 && before[0] == "" {
		before = nil
	}
	if len(after) == 1 && after[0] == "" {
		after = nil
	}
	start := 0
	for start < min(len(before), len(after)) && before[start] == after[start] {
		start++
	}
	end := 0
	for end < min(len(before), len(after))-start && before[len(before)-1-end] == after[len(after)-1-end] {
		end++
	}
	b, a := before[start:len(before)-end], after[start:len(after)-end]
	var lines []string
	for _, s := range before[:start] {
		lines = append(lines, "  "+s)
	}
	lines = append(lines, changes(b, a)...)
	for _, s := range before[len(before)-end:] {
		lines = append(lines, "  "+s)
	}
	return shorten(lines)
}

// changes compares by the longest common subsequence of lines.
func changes(b, a []string) []string {
	var out []string
	if len(b)*len(a) > maxDiff { // all of one, then all of the other
		for _, s := range b {
			out = append(out, "- "+s)
		}
		for _, s := range a {
			out = append(out, "+ "+s)
		}
		return out
	}
	common := make([][]int, len(b)+1) // of b[i:] and a[j:]
	for i := range common {
		common[i] = make([]int, len(a)+1)
	}
	for i := len(b) - 1; i >= 0; i-- {
		for j := len(a) - 1; j >= 0; j-- {
			if b[i] == a[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(b) || j < len(a) {
		switch {
		case i < len(b) && j < len(a) && b[i] == a[j]:
			out = append(out, "  "+b[i])
			i, j = i+1, j+1
		case j == len(a) || i < len(b) && common[i+1][j] >= common[i][j+1]:
			out = append(out, "- "+b[i])
			i++
		default:
			out = append(out, "+ "+a[j])
			j++
		}
	}
	return out
}

// shorten leaves out what is the same, but for a few lines around what isn't.
func shorten(lines []string) []string {
	near := make([]bool, len(lines))
	for i, s := range lines {
		if s[0] == ' ' {
			continue
		}
		for k := max(0, i-aroundDiff); k <= min(len(lines)-1, i+aroundDiff); k++ {
			near[k] = true
		}
	}
	var out []string
	for i, s := range lines {
		switch {
		case near[i]:
			out = append(out, s)
		case i > 0 && near[i-1] || i == 0 && slices.Contains(near, true):
			out = append(out, "...")
		}
	}
	if n := len(out); n > 0 && out[n-1] == "..." {
		out = out[:n-1]
	}
	return out
}
