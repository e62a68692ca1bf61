package format

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"

	"github.com/lbagent/lbagent/agent/service"
)

// parseAddr reads host:port with a literal address; IPv6 is [..]:port. The address comes back normalised: an IPv4 address mapped into IPv6 is IPv4.
func parseAddr(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, addrError(s)
	}
	switch {
	case a.Port() == 0:
		return netip.AddrPort{}, fmt.Errorf("address %.80q: port 0", s)
	case a.Addr().Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("address %.80q: link-local addresses with a zone are not supported", s)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// addrError says what is wrong with an address that netip refused.
func addrError(s string) error {
	if s == "" {
		return errors.New("no address")
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("address %.80q: no port", s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("address %.80q: not host:port", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %.80q: the port is not a number from 1 to 65535", s)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return fmt.Errorf("address %.80q: not host:port", s)
	}
	return fmt.Errorf("address %.80q: host names are not supported yet", s)
}

// setWeight gives b the weight that a record names; 0 = draining (SEMANTICS 1.11). Fractions are rounded, but not to 0.
func setWeight(b *service.Backend, text string) error {
	w, err := strconv.ParseFloat(text, 64)
	if err != nil || w < 0 || w > math.MaxUint32 || w != w {
		return fmt.Errorf("weight %.40q is not a number from 0 to %d", text, uint32(math.MaxUint32))
	}
	if w == 0 {
		b.Weight, b.Draining = 1, true
		return nil
	}
	b.Weight = uint32(max(1, math.Round(w)))
	return nil
}
