package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// headerTimeout is how long a client may take for its request's head.
const headerTimeout = 10 * time.Second

// clientGone is the status under which a call is counted whose caller went away; nginx made it up.
const clientGone = 499

// Why a running request was ended from here.
var (
	errBackendRemoved = errors.New("backend removed")
	errRequestTimeout = errors.New("timeout.request has passed")
	errStopped        = errors.New("the agent is stopping")
)

// http1Server serves one route's HTTP/1.1 connections.
type http1Server struct {
	h       *http1
	rt      *route
	idle    time.Duration
	header  int // most bytes of a head, of a request or a response
	server  http.Server
	proxy   httputil.ReverseProxy
	handed  chan handed
	stop    sync.Once
	stopped chan struct{}
	backends

	freshMu sync.Mutex
	fresh   map[net.Conn]struct{} // nothing came on them yet; nil once the server is shut down
}

func newHTTP1Server(h *http1, rt *route, idle time.Duration, header int) *http1Server {
	s := &http1Server{h: h, rt: rt, idle: idle, header: header, handed: make(chan handed, handedOver), stopped: make(chan struct{}), fresh: map[net.Conn]struct{}{}}
	s.backends.init()
	var only http.Protocols
	only.SetHTTP1(true)
	s.server = http.Server{
		Handler: s, Protocols: &only, ErrorLog: h.log, ConnState: s.connState,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idle, MaxHeaderBytes: header,
	}
	s.proxy = httputil.ReverseProxy{
		Rewrite: asItCame, Transport: s, FlushInterval: -1, ErrorLog: h.log, BufferPool: h,
		ModifyResponse: s.answered, ErrorHandler: s.failed,
	}
	return s
}

// run accepts until the server is retired.
func (s *http1Server) run() {
	_ = s.server.Serve(handover{s}) // it ends because the server is retired
	for {
		select {
		case c := <-s.handed:
			unix.Close(c.fd)
			s.h.p.clients.Add(-1)
		default:
			return
		}
	}
}

func (s *http1Server) connState(c net.Conn, state http.ConnState) {
	s.freshMu.Lock()
	defer s.freshMu.Unlock()
	switch {
	case state != http.StateNew:
		delete(s.fresh, c)
	case s.fresh == nil:
		c.Close()
	default:
		s.fresh[c] = struct{}{}
	}
}

// shutdown lets running requests end, until close.
func (s *http1Server) shutdown() {
	s.server.SetKeepAlivesEnabled(false) // answers say so from now on
	handover{s}.Close()
	s.freshMu.Lock()
	for c := range s.fresh {
		c.Close() // http.Server would wait 5 s for a first request
	}
	s.fresh = nil
	s.freshMu.Unlock()
	_ = s.server.Shutdown(context.Background()) // the listener is closed already, and waiting has no bound here that could pass
	s.waitUpgraded()
	s.closeIdle()
}

// close ends everything now.
func (s *http1Server) close() {
	s.cancelAll(errStopped)
	s.server.Close()
	s.closeIdle()
}

// exchange is one request, with all its attempts.
type exchange struct {
	s      *http1Server
	w      http.ResponseWriter
	in     *http.Request
	ctx    context.Context
	opts   *options
	began  time.Time
	tried  []*health.State
	now    *attempt // the one that runs, or gave the response
	body   *replay  // nil if the request has none
	timer  *time.Timer
	cancel context.CancelCauseFunc
	status int
}

type exchangeKey struct{}

func (s *http1Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	c := &exchange{s: s, w: w, in: r, ctx: ctx, opts: s.rt.options(), began: time.Now(), cancel: cancel}
	if c.opts.request > 0 {
		c.timer = time.AfterFunc(c.opts.request, func() { cancel(errRequestTimeout) })
		defer c.timer.Stop()
	}
	_ = http.NewResponseController(w).EnableFullDuplex() // an answer may begin while the request goes on; net/http always can
	defer c.end()                                        // as well if the copying of a body panics with http.ErrAbortHandler
	s.proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, exchangeKey{}, c)))
}

// end settles the accounts of a call.
func (c *exchange) end() {
	if c.now != nil {
		c.now.end()
	}
	if c.body != nil {
		c.body.release()
	}
	took := time.Since(c.began)
	c.s.h.count(c.s.rt, func(st *serviceStats) { st.http(protoHTTP1, c.status, took) })
}

// asItCame takes back what ReverseProxy changes in a request: headers, path and query pass as they came, and nothing is added (4.6).
func asItCame(r *httputil.ProxyRequest) {
	for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := r.In.Header[h]; ok {
			r.Out.Header[h] = v
		}
	}
	r.Out.URL.Scheme = "http"
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	if path, _, _ := strings.Cut(r.In.RequestURI, "?"); strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
		r.Out.URL.Opaque = path // with the escapes that the client chose
	}
}

// answered sees a backend's response before it is passed on.
func (s *http1Server) answered(r *http.Response) error {
	c := r.Request.Context().Value(exchangeKey{}).(*exchange)
	c.status = r.StatusCode
	if r.StatusCode == http.StatusSwitchingProtocols && c.timer != nil {
		c.timer.Stop() // an upgraded connection is no request
	}
	if _, ok := r.Header["Content-Type"]; !ok {
		c.w.Header()["Content-Type"] = nil // net/http would guess one
	}
	return nil
}

// failed answers for a backend.
func (s *http1Server) failed(w http.ResponseWriter, r *http.Request, err error) {
	c := r.Context().Value(exchangeKey{}).(*exchange)
	c.status = http.StatusBadGateway
	text := fmt.Sprintf("lbagent: %s: %v", s.rt.name, err)
	switch cause := context.Cause(r.Context()); {
	case errors.As(err, new(*noBackend)):
		c.status, text = http.StatusServiceUnavailable, err.Error()
	case cause == errRequestTimeout:
		c.status = http.StatusGatewayTimeout
		text = fmt.Sprintf("lbagent: %s: %v", s.rt.name, cause)
	case cause == errBackendRemoved, cause == errStopped:
		c.status = http.StatusServiceUnavailable
		text = fmt.Sprintf("lbagent: %s: %v", s.rt.name, cause)
	case cause != nil, c.body != nil && c.body.broken():
		c.status = clientGone // for the counters: nobody reads it
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(c.status)
	fmt.Fprintln(w, text)
}
