package proxy

import (
	"context"

	"golang.org/x/sys/unix"
)

type http1 struct{ p *Proxy }

func newHTTP1(p *Proxy) *http1 { return &http1{p: p} }
func (h *http1) run(ctx context.Context) {}
func (h *http1) drain() <-chan struct{}  { c := make(chan struct{}); close(c); return c }
func (h *http1) publish()                {}
func (h *http1) snapshot() snapshot      { return snapshot{} }
func (h *http1) remove(rt *route)        {}
func (h *http1) serve(rt *route, fd int, received []byte) {
	unix.Close(fd)
	h.p.clients.Add(-1)
}
