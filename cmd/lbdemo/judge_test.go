package main

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestSpread(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	for _, tt := range []struct {
		name   string
		counts map[string]int
		within bool // 0.15
		text   string
	}{
		{"even", map[string]int{"a": 100, "b": 100, "c": 100, "d": 100}, true, "+0..+0 %"},
		{"at the limits", map[string]int{"a": 115, "b": 85, "c": 100, "d": 100}, true, "-15..+15 %"},
		{"one high", map[string]int{"a": 130, "b": 90, "c": 90, "d": 90}, false, "-10..+30 %"},
		{"one idle", map[string]int{"a": 134, "b": 133, "c": 133}, false, "-100..+34 %"},
		{"a stranger takes calls", map[string]int{"a": 75, "b": 75, "c": 75, "d": 75, "x": 100}, false, "-25..-25 %"},
		{"no calls", nil, false, "-100..-100 %"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := window{counts: tt.counts}
			for _, n := range tt.counts {
				w.total += n
			}
			s := w.spreadOver(names)
			if s.within(0.15) != tt.within || s.String() != tt.text {
				t.Errorf("%v, within %v; want %s, %v", s, s.within(0.15), tt.text, tt.within)
			}
		})
	}
}

func TestExcused(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	dead, survivor := life{"127.0.0.11:80", new(ledger)}, life{"127.0.0.12:80", new(ledger)}
	dead.seen.note("begin 1")
	dead.seen.note("registered")
	dead.seen.note("begin x")
	survivor.seen.note("begin 2")
	k := kill{sent: at(0), reaped: at(10), dead: []life{dead}, survivors: []life{survivor}}
	lost := status.Error(codes.Unavailable, "lbagent: echo: 127.0.0.11:80 connection lost")
	other := status.Error(codes.Unavailable, "lbagent: echo: 127.0.0.12:80 connection lost")

	for _, tt := range []struct {
		name       string
		id         uint64
		begun, got int
		err        error
		want       bool
	}{
		{"taken up by the killed", 1, -25, 5, lost, true},
		{"taken up long before", 1, -5000, 5, lost, true},
		{"taken up by the killed, another one named", 1, -25, 5, other, true},
		{"answered before the kill", 1, -25, -1, lost, false},
		{"made when the killed were gone", 3, 11, 20, lost, false},
		{"another code", 1, -25, 5, status.Error(codes.Internal, "x"), false},
		{"no status", 1, -25, 5, errors.New("127.0.0.11:80"), false},
		{"with a survivor", 2, -25, 5, lost, false},
		{"on its way, seen by nobody", 3, -1, 5, lost, true},
		{"made while they died, seen by nobody", 3, 9, 12, lost, true},
		{"seen by nobody, a survivor named", 3, -1, 5, other, false},
		{"seen by nobody, nobody named", 3, -1, 5, status.Error(codes.Unavailable, "no list yet"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := failure{id: tt.id, begun: at(tt.begun), got: at(tt.got), err: tt.err}
			if got := excused(f, []kill{{sent: at(-9000), reaped: at(-8990)}, k}); got != tt.want {
				t.Errorf("excused = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestLedgerForgetsTheOldest(t *testing.T) {
	l := new(ledger)
	for id := 1; id <= ledgerSize+1; id++ {
		l.note("begin " + strconv.Itoa(id))
	}
	if l.has(1) || !l.has(2) || !l.has(ledgerSize+1) {
		t.Errorf("has 1, 2, last = %v, %v, %v; want false, true, true", l.has(1), l.has(2), l.has(ledgerSize+1))
	}
	if new(ledger).has(0) {
		t.Error("an empty ledger has call 0")
	}
}

func TestJudgeFaultsNamesFiveOfEach(t *testing.T) {
	var failures []failure
	for id := range uint64(8) {
		failures = append(failures, failure{id: id, err: errors.New("lost")})
	}
	if errs := judgeFaults(failures, nil, nil); len(errs) != 6 || !strings.Contains(errs[5].Error(), "3 more") {
		t.Errorf("errs = %v", errs)
	}
	if errs := judgeFaults(nil, []string{"1", "2", "3", "4", "5", "6"}, nil); len(errs) != 6 || !strings.Contains(errs[5].Error(), "1 more") {
		t.Errorf("errs = %v", errs)
	}
	if errs := judgeFaults(nil, nil, nil); len(errs) != 0 {
		t.Errorf("errs = %v", errs)
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	f := frame{
		rows: []row{
			{name: "alpha", addr: "127.0.0.11:10001", process: "pid 4194304", verdict: "up", rate: 400, share: 1},
			{name: "bravo", addr: "127.0.0.12:10001", process: "killed", verdict: strings.Repeat("connection refused ", 20)},
		},
		window: window{total: 800}, sums: sums{answered: 123456789, failed: 12, open: 4000}, agent: "the agent is away",
	}
	lines := f.table(strings.Repeat("title ", 30), strings.Repeat("text ", 40))
	for _, l := range lines {
		if n := len([]rune(l)); n > width {
			t.Errorf("%d columns: %s", n, l)
		}
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"100%  " + strings.Repeat("█", barMax) + " up", "killed", "400 calls/s", "12 failed"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
