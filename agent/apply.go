package agent

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/proxy"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// follow is s as discovery takes it.
func follow(s config.Service) discovery.Follow {
	f := discovery.Follow{
		Name: s.Name, Prefix: s.EtcdPrefix, Key: s.EtcdKey, Format: s.Format, Static: s.Backends, Hold: s.GuardHold,
		Select: s.Select, Allow: s.Allow, Deny: s.Deny,
	}
	if of := s.Fallback; of != nil {
		f.Fallback = &discovery.Follow{Prefix: of.EtcdPrefix, Format: cmp.Or(of.Format, s.Format), Static: of.Backends, Allow: s.Allow, Deny: s.Deny}
	}
	return f
}

// EtcdOf is e as package etcd takes it; nil stays nil.
func EtcdOf(e *config.Etcd) *etcd.Config {
	if e == nil {
		return nil
	}
	return &etcd.Config{
		Endpoints: e.Endpoints, Username: e.Username, PasswordFile: e.PasswordFile,
		CAFile: e.TLS.CAFile, CertFile: e.TLS.CertFile, KeyFile: e.TLS.KeyFile, ServerName: e.TLS.ServerName,
	}
}

// SpecOf is s as the table takes it.
func SpecOf(s config.Service) table.Spec {
	listeners := make([]string, 0, len(s.Listen))
	for _, l := range s.Listen {
		listeners = append(listeners, listenAddr(l).String())
	}
	return table.Spec{
		Name:         s.Name,
		Policy:       picker.Policy(s.Policy),
		PanicPercent: s.PanicPercent,
		Drain:        s.Drain,
		OnDemand:     s.OnDemand,
		Fleet:        s.Item != "",
		Listeners:    listeners,
		Protocol:     s.Protocol,
		InUse:        len(s.Listen) > 0,

		DynamicWeight: s.DynamicWeight, Load: s.Load, SlowStart: s.SlowStart, Zone: s.Zone, Subset: s.Subset,
		Health: health.Options{
			Probe: health.ProbeType(s.Probe.Type), HTTP2: s.Protocol == "h2",
			Interval: s.Probe.Interval, Timeout: s.Probe.Timeout, Rise: s.Probe.Rise, Fall: s.Probe.Fall,
			Port: s.Probe.Port, Path: s.Probe.Path, Status: [2]int{s.Probe.StatusMin, s.Probe.StatusMax}, HealthName: s.Probe.Service,
			Eject: s.Eject.On, Observe: s.Eject.Observe, Consecutive: s.Eject.Consecutive, SuccessRate: s.Eject.SuccessRate,
			EjectBase: s.Eject.Base, EjectMax: s.Eject.Max, MaxPercent: s.Eject.MaxPercent, PanicPercent: s.PanicPercent,
		},
	}
}

// served are the services of the proxy: those without a listener as well, as a client of one that a reload took away still has its connection.
func served(c *config.Config) []proxy.Service {
	var out []proxy.Service
	for _, s := range c.Services {
		p := proxy.Service{
			Name: s.Name, Protocol: s.Protocol, Authority: s.Authority, HashHeader: s.HashHeader,
			Connect: s.Timeout.Connect, Request: s.Timeout.Request, Idle: s.Timeout.Idle, Drain: s.Drain,
			Retry:         proxy.Retry{On: s.Retry.On, Max: s.Retry.Max, BudgetPercent: s.Retry.BudgetPercent},
			ReconnectBase: s.Reconnect.Base, ReconnectMax: s.Reconnect.Max,
		}
		for _, l := range s.Listen {
			p.Listen = append(p.Listen, listenAddr(l))
		}
		out = append(out, p)
	}
	return out
}

// limits is l as the proxy takes it.
func limits(l config.Limits) proxy.Limits {
	return proxy.Limits{
		Connections: l.Connections, StreamsPerConnection: l.StreamsPerConnection, HeaderBytes: l.HeaderBytes, HeaderFields: l.HeaderFields,
		Buffered: l.Buffered, BackendConnections: l.BackendConnections,
	}
}

func listenAddr(l config.Listen) proxy.Addr { return proxy.Addr{TCP: l.TCP, Unix: l.Unix} }

// restartOnly are the keys that a reload can't change: what they name is held for the life of the process.
func restartOnly(section string) bool {
	switch section {
	case "api", "admin", "metrics", "state_dir", "proxy":
		return true
	}
	return false
}

// differs says in words what next changes of old, a line each. The error names what takes a restart.
func differs(old, next *config.Config) ([]string, error) {
	change := config.Compare(old, next)
	var lines []string
	for _, section := range change.Sections {
		if restartOnly(section) {
			return nil, fmt.Errorf("%s: can't be changed by a reload, which was refused whole; put it back, or run systemctl restart lbagent", section)
		}
		lines = append(lines, section+": changed")
	}
	for _, c := range []struct {
		what  string
		names []string
	}{{"added", change.Added}, {"changed", change.Changed}, {"removed", change.Removed}} {
		for _, name := range c.names {
			lines = append(lines, "service "+name+": "+c.what)
		}
	}
	return lines, nil
}

// put makes the table and discovery follow all that next says; old is what they follow now (empty at start). What next no longer names stays until prune: its
// listeners are closed in between.
func (a *Agent) put(old, next *config.Config) {
	a.etcd.Set(EtcdOf(next.Etcd))
	a.own.set(next)
	a.mutes.SetPrefix(a.now(), next.MutePrefix)
	change := config.Compare(old, next)
	touched := make(map[string]bool) // what did not change isn't (6.1)
	for _, name := range slices.Concat(change.Added, change.Changed) {
		touched[name] = true
	}
	var services []config.Service
	for _, s := range next.Services {
		if touched[s.Name] {
			services = append(services, s)
		}
	}
	a.ondemand.configure(services...)
	a.ondemand.set(next)
	a.register(next)
	a.discovery.Remake()
}

// prune drops the services that old names and next doesn't.
func (a *Agent) prune(old, next *config.Config) {
	for _, name := range config.Compare(old, next).Removed {
		a.drop(name)
	}
}

// add follows services, or changes how they are followed.
func (a *Agent) add(services ...config.Service) {
	specs := make([]table.Spec, len(services))
	for i := range services {
		specs[i] = SpecOf(services[i])
	}
	a.table.SetSpec(a.now(), specs...)
	for i := range services {
		a.discovery.Set(follow(services[i]))
	}
}

// drop stops following a service.
func (a *Agent) drop(name string) {
	a.discovery.Remove(name)
	a.table.Remove(a.now(), name)
}
