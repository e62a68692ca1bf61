package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
)

// entry is one registration with what is known of it. The registrar's lock guards it.
type entry struct {
	Registration

	origin Origin
	uid    uint32 // of who asked for it; of the agent itself for the configuration's
	seq    uint64 // rises with every new entry
	port   uint16
	own    bool       // the address is this host's own
	fixed  netip.Addr // if it isn't
	holder *Held      // of FromHold; nil = not claimed since the agent started

	addr  netip.AddrPort // what others reach it by; invalid while that isn't known
	pulse pulse
	loads loads
	stop  context.CancelFunc // ends its probes; nil while there are none

	key       string // that it wants, "" = none
	why       string // why it wants none, or why the key isn't as it should be
	announced bool   // etcd has it
	draining  bool   // and says that it is out of service
	since     time.Time
}

// wants works out which keys should be there, in the order in which registrations win where two would have the same. wanted is the version of what it saw; next is
// when a load is due to be written or a claim to end, 0 = never.
func (r *Registrar) wants(now time.Time) (out []want, wanted uint64, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	soon := func(at time.Time) {
		if d := at.Sub(now); !at.IsZero() && d > 0 {
			next = shorter(next, d)
		}
	}
	r.expireClaimsLocked(now)
	soon(r.claimBy)
	taken := make(map[string]id)
	for _, e := range r.sortedLocked() {
		w, why := r.wantLocked(now, e)
		if first, ok := taken[w.key]; ok && why == "" {
			why = fmt.Sprintf("key %s is that of %s already", w.key, first)
		}
		e.key, e.why = "", why
		if why != "" {
			continue
		}
		e.key = w.key
		taken[w.key] = e.id()
		out = append(out, w)
		soon(e.loads.next())
	}
	return out, r.wanted, next
}

// wantLocked is the key and value of e, or why it should have none now.
func (r *Registrar) wantLocked(now time.Time, e *entry) (want, string) {
	place, err := r.cfg.Place(e.Service, e.Format)
	if err != nil {
		return want{}, err.Error()
	}
	if e.own {
		if !r.ownAddr.IsValid() {
			if r.ownErr != nil {
				return want{}, r.ownErr.Error()
			}
			return want{}, "this host's own address isn't known yet"
		}
		e.fixed = r.ownAddr
	}
	e.addr = netip.AddrPortFrom(e.fixed, e.port)
	rec := format.Registration{
		Service: e.Service, Prefix: cmp.Or(e.Prefix, place.Prefix), Addr: e.addr, Weight: e.Weight, Zone: e.Zone, Region: e.Region, Metadata: e.Metadata,
	}
	key, _, err := format.Encode(place.Format, rec)
	if err != nil {
		return want{}, err.Error()
	}
	r.beginLocked(now, e, key)
	if !e.pulse.up {
		return want{}, e.pulse.words()
	}
	if r.withdrawn {
		return want{}, "withdrawn (lbagent deregister --all), until the agent starts again"
	}
	d, drained := r.drains[e.Service]
	rec.Draining = drained
	rec.Load, rec.LoadAt = e.loads.take(now)
	key, value, err := format.Encode(place.Format, rec)
	switch {
	case drained && d.Remove, errors.Is(err, format.ErrNoDrainMark):
		return want{}, "drained; lbagent undrain brings it back"
	case err != nil:
		return want{}, err.Error()
	}
	e.draining = drained
	return want{key, value}, ""
}

// beginLocked starts the probes of e, now that its address is known. A key that another life of this host wrote stays until the probe says otherwise (5.3): the
// service was well, and nobody has seen it die.
func (r *Registrar) beginLocked(now time.Time, e *entry, key string) {
	if e.stop != nil || r.spawn == nil {
		return
	}
	p := e.Probe.withDefaults()
	if e.pulse.since.IsZero() && (r.inherited[key] || health.ProbeType(p.Type) == health.ProbeNone) {
		e.pulse = pulse{up: true, since: now, passes: 1}
	}
	delete(r.inherited, key)
	r.spawn(e)
}

