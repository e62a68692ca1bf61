package registrar

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// Bounds of what the API may ask for.
const (
	maxEntries = 1024 // of all
	maxPerUID  = 64   // of one uid, root included
	maxDrains  = 1024
)

// Why the registrar refuses; what it returns wraps one of these, in words for whoever asked.
var (
	ErrInvalid = errors.New("invalid")
	ErrTooMany = errors.New("too many registrations")
	ErrTaken   = errors.New("registered by somebody else")
	ErrUnknown = errors.New("not registered")
	// ErrReplaced ends a Held: somebody else has the registration now.
	ErrReplaced = errors.New("taken over")
	// ErrHandedOn says that another process is asked for changes from now on.
	ErrHandedOn = errors.New("the agent has been upgraded; connect again, and try again")
)

// refusal is a sentence with the error that it is a case of.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, a ...any) error {
	return &refusal{kind, fmt.Sprintf(format, a...)}
}

// Who asks, as the kernel says.
type Who struct {
	UID   uint32
	Admin bool // may change what others registered
}

// Set replaces the registrations of the configuration, and how long the lease lives. Those that did not change aren't touched (6.1).
func (r *Registrar) Set(regs []Registration, ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.ttl = max(ttl, time.Second)
	kept := make(map[id]bool, len(regs))
	for i := range regs {
		kept[regs[i].id()] = true
		if old := r.entries[regs[i].id()]; old == nil || old.origin != FromConfig || !old.equal(&regs[i]) {
			if old != nil && old.holder != nil {
				old.holder.end(refuse(ErrReplaced, "%s stands in the configuration now", old.id()))
			}
			r.put(&entry{Registration: regs[i], origin: FromConfig})
		}
	}
	for _, e := range r.sortedLocked() {
		if e.origin == FromConfig && !kept[e.id()] {
			r.dropLocked(now, e, "it is not in the configuration any more")
		}
	}
	r.touchLocked() // Place may answer otherwise now
}

// Register takes a registration in, or changes it. It lasts until Deregister, over restarts.
func (r *Registrar) Register(reg Registration, who Who) error {
	err := r.admit(&entry{Registration: reg, origin: FromAPI, uid: who.UID}, who)
	if err == nil {
		r.save()
	}
	return err
}

// Hold takes a registration in that lasts as long as what it returns. One that this uid holds already passes to the new holder, without a gap.
func (r *Registrar) Hold(reg Registration, who Who) (*Held, error) {
	h := &Held{r: r, ended: make(chan struct{})}
	e := &entry{Registration: reg, origin: FromHold, uid: who.UID, holder: h}
	h.id = reg.id()
	if err := r.admit(e, who); err != nil {
		return nil, err
	}
	r.save()
	return h, nil
}

