package agent_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// file is one source file, parsed.
type file struct {
	*ast.File
	path string
	fset *token.FileSet
	test bool
}

func (f *file) at(n ast.Node) string { return f.fset.Position(n.Pos()).String() }

// sources parses every file of p that a person wrote.
func sources(t *testing.T, p *pkg) []*file {
	t.Helper()
	var out []*file
	for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles) {
		f := parseFile(t, filepath.Join(p.Dir, name), nil)
		if !ast.IsGenerated(f.File) {
			out = append(out, f)
		}
	}
	return out
}

func parseFile(t *testing.T, path string, src any) *file {
	t.Helper()
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return &file{File: parsed, path: path, fset: fset, test: strings.HasSuffix(path, "_test.go")}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		commented := func(f *file) bool { return f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" }
		if files := sources(t, p); !slices.ContainsFunc(files, commented) {
			t.Errorf("%s has no package comment: say in one sentence what it is for", p.name())
		}
	}
}

func TestNoStateNoInitNoSleep(t *testing.T) {
	for _, p := range packages(t) {
		files := sources(t, p)
		for _, f := range files {
			for _, complaint := range slices.Concat(inits(f), state(f, files), sleeps(f)) {
				t.Error(complaint)
			}
		}
	}
}

// inits finds func init.
func inits(f *file) []string {
	var out []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			out = append(out, f.at(fn)+": init(): nothing happens at import; do it in a constructor")
		}
	}
	return out
}

// state finds package-level variables that some code may write. Left alone are those that Go can't make constants and nobody writes: sentinel errors,
// compiled patterns, embedded files, `var _`, and literals that no file of the package (all) assigns to.
func state(f *file, all []*file) []string {
	if f.test {
		return nil // -update flags and the like
	}
	var out []string
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.VAR {
			continue
		}
		for _, s := range decl.Specs {
			spec := s.(*ast.ValueSpec)
			if embedded(decl.Doc) || embedded(spec.Doc) {
				continue
			}
			for i, name := range spec.Names {
				if name.Name == "_" || f.Name.Name == "main" && name.Name == "version" {
					continue // the linker sets main.version
				}
				if i < len(spec.Values) && (constantByHabit(spec.Values[i]) || literal(spec.Values[i]) && !written(name.Name, all)) {
					continue
				}
				out = append(out, fmt.Sprintf("%s: var %s: no package-level state; a function that returns it, or a field", f.at(name), name.Name))
			}
		}
	}
	return out
}

func embedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// constantByHabit reports whether v is a value that Go can't make a constant and nobody writes.
func constantByHabit(v ast.Expr) bool {
	call, ok := v.(*ast.CallExpr)
	if !ok {
		return false
	}
	fn, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	from, ok := fn.X.(*ast.Ident)
	return ok && slices.Contains([]string{"errors.New", "fmt.Errorf", "regexp.MustCompile", "status.Error", "status.Errorf", "netip.MustParseAddr", "netip.MustParsePrefix", "netip.AddrFrom4", "netip.AddrFrom16", "netip.IPv6Loopback"}, from.Name+"."+fn.Sel.Name)
}

// dials finds uses of package net beyond the parsing of addresses.
func dials(f *file) []string {
	if f.test {
		return nil
	}
	var out []string
	network := importName(f, "net")
	ast.Inspect(f.File, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if ok && isSelector(s, network, s.Sel.Name) && !slices.Contains([]string{"SplitHostPort", "JoinHostPort", "AddrError"}, s.Sel.Name) {
			out = append(out, fmt.Sprintf("%s: net.%s: this package decides, others do the I/O", f.at(s), s.Sel.Name))
		}
		return true
	})
	return out
}

// literal reports whether v is a composite literal, or a function literal that is called, of a type that is data: not of sync or sync/atomic, whose zero
// values are state.
func literal(v ast.Expr) bool {
	if call, ok := v.(*ast.CallExpr); ok {
		_, computed := call.Fun.(*ast.FuncLit)
		return computed
	}
	lit, ok := v.(*ast.CompositeLit)
	if !ok {
		return false
	}
	if t, ok := lit.Type.(*ast.SelectorExpr); ok {
		from, ok := t.X.(*ast.Ident)
		return ok && from.Name != "sync" && from.Name != "atomic"
	}
	return true
}

// written reports whether a file assigns to name or a part of it, deletes from it, or takes its address (the address of an element is no more than a fast way to
// read a table, and grpc wants that of its service descriptions). A local variable of the same name counts too; give it another.
func written(name string, files []*file) bool {
	var found bool
	is := func(e ast.Expr) bool { return rootOf(e) == name }
	for _, f := range files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				found = found || n.Tok != token.DEFINE && slices.ContainsFunc(n.Lhs, is)
			case *ast.IncDecStmt:
				found = found || is(n.X)
			case *ast.UnaryExpr:
				found = found || n.Op == token.AND && is(n.X) && !element(n.X) && !strings.HasSuffix(name, "Desc")
			case *ast.CallExpr:
				fn, ok := n.Fun.(*ast.Ident)
				found = found || ok && (fn.Name == "delete" || fn.Name == "clear") && len(n.Args) > 0 && is(n.Args[0])
			}
			return true
		})
	}
	return found
}

