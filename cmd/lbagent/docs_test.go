package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// documents are the texts for users: what they tell somebody to type has to exist.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, pattern := range []string{"*.md", "packaging/doc/*.md", "packaging/man/*", "packaging/etc/*", "packaging/examples/*", "systemd/*"} {
		paths, err := filepath.Glob("../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if info, err := os.Stat(path); err != nil || info.IsDir() {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[strings.TrimPrefix(path, "../../")] = string(text)
		}
	}
	if len(texts) < 20 {
		t.Fatalf("only %d documents", len(texts))
	}
	return texts
}

func commandLine() *cobra.Command {
	root := (&app{stdout: &output{w: new(bytes.Buffer)}, stderr: new(bytes.Buffer), getenv: func(string) string { return "" }}).root()
	root.InitDefaultHelpCmd()
	return root
}

// typed are the calls of lbagent in a text: what stands behind the name, up to the end of the command.
func typed(path, text string) []string {
	called := regexp.MustCompile(`(?:^|\$ |sudo |\| |; |&& |\(|/|"|\+)lbagent ([a-z-][^#;")` + "`" + `]*)`)
	var code []string
	switch {
	case strings.HasSuffix(path, ".md"):
		code = codeOf(text)
	case strings.Contains(path, "/man/"):
		for line := range strings.Lines(text) {
			code = append(code, regexp.MustCompile(`^\.(Dl|Dq|Li) `).ReplaceAllString(line, ""))
		}
	default:
		for line := range strings.Lines(text) {
			if strings.Contains(path, "/etc/") || !strings.HasPrefix(strings.TrimSpace(line), "#") { // elsewhere comments are prose
				code = append(code, line)
			}
		}
	}
	var calls []string
	for _, line := range code {
		for _, m := range called.FindAllStringSubmatch(strings.TrimSpace(line), -1) {
			call, _, _ := strings.Cut(m[1], " | ")
			call, _, _ = strings.Cut(call, " && ")
			calls = append(calls, call)
		}
	}
	return calls
}

// codeOf is what a Markdown text sets as code: the lines of its blocks, and what stands between backticks.
func codeOf(text string) []string {
	var code []string
	fenced := false
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			code = append(code, trimmed)
		default:
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(line, -1) {
				code = append(code, m[1])
			}
		}
	}
	return code
}

// wrong says what of a call doesn't exist; "" if all does.
func wrong(root *cobra.Command, call string) string {
	verb, name := root, "lbagent"
	for _, word := range strings.Fields(call) {
		word = strings.Trim(word, "[](),.:'")
		if flag, isFlag := strings.CutPrefix(word, "-"); isFlag {
			if flag == "" {
				continue // standard input
			}
			flag, _, _ = strings.Cut(strings.TrimPrefix(flag, "-"), "=")
			if !hasFlag(verb, flag) {
				return name + " has no flag " + word
			}
			continue
		}
		if !verb.HasSubCommands() || verb == root && !regexp.MustCompile(`^[a-z]+(\|[a-z]+)*$`).MatchString(word) {
			continue // an argument
		}
		var below *cobra.Command
		for one := range strings.SplitSeq(word, "|") {
			if below, _, _ = verb.Find([]string{one}); below == verb || below == nil || below.Name() != one {
				return name + " has no verb " + one
			}
		}
		verb, name = below, below.CommandPath()
	}
	return ""
}

func hasFlag(verb *cobra.Command, name string) bool {
	verb.InitDefaultHelpFlag()
	if len(name) == 1 {
		return verb.Flags().ShorthandLookup(name) != nil || verb.InheritedFlags().ShorthandLookup(name) != nil
	}
	return verb.Flags().Lookup(name) != nil || verb.InheritedFlags().Lookup(name) != nil
}

// TestDocumentedVerbs: every verb and flag that a document names exists.
func TestDocumentedVerbs(t *testing.T) {
	root, n := commandLine(), 0
	for path, text := range documents(t) {
		for _, call := range typed(path, text) {
			n++
			if what := wrong(root, call); what != "" {
				t.Errorf("%s: lbagent %s: %s", path, call, what)
			}
		}
	}
	if n < 150 {
		t.Errorf("only %d calls of lbagent were found", n)
	}
	for _, call := range []string{"lookupp user", "explain user --jsn", "config putt x", "mute user x --fleets", "run --static x --lisen 1"} {
		if wrong(root, call) == "" {
			t.Errorf("lbagent %s is taken for right", call)
		}
	}
}

// TestManualNamesVerbs: lbagent(8) has an entry for each verb, and no flag that the verb of the entry doesn't have; the README's table has each verb.
func TestManualNamesVerbs(t *testing.T) {
	root, texts := commandLine(), documents(t)
	has := make(map[string]bool)
	_, section, _ := strings.Cut(texts["packaging/man/lbagent.8"], ".Sh VERBS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	verb := root
	for line := range strings.Lines(section) {
		if item, ok := strings.CutPrefix(line, ".It Cm "); ok {
			var path []string
			for _, word := range strings.Fields(item) {
				if !regexp.MustCompile(`^[a-z]+$`).MatchString(word) {
					break
				}
				path = append(path, word)
			}
			found, rest, err := root.Find(path)
			if err != nil || len(rest) > 0 {
				t.Errorf("lbagent(8) has an entry for %q", path)
				continue
			}
			verb = found
			has[verb.CommandPath()] = true
		}
		for _, m := range regexp.MustCompile(`Fl -([a-z-]+)`).FindAllStringSubmatch(strings.ReplaceAll(line, ", -", ", Fl -"), -1) {
			if !hasFlag(verb, m[1]) {
				t.Errorf("lbagent(8), %s: it has no flag --%s", verb.CommandPath(), m[1])
			}
		}
	}
	for v := range manuals(root) {
		if !has[v.CommandPath()] && !v.HasSubCommands() && v.Name() != "help" {
			t.Errorf("lbagent(8) has no %s", v.CommandPath())
		}
	}
	_, table, _ := strings.Cut(texts["README.md"], "## Verbs\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for _, v := range root.Commands() {
		if v.IsAvailableCommand() && v.Name() != "help" && !strings.Contains(table, "`"+v.Name()+"`") {
			t.Errorf("the README's verbs lack %s", v.Name())
		}
	}
}
