package agent

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/config"
)

// ownAddressesFor is how long the addresses of this host's interfaces are believed.
const ownAddressesFor = 10 * time.Second

// own knows where this agent listens (SEMANTICS 1.14): a backend at such an address would send calls round for ever.
type own struct {
	ports atomic.Pointer[map[uint16][]netip.Addr] // by port

	mu    sync.Mutex
	hosts map[netip.Addr]bool // of this host
	read  time.Time           // when
}

// set takes the listeners of a configuration.
func (o *own) set(c *config.Config) {
	ports := make(map[uint16][]netip.Addr)
	add := func(a netip.AddrPort) { ports[a.Port()] = append(ports[a.Port()], a.Addr()) }
	for _, s := range c.Services {
		for _, l := range s.Listen {
			if l.TCP.IsValid() {
				add(l.TCP)
			}
		}
	}
	for _, listen := range []string{c.AdminListen, c.MetricsAddr, c.API.Listen} {
		if len(listen) > 0 && listen[0] == ':' {
			listen = "[::]" + listen
		}
		if a, err := netip.ParseAddrPort(listen); err == nil { // else it is off
			add(a)
		}
	}
	o.ports.Store(&ports)
}

// listens reports whether the agent listens at a.
func (o *own) listens(a netip.AddrPort) bool {
	ports := o.ports.Load()
	if ports == nil {
		return false
	}
	for _, l := range (*ports)[a.Port()] {
		// [::] takes IPv4 too.
		if l == a.Addr() || l.IsUnspecified() && (l.Is6() || a.Addr().Is4()) && o.here(time.Now(), a.Addr()) {
			return true
		}
	}
	return false
}

// here reports whether ip is an address of this host.
func (o *own) here(now time.Time, ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hosts == nil || now.Sub(o.read) >= ownAddressesFor {
		o.hosts, o.read = make(map[netip.Addr]bool), now
		addrs, _ := net.InterfaceAddrs() // without, loopback is what is known
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					o.hosts[ip.Unmap()] = true
				}
			}
		}
	}
	return o.hosts[ip]
}
