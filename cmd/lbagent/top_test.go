package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// modelOf is a top that shows n services, whose calls fall with their number.
func modelOf(n int) *topModel {
	m := &topModel{order: orderBy("calls")}
	r := &lbagentv1.StatsResponse{Over: durationpb.New(time.Second)}
	for i := range n {
		r.Services = append(r.Services, &lbagentv1.ServiceStats{Name: fmt.Sprintf("s%03d", i), CallsPerSecond: float64(n - i), Backends: 1, Usable: 1, Ready: true})
	}
	m.take(topNews{stats: r})
	return m
}

// names are the services that a screen shows, the marked one in brackets.
func names(m *topModel, columns, rows int) string {
	lines, marked := m.lines(columns, rows, moment())
	var all []string
	for i, l := range lines {
		if i < topFrame {
			continue
		}
		name, _, _ := strings.Cut(l, " ")
		if i == marked {
			name = "[" + name + "]"
		}
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

func TestTopMovesAndScrolls(t *testing.T) {
	m := modelOf(8)
	const rows = topFrame + 4
	for _, step := range []struct {
		keys string
		want string
	}{
		{"", "s000 s001 s002 s003"},
		{"k", "[s000] s001 s002 s003"},
		{"jjj", "s000 s001 s002 [s003]"},
		{"j", "s001 s002 s003 [s004]"},
		{"k", "s001 s002 [s003] s004"},
		{"G", "s004 s005 s006 [s007]"},
		{"j", "s004 s005 s006 [s007]"},
		{"g", "[s000] s001 s002 s003"},
		{" ", "s001 s002 s003 [s004]"},
		{"r", "s006 s005 [s004] s003"},
		{"rn", "s001 s002 s003 [s004]"},
	} {
		for _, k := range step.keys {
			if m.press(key(k), rows) {
				t.Fatalf("%c ends it", k)
			}
		}
		if got := names(m, 80, rows); got != step.want {
			t.Errorf("after %q: %s, want %s", step.keys, got, step.want)
		}
	}
}

func TestTopOpensAndCloses(t *testing.T) {
	m := modelOf(3)
	m.press(keyDown, 24)
	m.press(keyDown, 24)
	m.press(keyEnter, 24)
	if m.opened != "s001" || m.stats != nil {
		t.Fatalf("opened %q", m.opened)
	}
	m.take(topNews{stats: &lbagentv1.StatsResponse{
		Services: []*lbagentv1.ServiceStats{{Name: "s001", Backends: 2, Usable: 1, Panic: true}},
		Backends: []*lbagentv1.BackendStats{
			{Backend: &lbagentv1.Backend{Address: "10.0.0.1:80", Verdict: "up", Usable: true}, CallsPerSecond: 1},
			{Backend: &lbagentv1.Backend{Address: "10.0.0.2:80", Verdict: "down", Cause: "down: refused"}, CallsPerSecond: 2},
		},
	}})
	lines := m.screen(120, 24, moment())
	text := strings.Join(lines, "\n")
	for _, want := range []string{"s001", "1 of 2 backends usable", "PANIC", "10.0.0.2:80", "down", "refused"} {
		if !strings.Contains(text, want) {
			t.Errorf("the screen lacks %q:\n%s", want, text)
		}
	}
	m.press('u', 24)
	if got := names(m, 120, 24); got != "10.0.0.2:80 10.0.0.1:80" {
		t.Errorf("what is not usable isn't first: %s", got)
	}
	m.press(keyEnter, 24) // a backend can't be opened
	m.press(keyEscape, 24)
	if m.opened != "" || m.chosen != "s001" {
		t.Errorf("opened %q, marked %q", m.opened, m.chosen)
	}
	if m.press(keyEscape, 24); m.opened != "" {
		t.Error("there is nothing to go back to")
	}
	for _, k := range []key{'q', keyInterrupt} {
		if !m.press(k, 24) {
			t.Errorf("%v doesn't end it", k)
		}
	}
	m.press('?', 24)
	if text := strings.Join(m.screen(80, 24, moment()), "\n"); !strings.Contains(text, "turn the order round") {
		t.Errorf("help:\n%s", text)
	}
	if m.press('x', 24); m.help {
		t.Error("a key does not end the help")
	}
}

// An agent that has gone leaves what was known, with words about it.
func TestTopWithoutAnswers(t *testing.T) {
	m := modelOf(2)
	m.take(topNews{err: errors.New("no agent answers on SOCKET\nadvice")})
	text := strings.Join(m.screen(80, 24, moment()), "\n")
	if !strings.Contains(text, "NO ANSWER: no agent answers on SOCKET") || strings.Contains(text, "advice") || !strings.Contains(text, "s001") {
		t.Errorf("screen:\n%s", text)
	}
	m.take(topNews{stats: &lbagentv1.StatsResponse{}}) // the first of a new stream
	if text = strings.Join(m.screen(80, 24, moment()), "\n"); strings.Contains(text, "NO ANSWER") || !strings.Contains(text, "s001") {
		t.Errorf("screen:\n%s", text)
	}
}

// Whatever is shown and however small the terminal is: it fits, and nothing from elsewhere acts on the terminal.
func TestTopFits(t *testing.T) {
	f := &fakeAgent{}
	evil := f.backends()
	for _, size := range [][2]int{{80, 24}, {1, 1}, {20, 5}, {40, 2}, {200, 60}, {79, 3}} {
		for _, opened := range []string{"", "user"} {
			m := &topModel{order: orderBy("calls"), opened: opened}
			r := &lbagentv1.StatsResponse{Over: durationpb.New(time.Second)}
			for i := range 100 {
				r.Services = append(r.Services, &lbagentv1.ServiceStats{Name: strings.Repeat("n", i), CallsPerSecond: 1e9, ErrorsPerSecond: 12345.6, Mean: durationpb.New(time.Hour), P50: durationpb.New(time.Hour), P99: durationpb.New(1), Connections: 1 << 31})
				b := evil[i%len(evil)]
				r.Backends = append(r.Backends, &lbagentv1.BackendStats{Backend: b, CallsPerSecond: 1e7, Share: 1, Latency: durationpb.New(time.Hour), Outstanding: 1 << 31})
			}
			m.take(topNews{stats: r})
			m.press(keyDown, size[1])
			for _, help := range []bool{false, true} {
				m.help = help
				lines := m.screen(size[0], size[1], moment())
				if len(lines) > size[1] {
					t.Errorf("%d lines on %v", len(lines), size)
				}
				for _, l := range lines {
					for _, mark := range []string{"\x1b[1m", "\x1b[7m", "\x1b[0m"} {
						l = strings.ReplaceAll(l, mark, "")
					}
					if n := utf8.RuneCountInString(l); n > size[0] || strings.ContainsRune(l, 0x1b) {
						t.Errorf("%d columns on %v: %q", n, size, l)
					}
				}
			}
		}
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0µs", 1500: "1.50µs", 103987 * time.Microsecond: "104ms", 1234567: "1.23ms", 12345 * time.Millisecond: "12.3s", time.Hour: "60m", 999 * time.Second: "999s",
	} {
		if got := brief(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

func TestParseKeys(t *testing.T) {
	for in, want := range map[string][]key{
		"q":                   {'q'},
		"\x1b":                {keyEscape},
		"\x1b[A\x1b[B":        {keyUp, keyDown},
		"\x1bOC\x1bOD":        {keyRight, keyLeft},
		"\x1b[5~\x1b[6~":      {keyPageUp, keyPageDown},
		"\x1b[1~\x1b[F\x1b[H": {keyHome, keyEnd, keyHome},
		"\r\x7f\x03":          {keyEnter, keyBackspace, keyInterrupt},
		"\x1b[99;5Xj":         {'j'}, // what nobody knows means nothing
		"\x1b[":               {keyEscape, '['},
	} {
		if got := parseKeys([]byte(in)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q is %v, want %v", in, got, want)
		}
	}
}

// pty is a real terminal: top runs at its one end, the test at the other.
type pty struct {
	t    *testing.T
	ours *os.File
	path string

	mu   sync.Mutex
	seen bytes.Buffer
	more chan struct{}
}

func newPTY(t *testing.T, columns, rows int) *pty {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(ours.Fd())
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{t: t, ours: ours, path: fmt.Sprintf("/dev/pts/%d", n), more: make(chan struct{}, 1)}
	t.Cleanup(func() { ours.Close() })
	p.resize(columns, rows)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.seen.Write(buf[:n])
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
	}()
	return p
}

func (p *pty) resize(columns, rows int) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(columns), Row: uint16(rows)}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pty) settings() unix.Termios {
	p.t.Helper()
	s, err := unix.IoctlGetTermios(int(p.ours.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *s
}

// await waits for a screen, from its first line on, that ok takes.
func (p *pty) await(what string, ok func(screen string) bool) {
	p.t.Helper()
	end := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		screens := strings.Split(p.seen.String(), toTop)
		p.mu.Unlock()
		for _, s := range screens[max(0, len(screens)-2):] { // the last may be a part
			if ok(s) {
				return
			}
		}
		select {
		case <-p.more:
		case <-end:
			p.t.Fatalf("never: %s; the last screen:\n%q", what, screens[len(screens)-1])
		}
	}
}

// start runs lbagent on the terminal, as the leader of its session.
func (p *pty) start(socket string, args ...string) *exec.Cmd {
	p.t.Helper()
	theirs, err := os.OpenFile(p.path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer theirs.Close()
	cmd := command(p.t, args...)
	cmd.Env = append(cmd.Env, "LBAGENT_SOCKET="+socket)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return cmd
}

// TestTopOnATerminal: keys, sizes, and the end, whichever way it comes: the terminal is what it was.
func TestTopOnATerminal(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	has := func(words ...string) func(string) bool {
		return func(screen string) bool {
			for _, w := range words {
				if !strings.Contains(screen, w) {
					return false
				}
			}
			return true
		}
	}
	for name, end := range map[string]func(p *pty, cmd *exec.Cmd){
		"q":       func(p *pty, _ *exec.Cmd) { p.ours.WriteString("q") },
		"^C":      func(p *pty, _ *exec.Cmd) { p.ours.WriteString("\x03") },
		"SIGTERM": func(_ *pty, cmd *exec.Cmd) { cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":  func(_ *pty, cmd *exec.Cmd) { cmd.Process.Signal(syscall.SIGHUP) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPTY(t, 80, 24)
			keep, err := os.OpenFile(p.path, os.O_RDWR|syscall.O_NOCTTY, 0) // or the terminal ends with its last user
			if err != nil {
				t.Fatal(err)
			}
			defer keep.Close()
			was := p.settings()
			cmd := p.start(f.socket, "top")
			p.await("the services", has("3 services", "cart-of-a-te", "user", "1235", "45.0ms"))
			if p.settings().Lflag == was.Lflag {
				t.Error("the terminal still echoes")
			}
			p.ours.WriteString("\x1b[B\r") // the one with most calls
			p.await("the backends", has("BACKEND", "10.0.0.3:8080", "ejected"))
			p.resize(40, 6)
			p.await("a smaller screen", func(s string) bool { return strings.Count(s, "\r\n") == 5 && has("10.0.0.3")(s) })
			p.ours.WriteString("\x1b")
			p.await("the services again", has("SERVICE"))
			end(p, cmd)
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ended by %v", err)
			}
			if now := p.settings(); now != was {
				t.Errorf("the terminal's settings are %+v, were %+v", now, was)
			}
			p.await("the first screen", has("\x1b[?25h\x1b[?1049l"))
		})
	}
}

// Without a terminal there is one table.
func TestTopWithoutATerminal(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "top", "--socket", f.socket)
	cmd.Env = append(os.Environ(), mainVariable+"=1")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "cart-of-a-team-with-long-names") || bytes.ContainsRune(out, 0x1b) {
		t.Errorf("%v: %q", err, out)
	}
}
