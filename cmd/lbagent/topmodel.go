package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// topFrame is how many lines of a screen are no rows: two of the head, one of the columns' names.
const topFrame = 3

// topModel is what top shows: it takes keys and answers, and makes screens. It does no I/O.
type topModel struct {
	opened  string // the service whose backends are shown; "" = all services
	order   *topOrder
	turned  bool
	help    bool
	stats   *lbagentv1.StatsResponse
	trouble string // why there is no newer answer

	chosen  string // the name of the row that is marked
	first   int    // the row at the top
	longest int    // name of a row, in letters
}

// topOrder is a way to sort services, and backends.
type topOrder struct {
	key      key
	name     string
	services func(a, b *lbagentv1.ServiceStats) int
	backends func(a, b *lbagentv1.BackendStats) int
}

// orders are all ways to sort; the largest number comes first.
func orders() []*topOrder {
	type service = lbagentv1.ServiceStats
	type backend = lbagentv1.BackendStats
	name := func(a, b *service) int { return strings.Compare(a.GetName(), b.GetName()) }
	missing := func(s *service) float64 {
		if s.GetBackends() == 0 {
			return 1
		}
		return 1 - float64(s.GetUsable())/float64(s.GetBackends())
	}
	return []*topOrder{
		{'n', "name", name, func(_, _ *backend) int { return 0 }},
		{'c', "calls", func(a, b *service) int { return cmp.Compare(b.GetCallsPerSecond(), a.GetCallsPerSecond()) },
			func(a, b *backend) int { return cmp.Compare(b.GetCallsPerSecond(), a.GetCallsPerSecond()) }},
		{'e', "errors", func(a, b *service) int { return cmp.Compare(b.GetErrorsPerSecond(), a.GetErrorsPerSecond()) },
			func(a, b *backend) int { return cmp.Compare(b.GetFailedPerSecond(), a.GetFailedPerSecond()) }},
		{'l', "latency", func(a, b *service) int { return cmp.Compare(b.GetP99().AsDuration(), a.GetP99().AsDuration()) },
			func(a, b *backend) int { return cmp.Compare(b.GetLatency().AsDuration(), a.GetLatency().AsDuration()) }},
		{'u', "usable", func(a, b *service) int { return cmp.Compare(missing(b), missing(a)) },
			func(a, b *backend) int {
				return cmp.Compare(zeroIf(!a.GetBackend().GetUsable()), zeroIf(!b.GetBackend().GetUsable()))
			}},
	}
}

func zeroIf(b bool) int {
	if b {
		return 0
	}
	return 1
}

// orderBy is the order of that name, nil if there is none.
func orderBy(name string) *topOrder {
	for _, o := range orders() {
		if o.name == name {
			return o
		}
	}
	return nil
}

// take takes an answer, or that there is none. The old one stays.
func (m *topModel) take(n topNews) {
	switch {
	case n.stats == nil && n.err != nil:
		m.trouble, _, _ = strings.Cut(n.err.Error(), "\n")
	case n.stats == nil:
		m.trouble = "the agent has gone"
	case n.stats.GetOver() == nil && m.stats != nil: // the first of a new stream has no rates; those shown are better
		m.trouble = ""
	default:
		m.stats, m.trouble = n.stats, ""
	}
}

// press does what a key asks for, on a screen of so many rows, and reports whether that is the end.
func (m *topModel) press(k key, rows int) (end bool) {
	if m.help {
		m.help = false
		return k == 'q' || k == keyInterrupt
	}
	for _, o := range orders() {
		if o.key == k {
			m.order = o
			return false
		}
	}
	page := max(1, rows-topFrame)
	switch k {
	case 'q', keyInterrupt:
		return true
	case '?', 'h':
		m.help = true
	case 'r':
		m.turned = !m.turned
	case keyUp, 'k':
		m.move(-1)
	case keyDown, 'j':
		m.move(1)
	case keyPageUp:
		m.move(-page)
	case keyPageDown, ' ':
		m.move(page)
	case keyHome, 'g':
		m.move(-1 << 30)
	case keyEnd, 'G':
		m.move(1 << 30)
	case keyEnter, keyRight:
		if m.opened == "" && m.chosen != "" {
			m.open(m.chosen, "")
		}
	case keyEscape, keyLeft, keyBackspace:
		if m.opened != "" {
			m.open("", m.opened)
		}
	}
	return false
}

