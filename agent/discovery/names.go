package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// How host names are resolved (1.13). net.Resolver doesn't tell the time to live of an answer, so every answer is good for nameEvery.
const (
	nameEvery    = 30 * time.Second      // ± a fifth. Lower costs DNS more, higher finds a move later
	nameRetry    = 5 * time.Second       // after a failure, likewise
	nameTimeout  = 5 * time.Second       // of one lookup, all its tries
	namesAtOnce  = 16                    // lookups: with a dead DNS each lasts nameTimeout
	maxNames     = 256                   // of a service
	maxAllNames  = 4096                  // of all
	maxNameAddrs = 64                    // of a name; those that sort first
	nameTellMost = time.Minute           // between two events of a service about its names
	nameGather   = 10 * time.Millisecond // answers that come at once make one list
)

// LookupFunc resolves a host name.
type LookupFunc func(ctx context.Context, host string) ([]netip.Addr, error)

// lookupBy resolves with r, as other programs of this host do: /etc/hosts, and the servers and search domains of /etc/resolv.conf.
func lookupBy(r *net.Resolver) LookupFunc {
	return func(ctx context.Context, host string) ([]netip.Addr, error) { return r.LookupNetIP(ctx, "ip", host) }
}

// names are the host names in one service's records. Its follower's mu guards them; a goroutine per name asks and reports to answer.
type names struct {
	all     map[string]*name
	ctx     context.Context // of the follower; nil before it runs
	running sync.WaitGroup
	gather  bool      // a list will be made in a moment
	told    time.Time // the last event about them
	failing bool      // what that said
}

// name is one of them.
type name struct {
	host     string
	addrs    []netip.Addr // the last good answer, sorted
	answered time.Time    // when that came; zero = never
	asked    bool         // a lookup has ended
	cause    string       // why the last one failed, empty if it didn't
	failed   time.Time    // since when
	cancel   context.CancelFunc
}

// isName reports whether b is known by its host name only.
func isName(b *service.Backend) bool { return b.Host != "" && !b.Addr.Addr().IsValid() }

// site orders backends by address, and those that are only names by name.
func site(a, b *service.Backend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Host, b.Host))
}

// resolve puts addresses into l where it has host names: every address is a backend of its own. pending reports whether some name has not been asked for yet. The
// caller holds f.mu.
func (f *follower) resolve(now time.Time, l *service.List) (pending bool) {
	n := 0 // they sort first
	for n < len(l.Backends) && isName(l.Backends[n]) {
		n++
	}
	f.wantNames(l.Backends[:n])
	if n == 0 {
		return false
	}
	out := make([]*service.Backend, 0, len(l.Backends)+n)
	for _, b := range l.Backends[:n] {
		nm := f.names.all[b.Host]
		if nm == nil {
			showLost(l, service.LostName{Host: b.Host, Cause: fmt.Sprintf("the service has more than %d host names", maxNames), Since: now})
			continue
		}
		pending = pending || !nm.asked
		if nm.cause != "" {
			showLost(l, service.LostName{Host: b.Host, Cause: nm.cause, Since: nm.failed, Answered: nm.answered})
		}
		for _, a := range nm.addrs {
			one := new(*b)
			one.Addr = netip.AddrPortFrom(a, b.Addr.Port())
			out = append(out, one)
		}
	}
	out = append(out, l.Backends[n:]...)
	slices.SortStableFunc(out, func(a, b *service.Backend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), newer(a, b), strings.Compare(a.Host, b.Host))
	})
	l.Backends = slices.CompactFunc(out, func(a, b *service.Backend) bool { return a.Addr == b.Addr })
	return pending
}

// showLost notes a name; one that stands in several records once.
func showLost(l *service.List, n service.LostName) {
	if slices.ContainsFunc(l.Lost, func(o service.LostName) bool { return o.Host == n.Host }) {
		return
	}
	if l.LostCount++; len(l.Lost) < service.MaxBadRecords {
		l.Lost = append(l.Lost, n)
	}
}

// unresolve is the inverse of resolve: it takes the last good answers out of a list of the spool.
func (f *follower) unresolve(l *service.List) {
	if !slices.ContainsFunc(l.Backends, func(b *service.Backend) bool { return b.Host != "" }) {
		return
	}
	var out []*service.Backend
	type record struct{ host, key string }
	seen := make(map[record]bool)
	for i := range l.Backends {
		b := l.Backends[i]
		if b.Host != "" {
			nm := f.names.get(b.Host)
			if nm == nil {
				continue
			}
			nm.addrs, nm.answered = append(nm.addrs, b.Addr.Addr()), l.Confirmed
			b = new(*b)
			b.Addr = netip.AddrPortFrom(netip.Addr{}, b.Addr.Port())
			if r := (record{fmt.Sprint(b.Host, ":", b.Addr.Port()), b.Key}); seen[r] {
				continue
			} else {
				seen[r] = true
			}
		}
		out = append(out, b)
	}
	if len(seen) == 0 {
		return
	}
	for _, nm := range f.names.all {
		slices.SortFunc(nm.addrs, netip.Addr.Compare)
		nm.addrs = slices.Compact(nm.addrs)
	}
	slices.SortStableFunc(out, better)
	l.Backends = slices.CompactFunc(out, func(a, b *service.Backend) bool { return site(a, b) == 0 })
}