// watch probes e until ctx ends.
func (r *Registrar) watch(ctx context.Context, e *entry) {
	p := e.Probe.withDefaults()
	if health.ProbeType(p.Type) == health.ProbeNone {
		return
	}
	t := time.NewTicker(p.Interval)
	defer t.Stop()
	for {
		r.mu.Lock()
		addr := e.addr
		r.mu.Unlock()
		got := r.probe(ctx, p.options(), addr)
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		moved := e.pulse.take(time.Now(), got, p.Rise, p.Fall)
		if moved {
			r.touchLocked()
		}
		r.mu.Unlock()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// touchLocked notes that what is wanted changed.
func (r *Registrar) touchLocked() {
	r.wanted++
	r.tellLocked()
	r.poke()
}

// tellLocked wakes who waits for a change.
func (r *Registrar) tellLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// settled notes what a sync came to.
func (r *Registrar) settled(now time.Time, k *keeper, wanted uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Writes, r.stats.LeaseLosses = k.writes, k.losses
	switch {
	case err == nil && len(k.slots) > 0, etcd.IsDenied(err): // a refusal is an answer
		r.cfg.Etcd.OK()
	case err != nil && !errors.Is(err, errFight) && !etcd.IsAuth(err):
		r.cfg.Etcd.Fail(err)
	}
	if err != nil {
		err = etcd.Plain(err)
		r.stats.Failures++
		if r.syncErr == nil {
			r.cfg.Log.Warn("registrations could not be brought to etcd; trying again", "cause", err)
		}
		r.syncErr = err
		r.tellLocked()
		return
	}
	if r.syncErr != nil {
		r.cfg.Log.Info("registrations are in etcd again")
	}
	r.syncErr, r.applied, r.stats.LastOK = nil, wanted, now
	for _, e := range r.entries {
		is := false
		if s := k.slots[e.key]; e.key != "" && s != nil {
			e.why = s.problem()
			is = e.why == ""
		}
		r.announceLocked(now, e, is)
	}
	r.tellLocked()
}

// announceLocked notes whether etcd has e, and says so if that is news.
func (r *Registrar) announceLocked(now time.Time, e *entry, is bool) {
	if e.announced == is {
		return
	}
	e.announced, e.since = is, now
	text := "announced as " + e.key
	if !is {
		text = "not announced any more: " + e.why
	}
	r.eventLocked(now, e, text)
}

func (r *Registrar) eventLocked(now time.Time, e *entry, text string) {
	r.cfg.Log.Info("registration", "service", e.Service, "address", e.Address, "state", text)
	r.cfg.Events.Add(event.Event{Time: now, Kind: event.Registration, Service: e.Service, Backend: addressOf(e), Detail: text})
}

// addressOf is the address of e for a person: as others reach it, if that is known.
func addressOf(e *entry) string {
	if e.addr.IsValid() {
		return e.addr.String()
	}
	return e.Address
}

// rank is the order in which origins win.
func (o Origin) rank() int { return slices.Index([]Origin{FromConfig, FromAPI, FromHold}, o) }

// sortedLocked are the entries, those that win first.
func (r *Registrar) sortedLocked() []*entry {
	return slices.SortedFunc(maps.Values(r.entries), func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.origin.rank(), b.origin.rank()), cmp.Compare(a.seq, b.seq))
	})
}

func sortedSlots(slots map[string]*slot) []*slot {
	return slices.SortedFunc(maps.Values(slots), func(a, b *slot) int { return strings.Compare(a.key, b.key) })
}

// put adds e, or puts it in the place of one of the same id, whose pulse it keeps: that somebody changes a weight is no reason to leave etcd.
func (r *Registrar) put(e *entry) {
	// It was checked.
	a, own, _ := parseAddress(e.Address)
	e.port, e.own = a.Port(), own
	if !own {
		e.fixed = a.Addr()
	}
	r.seq++
	e.seq, e.since = r.seq, time.Now()
	if old := r.entries[e.id()]; old != nil {
		e.seq, e.pulse, e.loads = old.seq, old.pulse, old.loads
		e.announced, e.since, e.key, e.draining = old.announced, old.since, old.key, old.draining
		old.end()
	}
	r.entries[e.id()] = e
}

// end stops what runs for e.
func (e *entry) end() {
	if e.stop != nil {
		e.stop()
	}
}

// dropLocked removes e.
func (r *Registrar) dropLocked(now time.Time, e *entry, why string) {
	e.end()
	delete(r.entries, e.id())
	e.why = why
	r.announceLocked(now, e, false)
	r.touchLocked()
}

// expireClaimsLocked drops held registrations that nobody claimed in time (5.4).
func (r *Registrar) expireClaimsLocked(now time.Time) {
	if r.claimBy.IsZero() || now.Before(r.claimBy) {
		return
	}
	r.claimBy = time.Time{}
	for _, e := range r.sortedLocked() {
		if e.origin == FromHold && e.holder == nil {
			r.dropLocked(now, e, "its holder did not come back after the agent's restart")
		}
	}
}

// sampleHost measures this host's load while a registration asks for it (5.6).
func (r *Registrar) sampleHost(ctx context.Context) {
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	var before cpu
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		r.mu.Lock()
		asked := false
		for _, e := range r.entries {
			asked = asked || e.HostLoad
		}
		r.mu.Unlock()
		if !asked {
			before = cpu{}
			continue
		}
		c, err := r.cpu()
		if err != nil {
			continue // a host without /proc/stat has no load to tell
		}
		if before != (cpu{}) {
			r.noteLoad(c.since(before), func(e *entry) bool { return e.HostLoad })
		}
		before = c
	}
}

// noteLoad notes the load of the entries that of accepts; it is written when that is worth it.
func (r *Registrar) noteLoad(load int, of func(*entry) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		if of(e) {
			before := e.loads.next()
			e.loads.known, e.loads.latest = true, load
			if !e.loads.next().Equal(before) {
				r.touchLocked()
			}
		}
	}
}

// stateLocked is what is to be kept on disk.
func (r *Registrar) stateLocked() state {
	s := r.keep
	s.Withdrawn = r.withdrawn
	for _, e := range r.sortedLocked() {
		if e.origin != FromConfig {
			s.Registrations = append(s.Registrations, regFile{Registration: e.Registration, UID: e.uid, Hold: e.origin == FromHold})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.drains)) {
		s.Drains = append(s.Drains, r.drains[name])
	}
	return s
}
