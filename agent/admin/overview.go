package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// API is StatusService, as the sockets answer it: the page shows what the verbs say.
type API interface {
	Status(context.Context, *lbagentv1.StatusRequest) (*lbagentv1.StatusResponse, error)
	Explain(context.Context, *lbagentv1.ExplainRequest) (*lbagentv1.ExplainResponse, error)
}

// level says how much something matters to a person at night.
type level string

const (
	bad  level = "bad"  // calls fail, or are about to
	warn level = "warn" // degraded, or unsafe after the next fault
	note level = "note" // somebody may want to know
	fine level = "ok"
)

// rank sorts levels, the worst first.
func (l level) rank() int { return slices.Index([]level{bad, warn, note, fine}, l) }

// overview is all of the first page but the past.
type overview struct {
	agent    json.RawMessage // StatusResponse without its services
	problems []problem
	services []row
}

// row is one service. Rows are compared to find out what changed, so nothing in one moves by itself: what is old has a time, not an age.
type row struct {
	Name      string `json:"name"`
	Level     level  `json:"level"`
	Words     string `json:"words,omitempty"` // what is to be said, the weightiest first
	Backends  uint32 `json:"backends"`
	Usable    uint32 `json:"usable"`
	Listeners string `json:"listeners,omitempty"`
	Protocol  string `json:"protocol,omitempty"`
	Policy    string `json:"policy,omitempty"`
	Origin    string `json:"origin,omitempty"`
	Source    string `json:"source,omitempty"`
	Stale     int64  `json:"stale,omitempty"` // when the source confirmed the list, Unix seconds, if that was long ago
}

// staleAfter is when the age of a list is worth a word. etcd confirms lists every few seconds.
const staleAfter = time.Minute

// see makes the overview of now.
func (p *page) see(ctx context.Context, now time.Time) (*overview, error) {
	status, err := p.api.Status(ctx, &lbagentv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	recent, length := p.history.recent()
	out := &overview{services: make([]row, 0, len(status.Services))}
	for _, s := range status.Services {
		r := rowOf(now, s, outsOf(p.table.Lookup(s.Name)))
		r.failing(recent[s.Name], length)
		out.services = append(out.services, r)
	}
	out.problems = problems(status, out.services)
	status.Services = nil
	calm(status)
	out.agent, err = compactJSON(status)
	return out, err
}

// calm takes out what changes every second and says nothing.
func calm(s *lbagentv1.StatusResponse) {
	if s.Etcd != nil && s.Etcd.Connected {
		s.Etcd.LastContact = nil
	}
	if s.Fleet != nil && s.Fleet.Error == "" {
		s.Fleet.Age = nil
	}
}

// compactJSON is m with the names of the protos. protojson strews spaces at random; without them equal messages are equal bytes.
func compactJSON(m proto.Message) (json.RawMessage, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, fmt.Errorf("compact %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b.Bytes(), nil
}

// outs are backends that get no calls, by why.
type outs struct {
	kinds  [health.Kinds]int
	muted  int
	unused bool // nobody has asked for the service, so nothing is known of any
}

// outsOf looks at the backends that are in use, as the metrics do.
func outsOf(s *table.Service) (o outs) {
	if s == nil {
		return o
	}
	v := s.View()
	for _, b := range v.Backends() {
		if b.Fallback == v.Fallback && !b.Verdict.Usable() {
			o.kinds[b.Verdict.Kind]++
		}
	}
	o.muted = v.Muted()
	o.unused = v.Len() > 0 && v.Backend(0).State == nil
	return o
}

// words are "2 down, 1 ejected".
func (o *outs) words() string {
	var parts []string
	for kind, n := range o.kinds {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, health.Kind(kind)))
		}
	}
	return strings.Join(parts, ", ")
}

// rowOf judges one service by what StatusService says of it.
func rowOf(now time.Time, s *lbagentv1.ServiceInfo, o outs) row {
	p := s.Provenance
	r := row{
		Name: s.Name, Level: fine, Backends: s.Backends, Usable: s.Usable, Listeners: strings.Join(s.Listeners, ", "), Protocol: s.Protocol, Policy: s.Policy,
		Origin: s.Origin, Source: p.GetSource(),
	}
	out := o.words()
	switch {
	case !s.Ready:
		r.say(bad, "no list has come yet")
	case s.Backends == 0:
		r.say(bad, "the list is empty")
	case s.Usable == 0 && s.Backends == 1:
		r.say(bad, "the only backend is not usable: "+out)
	case s.Usable == 0:
		r.say(bad, fmt.Sprintf("none of %d backends is usable: %s", s.Backends, out))
	case p.GetPanic():
		r.say(bad, fmt.Sprintf("panic: only %d of %d backends usable, so calls go to others, too (%s)", s.Usable, s.Backends, out))
	case out != "":
		r.say(note, fmt.Sprintf("%d of %d backends out: %s", s.Backends-min(s.Usable, s.Backends), s.Backends, out))
	}
	if p.GetSource() == string(service.FromFallback) {
		r.say(warn, "the fallback is used: none of its own backends is usable")
	}
	if s.Orphans > 0 {
		r.say(warn, fmt.Sprintf("%d orphaned: their keys are gone from etcd, and they are kept while they are alive", s.Orphans))
	}
	if o.muted > 0 && o.kinds[health.Muted] != o.muted {
		r.say(note, fmt.Sprintf("%d muted by hand", o.muted))
	}
	if o.unused {
		r.say(fine, "not in use, so not probed")
	}
	if age := p.GetAge().AsDuration(); s.Ready && p.Age != nil && age > staleAfter && p.Source != string(service.FromStatic) {
		r.Stale = now.Add(-age).Unix()
	}
	return r
}

// say adds what is to be said of r: what is worse goes first.
func (r *row) say(l level, words string) {
	worse := l.rank() < r.Level.rank()
	switch {
	case r.Words == "":
		r.Words = words
	case worse:
		r.Words = words + "; " + r.Words
	default:
		r.Words += "; " + words
	}
	if worse {
		r.Level = l
	}
}

// When calls fail so often that it is said.
const (
	failingCalls   = 10 // of fewer, a percentage says nothing
	failingPercent = 5
	failedPercent  = 50
)

// failing says that many of the last calls failed.
func (r *row) failing(s sample, length time.Duration) {
	if s.calls < failingCalls || s.failed*100 < s.calls*failingPercent {
		return
	}
	l, percent := warn, s.failed*100/s.calls
	if percent >= failedPercent {
		l = bad
	}
	r.say(l, fmt.Sprintf("%d %% of the calls of the last %.0f s failed", percent, length.Seconds()))
}
