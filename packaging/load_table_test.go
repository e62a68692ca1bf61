package packaging

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// row is what callers saw of one action, in all its runs.
type row struct {
	what              string
	runs, unfair      int
	calls, failed     int // without streams and transfers
	how               map[string]int
	ended             int           // streams and transfers that ended early
	port, socket, api time.Duration // the longest waits, until an answer or a failure
	control           time.Duration
	lost              uint64
	load              float64
}

// add counts a run.
func (r *row) add(got run, fair bool) {
	r.runs++
	r.load = max(r.load, got.load)
	for _, n := range got.Lost {
		r.lost += n
	}
	if !fair {
		r.unfair++
		return
	}
	if r.how == nil {
		r.how = map[string]int{}
	}
	for name, tally := range got.Calls {
		for how, n := range tally.Failed {
			if name == stream || name == transfer {
				r.ended += n
				continue
			}
			r.failed += n
			r.how[how] += n
		}
		if name != stream && name != transfer {
			r.calls += tally.Calls
		}
		switch name {
		case "grpc new", "http new", "tcp new":
			r.port = max(r.port, tally.wait())
		case "unix new":
			r.socket = max(r.socket, tally.wait())
		case "api new":
			r.api = max(r.api, tally.wait())
		case control:
			r.control = max(r.control, tally.wait())
		}
	}
}

// table is one line per action: what the README's says, in figures.
func table(rows []*row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-44s %5s %7s %6s %5s |%6s %6s %6s %7s | %4s %5s  %s\n", "action", "runs", "calls", "failed", "ended", "port", "socket", "API", "control", "lost", "load", "how they failed")
	for _, r := range rows {
		what, runs := r.what, fmt.Sprint(r.runs)
		if len(what) > 44 {
			what = what[:43] + "…"
		}
		if r.unfair > 0 {
			runs += fmt.Sprintf("-%d", r.unfair)
		}
		fmt.Fprintf(&b, "%-44s %5s %7d %6d %5d |%6.0f %6.0f %6.0f %7.0f | %4d %5.1f  %s\n", what, runs, r.calls, r.failed, r.ended,
			ms(r.port), ms(r.socket), ms(r.api), ms(r.control), r.lost, r.load, strings.Trim(fmt.Sprint(r.how), "map[]"))
	}
	return b.String() + `runs: 3-1 are 3, 1 of which wasn't judged and isn't counted, since the machine stood still; ended: streams and transfers, before their time;
port, socket (of a service), API, control (a connection past the agent): the longest wait of a new connection in ms, until its answer or until it fails;
lost: connections that the kernel dropped since a backlog was full; load: per core
`
}

// line is the row of an action.
func (a *around) line(what string) *row {
	i := slices.IndexFunc(a.rows, func(r *row) bool { return r.what == what })
	if i < 0 {
		a.rows = append(a.rows, &row{what: what})
		i = len(a.rows) - 1
	}
	return a.rows[i]
}

func TestTable(t *testing.T) {
	a := new(around)
	one := good()
	one["grpc new"].Waits[1], one["api new"].Failed[refused], one["api new"].Fails, one[stream].Failed[unavailable] = 40*time.Millisecond, 3, 70*time.Millisecond, 1
	a.line("kill").add(run{ending{one, lost{"ListenDrops": 2}}, .5, 0}, true)
	a.line("kill").add(run{ending{one, nil}, 9, 0}, false)
	a.line("stop").add(run{ending{good(), nil}, .25, 0}, true)
	got := strings.Split(table(a.rows), "\n")
	for i, want := range []string{
		"kill 2-1 24 3 1 | 40 2 70 2 | 2 9.0 refused:3",
		"stop 1 24 0 0 | 2 2 2 2 | 0 0.2",
	} {
		if line := strings.Join(strings.Fields(strings.ReplaceAll(got[1+i], "|", " | ")), " "); line != want {
			t.Errorf("%q, want %q", line, want)
		}
	}
}
