package agent

import (
	"context"
	"net/netip"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lbagent/lbagent/agent/accesslog"
	"github.com/lbagent/lbagent/agent/admin"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/fleet"
	"github.com/lbagent/lbagent/agent/handoff"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/notify"
	"github.com/lbagent/lbagent/agent/proxy"
	"github.com/lbagent/lbagent/agent/registrar"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"github.com/lbagent/lbagent/localapi"
)

// adminGroup is the group whose members may change the agent (DESIGN.md 6).
const adminGroup = "lbagent"

// wire makes every stage and joins them. The edges that run back against the flow (targets to health, verdicts to the table, dirty marks to the loops,
// on-demand asks to discovery) are the func fields here, so that no package imports a later stage.
func (a *Agent) wire(c *config.Config) (err error) {
	if a.monitor, err = health.New(health.Config{
		Log:      a.log.Named("health"),
		OnChange: func(now time.Time, changes []health.Change) { a.table.SetVerdicts(now, changes) },

		OnSuspicion: a.tellSuspicion,
	}); err != nil {
		return err
	}
	if a.table, err = table.New(table.Config{
		Log:       a.log.Named("table"),
		Events:    a.events,
		OnTargets: a.monitor.SetGroup,
		OnActive:  a.monitor.SetActive,
		OnGone:    func(service string, addr netip.AddrPort, cause string) { a.discovery.Gone(service, addr, cause) },
		Known:     a.known,
		Seed:      hostSeed(c.Node.Name),
		OnPublish: func(s *table.Service) { a.proxy.Publish(s); a.lists.Published(s) },
	}); err != nil {
		return err
	}
	if a.proxy, err = proxy.New(proxy.Config{
		Log: a.log.Named("proxy"), Table: a.table, Events: a.events, Calls: a.calls, Loops: c.Loops, Limits: new(limits(c.Limits)),
		Inherited: func(at proxy.Addr) (int, bool) { return a.sockets.Listener(listenerName(at)) },
		Kept:      a.sockets.Kept(),
		FirstList: readyWithin,
	}); err != nil {
		return err
	}
	a.accessLog = accesslog.New(a.log.Named("access log"), a.calls, a.accessLogFailed)
	a.notify = notify.New(notify.Config{Log: a.log.Named("notify"), Events: a.events, Node: c.Node.Name, Version: a.options.Version, Started: a.started})
	a.etcd = etcd.New(etcd.Options{Log: a.log.Named("etcd"), Events: a.events, Etcd: EtcdOf(c.Etcd)})
	if a.fleet, err = fleet.New(fleet.Config{
		Log: a.log.Named("fleet"), Events: a.events, Dir: c.StateDir, Etcd: a.etcd, OnChange: a.applyFleet,
	}); err != nil {
		return err
	}
	if a.discovery, err = discovery.New(discovery.Config{
		Log:       a.log.Named("discovery"),
		Events:    a.events,
		SpoolDir:  spoolDir(c),
		Etcd:      a.etcd,
		OnList:    a.table.Apply,
		OnConfirm: a.table.Confirm,
		Own:       a.own.listens,
	}); err != nil {
		return err
	}
	if a.mutes, err = mute.New(mute.Config{
		Log:      a.log.Named("mute"),
		Events:   a.events,
		Dir:      filepath.Join(c.StateDir, "mutes"),
		Node:     c.Node.Name,
		Etcd:     a.etcd,
		Prefix:   c.MutePrefix,
		OnMutes:  a.table.SetMutes,
		Backends: a.backends,
	}); err != nil {
		return err
	}
	a.ondemand = &onDemand{
		follow:   a.add,
		followed: func(name string) bool { return a.table.Lookup(name) != nil },
		drop:     a.drop,
		unasked:  a.unasked,
		config:   c,
		owner:    make(map[string]uint32),
		count:    make(map[uint32]int),
	}
	if a.registrar, err = registrar.New(registrar.Config{
		Log: a.log.Named("registrar"), Events: a.events, Etcd: a.etcd, Dir: c.StateDir, Place: a.place,
	}); err != nil {
		return err
	}
	if a.api, err = localapi.New(localapi.Config{
		Log:         a.log.Named("api"),
		Table:       a.table,
		Events:      a.events,
		Socket:      c.API.Socket,
		AdminSocket: c.API.AdminSocket,

		Listen:        c.API.Listen,
		Inherited:     a.sockets.TCPListener,
		Listener:      a.sockets.Socket(handoff.API),
		AdminListener: a.sockets.Socket(handoff.Admin),

		AdminGID: groupID(adminGroup),
		Follow:   func(_ context.Context, name string, uid uint32) error { return a.ondemand.ask(name, uid) },
		Hasten:   a.discovery.Hasten,
		Accept:   a.discovery.Accept,
		Reload:   a.Reload,
		Upgrade:  a.Upgrade,
		Registry: a.registrar,
		Status:   a.status,
		Mutes:    a.mutes,
		Calls:    a.calls,
		Traffic:  a.traffic,
		EtcdNow:  a.etcdNow,
		Hints:    a.hints,
		Outlooks: a.monitor.Outlooks,

		Connections: a.connections,
	}); err != nil {
		return err
	}
	if a.lists, err = localapi.NewLists(localapi.ListsConfig{Log: a.log.Named("lists"), Table: a.table, Dir: c.API.ListsDir()}); err != nil {
		return err
	}
	a.admin, err = admin.New(admin.Config{
		Log:           a.log.Named("admin"),
		Version:       a.options.Version,
		Inherited:     a.sockets.TCPListener,
		Listen:        c.AdminListen,
		MetricsListen: c.MetricsAddr,
		Table:         a.table,
		Events:        a.events,
		API:           a.api.StatusService(),
		Ready:         func() (bool, []string) { return a.ready.Load(), a.missing() },
		ConfigOK:      func() bool { return a.applied.Load().err == nil },
		Etcd:          a.etcd.Status,
		Discovery:     a.discovery.Status,
		Fleet:         a.fleet.Status,
		Health:        a.monitor.Stats,
		Registrar:     a.registrar.Stats,
		Proxy:         a.proxyStats,
		Mutes:         a.mutes.Stats,
		Process:       a.processStats,
		Ask:           a.askStats,
		Notify:        a.notify.Stats,
		AccessLog:     func() admin.AccessLog { return admin.AccessLog(a.accessLog.Stats()) },
	})
	return err
}

// groupID is the id of a group of this host; 0 if there is none of that name, which lets nobody in.
func groupID(name string) uint32 {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(id)
}

// unasked is the time since somebody last asked for a service; very long if it isn't followed.
func (a *Agent) unasked(name string, now time.Time) time.Duration {
	s := a.table.Lookup(name)
	if s == nil {
		return 1<<63 - 1
	}
	return s.Unasked(now)
}

// backends is the list of a service as muting sees it.
func (a *Agent) backends(name string) ([]mute.Backend, bool) {
	s := a.table.Lookup(name)
	if s == nil || !s.View().Ready {
		return nil, false
	}
	v := s.View()
	out := make([]mute.Backend, v.Len())
	for i, b := range v.Backends() {
		out[i] = mute.Backend{Addr: b.Addr, Usable: b.Verdict.Usable(), Draining: b.Draining}
	}
	return out, true
}
