package agent_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strings"
	"testing"
)

const eventPackage = module + "agent/event"

// TestEventsAreLogLines: what `lbagent events` tells is a line of the log as well, and so survives the process; all kinds but connections, which come and go by the thousand.
func TestEventsAreLogLines(t *testing.T) {
	told := map[string]bool{}
	kinds := map[string]bool{}
	for _, p := range packages(t) {
		if p.ImportPath == eventPackage {
			for _, f := range sources(t, p) {
				maps.Copy(kinds, kindsOf(f))
			}
			continue
		}
		var files []*file
		for _, f := range sources(t, p) {
			if !f.test {
				files = append(files, f)
			}
		}
		complaints, some := silentEvents(files)
		for _, c := range complaints {
			t.Error(c)
		}
		maps.Copy(told, some)
	}
	if len(kinds) < 15 {
		t.Fatalf("only %d kinds of events were found: %v", len(kinds), kinds)
	}
	for kind := range kinds {
		if !told[kind] {
			t.Errorf("nobody makes an event of kind event.%s, or this test doesn't see who does", kind)
		}
	}
}

// kindsOf are the constants of type Kind.
func kindsOf(f *file) map[string]bool {
	out := map[string]bool{}
	if f.test {
		return out
	}
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.CONST {
			continue
		}
		for _, s := range decl.Specs {
			spec := s.(*ast.ValueSpec)
			if of, ok := spec.Type.(*ast.Ident); ok && of.Name == "Kind" {
				for _, name := range spec.Names {
					out[name.Name] = true
				}
			}
		}
	}
	return out
}

// silentEvents finds the places in a package where an event is made without a line of the log beside it, which runs whenever the event is made; and the kinds of all that
// are made. A function that makes events for others and logs nothing passes the duty on to its callers.
func silentEvents(files []*file) (complaints []string, kinds map[string]bool) {
	kinds = map[string]bool{}
	helpers := map[string]bool{}
	for _, f := range files {
		name := importName(f, eventPackage)
		if name == "" {
			continue
		}
		ast.PreorderStack(f.File, nil, func(n ast.Node, stack []ast.Node) bool {
			if lit, ok := n.(*ast.CompositeLit); ok && isSelector(lit.Type, name, "Event") {
				some := selected(lit, name)
				maps.Copy(kinds, some)
				if in := function(stack); !some["Connection"] && !logged(n, stack) {
					helpers[in] = true
				}
			}
			return true
		})
	}
	for helper := range helpers {
		called := false
		for _, f := range files {
			ast.PreorderStack(f.File, nil, func(n ast.Node, stack []ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || calledName(call) != helper {
					return true
				}
				called = true
				maps.Copy(kinds, selected(call, importName(f, eventPackage)))
				if !logged(n, stack) {
					complaints = append(complaints, fmt.Sprintf("%s: an event without a line of the log: whoever looks after a crash finds only those", f.at(n)))
				}
				return true
			})
		}
		if !called {
			complaints = append(complaints, fmt.Sprintf("%s: %s makes an event without a line of the log", files[0].Name.Name, helper))
		}
	}
	slices.Sort(complaints)
	return complaints, kinds
}

// selected are the names that are selected from pkg within n.
func selected(n ast.Node, pkg string) map[string]bool {
	out := map[string]bool{}
	ast.Inspect(n, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && isSelector(s, pkg, s.Sel.Name) {
			out[s.Sel.Name] = true
		}
		return true
	})
	return out
}

func calledName(call *ast.CallExpr) string {
	switch fn := call.Fun.(type) {
	case *ast.Ident:
		return fn.Name
	case *ast.SelectorExpr:
		return fn.Sel.Name
	}
	return ""
}

// function names the declared function that encloses the end of stack; a literal in it has no callers that could be found.
func function(stack []ast.Node) string {
	for _, n := range slices.Backward(stack) {
		switch n := n.(type) {
		case *ast.FuncLit:
			return "a function literal"
		case *ast.FuncDecl:
			return n.Name.Name
		}
	}
	return "a variable"
}

