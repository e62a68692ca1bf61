package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"golang.org/x/sys/unix"
)

const (
	redraw = 250 * time.Millisecond
	recent = 2 * time.Second // what "calls/s" looks back on
	width  = 100             // columns
	barMax = 24
)

// screen shows the story: a table that is drawn again and again below the lines of finished acts; without a terminal plain lines only.
type screen struct {
	out   io.Writer
	stage *stage
	live  bool // redraw a table
	quiet bool // --check: nothing but acts

	mu sync.Mutex

	title string // of the act
	text  string // what goes on
	drawn int    // lines of the table on the terminal now
}

func newScreen(out *os.File, s *stage, check bool) *screen {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &screen{out: out, stage: s, live: err == nil && !check, quiet: check}
}

// run redraws until ctx ends; without a terminal it says a line every two seconds.
func (s *screen) run(ctx context.Context) {
	every := redraw
	if !s.live {
		every = recent
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if s.quiet {
				continue
			}
			f := s.frame(ctx)
			s.mu.Lock()
			if s.live {
				s.drawLocked(f)
			} else {
				fmt.Fprintln(s.out, f.oneLine())
			}
			s.mu.Unlock()
		}
	}
}

// begin names the act that is played now.
func (s *screen) begin(number int, title string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.title = title
	if number > 0 {
		s.title = fmt.Sprintf("act %d of %d: %s", number, len(acts), title)
	}
}

// say tells what goes on.
func (s *screen) say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = text
	if !s.live && !s.quiet && text != "" {
		fmt.Fprintln(s.out, "  "+text)
	}
}

// act prints how an act ended.
func (s *screen) act(number int, title, figures string, err error) {
	mark := "ok  "
	if err != nil {
		mark = "FAIL"
	}
	text := fmt.Sprintf("%s %d %-31s %s", mark, number, title, figures)
	if err != nil {
		text += " -- " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	s.line(text)
}

// line prints text above the table.
func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eraseLocked()
	fmt.Fprintln(s.out, text)
}

// clear takes the table away.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eraseLocked()
	s.live = false
	s.quiet = true
}

func (s *screen) eraseLocked() {
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
		s.drawn = 0
	}
}

func (s *screen) drawLocked(f frame) {
	lines := f.table(s.title, s.text)
	s.eraseLocked()
	fmt.Fprint(s.out, strings.Join(lines, "\n"), "\n")
	s.drawn = len(lines)
}

// frame is what is shown at one moment.
type frame struct {
	rows   []row
	window window
	sums   sums
	agent  string // one sentence
}

type row struct {
	name, addr, process, verdict string
	rate                         float64 // calls/s
	share                        float64 // 0..1
}

func (s *screen) frame(ctx context.Context) frame {
	f := frame{window: s.stage.caller.last(recent), sums: s.stage.caller.sums()}
	list := s.stage.agent.list(ctx)
	switch child := s.stage.agent.child.Load(); {
	case !child.alive():
		f.agent = "the agent is away"
	case list == nil:
		f.agent = fmt.Sprintf("the agent, pid %d, does not answer", child.pid)
	default:
		p := list.GetProvenance()
		f.agent = fmt.Sprintf("the agent, pid %d, has its list from %s, %v old", child.pid, p.GetSource(), p.GetAge().AsDuration().Round(time.Second))
	}
	verdicts := make(map[string]*lbagentv1.Backend)
	for _, b := range list.GetBackends() {
		verdicts[b.GetAddress()] = b
	}
	for _, b := range s.stage.backends {
		r := row{name: b.name, addr: b.addr.String(), process: "-", verdict: "not in the list"}
		switch child := b.child.Load(); {
		case child.alive():
			r.process = fmt.Sprintf("pid %d", child.pid)
		case child != nil:
			r.process = "killed"
		default:
			continue // not yet part of the story
		}
		if v := verdicts[r.addr]; v != nil {
			r.verdict = v.GetVerdict()
			if v.GetCause() != "" {
				r.verdict = v.GetCause()
			}
		}
		r.rate = float64(f.window.counts[b.name]) / recent.Seconds()
		if f.window.total > 0 {
			r.share = float64(f.window.counts[b.name]) / float64(f.window.total)
		}
		f.rows = append(f.rows, r)
	}
	return f
}

// table is the frame as lines for a terminal.
func (f frame) table(title, text string) []string {
	lines := []string{"", cut(title, width), cut("  "+text, width), ""}
	lines = append(lines, fmt.Sprintf("  %-8s %-17s %-10s %7s %5s  %s", "backend", "address", "process", "calls/s", "share", "the agent says"))
	for _, r := range f.rows {
		bar := strings.Repeat("█", int(r.share*barMax+0.5))
		lines = append(lines,
			cut(fmt.Sprintf("  %-8s %-17s %-10s %7.0f %4.0f%%  %s", r.name, r.addr, r.process, r.rate, 100*r.share, bar+" "+r.verdict), width))
	}
	return append(lines, "", cut("  "+f.summary(), width), cut("  "+f.agent, width))
}

func (f frame) summary() string {
	return fmt.Sprintf("%d calls/s over one connection · %d answered · %d failed · %d open", int(float64(f.window.total)/recent.Seconds()), f.sums.answered, f.sums.failed, f.sums.open)
}

// oneLine is the frame for a log.
func (f frame) oneLine() string {
	var shares []string
	for _, r := range f.rows {
		shares = append(shares, fmt.Sprintf("%s %.0f%%", r.name, 100*r.share))
	}
	return "  " + strings.Join(shares, ", ") + "; " + f.summary()
}

// cut shortens s to n columns.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
