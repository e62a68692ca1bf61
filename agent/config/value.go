package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// value is one node of a file and the way to it.
type value struct {
	d    *decoder
	file string
	path string // as errors name it: services[user].probe
	line int
	node *yaml.Node
}

// fail notes a mistake at v; allowed says what would be right.
func (v value) fail(allowed, problem string, args ...any) {
	v.d.errs.add(Error{File: v.file, Line: v.line, Key: v.path, Problem: fmt.Sprintf(problem, args...), Allowed: allowed})
}

// place is where v stands, for messages about something else.
func (v value) place() string { return fmt.Sprintf("%s:%d", v.file, v.line) }

// child is a value below v; its line is the key's if the value itself has none.
func (v value) child(name string, key, node *yaml.Node) value {
	path := name
	if v.path != "" {
		path = v.path + "." + name
	}
	c := value{d: v.d, file: v.file, path: path, line: key.Line, node: node}
	if node.Kind == yaml.ScalarNode && !null(node) {
		c.line = node.Line
	}
	return c
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// keys says what may stand in a map and who reads it.
type keys map[string]func(value)

// others are keys that exist but may not stand here, and why.
type others struct {
	words            []string
	problem, allowed string
}

// object reads a map: each key once, each one known. It returns the values of the known keys.
func (v value) object(known keys, refused ...others) map[string]value {
	found := make(map[string]value)
	if null(v.node) || v.d.bad[v.node] {
		return found
	}
	if v.node.Kind != yaml.MappingNode {
		v.fail("a map is allowed: "+strings.Join(words(known), ", "), "%s is no map", v.quote())
		return found
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key, node := v.node.Content[i], v.node.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			v.child("?", key, node).fail("a word is allowed", "the key is no word")
			continue
		}
		child := v.child(clip(printable(key.Value), 64), key, node)
		at := child
		at.line = key.Line
		read, ok := known[key.Value]
		switch first := lines[key.Value]; {
		case first > 0:
			at.fail("once is allowed", "is written twice, first on line %d", first)
		case ok:
			found[key.Value] = child
			read(child)
		case key.Value == "<<":
			at.fail(anchorsAllowed, "merge keys are not supported")
		default:
			at.unknown(key.Value, known, refused)
		}
		lines[key.Value] = key.Line
	}
	return found
}

// unknown says why key may not stand here.
func (v value) unknown(key string, known keys, refused []others) {
	for _, o := range refused {
		if slices.Contains(o.words, key) {
			v.fail(o.allowed, "%s", o.problem)
			return
		}
	}
	v.fail("allowed: "+strings.Join(words(known), ", "), "unknown key%s", didYouMean(key, words(known)))
}

func didYouMean(word string, known []string) string {
	if best := nearest(word, known); best != "" {
		return fmt.Sprintf(" (did you mean %q?)", best)
	}
	return ""
}

// list reads a sequence.
func (v value) list(allowed string, item func(value)) {
	if null(v.node) || v.d.bad[v.node] {
		return
	}
	if v.node.Kind != yaml.SequenceNode {
		v.fail(allowed, "%s is no list", v.quote())
		return
	}
	for i, node := range v.node.Content {
		item(value{d: v.d, file: v.file, path: fmt.Sprintf("%s[%d]", v.path, i), line: max(node.Line, v.line), node: node})
	}
}

// text reads the text of a scalar. empty says whether no text is allowed too.
func (v value) text(allowed string, empty bool) (string, bool) {
	if v.d.bad[v.node] {
		return "", false // said already
	}
	if v.node.Kind != yaml.ScalarNode {
		v.fail(allowed, "%s is no single value", v.quote())
		return "", false
	}
	s := v.node.Value
	if null(v.node) {
		s = ""
	}
	if s == "" && !empty {
		v.fail(allowed, "has no value")
		return "", false
	}
	return s, true
}

// isScalar says whether v is a single value, isOff whether it is the word off.
func (v value) isScalar() bool { return v.node.Kind == yaml.ScalarNode && !null(v.node) }
func (v value) isOff() bool    { return v.isScalar() && v.node.Value == "off" }

// isMap says whether v can be read as a map; if not, that is noted elsewhere.
func (v value) isMap() bool {
	return !v.d.bad[v.node] && (v.node.Kind == yaml.MappingNode || null(v.node))
}

// isList is isMap for lists.
func (v value) isList() bool {
	return !v.d.bad[v.node] && (v.node.Kind == yaml.SequenceNode || null(v.node))
}

// get is the text of a key of the map v, "" if it has none.
func (v value) get(name string) string {
	if v.node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(v.node.Content); i += 2 {
			if v.node.Content[i].Value == name && v.node.Content[i+1].Kind == yaml.ScalarNode {
				return v.node.Content[i+1].Value
			}
		}
	}
	return ""
}

// quote is the value for messages: as understood, and as written if that is something else.
func (v value) quote() string {
	switch v.node.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	s := strconv.Quote(clip(v.node.Value, 64))
	if raw, ok := v.d.raw[v.node]; ok {
		s += " (" + printable(clip(raw, 64)) + ")"
	}
	return s
}

// str reads a text that ok accepts.
func (v value) str(to *string, allowed string, empty bool, ok func(string) bool) {
	s, read := v.text(allowed, empty)
	if !read {
		return
	}
	if s != "" && ok != nil && !ok(s) {
		v.fail(allowed, "%s is not allowed", v.quote())
		return
	}
	*to = s
}

// oneOf reads one of the words in allowed.
func (v value) oneOf(to *string, allowed []string) {
	list := "allowed: " + strings.Join(allowed, ", ")
	s, read := v.text(list, false)
	switch {
	case !read:
	case slices.Contains(allowed, s):
		*to = s
	default:
		v.fail(list, "%s is unknown%s", v.quote(), didYouMean(s, allowed))
	}
}

// integer reads a whole number; off is 0 where 0 is allowed.
func (v value) integer(to *int, low, high int) {
	allowed := fmt.Sprintf("a whole number from %d to %d is allowed", low, high)
	s, read := v.text(allowed, false)
	if !read {
		return
	}
	if s == "off" && low == 0 {
		s = "0"
	}
	n, err := strconv.Atoi(s)
	switch {
	case err != nil || strconv.Itoa(n) != s:
		v.fail(allowed, "%s is no whole number", v.quote())
	case n < low || n > high:
		v.fail(allowed, "%d is out of bounds", n)
	default:
		*to = n
	}
}

// duration reads a Go duration from low to high. With zero, 0 and off are allowed too.
func (v value) duration(to *time.Duration, zero bool, low, high time.Duration) {
	allowed := fmt.Sprintf("a duration from %s to %s is allowed, such as 500ms, 5s or 1m30s", short(low), short(high))
	if zero {
		allowed = "0, off, or " + allowed
	}
	s, read := v.text(allowed, false)
	if !read {
		return
	}
	if zero && (s == "off" || s == "0") {
		*to = 0
		return
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil && strings.Trim(s, "0123456789.") == "":
		v.fail(allowed, "%s has no unit", v.quote())
	case err != nil:
		v.fail(allowed, "%s is no duration", v.quote())
	case zero && d == 0:
		*to = 0
	case d < low || d > high:
		v.fail(allowed, "%s is out of bounds", v.quote())
	default:
		*to = d
	}
}

// short is a duration without its zero parts: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// boolean reads true or false; on and off mean the same.
func (v value) boolean(to *bool) {
	var s string
	v.oneOf(&s, []string{"true", "false", "on", "off"})
	if s != "" {
		*to = s == "true" || s == "on"
	}
}

// printable replaces what a terminal should not get.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
