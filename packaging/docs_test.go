package packaging

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/event"
)

// markdown are the texts for people, by their path in the tree.
func markdown(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, pattern := range []string{"../*.md", "doc/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			texts[strings.TrimPrefix(filepath.Join("packaging", path), "./")] = read(t, path)
		}
	}
	if len(texts) < 15 {
		t.Fatalf("only %d texts", len(texts))
	}
	return texts
}

// prose is a text without its blocks of code.
func prose(text string) string {
	return regexp.MustCompile("(?ms)^ *```.*?^ *```").ReplaceAllString(text, "")
}

// anchors are those that a Markdown text's headings make.
func anchors(text string) map[string]bool {
	all := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(prose(text), -1) {
		anchor := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return all
}

// TestLinks: every link within the tree leads somewhere, and those of the guides to other guides, since only they lie beside them where the packages are installed.
func TestLinks(t *testing.T) {
	texts, n := markdown(t), 0
	for path, text := range texts {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(prose(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			file, anchor, _ := strings.Cut(m[1], "#")
			to := path
			if file != "" {
				to = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(filepath.Join("..", to)); err != nil {
				t.Errorf("%s: %s leads nowhere", path, m[1])
			}
			if anchor != "" && !anchors(texts[to])[anchor] {
				t.Errorf("%s: %s has no heading for #%s", path, to, anchor)
			}
			if strings.HasPrefix(path, "packaging/doc/") && !strings.HasPrefix(to, "packaging/doc/") {
				t.Errorf("%s: %s isn't installed beside it", path, m[1])
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d links", n)
	}
}

// TestDocumentedConfiguration: every YAML block in a text is a valid configuration, a drop-in or an entry of services.
func TestDocumentedConfiguration(t *testing.T) {
	n := 0
	for path, text := range markdown(t) {
		for _, m := range regexp.MustCompile("(?ms)^( *)```yaml\n(.*?)^ *```").FindAllStringSubmatch(text, -1) {
			n++
			block := strings.ReplaceAll("\n"+m[2], "\n"+m[1], "\n")
			o := surroundings()
			o.Env = func(string) (string, bool) { return "x", true }
			if _, err := parse(t, o, block); err != nil {
				t.Errorf("%s: %v in\n%s", path, err, block)
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d blocks of YAML", n)
	}
}

// parse reads a text as a configuration, which may be invalid.
func parse(t *testing.T, o config.Options, text string) (*config.Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lbagent.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return o.Load(file)
}

// schema is every key that the configuration has, by its path, as its own errors name them: what isn't known is answered with what is.
func schema(t *testing.T) []string {
	t.Helper()
	var all []string
	var below func(path []string)
	below = func(path []string) {
		for _, key := range keysOf(t, path) {
			at := append(slices.Clone(path), key)
			all = append(all, strings.Join(at, "."))
			below(at)
		}
	}
	below(nil)
	return all
}

// keysOf are the keys that may stand in the map at path; none if there is no map.
func keysOf(t *testing.T, path []string) []string {
	t.Helper()
	for _, item := range []string{"", "- "} { // of a map, or of a list of maps
		var text strings.Builder
		for i, key := range append(slices.Clone(path), "zz") {
			text.WriteString(strings.Repeat("    ", i))
			if i == 1 {
				text.WriteString(item)
			}
			text.WriteString(key + ":")
			if key == "zz" {
				text.WriteString(" 1")
			}
			text.WriteString("\n")
		}
		_, err := parse(t, surroundings(), text.String())
		var mistakes *config.Errors
		if !errors.As(err, &mistakes) {
			continue
		}
		for _, one := range mistakes.List {
			if _, keys, found := strings.Cut(one.Error(), "zz: unknown key; allowed: "); found {
				return strings.Split(keys, ", ")
			}
		}
	}
	return nil
}

// TestSchema: lbagent.yaml(5) and the example name every key of the configuration, and the manual no other.
func TestSchema(t *testing.T) {
	known := schema(t)
	if len(known) < 80 || !slices.Contains(known, "services.probe.interval") || !slices.Contains(known, "register.probe.interval") || !slices.Contains(known, "etcd.tls.ca_file") {
		t.Fatalf("%d keys: %s", len(known), known)
	}
	words := make(map[string]bool)
	for _, path := range known {
		for word := range strings.SplitSeq(path, ".") {
			words[word] = true
		}
	}
	words["only"] = true // of the fleet's items, which aren't in a file

	marked := make(map[string]bool) // what the manual sets as a key
	page := read(t, "man/lbagent.yaml.5")
	for line := range strings.Lines(page) {
		for _, m := range regexp.MustCompile(`\bCm ((?:[a-z_.]+:?(?: , | |$))+)`).FindAllStringSubmatch(strings.TrimSpace(line), -1) {
			for word := range strings.FieldsFuncSeq(m[1], func(r rune) bool { return strings.ContainsRune(" ,.:", r) }) {
				marked[word] = true
			}
		}
	}
	example := read(t, "etc/example.yaml")
	for _, word := range slices.Sorted(maps.Keys(words)) {
		if !marked[word] {
			t.Errorf("lbagent.yaml(5) has no %s", word)
		}
		if !regexp.MustCompile(`(?m)(^|[ {#,-])`+word+`:`).MatchString(example) && word != "only" {
			t.Errorf("the example has no %s", word)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm (.+)$`).FindAllStringSubmatch(page, -1) {
		for word := range strings.FieldsFuncSeq(m[1], func(r rune) bool { return strings.ContainsRune(" ,.", r) }) {
			if !words[word] {
				t.Errorf("lbagent.yaml(5) has the key %s, which the configuration doesn't know", word)
			}
		}
	}
}

// TestDocumentedKeys: a key that a text names by its path, such as `eject.success_rate`, exists.
func TestDocumentedKeys(t *testing.T) {
	known := make(map[string]bool)
	for _, path := range schema(t) {
		known[path] = true
		for _, of := range []string{"services.", "register."} {
			if short, ok := strings.CutPrefix(path, of); ok {
				known[short] = true
			}
		}
	}
	n := 0
	for path, text := range markdown(t) {
		for _, m := range regexp.MustCompile("`([a-z_]+(?:\\.[a-z_]+)+):?[^`]*`").FindAllStringSubmatch(prose(text), -1) {
			if first, _, _ := strings.Cut(m[1], "."); !known[first] {
				continue // a file, a name
			}
			n++
			if !known[m[1]] && !regexp.MustCompile(`\.(md|go|yaml|sh|txt|svc|com|local)$`).MatchString(m[1]) {
				t.Errorf("%s: there is no key %s", path, m[1])
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d keys", n)
	}
}

// sources are the files of a package, without its tests.
func sources(t *testing.T, dir string) []*ast.File {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no sources in %s: %v", dir, err)
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// literals are the strings in the sources of a package.
func literals(t *testing.T, dir string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for _, file := range sources(t, dir) {
		ast.Inspect(file, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if s, err := strconv.Unquote(l.Value); err == nil {
					all[s] = true
				}
			}
			return true
		})
	}
	return all
}

// TestDocumentedMetrics: every metric that a text names exists, whether in the guide, in a table or in between.
func TestDocumentedMetrics(t *testing.T) {
	known, n := literals(t, "../agent/admin"), 0
	for path, text := range markdown(t) {
		for _, m := range regexp.MustCompile(`\blbagent_([a-z]+[a-z_]*[a-z])([*_])?`).FindAllStringSubmatch(text, -1) {
			n++
			name := m[1]
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if known[strings.TrimSuffix(name, suffix)] {
					name = strings.TrimSuffix(name, suffix)
				}
			}
			if m[2] == "" && !known[name] && !known["lbagent_"+name] {
				t.Errorf("%s: there is no metric lbagent_%s", path, m[1])
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d metrics", n)
	}
}

// TestDocumentedEvents: the runbook's table has every kind of event, and no other.
func TestDocumentedEvents(t *testing.T) {
	kinds := make(map[string]bool)
	for _, file := range sources(t, "../agent/event") {
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				if of, ok := spec.Type.(*ast.Ident); ok && of.Name == "Kind" {
					kinds[strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`)] = true
				}
			}
			return true
		})
	}
	if len(kinds) < 15 {
		t.Fatalf("only %d kinds", len(kinds))
	}
	for _, kind := range event.Kinds() {
		if !kinds[string(kind)] || len(event.Kinds()) != len(kinds) {
			t.Errorf("event.Kinds has %s, the package %s", event.Kinds(), slices.Sorted(maps.Keys(kinds)))
			break
		}
	}
	texts := markdown(t)
	_, table, _ := strings.Cut(texts["packaging/doc/runbook.md"], "\n| event |")
	table, _, _ = strings.Cut(table, "\n\n")
	listed := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z]+)` \\|").FindAllStringSubmatch(table, -1) {
		listed[m[1]] = true
	}
	if !maps.Equal(kinds, listed) {
		t.Errorf("the runbook's table of events has %s, want %s", slices.Sorted(maps.Keys(listed)), slices.Sorted(maps.Keys(kinds)))
	}
	for path, text := range texts {
		for _, m := range regexp.MustCompile("events? (?:of kind )?\\(?`([a-z]+)`").FindAllStringSubmatch(prose(text), -1) {
			if !kinds[m[1]] {
				t.Errorf("%s: there is no event of kind %s", path, m[1])
			}
		}
	}
}

// TestDocumentedAlerts: the runbook says of each alert where to look.
func TestDocumentedAlerts(t *testing.T) {
	rules := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(read(t, "prometheus/lbagent.rules.yml"), -1)
	if len(rules) < 20 {
		t.Fatalf("only %d alerts", len(rules))
	}
	_, table, _ := strings.Cut(read(t, "doc/runbook.md"), "\n| alert |")
	table, _, _ = strings.Cut(table, "\n\n")
	known := make(map[string]bool)
	for _, m := range rules {
		known[m[1]] = true
		if !strings.Contains(table, "`"+m[1]+"`") {
			t.Errorf("the runbook has no %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile("`(Lbagent\\w+)`").FindAllStringSubmatch(table, -1) {
		if !known[m[1]] {
			t.Errorf("the runbook has %s, which is no alert", m[1])
		}
	}
}

// TestArchitecture: ARCHITECTURE.md says of each package what it does.
func TestArchitecture(t *testing.T) {
	text, n := read(t, "../ARCHITECTURE.md"), 0
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); name == "testdata" || name == "node_modules" || name == "dist" || len(name) > 2 && name[0] == '.' {
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(path, "*.go"))
		if err != nil || !slices.ContainsFunc(files, func(f string) bool { return !strings.HasSuffix(f, "_test.go") }) {
			return err
		}
		n++
		if dir := strings.TrimPrefix(path, "../"); !strings.Contains(text, "`"+dir+"`") {
			t.Errorf("ARCHITECTURE.md has no %s", dir)
		}
		return nil
	})
	if err != nil || n < 30 {
		t.Errorf("%d packages, %v", n, err)
	}
}