// open shows another service, or all of them, with a row marked.
func (m *topModel) open(service, chosen string) {
	m.opened, m.chosen, m.first, m.stats = service, chosen, 0, nil
}

// move marks the row that is so many further down.
func (m *topModel) move(by int) {
	rows := m.rows()
	if len(rows) == 0 {
		return
	}
	m.chosen = rows[min(max(m.at(rows)+by, 0), len(rows)-1)].name
}

// at is where the marked row is; -1 if none is marked, or it has gone.
func (m *topModel) at(rows []topRow) int {
	return slices.IndexFunc(rows, func(r topRow) bool { return r.name == m.chosen })
}

// topRow is a service, or a backend.
type topRow struct {
	name  string
	cells []string
	rest  string // what else is said, where there is room
}

// columns are the names behind that of the row, each with its width.
func (m *topModel) columns() []string {
	if m.opened != "" {
		return []string{"VERDICT    ", " WEIGHT", " SHARE", "CALLS/S", " FAIL/S", "LATENCY", "OPEN"}
	}
	return []string{" USABLE", "CALLS/S", "  ERR/S", "   MEAN", "    P50", "    P99", " CONNS"}
}

// rows are all rows, in order.
func (m *topModel) rows() (rows []topRow) {
	if m.opened != "" {
		all := slices.Clone(m.stats.GetBackends())
		slices.SortStableFunc(all, m.order.backends)
		for _, b := range all {
			rows = append(rows, backendRow(b))
		}
	} else {
		all := slices.Clone(m.stats.GetServices())
		slices.SortStableFunc(all, m.order.services)
		for _, s := range all {
			rows = append(rows, serviceRow(s))
		}
	}
	if m.turned {
		slices.Reverse(rows)
	}
	return rows
}

func serviceRow(s *lbagentv1.ServiceStats) topRow {
	r := topRow{name: s.GetName(), cells: []string{
		fmt.Sprintf("%d/%d", s.GetUsable(), s.GetBackends()), rate(s.GetCallsPerSecond()), rate(s.GetErrorsPerSecond()), "-", "-", "-", fmt.Sprint(s.GetConnections()),
	}}
	if s.GetMean() != nil {
		r.cells[3], r.cells[4], r.cells[5] = brief(s.GetMean().AsDuration()), brief(s.GetP50().AsDuration()), brief(s.GetP99().AsDuration())
	}
	switch {
	case !s.GetReady():
		r.rest = "no list yet"
	case s.GetPanic():
		r.rest = "PANIC"
	}
	return r
}

func backendRow(b *lbagentv1.BackendStats) topRow {
	info := b.GetBackend()
	r := topRow{name: info.GetAddress(), rest: why(info), cells: []string{
		info.GetVerdict(), number(info.GetWeight()), fmt.Sprintf("%.1f%%", 100*b.GetShare()), rate(b.GetCallsPerSecond()), rate(b.GetFailedPerSecond()), "-",
		fmt.Sprint(b.GetOutstanding()),
	}}
	if b.GetLatency() != nil {
		r.cells[5] = brief(b.GetLatency().AsDuration())
	}
	return r
}

// rate is a number a second in few characters.
func rate(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f < 9.95:
		return fmt.Sprintf("%.1f", f)
	case f < 99999:
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.0fk", f/1000)
}

// brief is a duration in three digits and its unit.
func brief(d time.Duration) string {
	switch {
	case d >= 1000*time.Second:
		return short(d)
	case d >= time.Second:
		return three(d.Seconds()) + "s"
	case d >= time.Millisecond:
		return three(float64(d)/float64(time.Millisecond)) + "ms"
	}
	return three(float64(d)/float64(time.Microsecond)) + "µs"
}

