package admin

import (
	"bytes"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	_ "embed"
)

//go:embed page.html
var pageSource string

func parsePage() (*template.Template, error) { return template.New("page").Parse(pageSource) }

// routes answers GET and HEAD only; the mux refuses the rest with 405.
func (s *Server) routes(metrics http.Handler, page bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	if page {
		mux.HandleFunc("GET /{$}", s.index)
	}
	return mux
}

// guard refuses names of other hosts, so that a page in a browser on this host can't read the agent by DNS rebinding: with that trick the browser sends
// the attacker's name as Host. Allowed are localhost, loopback addresses, the host of admin.listen, and the address that the connection came to.
func (s *Server) guard(listen string, next http.Handler) http.Handler {
	own, _, _ := net.SplitHostPort(listen)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		if !hostAllowed(r, own) {
			writeText(w, http.StatusMisdirectedRequest, fmt.Sprintf("lbagent answers here to localhost, a loopback address or %s, not to the name %q", listen, r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func hostAllowed(r *http.Request, own string) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ".")
	switch {
	case host == "": // HTTP/1.0 without Host: no browser does that
		return true
	case strings.EqualFold(host, "localhost"), own != "" && strings.EqualFold(host, own):
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return addr.IsLoopback() || local != nil && addr.Unmap() == local.AddrPort().Addr().Unmap()
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

// row is one service on the page.
type row struct {
	Name, Listeners, Protocol, Policy, Source, Age, Note string
	Backends, Usable                                     int
	Bad                                                  bool // nothing is usable, or panic
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	now := s.cfg.Now()
	ready, missing := s.cfg.Ready()
	data := struct {
		Version         string
		Ready, ConfigOK bool
		Missing         []string
		Rows            []row
	}{Version: s.cfg.Version, Ready: ready, ConfigOK: s.cfg.ConfigOK(), Missing: missing}
	for _, service := range s.cfg.Table.Services() {
		view, spec := service.View(), service.Spec()
		r := row{
			Name: service.Name(), Listeners: strings.Join(spec.Listeners, ", "), Protocol: spec.Protocol, Policy: string(spec.Policy),
			Backends: view.Total, Usable: view.Usable,
			Bad: view.Usable == 0 || view.Panic,
		}
		var notes []string
		if view.Ready {
			r.Source, r.Age = string(view.Source()), service.Age(now).Round(time.Second).String()
		} else {
			notes = append(notes, "no list yet")
		}
		if view.Fallback {
			notes = append(notes, "the fallback is used")
		}
		if view.Panic {
			notes = append(notes, "panic: too few backends are usable")
		}
		if n := view.Muted(); n > 0 {
			notes = append(notes, fmt.Sprintf("%d muted by hand", n))
		}
		if view.List.BadCount > 0 {
			notes = append(notes, fmt.Sprintf("%d unreadable records", view.List.BadCount))
		}
		r.Note = strings.Join(notes, "; ")
		data.Rows = append(data.Rows, r)
	}
	var page bytes.Buffer
	if err := s.page.Execute(&page, data); err != nil {
		s.cfg.Log.Error("the page could not be made", "error", err)
		writeText(w, http.StatusInternalServerError, "the page could not be made; the agent's log says why")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = page.WriteTo(w) // a reader that went away needs no page
}
