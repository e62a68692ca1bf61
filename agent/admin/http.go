package admin

import (
	"fmt"
	"net/http"
	"strings"
)

// routes answers GET and HEAD only; the mux refuses the rest with 405.
func (s *Server) routes(metrics http.Handler, p *page) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	if p != nil {
		p.route(mux)
	}
	return mux
}

// readyz says 200 when ready, and names what is missing either way (SEMANTICS 6.4).
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	ok, missing := s.cfg.Ready()
	code, text := http.StatusOK, "ready"
	if !ok {
		code, text = http.StatusServiceUnavailable, "not ready"
	}
	if len(missing) > 0 {
		text += "; no list yet: " + strings.Join(missing, ", ")
	}
	writeText(w, code, text)
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprintln(w, text)
}
