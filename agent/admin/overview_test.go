package admin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// info is a service of three backends with a fresh list.
func info(change func(*lbagentv1.ServiceInfo)) *lbagentv1.ServiceInfo {
	s := &lbagentv1.ServiceInfo{
		Name: "user", Ready: true, Backends: 3, Usable: 3, Origin: "configured", Provenance: &lbagentv1.Provenance{Source: "etcd", Age: durationpb.New(time.Second)},
	}
	change(s)
	return s
}

func TestRowsSayWhatIsWrong(t *testing.T) {
	out := func(kind health.Kind, n int) (o outs) {
		o.kinds[kind] = n
		return o
	}
	tests := []struct {
		name   string
		s      *lbagentv1.ServiceInfo
		o      outs
		recent sample
		level  level
		words  string
		stale  int64
	}{
		{"well", info(func(*lbagentv1.ServiceInfo) {}), outs{}, sample{calls: 100, failed: 4}, fine, "", 0},
		{"no list", info(func(s *lbagentv1.ServiceInfo) { s.Ready, s.Backends, s.Usable = false, 0, 0 }), outs{}, sample{}, bad, "no list has come yet", 0},
		{"empty", info(func(s *lbagentv1.ServiceInfo) { s.Backends, s.Usable = 0, 0 }), outs{}, sample{}, bad, "the list is empty", 0},
		{"none usable", info(func(s *lbagentv1.ServiceInfo) { s.Usable = 0 }), out(health.Down, 3), sample{}, bad, "none of 3 backends is usable: 3 down", 0},
		{"the only one", info(func(s *lbagentv1.ServiceInfo) { s.Usable, s.Backends = 0, 1 }), out(health.Down, 1), sample{}, bad, "the only backend is not usable: 1 down", 0},
		{"one out", info(func(s *lbagentv1.ServiceInfo) { s.Usable = 2 }), out(health.Ejected, 1), sample{}, note, "1 of 3 backends out: 1 ejected", 0},
		{"panic", info(func(s *lbagentv1.ServiceInfo) { s.Usable, s.Provenance.Panic = 1, true }), out(health.Unreachable, 2), sample{}, bad,
			"panic: only 1 of 3 backends usable, so calls go to others, too (2 unreachable)", 0},
		{"fallback", info(func(s *lbagentv1.ServiceInfo) { s.Provenance.Source = "fallback" }), outs{}, sample{}, warn,
			"the fallback is used: none of its own backends is usable", 0},
		{"orphans, and one out", info(func(s *lbagentv1.ServiceInfo) { s.Orphans, s.Usable = 2, 2 }), out(health.Down, 1), sample{}, warn,
			"2 orphaned: their keys are gone from etcd, and they are kept while they are alive; 1 of 3 backends out: 1 down", 0},
		{"muted, and worse", info(func(s *lbagentv1.ServiceInfo) { s.Usable = 2 }), outs{muted: 1, kinds: [health.Kinds]int{health.Draining: 1}}, sample{}, note,
			"1 of 3 backends out: 1 draining; 1 muted by hand", 0},
		{"failing", info(func(*lbagentv1.ServiceInfo) {}), outs{}, sample{calls: 100, failed: 5}, warn, "5 % of the calls of the last 30 s failed", 0},
		{"failing much, one out", info(func(s *lbagentv1.ServiceInfo) { s.Usable = 2 }), out(health.Down, 1), sample{calls: 10, failed: 9}, bad,
			"90 % of the calls of the last 30 s failed; 1 of 3 backends out: 1 down", 0},
		{"few calls", info(func(*lbagentv1.ServiceInfo) {}), outs{}, sample{calls: 9, failed: 9}, fine, "", 0},
		{"not in use", info(func(*lbagentv1.ServiceInfo) {}), outs{unused: true}, sample{}, fine, "not in use, so not probed", 0},
		{"old list", info(func(s *lbagentv1.ServiceInfo) { s.Provenance.Age = durationpb.New(2 * time.Minute) }), outs{}, sample{}, fine, "", start().Add(-2 * time.Minute).Unix()},
		{"old list of the file", info(func(s *lbagentv1.ServiceInfo) {
			s.Provenance.Source, s.Provenance.Age = "static", durationpb.New(time.Hour)
		}), outs{}, sample{}, fine, "", 0},
	}
	for _, tt := range tests {
		r := rowOf(start(), tt.s, tt.o)
		r.failing(tt.recent, 30*time.Second)
		if r.Level != tt.level || r.Words != tt.words || r.Stale != tt.stale {
			t.Errorf("%s: %s %q %d, want %s %q %d", tt.name, r.Level, r.Words, r.Stale, tt.level, tt.words, tt.stale)
		}
	}
}

