package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Status is how one registration stands.
type Status struct {
	Service   string
	Address   string         // as it was asked for
	Addr      netip.AddrPort // as others reach it; invalid while that isn't known
	Key       string         // "" while it has none
	Announced bool
	Draining  bool   // announced as out of service, or not announced since it is drained
	Why       string // why it isn't announced
	Since     time.Time
	Origin    Origin
	UID       uint32
	Unclaimed bool // held, by a process that has not come back since the agent's start
}

// Stats is what metrics are made of.
type Stats struct {
	Wanted, Announced int
	LeaseLosses       uint64 // leases that died under registrations
	Writes            uint64 // keys put and deleted
	Failures          uint64 // syncs that failed
	LastOK            time.Time
	FileError         string // why the state can't be written to disk; "" if it can
}

func (e *entry) statusLocked() Status {
	return Status{
		Service: e.Service, Address: e.Address, Addr: e.addr, Key: e.key, Announced: e.announced, Draining: e.draining, Why: e.why, Since: e.since,
		Origin: e.origin, UID: e.uid, Unclaimed: e.origin == FromHold && e.holder == nil,
	}
}

func (r *Registrar) statusLocked(e *entry) Status {
	s := e.statusLocked()
	_, s.Draining = r.drains[e.Service]
	if silent := time.Since(r.stats.LastOK); s.Announced && silent > r.ttl {
		s.Announced, s.Why = false, fmt.Sprintf("etcd has not been reached for %v, longer than the lease lives", silent.Round(time.Second))
	}
	switch {
	case s.Announced:
		s.Why = ""
	case s.Why == "" && r.syncErr != nil:
		s.Why = "etcd has not been told: " + r.syncErr.Error()
	case s.Why == "":
		s.Why = "etcd has not been told yet"
	}
	return s
}

// Status is how every registration stands, sorted by service and address.
func (r *Registrar) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Status, 0, len(r.entries))
	for _, e := range r.entries {
		out = append(out, r.statusLocked(e))
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Address, b.Address))
	})
	return out
}

// Stats returns the counters of now.
func (r *Registrar) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Wanted = len(r.entries)
	for _, e := range r.entries {
		if e.announced {
			s.Announced++
		}
	}
	return s
}

// Await waits until etcd has been told of all that was asked for before the call. The error says why it hasn't.
func (r *Registrar) Await(ctx context.Context) error {
	r.mu.Lock()
	wanted := r.wanted
	r.mu.Unlock()
	for {
		r.mu.Lock()
		applied, changed, err := r.applied, r.changed, r.syncErr
		r.mu.Unlock()
		if applied >= wanted {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
				if e := r.cfg.Etcd.Status(); e.LastError != "" {
					err = errors.New(e.LastError)
				}
			}
			return fmt.Errorf("etcd has not been told yet, that is tried on: %w", err)
		}
	}
}

// AwaitAnnounced waits until a registration is in etcd, or ctx ends, and returns how it stands.
func (r *Registrar) AwaitAnnounced(ctx context.Context, service, address string) Status {
	for {
		s, changed := r.one(id{service, address})
		if s.Announced {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s
		}
	}
}

// one is the status of one registration.
func (r *Registrar) one(i id) (Status, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[i]
	if e == nil {
		return Status{Service: i.service, Address: i.address, Why: "not registered"}, r.changed
	}
	return r.statusLocked(e), r.changed
}
