package proxy

import (
	"github.com/lbagent/lbagent/agent/table"
	"golang.org/x/sys/unix"
)

type session struct{}

func (w *worker) serveTCP(rt *route, fd int, received []byte) {
	unix.Close(fd)
	w.clientDone(rt, protoTCP)
}
func (w *worker) tcpViewChanged(svc *table.Service) {}
func (w *worker) drainTCP()                         {}