// logged reports whether another statement logs whenever n is reached: one beside it, or beside a block that it is in.
func logged(n ast.Node, stack []ast.Node) bool {
	inner := n
	for _, outer := range slices.Backward(stack) {
		var list []ast.Stmt
		switch s := outer.(type) {
		case *ast.FuncLit, *ast.FuncDecl:
			return false
		case *ast.BlockStmt:
			list = s.List
		case *ast.CaseClause:
			list = s.Body
		case *ast.CommClause:
			list = s.Body
		}
		for _, s := range list {
			if ast.Node(s) != inner && logs(s) {
				return true
			}
		}
		inner = outer
	}
	return false
}

// logs reports whether s writes a line, whatever it decides.
func logs(s ast.Stmt) bool {
	switch s := s.(type) {
	case *ast.ExprStmt:
		call, ok := s.X.(*ast.CallExpr)
		return ok && isLine(call)
	case *ast.BlockStmt:
		return slices.ContainsFunc(s.List, logs)
	case *ast.IfStmt:
		return s.Else != nil && logs(s.Body) && logs(s.Else)
	}
	return false
}

// isLine reports whether a call writes a line that the log has by default: x.log.Info, and log(...) for a level that was chosen before.
func isLine(call *ast.CallExpr) bool {
	if fn, ok := call.Fun.(*ast.Ident); ok {
		return fn.Name == "log"
	}
	fn, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Info", "Warn", "Error"}, fn.Sel.Name) {
		return false
	}
	switch x := fn.X.(type) {
	case *ast.Ident:
		return x.Name == "log"
	case *ast.SelectorExpr:
		return strings.EqualFold(x.Sel.Name, "log")
	}
	return false
}

func TestSilentEventsAreFound(t *testing.T) {
	const head = "package x\nimport \"" + eventPackage + "\"\n"
	for _, tt := range []struct {
		name, src string
		want      int
	}{
		{"a line beside it", `func f() { p.log.Warn("x"); l.Add(event.Event{Kind: event.Hang}) }`, 0},
		{"none", `func f() { l.Add(event.Event{Kind: event.Hang}) }`, 1},
		{"a debug line", `func f() { p.log.Debug("x"); l.Add(event.Event{Kind: event.Hang}) }`, 1},
		{"a connection", `func f() { l.Add(event.Event{Kind: event.Connection}) }`, 0},
		{"around it", `func f() { p.log.Info("x"); if l != nil { l.Add(event.Event{Kind: event.Hang}) } }`, 0},
		{"in one branch only", `func f() { if bad { p.log.Warn("x") }; l.Add(event.Event{Kind: event.Hang}) }`, 1},
		{"in both", `func f() { if bad { p.log.Warn("x") } else { p.log.Info("y") }; l.Add(event.Event{Kind: event.Hang}) }`, 0},
		{"in another branch", `func f() { if bad { p.log.Warn("x") } else { l.Add(event.Event{Kind: event.Hang}) } }`, 1},
		{"by the caller", `func f() { p.log.Warn("x"); tell(event.Hang) }; func tell(k event.Kind) { l.Add(event.Event{Kind: k}) }`, 0},
		{"by one of two callers", `func f() { p.log.Warn("x"); q.tell() }; func g() { q.tell() }; func tell() { l.Add(event.Event{Kind: event.Hang}) }`, 1},
		{"outside of a literal", `func f() { p.log.Warn("x"); g = func() { l.Add(event.Event{Kind: event.Hang}) } }`, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			complaints, kinds := silentEvents([]*file{parseFile(t, "x.go", head+tt.src)})
			if len(complaints) != tt.want || !kinds["Hang"] && !kinds["Connection"] {
				t.Errorf("%q, kinds %v; want %d complaints", complaints, kinds, tt.want)
			}
		})
	}
}
