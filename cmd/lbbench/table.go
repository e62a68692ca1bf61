package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// table prints, per shape and figure, a line of medians for each load and below it how lbagent's stands to each other's.
func (r *results) table(w io.Writer) error {
	fmt.Fprintln(w, r.Machine)
	for _, shape := range shapeNames() {
		for _, f := range figures() {
			if err := r.block(w, shape, f); err != nil {
				return err
			}
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	for _, m := range r.Missing {
		fmt.Fprintln(w, "missing:", m)
	}
	r.failures(w)
	met, unclear, all := 0, 0, 0
	for _, j := range r.Judgements {
		switch {
		case j.Goal == nil:
			continue
		case j.Met == nil:
			unclear++
		case *j.Met:
			met++
		}
		all++
	}
	_, err := fmt.Fprintf(w, "%d of %d goals met, %d unclear\n", met, all, unclear)
	return err
}

// block prints one figure of a shape; nothing if it was not measured there.
func (r *results) block(w io.Writer, shape string, f figureText) error {
	var names []string
	for _, name := range r.distinct(shape, func(m measurement) string { return m.Contender }) {
		for _, load := range r.distinct(shape, func(m measurement) string { return m.Load }) {
			if _, ok := r.of(shape, load, name, f.figure); ok {
				names = append(names, name)
				break
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s: %s\n", shape, f.title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LOAD\t"+strings.Join(names, "\t"))
	for _, load := range r.distinct(shape, func(m measurement) string { return m.Load }) {
		r.lines(t, shape, load, f, names)
	}
	return t.Flush()
}

func (r *results) lines(t io.Writer, shape, load string, f figureText, names []string) {
	values, ratios := []string{load}, []string{" " + ratioWord(f, shape)}
	any, judged := false, false
	for _, name := range names {
		s, ok := r.of(shape, load, name, f.figure)
		any = any || ok
		values = append(values, s.text(f.format))
		against := name
		if name == subject(shape) {
			against = "" // its own figure, if there is a goal for it
		}
		text := ""
		if j, ok := r.judgementOf(shape, load, f.figure, against); ok {
			text, judged = j.String(), true
		}
		ratios = append(ratios, text)
	}
	if !any {
		return
	}
	fmt.Fprintln(t, strings.Join(values, "\t"))
	if judged {
		fmt.Fprintln(t, strings.Join(ratios, "\t"))
	}
}

func ratioWord(f figureText, shape string) string {
	if !f.ratio && shape != "noisy" {
		return "goal"
	}
	return subject(shape) + "/this"
}

func (s summary) text(format string) string {
	switch {
	case math.IsNaN(s.median):
		return "-"
	case s.least == s.greatest:
		return fmt.Sprintf(format, s.median)
	}
	return fmt.Sprintf(format+" ("+format+"-"+format+")", s.median, s.least, s.greatest)
}

// failures names everybody for whom requests failed: figures of failed work say nothing.
func (r *results) failures(w io.Writer) {
	for _, shape := range shapeNames() {
		for _, load := range r.distinct(shape, func(m measurement) string { return m.Load }) {
			for _, name := range r.distinct(shape, func(m measurement) string { return m.Contender }) {
				requests, failed := 0, 0
				for _, m := range r.Measurements {
					if m.Shape == shape && m.Load == load && m.Contender == name {
						requests, failed = requests+m.Requests, failed+m.Failed
					}
				}
				if failed > 0 {
					fmt.Fprintf(w, "FAILED: %s %s %s: %d, with %d done: its figures are not comparable\n", shape, load, name, failed, requests)
				}
			}
		}
	}
}
