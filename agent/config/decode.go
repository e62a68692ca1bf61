package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const (
	maxDepth    = 16      // of maps and lists; the deepest key that exists stands at 5
	maxExpanded = 4 << 20 // bytes of all expanded values together
)

// Options are what a configuration takes from its surroundings. The zero value is the real ones.
type Options struct {
	Env      func(string) (string, bool) // of ${VAR}; nil = os.LookupEnv
	Hostname string                      // default of node.name; "" = os.Hostname
	Cores    int                         // for proxy.loops; 0 = GOMAXPROCS, which heeds a CPU quota

	noVariables bool // ${NAME} is a mistake

	afterRead func(name string) // for tests: a file was read, the next is not yet
}

func (o Options) withDefaults() Options {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	if o.Hostname == "" {
		o.Hostname, _ = os.Hostname()
	}
	if o.Hostname == "" {
		o.Hostname = "localhost"
	}
	if o.Cores == 0 {
		o.Cores = runtime.GOMAXPROCS(0)
	}
	return o
}

// Load reads path and its drop-ins. The error, if any, is a *Errors with every mistake.
func (o Options) Load(path string) (*Config, error) {
	o = o.withDefaults()
	sources, errs := o.read(path)
	if len(sources) == 0 || sources[0].name != path {
		return nil, errs // without the main file every other mistake would mislead
	}
	return o.parse(sources, errs.List...)
}

// Parse reads a whole configuration that stands in no file; name is what errors call it.
func Parse(name string, text []byte) (*Config, error) {
	return Options{}.withDefaults().parse([]source{{name: name, data: text}})
}

// parse makes a Config of the main file and its drop-ins; known are mistakes that were found before.
func (o Options) parse(sources []source, known ...Error) (*Config, error) {
	d := newDecoder(o)
	d.errs.List = known
	cfg := o.defaults()
	var roots []value
	for _, s := range sources {
		cfg.Files = append(cfg.Files, s.name)
		if root, ok := d.tree(s); ok {
			roots = append(roots, root)
		}
	}
	if len(roots) > 0 && roots[0].file == sources[0].name { // without the main file the drop-ins would seem wrong
		d.decode(cfg, roots[0], roots[1:])
	}
	if err := d.errs.orNil(cfg.Files); err != nil {
		return nil, err
	}
	cfg.good = &good{opt: o, sources: sources}
	return cfg, nil
}

// decoder walks the nodes of all files and collects mistakes.
type decoder struct {
	opt  Options
	errs Errors
	raw  map[*yaml.Node]string // what an expanded value was before
	bad  map[*yaml.Node]bool   // values whose mistake is noted already

	expanded int
}

func newDecoder(o Options) *decoder {
	return &decoder{opt: o, raw: make(map[*yaml.Node]string), bad: make(map[*yaml.Node]bool)}
}

// tree parses a file: one document, no alias, no tag, every ${VAR} replaced. It is false if the file cannot be read as that.
func (d *decoder) tree(s source) (value, bool) {
	root := value{d: d, file: s.name, line: 1, node: &yaml.Node{Kind: yaml.MappingNode}}
	if at := notText(s.data); at >= 0 {
		root.line += bytes.Count(s.data[:at], []byte("\n"))
		root.fail("UTF-8 is allowed", "the file is no text")
		return root, false
	}
	first, second, err := parseYAML(s.data)
	if err != nil {
		line, text := yamlProblem(err, s.data)
		d.errs.add(Error{File: s.name, Line: line, Problem: "no YAML: " + text})
		return root, false
	}
	if second != nil {
		d.errs.add(Error{File: s.name, Line: second.Line, Problem: "a second document starts here", Allowed: "one is allowed"})
		return root, false
	}
	if first == nil || null(first.Content[0]) {
		return root, true // nothing but comments
	}
	root.node = first.Content[0]
	root.line = root.node.Line
	d.prepare(root, root.node, 0)
	return root, true
}