// admit puts e among the entries if who may, and if there is room.
func (r *Registrar) admit(e *entry, who Who) error {
	if err := e.Check(); err != nil {
		return refuse(ErrInvalid, "%v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handedOn {
		return ErrHandedOn
	}
	if _, err := r.cfg.Place(e.Service, e.Format); err != nil {
		return refuse(ErrInvalid, "%v", err)
	}
	old := r.entries[e.id()]
	switch {
	case old == nil:
		mine := 0
		for _, other := range r.entries {
			if other.origin != FromConfig && other.uid == who.UID {
				mine++
			}
		}
		if mine >= maxPerUID {
			return refuse(ErrTooMany, "uid %d has %d registrations, which is the most", who.UID, mine)
		}
		if len(r.entries) >= maxEntries {
			return refuse(ErrTooMany, "this host has %d registrations, which is the most", len(r.entries))
		}
	case old.origin == FromConfig:
		return refuse(ErrTaken, "%s stands in the configuration; change it there", e.id())
	case old.uid != who.UID && !who.Admin:
		return refuse(ErrTaken, "%s was registered by uid %d", e.id(), old.uid)
	case old.origin != e.origin && (old.origin == FromAPI || old.holder != nil):
		return refuse(ErrTaken, "%s is registered already, in another way (%s); deregister it first", e.id(), old.origin)
	case old.holder != nil:
		old.holder.end(refuse(ErrReplaced, "another process holds %s now", e.id()))
	}
	r.put(e)
	r.touchLocked()
	return nil
}

// Deregister ends registrations of a service that came by the API, at address or at all of them, and returns which. Their keys are gone when etcd has been told: see Await.
func (r *Registrar) Deregister(service, address string, who Who) ([]Status, error) {
	defer r.save()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handedOn {
		return nil, ErrHandedOn
	}
	now := time.Now()
	var gone []Status
	var refused error
	for _, e := range r.sortedLocked() {
		if e.Service != service || address != "" && address != e.Address && address != addressOf(e) {
			continue
		}
		switch {
		case e.origin == FromConfig:
			refused = refuse(ErrTaken, "%s stands in the configuration; remove it there and reload", e.id())
		case e.uid != who.UID && !who.Admin:
			refused = refuse(ErrTaken, "%s was registered by uid %d", e.id(), e.uid)
		default:
			gone = append(gone, e.statusLocked())
			if e.holder != nil {
				e.holder.end(refuse(ErrUnknown, "%s was deregistered", e.id()))
			}
			r.dropLocked(now, e, "deregistered")
		}
	}
	switch {
	case len(gone) > 0:
		return gone, nil
	case refused != nil:
		return nil, refused
	case address != "":
		return nil, refuse(ErrUnknown, "service %q is not registered at %s on this host", service, address)
	}
	return nil, refuse(ErrUnknown, "service %q is not registered on this host", service)
}

// Update notes how loaded a registration is, 0 to 100 (5.6).
func (r *Registrar) Update(service, address string, load int, who Who) error {
	if load < 0 || load > 100 {
		return refuse(ErrInvalid, "load %d: 0 to 100 are allowed", load)
	}
	found, err := false, error(nil)
	r.noteLoad(load, func(e *entry) bool {
		if e.Service != service || address != "" && address != e.Address && address != addressOf(e) {
			return false
		}
		if e.uid != who.UID && !who.Admin {
			err = refuse(ErrTaken, "%s was registered by uid %d", e.id(), e.uid)
			return false
		}
		found = true
		return !e.HostLoad
	})
	switch {
	case found:
		return nil
	case err != nil:
		return err
	}
	return refuse(ErrUnknown, "service %q is not registered on this host", service)
}

// Drain takes the registrations of a service on this host out of service until Undrain, over restarts (5.6). With remove, or in a format that has no mark for it, their
// keys are deleted.
func (r *Registrar) Drain(service string, remove bool) error {
	defer r.save()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handedOn {
		return ErrHandedOn
	}
	if !slices.ContainsFunc(r.sortedLocked(), func(e *entry) bool { return e.Service == service }) {
		return refuse(ErrUnknown, "service %q is not registered on this host", service)
	}
	if _, ok := r.drains[service]; !ok && len(r.drains) >= maxDrains {
		return refuse(ErrTooMany, "%d services are drained on this host, which is the most", len(r.drains))
	}
	r.drains[service] = drain{service, remove}
	r.cfg.Log.Info("drained on this host", "service", service)
	r.cfg.Events.Add(event.Event{Time: time.Now(), Kind: event.Registration, Service: service, Detail: "drained on this host"})
	r.touchLocked()
	return nil
}

// Undrain ends Drain; it reports whether there was one.
func (r *Registrar) Undrain(service string) (was bool, err error) {
	defer r.save()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handedOn {
		return false, ErrHandedOn
	}
	_, was = r.drains[service]
	if was {
		delete(r.drains, service)
		r.cfg.Log.Info("not drained any more", "service", service)
		r.cfg.Events.Add(event.Event{Time: time.Now(), Kind: event.Registration, Service: service, Detail: "not drained any more"})
		r.touchLocked()
	}
	return was, nil
}

// Withdraw deletes every key of this host, and writes none until the process starts again: for the host's shutdown (5.3).
func (r *Registrar) Withdraw() error {
	defer r.save()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handedOn {
		return ErrHandedOn
	}
	if !r.withdrawn {
		r.withdrawn = true
		r.cfg.Log.Info("every registration of this host is withdrawn")
		r.cfg.Events.Add(event.Event{Time: time.Now(), Kind: event.Registration, Detail: "every registration of this host is withdrawn"})
		r.touchLocked()
	}
	return nil
}

// Ready begins the time in which held registrations of before have to be claimed (5.4).
func (r *Registrar) Ready() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimBy = time.Now().Add(claimWithin)
	r.touchLocked()
}