// get returns the name, which it adds if there is room.
func (n *names) get(host string) *name {
	if nm := n.all[host]; nm != nil || len(n.all) >= maxNames {
		return nm
	}
	if n.all == nil {
		n.all = make(map[string]*name)
	}
	nm := &name{host: host}
	n.all[host] = nm
	return nm
}

// wantNames asks for the names of these backends from now on, and for no others. The caller holds f.mu.
func (f *follower) wantNames(of []*service.Backend) {
	if len(of) == 0 && len(f.names.all) == 0 {
		return
	}
	wanted := make(map[string]bool, len(of))
	for i := range of {
		wanted[of[i].Host] = true
	}
	for host, nm := range f.names.all {
		if !wanted[host] {
			if nm.cancel != nil {
				nm.cancel()
			}
			delete(f.names.all, host)
		}
	}
	for i := range of {
		if nm := f.names.get(of[i].Host); nm != nil {
			f.startName(nm)
		}
	}
}

// startNames begins to ask, once the follower runs.
func (f *follower) startNames(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names.ctx = ctx
	for _, nm := range f.names.all {
		f.startName(nm)
	}
}

// stopNames waits until nobody asks any more; the follower's context has ended.
func (f *follower) stopNames() {
	f.mu.Lock()
	f.names.ctx = nil
	f.mu.Unlock()
	f.names.running.Wait()
}

func (f *follower) startName(nm *name) {
	if f.names.ctx == nil || nm.cancel != nil {
		return
	}
	if f.d.names.Add(1) > maxAllNames { // the next list tries again: there may be room by then
		f.d.names.Add(-1)
		if nm.cause == "" {
			nm.asked, nm.cause, nm.failed = true, fmt.Sprintf("the agent has more than %d host names", maxAllNames), time.Now()
		}
		return
	}
	ctx, cancel := context.WithCancel(f.names.ctx)
	nm.cancel = cancel
	f.names.running.Go(func() {
		defer f.d.names.Add(-1)
		f.keepName(ctx, nm)
	})
}

// keepName asks for a name until ctx ends.
func (f *follower) keepName(ctx context.Context, nm *name) {
	for ctx.Err() == nil {
		addrs, err := f.d.lookup(ctx, nm.host)
		if ctx.Err() != nil {
			return
		}
		f.answer(time.Now(), nm, addrs, err)
		wait := nameEvery
		if err != nil {
			wait = nameRetry
		}
		etcd.Sleep(ctx, wait*4/5+rand.N(wait*2/5), nil)
	}
}

// lookup asks for a name, with no more than namesAtOnce others.
func (d *Discovery) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	select {
	case d.lookups <- struct{}{}:
		defer func() { <-d.lookups }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	all, err := d.cfg.Lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i] = all[i].Unmap().WithZone("")
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	if len(all) == 0 {
		return nil, errors.New("it has no address")
	}
	return all[:min(len(all), maxNameAddrs)], nil
}

// answer takes how a lookup ended. What was known stays when it failed.
func (f *follower) answer(now time.Time, nm *name, addrs []netip.Addr, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.names.all[nm.host] != nm {
		return
	}
	first, wasFailing, had := !nm.asked, nm.cause != "", nm.addrs
	nm.asked = true
	switch {
	case err == nil:
		nm.addrs, nm.answered, nm.cause = addrs, now, ""
	case nm.cause == "":
		nm.cause, nm.failed = lookupCause(err), now
	}
	f.tellNames(now, nm)
	if changed := first || wasFailing != (nm.cause != "") || !slices.Equal(had, nm.addrs); !changed || f.names.gather {
		return
	}
	f.names.gather = true
	time.AfterFunc(nameGather, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.names.gather = false
		f.remakeLocked(time.Now())
	})
}

// lookupCause is err in few words.
func lookupCause(err error) string {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case e.IsTimeout:
			return "no answer from DNS"
		case e.Server != "":
			return fmt.Sprintf("%s (%s)", e.Err, e.Server)
		}
		return e.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer from DNS"
	}
	return err.Error()
}

// tellNames says when names of the service can't be resolved, and when all can be again; not more often than nameTellMost.
func (f *follower) tellNames(now time.Time, nm *name) {
	failing := 0
	for _, o := range f.names.all {
		if o.cause != "" {
			failing++
		}
	}
	if failing > 0 == f.names.failing || !f.names.told.IsZero() && now.Sub(f.names.told) < nameTellMost {
		return
	}
	if failing > 0 && nm.cause == "" {
		return // it is for another one to say so
	}
	f.names.told, f.names.failing = now, failing > 0
	detail := "all host names are resolved again"
	if failing > 0 {
		detail = fmt.Sprintf("host name %s can't be resolved: %s", nm.host, nm.cause)
		if len(nm.addrs) > 0 {
			detail += fmt.Sprintf("; its last answer is kept, addresses: %d, %v old", len(nm.addrs), now.Sub(nm.answered).Round(time.Second))
		}
		f.d.log.Warn("a host name can't be resolved", "service", f.follow.Name, "host", nm.host, "cause", nm.cause, "kept", len(nm.addrs))
	} else {
		f.d.log.Info("host names are resolved again", "service", f.follow.Name)
	}
	if f.d.cfg.Events != nil {
		f.d.cfg.Events.Add(event.Event{Time: now, Kind: event.Name, Service: f.service(), Detail: detail})
	}
}