// element reports whether e is x[i] or a part of it.
func element(e ast.Expr) bool {
	switch x := e.(type) {
	case *ast.IndexExpr:
		return true
	case *ast.SelectorExpr:
		return element(x.X)
	case *ast.ParenExpr:
		return element(x.X)
	}
	return false
}

// rootOf is the identifier that x, x.f, x[i] and (*x) begin with, "" if there is none.
func rootOf(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x.Name
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return ""
		}
	}
}

// sleeps finds time.Sleep in tests outside of synctest bubbles. Inside, tests sleep in the literal given to synctest.Test or in a helper named advance.
func sleeps(f *file) []string {
	if !f.test {
		return nil
	}
	var out []string
	clock, bubble := importName(f, "time"), importName(f, "testing/synctest")
	ast.Inspect(f.File, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			return n.Name.Name != "advance"
		case *ast.CallExpr:
			if isSelector(n.Fun, bubble, "Test") {
				return false
			}
		case *ast.SelectorExpr: // not only calls: `sleep := time.Sleep`
			if isSelector(n, clock, "Sleep") {
				out = append(out, f.at(n)+": time.Sleep in a test: wait for what you wait for, or use a synctest bubble")
			}
		}
		return true
	})
	return out
}

// importName is the name that f has for a package, "" if it doesn't import it.
func importName(f *file, path string) string {
	for _, i := range f.Imports {
		if p, _ := strconv.Unquote(i.Path.Value); p == path {
			if i.Name != nil {
				return i.Name.Name
			}
			return path[strings.LastIndexByte(path, '/')+1:]
		}
	}
	return ""
}

func isSelector(e ast.Expr, pkg, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || pkg == "" || s.Sel.Name != name {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// TestSourceRules proves that the rules see what they should, and leave the rest alone.
func TestSourceRules(t *testing.T) {
	tests := []struct {
		name, path, src string
		want            int
	}{
		{"init", "x.go", `package x; func init() {}`, 1},
		{"method init", "x.go", `package x; type T int; func (T) init() {}`, 0},
		{"state", "x.go", `package x; var cache map[string]int`, 1},
		{"two of three", "x.go", `package x; import "errors"; var a, b, errC = 1, 2, errors.New("c")`, 2},
		{"sentinel and pattern", "x.go", "package x\nimport (\"errors\"; \"regexp\")\nvar (\n\terrA = errors.New(\"a\")\n\tre = regexp.MustCompile(\"a\")\n)", 0},
		{"embed", "x.go", "package x\nimport _ \"embed\"\n\n//go:embed x.html\nvar page string", 0},
		{"literal", "x.go", `package x; var words = []string{"a"}; func f() string { return words[0] }`, 0},
		{"computed table", "x.go", `package x; var squares = func() (t [9]int) { t[2] = 4; return t }()`, 0},
		{"literal that is written", "x.go", `package x; var seen = map[string]bool{}; func f() { seen["a"] = true }`, 1},
		{"literal that is deleted from", "x.go", `package x; var seen = map[string]bool{"a": true}; func f() { delete(seen, "a") }`, 1},
		{"literal that is counted up", "x.go", `package x; var t = T{}; func f() { t.n++ }`, 1},
		{"literal that is pointed to", "x.go", `package x; var t = T{}; func f() *T { return &t }`, 1},
		{"table with pointers to rows", "x.go", `package x; var rows = [2]T{{1}, {2}}; func f(i int) *T { return &rows[i] }`, 0},
		{"grpc's description", "x.go", `package x; var echoDesc = grpc.ServiceDesc{}; func f() { s.RegisterService(&echoDesc, nil) }`, 0},
		{"lock", "x.go", `package x; import "sync"; var mu = sync.Mutex{}`, 1},
		{"assertion", "x.go", `package x; var _ error = nil`, 0},
		{"version of a program", "x.go", `package main; var version string`, 0},
		{"version of a library", "x.go", `package x; var version string`, 1},
		{"sleep", "x_test.go", `package x; import "time"; func f() { time.Sleep(1) }`, 1},
		{"sleep as a value, renamed", "x_test.go", `package x; import clock "time"; func f() { s := clock.Sleep; s(1) }`, 1},
		{"sleep in a bubble", "x_test.go", `package x; import ("time"; "testing/synctest"); func f() { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }`, 0},
		{"sleep in advance", "x_test.go", `package x; import "time"; func advance() { time.Sleep(1) }`, 0},
		{"sleep outside tests", "x.go", `package x; import "time"; func f() { time.Sleep(1) }`, 0},
		{"flag of a test", "x_test.go", `package x; import "flag"; var update = flag.Bool("update", false, "")`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := parseFile(t, tt.path, tt.src)
			if got := slices.Concat(inits(f), state(f, []*file{f}), sleeps(f)); len(got) != tt.want {
				t.Errorf("%d complaints, want %d: %q", len(got), tt.want, got)
			}
		})
	}
}
