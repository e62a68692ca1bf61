package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// width is the width of everything for people: it fits half a screen, a ticket and a mail.
const width = 100

// table is rows of cells under a heading. The last column takes what width is left and is wrapped at words.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the table; columns without any content are left out.
func (t *table) print(w io.Writer) {
	widths := make([]int, len(t.head))
	for _, row := range t.rows {
		for i, cell := range row {
			row[i] = clean(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	last, used := -1, 0
	for i, n := range widths {
		if n > 0 || i == 0 {
			last = i
		}
	}
	for i := range last {
		if widths[i] > 0 {
			widths[i] = max(widths[i], utf8.RuneCountInString(t.head[i]))
			used += widths[i] + 2
		}
	}
	line := func(cells []string) {
		var b strings.Builder
		for i := range last {
			if widths[i] > 0 {
				b.WriteString(pad(cells[i], widths[i]) + "  ")
			}
		}
		room, indent := width-used, used
		if room < 30 && utf8.RuneCountInString(cells[last]) > room { // too narrow to read: below, indented
			fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
			b.Reset()
			room, indent = width-4, 4
			b.WriteString(strings.Repeat(" ", indent))
		}
		rest := wrap(cells[last], room)
		for i, part := range rest {
			if i > 0 {
				b.WriteString(strings.Repeat(" ", indent))
			}
			b.WriteString(part)
			fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
			b.Reset()
		}
	}
	line(t.head)
	for _, row := range t.rows {
		line(row)
	}
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

// wrap breaks s at spaces into lines of at most n runes; a word that is longer has a line of its own. At least one line comes back.
func wrap(s string, n int) []string {
	words := strings.Fields(s)
	if len(words) == 0 {
		return []string{""}
	}
	lines, length := []string{words[0]}, utf8.RuneCountInString(words[0])
	for _, word := range words[1:] {
		size := utf8.RuneCountInString(word)
		if length+1+size > n {
			lines, length = append(lines, word), size
			continue
		}
		lines[len(lines)-1] += " " + word
		length += 1 + size
	}
	return lines
}

// paragraph writes s wrapped, every line indented.
func paragraph(w io.Writer, indent, s string) {
	for _, line := range wrap(clean(s), width-len(indent)) {
		fmt.Fprintln(w, indent+line)
	}
}

// clean makes text from elsewhere (etcd records, error texts) harmless on a terminal: what isn't printable becomes '\uFFFD', but for line ends.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		if unicode.IsSpace(r) {
			return ' '
		}
		return unicode.ReplacementChar
	}, s)
}

// printJSON writes m as the JSON face of the socket does: the names of the .proto, defaults written out. Compact is one line, for streams.
func printJSON(w io.Writer, m proto.Message, compact bool) error {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return writeJSON(w, raw, compact)
}

// writeJSON brings raw into a stable form: protojson strews spaces at random.
func writeJSON(w io.Writer, raw []byte, compact bool) error {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	if !compact {
		line := bytes.Clone(b.Bytes())
		b.Reset()
		if err := json.Indent(&b, line, "", "  "); err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(w)
	return err
}

// short is a duration in one unit: 850ms, 12s, 3m, 2h, 4d.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// ago is the time from t to now in short; "" if t is unset.
func ago(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().IsZero() {
		return ""
	}
	return short(now.Sub(t.AsTime()))
}

// plural is "1 backend", "2 backends".
func plural[N int | uint32](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fine is a short time with about three digits.
func fine(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
