package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const maxRanges = 64 // of services[].allow, and of deny

// ranges reads services[].allow or deny: addresses and ranges of them.
func (v value) ranges() []netip.Prefix {
	const allowed = "an address such as 10.0.0.1 or 2001:db8::1, or a range such as 10.0.0.0/8, is allowed"
	var all []netip.Prefix
	v.list("a list such as [10.0.0.0/8, 127.0.0.1] is allowed", func(v value) {
		s, ok := v.text(allowed, false)
		if !ok {
			return
		}
		p, problem := parseRange(s)
		switch {
		case problem != "":
			v.fail(allowed, "%s %s", v.quote(), problem)
		case p.Masked() != p:
			v.fail(fmt.Sprintf("write %s, or %s for the one address", p.Masked(), p.Addr()), "%s is within a range, it does not begin one", v.quote())
		case len(all) == maxRanges:
			v.fail(fmt.Sprintf("at most %d are allowed", maxRanges), "is one too many")
		case !slices.Contains(all, p):
			all = append(all, p)
		}
	})
	slices.SortFunc(all, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	return all
}

func parseRange(s string) (netip.Prefix, string) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return p, "is no range"
		case p.Addr().Is4In6():
			return p, "is IPv4 written as IPv6"
		}
		return p, ""
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Prefix{}, "is no address and no range"
	case a.Zone() != "":
		return netip.Prefix{}, "has a zone, which is not supported"
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), ""
}
