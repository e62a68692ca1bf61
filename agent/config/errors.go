package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxErrors bounds what an *Errors holds; a 1 MiB file can hold many more mistakes than anybody reads.
const maxErrors = 200

// Error is one mistake: where it is, what is wrong, and what would be right.
type Error struct {
	File    string
	Line    int    // 0 = the file as a whole
	Key     string // services[user].probe.interval; "" = no key
	Problem string
	Allowed string // "" if Problem says it all
	Cause   error  // of a file that cannot be read; nil otherwise
}

// Error is `file:line: key: what is wrong; what is allowed`.
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Problem)
	if e.Allowed != "" {
		b.WriteString("; " + e.Allowed)
	}
	return b.String()
}

// Unwrap is the cause of a file that cannot be read.
func (e Error) Unwrap() error { return e.Cause }

// Errors is every mistake of a configuration, by file and line.
type Errors struct {
	List []Error
	More int // mistakes beyond those in List
}

// Error has one line per mistake.
func (e *Errors) Error() string {
	lines := make([]string, 0, len(e.List)+1)
	for _, one := range e.List {
		lines = append(lines, one.Error())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is and errors.As look at each mistake.
func (e *Errors) Unwrap() []error {
	all := make([]error, len(e.List))
	for i, one := range e.List {
		all[i] = one
	}
	return all
}

func (e *Errors) add(one Error) {
	if len(e.List) == maxErrors {
		e.More++
		return
	}
	e.List = append(e.List, one)
}

// orNil sorts the mistakes by file, in the order in which files were read, and line. It returns nil if there are none.
func (e *Errors) orNil(files []string) error {
	if len(e.List) == 0 {
		return nil
	}
	order := make(map[string]int, len(files)) // 0 = a file that could not be read
	for i, f := range files {
		order[f] = i - len(files)
	}
	slices.SortStableFunc(e.List, func(a, b Error) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line))
	})
	return e
}
