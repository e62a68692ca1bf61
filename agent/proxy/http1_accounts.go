package proxy

import (
	"net/netip"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/table"
)

// http1Accounts is the ledger of the connections of HTTP/1.1, which has no loop. They are opened and closed far less often than there are requests.
type http1Accounts struct {
	mu sync.Mutex

	ledger ledger
}

// up notes a new connection, and returns its account.
func (h *http1Accounts) up(rt *route, b *table.Backend, now time.Time) *account {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.ledger.account(rt.svc, b.State, b.Addr)
	h.ledger.up(now, a, protoHTTP1)
	return a
}

func (h *http1Accounts) refused(rt *route, b *table.Backend, now time.Time, cause string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ledger.refused(now, h.ledger.account(rt.svc, b.State, b.Addr), cause)
}

func (h *http1Accounts) down(a *account, e connEnd) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ledger.down(a, e)
}

// of is what is known of the backends in v.
func (h *http1Accounts) of(v *table.View, only netip.AddrPort) map[netip.AddrPort]Connections {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ledger.of(v, only)
}

// wake is the ledger's alarm.
func (h *http1Accounts) wake(after time.Duration) {
	time.AfterFunc(after, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ledger.tick(time.Now())
	})
}
