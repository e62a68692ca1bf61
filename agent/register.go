package agent

import (
	"cmp"
	"errors"
	"os/user"
	"strconv"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/registrar"
	"github.com/lbagent/lbagent/localapi"
)

// register makes the registrar and the API follow what c says of registrations.
func (a *Agent) register(c *config.Config) {
	regs := make([]registrar.Registration, 0, len(c.Register))
	for _, r := range c.Register {
		regs = append(regs, registrar.Registration{
			Service: r.Name, Address: r.Address, Format: r.Format, Prefix: r.Prefix, Weight: r.Weight, Zone: r.Zone, Region: r.Region,
			Metadata: r.Metadata, HostLoad: r.HostLoad,
			Probe: registrar.Probe{
				Type: r.Probe.Type, Interval: r.Probe.Interval, Timeout: r.Probe.Timeout, Rise: r.Probe.Rise, Fall: r.Probe.Fall, Port: r.Probe.Port,
				Path: r.Probe.Path, StatusMin: r.Probe.StatusMin, StatusMax: r.Probe.StatusMax, Service: r.Probe.Service,
			},
		})
	}
	a.placing.Store(c)
	a.registrar.Set(regs, c.RegistrationTTL)
	a.api.SetRegisterRules(a.registerRules(c))
}

// registerRules are register_allow: with numbers. A name that this host doesn't know lets nobody in.
func (a *Agent) registerRules(c *config.Config) []localapi.RegisterRule {
	var out []localapi.RegisterRule
	for _, r := range c.RegisterAllow {
		id, err := accountID(r)
		if err != nil {
			a.log.Warn("register_allow names somebody whom this host doesn't know", "user", r.User, "group", r.Group, "error", err)
			continue
		}
		out = append(out, localapi.RegisterRule{ID: id, Group: r.Group != "", Services: r.Services})
	}
	return out
}

// accountID is the number of the user or group that r names.
func accountID(r config.RegisterAllow) (uint32, error) {
	text := cmp.Or(r.User, r.Group)
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(n), nil
	}
	if r.Group != "" {
		g, err := user.LookupGroup(r.Group)
		if err != nil {
			return 0, err
		}
		text = g.Gid
	} else {
		u, err := user.Lookup(r.User)
		if err != nil {
			return 0, err
		}
		text = u.Uid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err
}

func (a *Agent) place(service, asked string) (registrar.Place, error) {
	return PlaceOf(a.placing.Load(), service, asked)
}

// PlaceOf says where the records of a service go: to where this host reads them, if it does in that format, else to where the format's own libraries look.
func PlaceOf(c *config.Config, service, asked string) (registrar.Place, error) {
	if c == nil || c.Etcd == nil {
		return registrar.Place{}, errors.New("no etcd is configured to register in")
	}
	for i := range c.Services {
		if s := &c.Services[i]; s.Name == service && s.EtcdPrefix != "" && (asked == "" || asked == s.Format) {
			return registrar.Place{Prefix: s.EtcdPrefix, Format: s.Format}, registrar.CheckFormat(s.Format)
		}
	}
	if s, ok := c.OnDemandService(service); ok && (asked == "" || asked == s.Format) {
		return registrar.Place{Prefix: s.EtcdPrefix, Format: s.Format}, registrar.CheckFormat(s.Format)
	}
	name := cmp.Or(asked, format.GRPCNaming)
	return registrar.Place{Prefix: c.Defaults.Namespace + format.Home(name, service), Format: name}, registrar.CheckFormat(name)
}
