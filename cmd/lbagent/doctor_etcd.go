package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/etcd"
)

const (
	// etcdAll bounds what all questions to etcd take together, so that doctor on a host that is cut off ends while somebody looks.
	etcdAll = 20 * time.Second
	// etcdAnswers bounds one of them.
	etcdAnswers = 5 * time.Second
)

// checkEtcd looks at each endpoint by itself, then at the login, then at what this user may do.
func (d *doctor) checkEtcd(ctx context.Context) {
	const check = "etcd"
	if d.c.Etcd == nil {
		d.ok(check, "none is configured; static backends only")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, etcdAll)
	defer cancel()
	e := *agent.EtcdOf(d.c.Etcd)
	reached := d.checkEndpoints(ctx, e)
	if reached == 0 {
		return // nothing else could be told
	}
	c, err := dialEtcd(ctx, e)
	if errors.Is(err, fs.ErrPermission) {
		d.warn("etcd rights", "they could not be looked at: "+err.Error(), "run doctor as root, or as the agent's user")
		return
	}
	if err != nil {
		mend := "look at etcd itself: etcdctl endpoint health --cluster"
		if e.Username != "" {
			mend = fmt.Sprintf("etcdctl user get %s says whether etcd knows the user; its password belongs into %s", e.Username, e.PasswordFile)
		}
		d.bad(check, err.Error(), mend)
		return
	}
	defer c.Close()
	d.checkRights(ctx, c, e.Username)
}

// checkEndpoints asks each endpoint something that takes a leader to answer; whether this user may know the answer is of no interest here.
func (d *doctor) checkEndpoints(ctx context.Context, e etcd.Config) (reached int) {
	const check = "etcd"
	errs := make([]error, len(e.Endpoints))
	var wait sync.WaitGroup
	for i, endpoint := range e.Endpoints {
		one := e
		one.Endpoints, one.Username, one.PasswordFile = []string{endpoint}, "", ""
		wait.Go(func() { errs[i] = answers(ctx, one) })
	}
	wait.Wait()
	for i, err := range errs {
		if err == nil {
			reached++
			continue
		}
		what := fmt.Sprintf("%s: %v", e.Endpoints[i], etcd.Plain(err))
		mend := "is that etcd running, and does a firewall let this host through? Else take it out of etcd.endpoints"
		d.bad(check, what, mend)
	}
	if reached > 0 {
		d.ok(check, "%d of %d endpoints answer, and have a leader", reached, len(errs))
	}
	return reached
}

func answers(ctx context.Context, e etcd.Config) error {
	ctx, cancel := context.WithTimeout(ctx, etcdAnswers)
	defer cancel()
	// A client of etcd would go on trying; the kernel's own first answer is what a person wants to know.
	if u, err := url.Parse(e.Endpoints[0]); err == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return fmt.Errorf("no connection: %w", err)
		}
		conn.Close()
	}
	c, err := dialEtcd(ctx, e)
	if err != nil {
		if text, found := strings.CutPrefix(err.Error(), "no connection to etcd at "+e.Endpoints[0]+": "); found {
			return fmt.Errorf("no connection: %s", text)
		}
		return err
	}
	defer c.Close()
	if _, err := c.Newest(ctx, "lbagent/doctor/"); err != nil && !etcd.IsAuth(err) && !etcd.IsDenied(err) {
		return fmt.Errorf("it can't answer: %w", err)
	}
	return nil
}

// need is a right that the agent wants in etcd.
type need struct {
	what  string // who wants it
	at    string // a prefix, ending in /, or a key
	write bool
	keys  bool // it is odd if there are none
}

// needs are all rights that the configuration takes.
func needs(c *config.Config) []need {
	var all []need
	for _, s := range c.Services {
		if at := s.EtcdPrefix + s.EtcdKey; at != "" {
			all = append(all, need{what: "service " + s.Name, at: at, keys: true})
		}
	}
	if c.Fleet != nil {
		all = append(all, need{what: "fleet.prefix", at: c.Fleet.Prefix})
	}
	if c.MutePrefix != "" {
		all = append(all, need{what: "mute.prefix", at: c.MutePrefix})
	}
	for _, r := range c.Register {
		prefix := r.Prefix
		if prefix == "" {
			place, err := agent.PlaceOf(c, r.Name, r.Format)
			if err != nil {
				continue // the agent's own view says why
			}
			prefix = place.Prefix
		}
		all = append(all, need{what: "register " + r.Name, at: prefix, write: true})
	}
	return slices.Compact(all)
}

// checkRights asks for what the agent asks for. Writing is asked for by a transaction that never comes true.
func (d *doctor) checkRights(ctx context.Context, c etcd.Client, username string) {
	const check = "etcd rights"
	all, before := needs(d.c), len(d.findings)
	for _, n := range all {
		right, word := "read", "read"
		r, err := c.Newest(ctx, n.at)
		if err == nil && n.write {
			right, word = "readwrite", "write"
			err = etcd.MayWrite(ctx, c, n.at+"lbagent-doctor")
		}
		switch {
		case etcd.IsDenied(err):
			mend := fmt.Sprintf("etcdctl role grant-permission ROLE %s %s%s, with a role of user %s", right, prefixFlag(n.at), n.at, username)
			if n.what == "mute.prefix" {
				d.warn(check, fmt.Sprintf("%s: user %s may not %s %s: fleet-wide mutes don't reach this host", n.what, username, word, n.at), mend+"; or turn them off: mute: {prefix: \"\"}")
				continue
			}
			d.bad(check, fmt.Sprintf("%s: user %s may not %s %s", n.what, username, word, n.at), mend)
		case etcd.IsAuth(err):
			d.bad(check, fmt.Sprintf("%s: %v: etcd wants a user", n.what, err), "configure etcd.username and etcd.password_file")
			return
		case err != nil:
			d.bad(check, fmt.Sprintf("%s: read %s: %v", n.what, n.at, err), "look at etcd itself: etcdctl endpoint health --cluster")
			return // the next would say the same
		case n.keys && r.Count == 0:
			d.warn(check, fmt.Sprintf("%s: there are no keys at %s", n.what, n.at), "has nothing registered yet, or is the prefix another one? lbagent scan lists what there is")
		}
	}
	d.well(before, check, "all that the configuration takes is allowed: %s", plural(len(all), "right"))
}

func prefixFlag(at string) string {
	if strings.HasSuffix(at, "/") {
		return "--prefix=true "
	}
	return ""
}
