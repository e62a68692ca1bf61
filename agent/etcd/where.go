package etcd

import (
	"net"
	"sync"
)

// where knows which endpoint is connected. Safe for concurrent use.
type where struct {
	mu sync.Mutex

	dialed map[string]string // endpoint by the address that it had
	now    string            // the endpoint that shook hands last
}

func (w *where) dial(endpoint string, c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dialed == nil || len(w.dialed) > 100 { // names may have many addresses in time
		w.dialed = make(map[string]string)
	}
	w.dialed[c.RemoteAddr().String()] = endpoint
}

func (w *where) shake(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.dialed[c.RemoteAddr().String()]
}

func (w *where) connected() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}
