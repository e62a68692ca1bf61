package packaging

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// How a call failed, as its caller sees it.
const (
	refused     = "refused"     // nobody listened
	unavailable = "unavailable" // gRPC's status, or 503
	cut         = "cut"         // the connection ended in the middle
	hung        = "hung"        // no end within the caller's patience
	wrong       = "wrong"       // the answer isn't what was to be answered, or anything else
)

// errWrong is an answer that isn't the one to the question.
var errWrong = errors.New("the answer isn't the question's")

func failureOf(err error) string {
	text := err.Error()
	switch code := status.Code(err); {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT), strings.Contains(text, "connection refused"), strings.Contains(text, "no such file"):
		return refused
	case errors.Is(err, context.DeadlineExceeded), code == codes.DeadlineExceeded, strings.Contains(text, "i/o timeout"):
		return hung
	case errors.Is(err, errWrong):
		return wrong
	case code == codes.Unavailable, strings.HasPrefix(text, "503"):
		return unavailable
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), strings.Contains(text, "EOF"), strings.Contains(text, "server closed"):
		return cut
	}
	return wrong
}

// tally is what became of the calls of one kind.
type tally struct {
	Calls  int
	Failed map[string]int    // by how
	Said   map[string]string // by how: the first error's text
	Waits  []time.Duration   // of those that worked, until their first byte; sorted in a report
	Fails  time.Duration     // the longest that failed
}

// wait is how long a caller waited for an answer, or to learn that there is none.
func (t *tally) wait() time.Duration { return max(t.longest(), t.Fails) }

func (t *tally) longest() time.Duration { return t.quantile(1) }

func (t *tally) quantile(q float64) time.Duration {
	if len(t.Waits) == 0 {
		return 0
	}
	return t.Waits[int(q*float64(len(t.Waits)-1))]
}

// ending is what the world says of a phase.
type ending struct {
	Calls report
	Lost  lost
}

// report is what became of all calls that began in a phase, by kind.
type report map[string]*tally

// String is a table, one line per kind.
func (r report) String() string {
	var b strings.Builder
	for _, k := range kinds() {
		t := r[k.name]
		if t == nil {
			continue
		}
		failed, _ := json.Marshal(t.Failed)
		fmt.Fprintf(&b, "\n  %-14s %6d calls, failed %-5s p50 %6.1f  p99 %6.1f  longest %7.1f ms", k.name, t.Calls, failed, ms(t.quantile(.5)), ms(t.quantile(.99)), ms(t.longest()))
		for how, text := range t.Said {
			fmt.Fprintf(&b, "\n    %s, at most after %.1f ms: %s", how, ms(t.Fails), text)
		}
	}
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// phase collects a report. A call belongs to the phase that it began in.
type phase struct {
	running sync.WaitGroup

	mu sync.Mutex

	report report
}

func (p *phase) note(kind string, wait, whole time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.report[kind]
	if t == nil {
		t = &tally{Failed: map[string]int{}, Said: map[string]string{}}
		p.report[kind] = t
	}
	t.Calls++
	if err == nil {
		t.Waits = append(t.Waits, wait)
		return
	}
	how := failureOf(err)
	t.Failed[how]++
	t.Fails = max(t.Fails, whole)
	if t.Said[how] == "" {
		t.Said[how] = err.Error()
	}
}

// done waits for the last call.
func (p *phase) done() report {
	p.running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.report {
		slices.Sort(t.Waits)
	}
	return p.report
}
