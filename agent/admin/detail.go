package admin

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	maxExplains  = 2   // explanations that are made at once; others wait
	backendsPage = 100 // backends in an answer
	drawn        = 60  // backends that the picture has, beside those of the answer; the others are one band
	maxQuery     = 200 // bytes of a search
)

// detail is the page of one service.
type detail struct {
	Explain  json.RawMessage    `json:"explain"`  // ExplainResponse with the backends of this answer
	Total    int                `json:"total"`    // backends of the service
	Matching int                `json:"matching"` // of these, the ones that the search finds
	From     int                `json:"from"`     // how many of those come before the first of this answer
	Limit    int                `json:"limit"`
	Weights  map[string]float64 `json:"weights"` // the part of all calls that a backend's weight stands for
	Lines    *lines             `json:"lines,omitempty"`
	Times    []int64            `json:"times"`
	Shares   *shares            `json:"shares,omitempty"`
	Sums     map[string]int64   `json:"sums,omitempty"` // calls in all of shares
	All      int64              `json:"all"`            // calls of all backends in all of shares
	Others   []int64            `json:"others,omitempty"`
	Folded   int                `json:"folded,omitempty"` // backends in others
}

// service answers GET /ui/service?name=NAME&q=SEARCH&from=N.
func (p *page) service(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from, err := strconv.Atoi(q.Get("from"))
	if q.Get("from") != "" && (err != nil || from < 0) || len(q.Get("q")) > maxQuery {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "from is a number of backends to leave out, q at most 200 bytes"})
		return
	}
	select {
	case p.explains <- struct{}{}:
		defer func() { <-p.explains }()
	case <-r.Context().Done():
		return
	}
	answer, err := p.api.Explain(r.Context(), &lbagentv1.ExplainRequest{Service: q.Get("name")})
	if err != nil {
		code := http.StatusInternalServerError
		if status.Code(err) == codes.NotFound {
			code = http.StatusNotFound
		}
		writeJSON(w, code, map[string]string{"error": status.Convert(err).Message()})
		return
	}
	d := newDetail(answer, strings.ToLower(strings.TrimSpace(q.Get("q"))), from)
	d.past(p.history, q.Get("name"), answer.Backends)
	if d.Explain, err = compactJSON(answer); err != nil {
		writeJSON(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, d)
}

// newDetail leaves in e those backends that are asked for: what is out comes first.
func newDetail(e *lbagentv1.ExplainResponse, search string, from int) *detail {
	d := &detail{Total: len(e.Backends), Limit: backendsPage, Weights: make(map[string]float64)}
	sum := 0.0
	for _, b := range e.Backends {
		if b.Backend.Usable {
			sum += b.Backend.Weight
		}
	}
	if search != "" {
		e.Backends = slices.DeleteFunc(e.Backends, func(b *lbagentv1.BackendExplanation) bool { return !matches(b, search) })
	}
	d.Matching = len(e.Backends)
	slices.SortStableFunc(e.Backends, func(a, b *lbagentv1.BackendExplanation) int { return place(a) - place(b) })
	d.From = min(from, d.Matching)
	e.Backends = e.Backends[d.From:min(d.From+backendsPage, d.Matching)]
	for _, b := range e.Backends {
		if b.Backend.Usable && sum > 0 {
			d.Weights[b.Backend.Address] = b.Backend.Weight / sum
		}
	}
	return d
}

// past adds what is known of the last ten minutes.
func (d *detail) past(h *history, name string, here []*lbagentv1.BackendExplanation) {
	d.Lines, d.Times, d.Shares = h.of(name)
	if d.Shares == nil {
		return
	}
	wanted := make(map[string]bool, len(here))
	for _, b := range here {
		wanted[b.Backend.Address] = true
	}
	d.Sums = make(map[string]int64, len(d.Shares.Of))
	for addr := range d.Shares.Of {
		d.Sums[addr] = d.Shares.sum(addr)
		d.All += d.Sums[addr]
	}
	d.Others, d.Folded = d.Shares.fold(wanted, drawn)
	for addr := range d.Sums {
		if d.Shares.Of[addr] == nil {
			delete(d.Sums, addr)
		}
	}
}

// place sorts backends for a person who looks for what is wrong: what is out against its will, what is out on purpose, what gets calls, what stands by.
func place(b *lbagentv1.BackendExplanation) int {
	switch v := b.Backend.Verdict; {
	case v == "down", v == "unreachable", v == "ejected":
		return 0
	case v == "orphaned":
		return 1
	case v == "muted", v == "draining":
		return 2
	case b.Backend.Usable:
		return 3
	}
	return 4
}

// matches looks for search, in lower case, in all that names a backend or says how it is.
func matches(b *lbagentv1.BackendExplanation, search string) bool {
	for _, s := range []string{b.Backend.Address, b.Backend.Host, b.Backend.Verdict, b.Backend.Zone, b.Backend.Region, b.Key, b.Sentence} {
		if strings.Contains(strings.ToLower(s), search) {
			return true
		}
	}
	for k, v := range b.Backend.Metadata {
		if strings.Contains(strings.ToLower(k+"="+v), search) {
			return true
		}
	}
	return false
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer could not be written"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // a reader that went away needs no answer
}
