package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

const browserFiles = "testdata/browser/"

// browser is a Chromium that runs what it is told, by a program of node (testdata/browser/driver.js). One goroutine at a time.
type browser struct {
	in      io.Writer
	answers chan driven
	tabs    int
}

// driven is a line of the driver.
type driven struct {
	ID      int
	Value   json.RawMessage
	Error   string
	Version string
}

// newBrowser installs what package-lock.json pins and starts Debian's Chromium.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	chromium, node := testneed.Program(t, "chromium", "chromium"), testneed.Program(t, "node", "nodejs")
	dir := t.TempDir()
	installNodeModules(t, browserFiles, dir)
	cmd := exec.Command(node, browserFiles+"driver.js", chromium)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"), "HOME="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &browser{in: in, answers: make(chan driven, 1)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewReader(out); ; {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				close(b.answers)
				return
			}
			var a driven
			if err := json.Unmarshal(line, &a); err != nil {
				a.Error = fmt.Sprintf("the driver said %q: %v", line, err)
			}
			b.answers <- a
		}
	}()
	t.Cleanup(func() {
		in.Close() // the driver closes the browser and ends
		end := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer end.Stop()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("the driver ended with %v", err)
		}
	})
	t.Logf("Chromium %s", b.next(t).Version)
	return b
}

func (b *browser) next(t *testing.T) driven {
	t.Helper()
	select {
	case a, ok := <-b.answers:
		if !ok {
			t.Fatal("the browser's driver has ended")
		}
		return a
	case <-time.After(3 * patience):
		t.Fatal("no answer from the browser")
	}
	return driven{}
}

// tab is one page with options of its own.
type tab struct {
	b  *browser
	id int
}

// look is how a page is looked at.
type look struct {
	Viewport    size   `json:"viewport"`
	ColorScheme string `json:"colorScheme,omitempty"`
	Motion      string `json:"reducedMotion"`
}

type size struct {
	Width  int `json:"width"`
	Height int `json:"height"`
}

func desktop() look { return look{Viewport: size{1280, 900}, ColorScheme: "light", Motion: "reduce"} }

// open opens url in a new tab.
func (b *browser) open(t *testing.T, url string, how look) *tab {
	t.Helper()
	b.tabs++
	p := &tab{b, b.tabs}
	p.send(t, "return null", how)
	p.run(t, "await page.goto(args[0])", url)
	return p
}

// send runs code in the driver with page, args, axe and complaints at hand, and returns what it returns.
func (p *tab) send(t *testing.T, code string, args any) json.RawMessage {
	t.Helper()
	line, err := json.Marshal(map[string]any{"id": p.id, "tab": p.id, "code": code, "args": args})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.b.in.Write(append(line, '\n')); err != nil {
		t.Fatalf("the browser: %v", err)
	}
	a := p.b.next(t)
	if a.Error != "" {
		t.Fatalf("%s: %s", code, a.Error)
	}
	return a.Value
}

func (p *tab) run(t *testing.T, code string, args ...any) { t.Helper(); p.send(t, code, args) }

// text is what code returns, as a string.
func (p *tab) text(t *testing.T, code string, args ...any) (out string) {
	t.Helper()
	raw := p.send(t, code, args)
	if json.Unmarshal(raw, &out) != nil {
		return string(raw)
	}
	return out
}

// until waits for a JavaScript expression of the page to become true.
func (p *tab) until(t *testing.T, what, expression string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Logf("%s: the page says %s", what, last)
			p.shot(t, "failed")
		}
	}()
	poll(t, what, func() bool {
		last = p.text(t, "return await page.evaluate(() => document.body.innerText.slice(0, 3000))")
		return p.text(t, "return await page.evaluate(`!!(${args[0]})`)", expression) == "true"
	})
}

// clean fails the test if axe-core or the page itself has something to complain about, or the page is wider than its window.
func (p *tab) clean(t *testing.T, what string) {
	t.Helper()
	var found []string
	if err := json.Unmarshal(p.send(t, "return (await axe()).concat(complaints())", nil), &found); err != nil {
		t.Fatal(err)
	}
	for _, one := range found {
		t.Errorf("%s: %s", what, one)
	}
	if over := p.text(t, "return await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)"); over != "0" {
		t.Errorf("%s: the page is %s pixels wider than its window", what, over)
	}
}

// shot writes a picture for a person, if LBAGENT_SCREENSHOTS names a folder.
func (p *tab) shot(t *testing.T, name string) {
	t.Helper()
	if dir := os.Getenv("LBAGENT_SCREENSHOTS"); dir != "" {
		p.run(t, "await page.screenshot({path: args[0], fullPage: true})", filepath.Join(dir, name+".png"))
	}
}