// notText returns the offset of the first byte that cannot stand in a text file, -1 if there is none.
func notText(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == 0 || r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// parseYAML returns the first document and, if there is one, the second.
func parseYAML(data []byte) (first, second *yaml.Node, err error) {
	defer func() {
		// The parser turns its own panics into errors; one that it missed must not end the daemon.
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: %v", p)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var docs [2]*yaml.Node
	for i := range docs {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		docs[i] = &n
	}
	return docs[0], docs[1], nil
}

// yamlProblem says where data stops being YAML, and why.
func yamlProblem(err error, data []byte) (int, string) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if number, rest, ok := strings.Cut(strings.TrimPrefix(text, "line "), ": "); ok {
		if n, err := strconv.Atoi(number); err == nil {
			line, text = n, rest
		}
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	line = brokenLine(lines, line)
	if line > 0 && line <= len(lines) {
		at := lines[line-1]
		if bytes.ContainsRune(at[:len(at)-len(bytes.TrimLeft(at, " \t"))], '\t') {
			text += "; a tab stands here, YAML is indented by spaces"
		}
		if bytes.Contains(at, []byte("${")) {
			text += "; between { } and [ ] a ${NAME} needs quotes"
		}
	}
	return line, printable(text)
}

// brokenLine is the line after the longest beginning of the file that is YAML. (The parser itself often names the line where the surrounding map starts.)
func brokenLine(lines [][]byte, reported int) int {
	whole := bytes.Join(lines, nil)
	ends := make([]int, len(lines)+1)
	for i, l := range lines {
		ends[i+1] = ends[i] + len(l)
	}
	good := func(n int) bool {
		_, _, err := parseYAML(whole[:ends[n]])
		return err == nil
	}
	low, high := 0, len(lines) // of good beginnings, and of those from which on all are bad
	if len(lines)*len(whole) > 2<<20 {
		// Too large to try them all. Halving may end at the start of a list or text over several lines instead of inside it.
		for high-low > 1 {
			if mid := (low + high) / 2; good(mid) {
				low = mid
			} else {
				high = mid
			}
		}
		return high
	}
	for n := high - 1; n > 0; n-- {
		if good(n) {
			return n + 1
		}
	}
	return max(reported, 1)
}

// prepare refuses what no value needs and expands the scalars among the values. v gives file and path.
func (d *decoder) prepare(v value, n *yaml.Node, depth int) {
	v.line = max(n.Line, 1)
	switch {
	case depth > maxDepth:
		v.fail("", "maps and lists are nested too deeply")
		d.bad[n] = true
		return
	case n.Kind == yaml.AliasNode:
		v.fail(anchorsAllowed, "aliases are not supported")
		d.bad[n] = true
		return
	case n.Anchor != "":
		v.fail(anchorsAllowed, "anchors are not supported")
	case n.Style&yaml.TaggedStyle != 0:
		v.fail("leave it out", "the tag %s is not supported", strconv.Quote(clip(n.Tag, 40)))
		d.bad[n] = true
		return
	}
	for i, c := range n.Content {
		below := v
		switch {
		case n.Kind == yaml.SequenceNode:
			below.path = fmt.Sprintf("%s[%d]", v.path, i)
		case n.Kind == yaml.MappingNode && i%2 == 1:
			below = v.child(clip(printable(n.Content[i-1].Value), 64), n.Content[i-1], c)
		}
		d.prepare(below, c, depth+1)
		if key := n.Kind == yaml.MappingNode && i%2 == 0; c.Kind == yaml.ScalarNode && !key {
			d.expand(below, c)
		}
	}
}

const anchorsAllowed = "write what services share in defaults:"

// expand replaces the variables in one value.
func (d *decoder) expand(v value, n *yaml.Node) {
	v.line = max(n.Line, 1)
	env := d.opt.Env
	if d.opt.noVariables {
		env = func(string) (string, bool) { return "", false }
	}
	text, err := expand(n.Value, env)
	if err != nil && d.opt.noVariables {
		err = errNoVariables
	}
	if err == nil && len(text) > maxValue {
		err = fmt.Errorf("it has more than %d bytes", maxValue)
	}
	if err == nil && text != n.Value {
		if d.expanded += len(text); d.expanded > maxExpanded {
			err = errors.New("the variables of all files are too long")
		}
	}
	if err == nil && (!utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl)) {
		err = errors.New("it has a line break or another control character")
	}
	if err != nil {
		v.fail("${NAME} is replaced by a variable of the environment, $$ is a $", "the value %q cannot be read: %v", clip(n.Value, 64), err)
		d.bad[n] = true
		return
	}
	if text != n.Value || strings.Contains(n.Value, "$") {
		d.raw[n] = n.Value
		n.Value, n.Tag, n.Style = text, "!!str", yaml.DoubleQuotedStyle
	}
}
