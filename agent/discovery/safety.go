package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// Why an address is refused (1.14), as people read it.
const (
	isLoopback    = "a loopback address"
	isLinkLocal   = "a link-local address" // 169.254.169.254 is where clouds keep credentials
	isMulticast   = "a multicast address"
	isUnspecified = "the address of no host"
	isOwnListener = "a listener of this agent"
	isDenied      = "denied by deny:"
)

// refused says why a backend must not be at a, empty if it may. Of the ranges that hold an address the narrowest decides; of equal ones deny: goes before allow:,
// and that before what is refused by itself. So allow: 127.0.0.0/8 allows loopback, 0.0.0.0/0 does not, and a listener of this agent is allowed only as one address.
func (f *Follow) refused(a netip.AddrPort, own func(netip.AddrPort) bool) string {
	ip := a.Addr()
	why, bits := special(ip)
	if own != nil && own(a) {
		why, bits = isOwnListener, ip.BitLen()
	}
	for _, p := range f.Allow {
		if p.Bits() >= bits && p.Contains(ip) {
			why, bits = "", p.Bits()
		}
	}
	for _, p := range f.Deny {
		if p.Bits() >= bits && p.Contains(ip) {
			why, bits = isDenied, p.Bits()
		}
	}
	return why
}

// special is what is refused by itself, and how long the prefix of its range is.
func special(ip netip.Addr) (why string, bits int) {
	switch v4 := ip.Is4(); {
	case ip.IsLoopback() && v4:
		return isLoopback, 8
	case ip.IsLoopback():
		return isLoopback, 128
	case ip.IsUnspecified() && !v4:
		return isUnspecified, 128
	case ip.IsLinkLocalUnicast() && v4:
		return isLinkLocal, 16
	case ip.IsLinkLocalUnicast():
		return isLinkLocal, 10
	case ip.IsMulticast() && v4:
		return isMulticast, 4
	case ip.IsMulticast():
		return isMulticast, 8
	case v4 && ip.As4()[0] == 0: // RFC 1122 3.2.1.3: a connect to 0.0.0.0 reaches this host
		return isUnspecified, 8
	case v4 && ip.As4() == [4]byte{255, 255, 255, 255}:
		return isUnspecified, 32
	}
	return "", -1
}

// refuse takes the backends out of l that must not be, shows them among its bad records, and tells the first of each kind. Literal addresses of the configuration
// are the operator's own word.
func (f *follower) refuse(now time.Time, l *service.List) {
	var kept []*service.Backend
	for i, b := range l.Backends {
		why := ""
		if b.Key != "" || b.Host != "" {
			why = f.follow.refused(b.Addr, f.d.cfg.Own)
		}
		if why != "" {
			if kept == nil {
				kept = append(make([]*service.Backend, 0, len(l.Backends)-1), l.Backends[:i]...)
			}
			f.showRefused(now, l, b, why)
		} else if kept != nil {
			kept = append(kept, b)
		}
	}
	if kept != nil {
		l.Backends = kept
	}
}

// showRefused notes one of them.
func (f *follower) showRefused(now time.Time, l *service.List, b *service.Backend, why string) {
	if l.BadCount++; len(l.Bad) < service.MaxBadRecords {
		key := b.Key
		if key == "" {
			key = "dns:" + b.Host
		}
		l.Bad = append(slices.Clip(l.Bad), service.BadRecord{Key: key, Reason: refusal(b, why)})
	}
	if f.told[why] {
		return
	}
	if f.told == nil {
		f.told = make(map[string]bool)
	}
	f.told[why] = true
	detail := refusal(b, why)
	f.d.log.Warn("a backend's address is refused", "service", f.follow.Name, "backend", b.Addr, "cause", why, "key", b.Key)
	if f.d.cfg.Events != nil {
		f.d.cfg.Events.Add(event.Event{Time: now, Kind: event.Address, Service: f.service(), Backend: b.Addr.String(), Detail: detail})
	}
}

func refusal(b *service.Backend, why string) string {
	where := b.Addr.String()
	if b.Host != "" {
		where = fmt.Sprintf("%s of %.80q", where, b.Host)
	}
	if why == isDenied {
		return where + ": " + why
	}
	return fmt.Sprintf("%s is refused: %s; allow: says which are meant", where, why)
}