func TestTheWorstIsSaidFirst(t *testing.T) {
	s := &lbagentv1.StatusResponse{
		ConfigError: "line 3: no such key",
		Warnings:    []string{"etcd is not reachable", "user: 2 of 3 backends are orphans: their keys went"},
		Registrations: []*lbagentv1.RegistrationStatus{
			{Service: "web", Address: ":80", Why: "its probe fails"}, {Service: "web", Address: ":81", Announced: true}, {Service: "web", Address: ":82", Draining: true},
		},
	}
	rows := []row{{Name: "cart", Level: note, Words: "1 out"}, {Name: "mail", Level: fine}, {Name: "pay", Level: bad, Words: "none usable"}, {Name: "user", Level: warn, Words: "2 orphaned"}}
	var got []string
	for _, p := range problems(s, rows) {
		got = append(got, fmt.Sprintf("%s %s: %s", p.Level, p.Service, p.Text))
	}
	want := []string{
		"bad : the agent is not ready", "bad pay: none usable",
		"warn : the configuration file is invalid; an older configuration is in force: line 3: no such key", "warn : etcd is not reachable",
		"warn : this host's web at :80 is not announced: its probe fails", "warn user: 2 orphaned",
		"note cart: 1 out",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := problems(&lbagentv1.StatusResponse{Ready: true, ConfigOk: true}, rows[1:2]); len(got) != 0 {
		t.Errorf("all is well, and yet: %v", got)
	}
	rows = nil
	for i := range 1000 {
		rows = append(rows, row{Name: name(i), Level: bad, Words: "none usable"})
	}
	many := problems(&lbagentv1.StatusResponse{Ready: true, ConfigOk: true}, rows)
	if last := many[len(many)-1]; len(many) != maxProblems+1 || last.Text != "and 960 more; the list of services has them all" {
		t.Errorf("%d problems, the last is %v", len(many), last)
	}
}

// What says nothing new must not make a message each second.
func TestCalmStatus(t *testing.T) {
	s := &lbagentv1.StatusResponse{
		Etcd:  &lbagentv1.EtcdStatus{Connected: true, LastContact: timestamppb.New(start())},
		Fleet: &lbagentv1.FleetStatus{Age: durationpb.New(time.Second)},
	}
	if calm(s); s.Etcd.LastContact != nil || s.Fleet.Age != nil {
		t.Errorf("%v", s)
	}
	s = &lbagentv1.StatusResponse{Etcd: &lbagentv1.EtcdStatus{LastContact: timestamppb.New(start())}, Fleet: &lbagentv1.FleetStatus{Error: "no rights", Age: durationpb.New(time.Second)}}
	if calm(s); s.Etcd.LastContact == nil || s.Fleet.Age == nil {
		t.Errorf("of an etcd that is away: %v", s)
	}
}

func TestDetailIsSortedSearchedAndPaged(t *testing.T) {
	var all []*lbagentv1.BackendExplanation
	for i := range 250 {
		b := &lbagentv1.Backend{Address: addr(i).String(), Verdict: "up", Usable: true, Weight: 100, Metadata: map[string]string{"version": fmt.Sprintf("v%d", i%2)}}
		switch i {
		case 200:
			b.Verdict, b.Usable = "ejected", false
		case 201:
			b.Verdict, b.Usable = "muted", false
		case 0:
			b.Usable = false // it stands by
		}
		all = append(all, &lbagentv1.BackendExplanation{Backend: b, Sentence: "says so"})
	}
	answer := func() *lbagentv1.ExplainResponse {
		return &lbagentv1.ExplainResponse{Backends: append([]*lbagentv1.BackendExplanation(nil), all...)}
	}
	e := answer()
	d := newDetail(e, "", 0)
	if d.Total != 250 || d.Matching != 250 || len(e.Backends) != backendsPage || e.Backends[0].Backend.Address != addr(200).String() ||
		e.Backends[1].Backend.Address != addr(201).String() || e.Backends[2].Backend.Address != addr(1).String() {
		t.Errorf("%+v begins with %v", d, e.Backends[:3])
	}
	if w := d.Weights[addr(1).String()]; w != 1.0/247 {
		t.Errorf("the weight of one of 247 is %v", w)
	}
	if _, ok := d.Weights[addr(200).String()]; ok {
		t.Error("one that is out has a share by weight")
	}
	e = answer()
	if newDetail(e, "", 200); len(e.Backends) != 50 || e.Backends[49].Backend.Address != addr(0).String() {
		t.Errorf("the last page has %d backends", len(e.Backends))
	}
	e = answer()
	if d := newDetail(e, "version=v1", 1000); d.Matching != 125 || d.From != 125 || len(e.Backends) != 0 {
		t.Errorf("beyond the end: %+v", d)
	}
	for search, want := range map[string]int{"ejected": 1, "0.0.200:80": 1, "says": 250, "nosuch": 0} {
		if d := newDetail(answer(), search, 0); d.Matching != want {
			t.Errorf("%q finds %d, want %d", search, d.Matching, want)
		}
	}
}
