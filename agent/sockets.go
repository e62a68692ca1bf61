package agent

import (
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/handoff"
	"github.com/lbagent/lbagent/agent/proxy"
	"golang.org/x/sys/unix"
)

// listenerName is what all processes call the listener of an address.
func listenerName(a proxy.Addr) string {
	if a.Unix != "" {
		return handoff.Unix(a.Unix)
	}
	return handoff.TCP(a.TCP)
}

// wanted names the listeners that c asks for.
func wanted(c *config.Config) []string {
	out := []string{handoff.TCPName(c.AdminListen), handoff.TCPName(c.MetricsAddr), handoff.TCPName(c.API.Listen)}
	for _, s := range c.Services {
		for _, l := range s.Listen {
			out = append(out, listenerName(listenAddr(l)))
		}
	}
	return out
}

// keepListeners has the service manager keep every listener for the next process (SEMANTICS 6.2).
func (a *Agent) keepListeners() {
	a.reload.Lock()
	defer a.reload.Unlock()
	a.keepLocked()
}

// keepLocked is keepListeners under a.reload: what a reload binds must not be taken for what is no longer wanted.
func (a *Agent) keepLocked() {
	var listeners []handoff.Listener
	if a.loop.Load() == 0 { // callers of a crash loop shall not wait for what ends again (6.6)
		listeners = a.listeners()
	}
	defer closeAll(listeners)
	a.tell(a.sockets.Keep(listeners))
}

// listeners are duplicates of all that this process listens on but the API's unix sockets.
func (a *Agent) listeners() []handoff.Listener {
	var out []handoff.Listener
	for _, l := range a.proxy.Listeners() {
		out = append(out, handoff.Listener{Addr: listenerName(l.Addr), FD: l.FD})
	}
	for _, l := range a.admin.Listeners() {
		out = append(out, handoff.Listener{Addr: handoff.TCP(l.Addr), FD: l.FD})
	}
	for _, l := range a.api.Listeners() {
		if !l.TCP.IsValid() {
			_ = unix.Close(l.FD) // its path, or its socket unit, outlives this process
			continue
		}
		out = append(out, handoff.Listener{Addr: handoff.TCP(l.TCP), FD: l.FD})
	}
	return out
}

func closeAll(listeners []handoff.Listener) {
	for _, l := range listeners {
		_ = unix.Close(l.FD)
	}
}