// head are the lines above the rows, without the columns' names.
func (m *topModel) head(now time.Time) []string {
	var calls, errors float64
	for _, s := range m.stats.GetServices() {
		calls += s.GetCallsPerSecond()
		errors += s.GetErrorsPerSecond()
	}
	what := plural(len(m.stats.GetServices()), "service")
	if m.opened != "" {
		what = m.opened
	}
	by := m.order.name
	if m.turned {
		by += ", turned"
	}
	line := fmt.Sprintf("lbagent top  %s  %s  %s calls/s  %s errors/s  by %s", now.Format(time.TimeOnly), what, rate(calls), rate(errors), by)
	second := ""
	switch {
	case m.trouble != "":
		second = "NO ANSWER: " + m.trouble
	case m.stats == nil:
		second = "waiting for the agent"
	case m.opened != "" && len(m.stats.GetServices()) == 1:
		s := m.stats.GetServices()[0]
		second = fmt.Sprintf("%d of %s usable", s.GetUsable(), plural(s.GetBackends(), "backend"))
		if s.GetMean() != nil {
			second += fmt.Sprintf("  mean %s  p50 %s  p99 %s", brief(s.GetMean().AsDuration()), brief(s.GetP50().AsDuration()), brief(s.GetP99().AsDuration()))
		}
		if s.GetPanic() {
			second += "  PANIC: doubtful ones get calls, too"
		}
	}
	return []string{line, second}
}

// lines is what is shown, without marks: the head, the columns' names, and the rows for which there is room. marked is the line of the marked row, -1 if it isn't there.
func (m *topModel) lines(columns, room int, now time.Time) (lines []string, marked int) {
	rows := m.rows()
	m.longest = len("SERVICE")
	for _, r := range rows {
		m.longest = max(m.longest, utf8.RuneCountInString(r.name))
	}
	at := m.at(rows)
	space := max(1, room-topFrame)
	if at >= 0 {
		m.first = min(max(m.first, at-space+1), at)
	}
	m.first = max(0, min(m.first, len(rows)-space))
	lines = append(m.head(now), m.line(columns, topRow{name: "SERVICE", cells: m.columns()}))
	if m.opened != "" {
		lines[2] = m.line(columns, topRow{name: "BACKEND", cells: m.columns()})
	}
	for _, r := range rows[m.first:min(len(rows), m.first+space)] {
		lines = append(lines, m.line(columns, r))
	}
	for i, l := range lines {
		lines[i] = strings.TrimRight(cut(clean(l), columns), " ")
	}
	marked = -1
	if at >= 0 {
		marked = topFrame + at - m.first
	}
	return lines[:min(len(lines), room)], marked
}

// line lays out one row.
func (m *topModel) line(columns int, r topRow) string {
	names := m.columns()
	left := columns
	for _, n := range names {
		left -= len(n) + 1
	}
	first := min(max(left, 12), m.longest)
	var b strings.Builder
	b.WriteString(pad(cut(r.name, first), first))
	for i, n := range names {
		cell := cut(r.cells[i], len(n))
		if strings.HasSuffix(n, " ") { // words stand on the left, numbers on the right
			cell = pad(cell, len(n))
		}
		b.WriteString(" " + strings.Repeat(" ", max(0, len(n)-utf8.RuneCountInString(cell))) + cell)
	}
	if room := left - first - 2; r.rest != "" && room >= 6 { // else it says nothing
		b.WriteString("  " + cut(r.rest, room))
	}
	return b.String()
}

// cut is s in at most n columns.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(0, n-1)]) + "…"
}

// screen is what a terminal of that size shows.
func (m *topModel) screen(columns, rows int, now time.Time) []string {
	const bold, reverse, plain = "\x1b[1m", "\x1b[7m", "\x1b[0m"
	if m.help {
		lines := helpOfTop()
		for i := range lines {
			lines[i] = cut(lines[i], columns)
		}
		return lines[:min(len(lines), rows)]
	}
	lines, marked := m.lines(columns, rows, now)
	for i, l := range lines {
		switch i {
		case 0, topFrame - 1:
			lines[i] = bold + l + plain
		case marked:
			lines[i] = reverse + pad(l, columns) + plain
		}
	}
	return lines
}

func helpOfTop() []string {
	return []string{
		"lbagent top",
		"",
		"up down, j k       mark a row; PgUp PgDn Home End go further",
		"Enter, right       open the marked service: its backends",
		"Esc, left          back to all services",
		"n c e l u          sort by name, calls, errors, latency (p99), or what is not usable",
		"r                  turn the order round",
		"q, ^C              end",
		"",
		"Services: what goes through the proxy. ERR/S are HTTP 5xx, gRPC statuses that aren't",
		"the caller's doing, and connections that broke. Latencies are of the last second.",
		"Backends: what this host knows of the last 10 s, calls that programs report included.",
		"",
		"Any key goes on.",
	}
}
