package format

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// setAddr gives b the address in s.
func setAddr(b *service.Backend, s string) (err error) {
	b.Addr, b.Host, err = parseAddr(s)
	return err
}

// parseAddr reads host:port; IPv6 is [..]:port. A literal address comes back normalised: an IPv4 address mapped into IPv6 is IPv4. For a host name addr has the
// port only, and host the name in lower case (SEMANTICS 1.13).
func parseAddr(s string) (addr netip.AddrPort, host string, err error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return parseHost(s)
	}
	switch {
	case a.Port() == 0:
		return netip.AddrPort{}, "", fmt.Errorf("address %.80q: port 0", s)
	case a.Addr().Zone() != "":
		return netip.AddrPort{}, "", fmt.Errorf("address %.80q: link-local addresses with a zone are not supported", s)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), "", nil
}

// bracketed returns [2001:db8::1]:8888 for 2001:db8::1:8888, which some registries write for it; they never leave the port out. Other addresses stay as they are.
func bracketed(s string) string {
	i := strings.LastIndexByte(s, ':')
	if ip, err := netip.ParseAddr(s[:max(i, 0)]); err != nil || !ip.Is6() {
		return s
	}
	return net.JoinHostPort(s[:i], s[i+1:])
}

// parseHost reads an address that netip refused: a host name with a port, or it says what is wrong.
func parseHost(s string) (addr netip.AddrPort, host string, err error) {
	if s == "" {
		return addr, "", errors.New("no address")
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return addr, "", fmt.Errorf("address %.80q: no port", s)
	}
	name, text, err := net.SplitHostPort(s)
	if err != nil {
		if _, ok := service.HostName(s); ok {
			return addr, "", fmt.Errorf("address %.80q: no port", s)
		}
		return addr, "", fmt.Errorf("address %.80q: not host:port", s)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return addr, "", fmt.Errorf("address %.80q: the port is not a number from 1 to 65535", s)
	}
	if port == 0 {
		return addr, "", fmt.Errorf("address %.80q: port 0", s)
	}
	if _, err := netip.ParseAddr(name); err == nil || name == "" {
		return addr, "", fmt.Errorf("address %.80q: not host:port", s)
	}
	host, ok := service.HostName(name)
	if !ok {
		return addr, "", fmt.Errorf("address %.80q: neither an address nor a host name", s)
	}
	return netip.AddrPortFrom(netip.Addr{}, uint16(port)), host, nil
}

// parseURL reads a URL that says where a backend is.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, urlError(err)
	}
	return u, nil
}

// urlError is err without the URL itself, which may hold a password.
func urlError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return fmt.Errorf("not a URL: %.80q", err.Error())
}

// hostPort is the address in u, with the scheme's own port if it names none.
func hostPort(u *url.URL) (string, error) {
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return "", errors.New("the URL has no host")
	}
	if port == "" {
		switch u.Scheme {
		case "http", "h2c":
			port = "80"
		case "https":
			port = "443"
		case "postgres", "postgresql":
			port = "5432"
		default:
			return "", fmt.Errorf("the URL has no port, and its scheme %.20q has no default port", u.Scheme)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// setURL gives b the address in u.
func setURL(b *service.Backend, u *url.URL) error {
	text, err := hostPort(u)
	if err != nil {
		return err
	}
	return setAddr(b, text)
}

// setQuery gives b what the parameters of a URL say: weight, zone and region, the others as metadata (rules 3 and 6). Of one that is there twice the first counts.
func setQuery(b *service.Backend, query url.Values) error {
	for name, values := range query {
		value := strings.ToValidUTF8(values[0], "\uFFFD")
		name = strings.ToValidUTF8(name, "\uFFFD")
		switch name {
		case "weight":
			if value == "" {
				continue
			}
			if err := setWeight(b, value); err != nil {
				return err
			}
		case "zone":
			b.Zone = value
		case "region":
			b.Region = value
		default:
			if b.Metadata == nil {
				b.Metadata = make(map[string]string, len(query))
			}
			b.Metadata[name] = value
		}
	}
	return nil
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
