package proxy

import (
	"github.com/lbagent/lbagent/agent/table"
	"golang.org/x/sys/unix"
)

// relay is the HTTP/2 side of a worker.
type relay struct{ w *worker }

func newRelay(w *worker) *relay { return &relay{w: w} }

// serve takes a client connection; clientDone follows when it is over.
func (r *relay) serve(rt *route, fd int, received []byte) {
	unix.Close(fd)
	r.w.clientDone(rt, protoH2)
}

// viewChanged says that svc has a new view.
func (r *relay) viewChanged(svc *table.Service) {}

// drain sends GOAWAY to clients; running streams go on.
func (r *relay) drain() {}

// idle reports whether no client connection is left.
func (r *relay) idle() bool { return true }
