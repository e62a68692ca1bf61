package mute

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

// Why a request is refused, wrapped in a sentence for a person.
var (
	ErrInvalid    = errors.New("not a mute")
	ErrTooMany    = errors.New("too many mutes")
	ErrNeedsForce = errors.New("force is needed")
	ErrNoFleet    = errors.New("there are no fleet-wide mutes")
	ErrEtcd       = errors.New("etcd failed")
)

// refusal is an error that says only what a person needs, and is one of the above.
type refusal struct {
	kind error
	text string
}

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

// Request is what an operator asks.
type Request struct {
	Service string
	Address string
	For     time.Duration // 0 = DefaultFor
	Reason  string
	Author  string
	Fleet   bool
	Force   bool // a fleet-wide one may take half of the service or more
}

// Answer says what came of it.
type Answer struct {
	Mute     service.Mute
	Was      bool // Unmute: it was muted, in the way that was asked for
	Warnings []string
}

// check makes a mute of a request.
func (m *Mutes) check(now time.Time, r *Request) (service.Mute, error) {
	addr, err := parseAddr(r.Address)
	length := r.For
	if length == 0 {
		length = DefaultFor
	}
	switch {
	case !service.ValidName(r.Service):
		return service.Mute{}, refuse(ErrInvalid, "%q is no name of a service: 1 to %d of A-Z a-z 0-9 . _ : @ - are allowed", clip(r.Service, 64), service.MaxNameLength)
	case err != nil:
		return service.Mute{}, refuse(ErrInvalid, "%v", err)
	case length < MinFor || length > MaxFor:
		return service.Mute{}, refuse(ErrInvalid, "a mute lasts from %v to 7 days, not %v; what has to be out for longer has to leave the list", MinFor, length)
	case utf8.RuneCountInString(r.Reason) > MaxReason:
		return service.Mute{}, refuse(ErrInvalid, "a reason has at most %d characters", MaxReason)
	case r.Fleet && text(r.Reason, MaxReason) == "":
		return service.Mute{}, refuse(ErrInvalid, "a fleet-wide mute needs a reason: those who find it on another host have nothing else")
	}
	since := now.Round(0).Truncate(time.Millisecond) // by the wall clock, as it is written
	return service.Mute{
		Service: r.Service, Addr: addr, Author: word(r.Author), Host: word(m.cfg.Node), Reason: text(r.Reason, MaxReason),
		Since: since, Until: since.Add(length.Truncate(time.Millisecond)), Fleet: r.Fleet,
	}, nil
}

// Mute takes a backend out. One that isn't in the list may be muted too: it may come.
func (m *Mutes) Mute(ctx context.Context, now time.Time, r Request) (Answer, error) {
	one, err := m.check(now, &r)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Mute: one}
	if one.Fleet {
		a.Warnings, err = m.muteFleet(ctx, now, &one, r.Force)
	} else {
		a.Warnings, err = m.muteHere(now, one)
	}
	if err != nil {
		return Answer{}, err
	}
	a.Warnings = append(a.Warnings, m.consequences(&one)...)
	return a, nil
}

func (m *Mutes) muteHere(now time.Time, one service.Mute) ([]string, error) {
	m.mu.Lock()
	k := keyOf(&one)
	if _, again := m.hosts[k]; !again && len(m.hosts) >= maxHere {
		m.mu.Unlock()
		return nil, refuse(ErrTooMany, "%d backends are muted on this host, which is the most; unmute others first", maxHere)
	}
	m.hosts[k] = one
	m.touchLocked(m.here)
	m.publishLocked(now, "") // first what counts, then the disk
	m.mu.Unlock()
	m.save()
	if why := m.here.trouble(); why != "" {
		return []string{"the mute can't be written to disk, so a restart of the agent ends it: " + why}, nil
	}
	return nil, nil
}

// consequences are what a person should know of a mute that holds now.
func (m *Mutes) consequences(one *service.Mute) []string {
	backends, ok := m.cfg.Backends(one.Service)
	if !ok {
		return []string{fmt.Sprintf("service %s has no list on this host: the mute counts as soon as it has", one.Service)}
	}
	listed, usable := false, 0
	for _, b := range backends {
		listed = listed || b.Addr == one.Addr
		if b.Usable {
			usable++
		}
	}
	var out []string
	if !listed {
		out = append(out, fmt.Sprintf("%s has no backend %s now, only %s; it is muted if it comes", one.Service, one.Addr, names(backends)))
	}
	if usable == 0 {
		out = append(out, fmt.Sprintf("NO BACKEND OF %s IS USABLE NOW on this host; its calls fail while none of those that aren't muted can be reached", one.Service))
	}
	return out
}

// names is a few of the backends, for a person who mistyped one.
func names(backends []Backend) string {
	if len(backends) == 0 {
		return "an empty list"
	}
	var few []string
	for _, b := range backends[:min(len(backends), 5)] {
		few = append(few, b.Addr.String())
	}
	if n := len(backends) - len(few); n > 0 {
		few = append(few, fmt.Sprintf("%d more", n))
	}
	return strings.Join(few, ", ")
}

// Unmute takes a mute back. It is never refused because there is none.
func (m *Mutes) Unmute(ctx context.Context, now time.Time, r Request) (Answer, error) {
	r.For, r.Reason = 0, "unmute"
	one, err := m.check(now, &r)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Mute: one}
	if r.Fleet {
		if a.Was, a.Warnings, err = m.unmuteFleet(ctx, &one); err != nil {
			return Answer{}, err
		}
	} else {
		a.Was, a.Warnings = m.unmuteHere(now, &one)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if other, ok := m.shown[shown{keyOf(&one), !one.Fleet}]; ok {
		how := "lbagent unmute " + one.Service + " " + one.Addr.String()
		if other.Fleet {
			how += " --fleet"
		}
		a.Warnings = append(a.Warnings, fmt.Sprintf("it stays muted %s; %q ends that", other.Cause(), how))
	}
	return a, nil
}

func (m *Mutes) unmuteHere(now time.Time, one *service.Mute) (was bool, warnings []string) {
	m.mu.Lock()
	k := keyOf(one)
	if _, was = m.hosts[k]; was {
		delete(m.hosts, k)
		m.touchLocked(m.here)
		m.publishLocked(now, one.Author)
	}
	m.mu.Unlock()
	m.save()
	if why := m.here.trouble(); was && why != "" {
		warnings = append(warnings, "that can't be written to disk, so a restart of the agent would mute it again: "+why)
	}
	return was, warnings
}
