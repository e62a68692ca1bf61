package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// imports are those of the Go in the texts, by the name that it uses.
var imports = map[string]string{
	"backoff":  "google.golang.org/grpc/backoff",
	"client":   "github.com/lbagent/lbagent/localapi/client",
	"clientv3": "go.etcd.io/etcd/client/v3",
	"grpc":     "google.golang.org/grpc",
	"insecure": "google.golang.org/grpc/credentials/insecure",
	"resolver": "go.etcd.io/etcd/client/v3/naming/resolver",
	"time":     "time",
}

// snippets are the fenced blocks of all texts by their language, with the text they are from in front.
func snippets(t *testing.T) map[string][][2]string {
	t.Helper()
	all := make(map[string][][2]string)
	for path, text := range markdown(t) {
		for _, m := range regexp.MustCompile("(?ms)^( *)```([a-z]*)\n(.*?)^ *```").FindAllStringSubmatch(text, -1) {
			all[m[2]] = append(all[m[2]], [2]string{path, strings.ReplaceAll("\n"+m[3], "\n"+m[1], "\n")})
		}
		for _, m := range regexp.MustCompile("`(grpc\\.NewClient\\([^`]*\\))`").FindAllStringSubmatch(prose(text), -1) {
			all["go"] = append(all["go"], [2]string{path, "\nvar c *client.Client\nconn, err := " + m[1] + "\n"})
		}
	}
	return all
}

// TestSnippets: what a text gives to copy is understood by what it is for: Go by go vet, with the libraries of this module, the others by their own parsers. The
// configurations are checked by TestDocumentedConfiguration.
func TestSnippets(t *testing.T) {
	parsers := map[string]struct {
		ext   string
		least int
		of    func(file string) *exec.Cmd
	}{
		"go": {".go", 4, func(file string) *exec.Cmd {
			cmd := exec.Command("go", "vet", file)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // what it needs compiled is compiled for releases, too
			return cmd
		}},
		"js": {".js", 1, func(file string) *exec.Cmd {
			return exec.Command(testneed.Program(t, "node", "nodejs"), "--check", file)
		}},
		"python": {".py", 2, func(file string) *exec.Cmd {
			return exec.Command(testneed.Program(t, "python3", "python3"), "-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())", file)
		}},
		"sh": {".sh", 4, func(file string) *exec.Cmd { return exec.Command(testneed.Program(t, "bash", "bash"), "-n", file) }},
		"json": {".json", 1, func(file string) *exec.Cmd {
			return exec.Command(testneed.Program(t, "python3", "python3"), "-m", "json.tool", file)
		}},
		"haproxy": {".cfg", 1, func(file string) *exec.Cmd {
			return exec.Command(testneed.Program(t, "haproxy", "haproxy"), "-c", "-f", file)
		}},
		"console": {".sh", 10, func(file string) *exec.Cmd { return exec.Command(testneed.Program(t, "bash", "bash"), "-n", file) }},
	}
	all := snippets(t)
	for language := range all {
		if _, known := parsers[language]; !known && language != "yaml" && language != "hcl" && language != "" {
			t.Errorf("%s: who understands %s?", all[language][0][0], language)
		}
	}
	for language, p := range parsers {
		t.Run(language, func(t *testing.T) {
			if len(all[language]) < p.least {
				t.Errorf("only %d", len(all[language]))
			}
			for i, one := range all[language] {
				text := one[1]
				switch language {
				case "go":
					text = program(text)
				case "console":
					text = commands(text)
				}
				file := filepath.Join(t.TempDir(), fmt.Sprintf("snippet%d%s", i, p.ext))
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if out, err := p.of(file).CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s\n%s", one[0], err, out, text)
				}
			}
		})
	}
}

// program makes a package of statements in Go.
func program(text string) string {
	var b strings.Builder
	b.WriteString("package snippet\n\n")
	for name, path := range imports {
		if regexp.MustCompile(`(^|[^\w."/])` + name + `\.`).MatchString(text) {
			fmt.Fprintf(&b, "import %s %q\n", name, path)
		}
	}
	b.WriteString("\nfunc _() {\n" + text)
	for _, m := range regexp.MustCompile(`(?m)^(\w+), (\w+) :=`).FindAllStringSubmatch(text, -1) {
		fmt.Fprintf(&b, "_ = %s\n", m[1])
		if m[2] != "_" {
			fmt.Fprintf(&b, "_ = %s\n", m[2])
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// commands are what somebody types in a session.
func commands(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			b.WriteString(command)
		}
	}
	return b.String()
}
