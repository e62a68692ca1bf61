package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

const (
	maxUnixPath  = 107 // what fits into a sockaddr_un with its NUL
	maxListeners = 16  // of one service
	maxPrefix    = 1024
)

// prefix reads a prefix of etcd keys.
func (v value) prefix(to *string, empty bool) {
	allowed := "a prefix that ends in / is allowed"
	s, ok := v.text(allowed, empty)
	switch {
	case !ok:
	case s != "" && !strings.HasSuffix(s, "/"):
		v.fail(fmt.Sprintf("write %q", clip(s, 64)+"/"), "%s does not end in /", v.quote())
	case len(s) > maxPrefix:
		v.fail(fmt.Sprintf("at most %d bytes are allowed", maxPrefix), "%s is too long", v.quote())
	default:
		*to = s
	}
}

// etcdKey reads one etcd key.
func (v value) etcdKey(to *string) {
	s, ok := v.text("a key is allowed", false)
	switch {
	case !ok:
	case strings.HasSuffix(s, "/"):
		v.fail(fmt.Sprintf("write prefix: %q, or a key that does not end in /", clip(s, 64)), "%s ends in /, as a prefix does", v.quote())
	case len(s) > maxPrefix:
		v.fail(fmt.Sprintf("at most %d bytes are allowed", maxPrefix), "%s is too long", v.quote())
	default:
		*to = s
	}
}

// formats are those of agent/discovery/format, in its order.
func formats() []string {
	return []string{"grpc-naming", "gozero", "kratos", "kitex", "hertz", "go-micro", "rpcx", "skydns", "dubbo-interface", "dubbo-application", "goframe",
		"jupiter", "traefik", "apisix", "patroni", "plain"}
}

// format reads the format of a service list.
func (v value) format(to *string) {
	v.oneOf(to, formats())
}

// absolute reads an absolute path.
func (v value) absolute(to *string, empty bool) {
	v.str(to, "an absolute path is allowed", empty, filepath.IsAbs)
}

// secretFile reads the path of a file that holds a secret. What is written instead of a path is not shown: by mistake it may be the secret itself.
func (v value) secretFile(to *string) {
	const allowed = "the absolute path of a file is allowed"
	s, ok := v.text(allowed, true)
	switch {
	case !ok:
	case s != "" && !filepath.IsAbs(s):
		v.fail(allowed, "is no absolute path; the value is not shown, it may be secret")
	default:
		*to = s
	}
}

// socket reads the path of a unix socket.
func (v value) socket(to *string) {
	v.str(to, fmt.Sprintf("an absolute path of at most %d bytes is allowed", maxUnixPath), false, validSocket)
}

func validSocket(path string) bool {
	return filepath.IsAbs(path) && len(path) <= maxUnixPath && filepath.Clean(path) == path && path != "/"
}

// loopback reads the address of the admin page: one port on this host, or off.
func (v value) loopback(to *string) {
	const allowed = `an address of this host such as 127.0.0.1:9901, or "", is allowed`
	s, ok := v.text(allowed, true)
	if !ok {
		return
	}
	if s == "" || s == "off" {
		*to = ""
		return
	}
	if validPort(s) {
		s = "127.0.0.1:" + s
	}
	addr, problem := literal(s)
	if problem == "" && !addr.Addr().IsLoopback() {
		problem = "is not on loopback; other hosts see /metrics by metrics.listen"
	}
	if problem != "" {
		v.fail(allowed, "%s %s", v.quote(), problem)
		return
	}
	*to = addr.String()
}

// anyAddress reads a host:port to listen on; :port means every address of this host.
func (v value) anyAddress(to *string) {
	const allowed = `an address such as 10.0.0.1:9902, :9902 for all of them, or "", is allowed`
	s, ok := v.text(allowed, true)
	if !ok {
		return
	}
	if s == "" || s == "off" {
		*to = ""
		return
	}
	if port, found := strings.CutPrefix(s, ":"); found && validPort(port) {
		*to = s // not [::]:port, which a host without IPv6 refuses
		return
	}
	addr, problem := literal(s)
	if problem == "" && addr.Addr().IsMulticast() {
		problem = "is a multicast address"
	}
	if problem != "" {
		v.fail(allowed, "%s %s", v.quote(), problem)
		return
	}
	*to = addr.String()
}

// literal reads host:port with a literal address; an IPv4-mapped one becomes IPv4. The second result says what is wrong.
func literal(s string) (netip.AddrPort, string) {
	addr, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		if host, port, ok := cutPort(s); ok && validAuthority(host) && validPort(port) {
			return netip.AddrPort{}, "is a host name, not an address"
		}
		return netip.AddrPort{}, "is no host:port"
	case addr.Port() == 0:
		return netip.AddrPort{}, "has port 0"
	case addr.Addr().Zone() != "":
		return netip.AddrPort{}, "has a zone, which is not supported"
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), ""
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// listeners reads services[].listen.
func (v value) listeners() []Listen {
	const allowed = "a port, an address of this host such as 127.0.0.2:7001 or [::1]:7001 (others, and 0.0.0.0, with a warning), or unix:/PATH is allowed"
	var all []Listen
	v.list("a list such as [7001, \"unix:/run/user.sock\"] is allowed", func(v value) {
		s, ok := v.text(allowed, false)
		if !ok {
			return
		}
		if len(all) >= maxListeners {
			v.fail(fmt.Sprintf("at most %d listeners are allowed", maxListeners), "is one too many")
			return
		}
		if path, ok := strings.CutPrefix(s, "unix:"); ok {
			if !validSocket(path) {
				v.fail(fmt.Sprintf("unix: and an absolute path of at most %d bytes is allowed", maxUnixPath), "%s is no path of a socket", v.quote())
				return
			}
			all = append(all, Listen{Unix: path})
			return
		}
		if validPort(s) {
			port, _ := strconv.ParseUint(s, 10, 16)
			all = append(all,
				Listen{TCP: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))},
				Listen{TCP: netip.AddrPortFrom(netip.IPv6Loopback(), uint16(port))})
			return
		}
		addr, problem := literal(s)
		if s == "0" {
			problem = "has port 0"
		}
		if problem == "" && addr.Addr().IsMulticast() {
			problem = "is a multicast address"
		}
		if problem != "" {
			v.fail(allowed, "%s %s", v.quote(), problem)
			return
		}
		all = append(all, Listen{TCP: addr})
	})
	return all
}

// backends reads services[].backends, sorted by address.
func (v value) backends() []service.Backend {
	const allowed = "an address such as 10.0.0.1:80 or [2001:db8::1]:80, or dns:NAME:PORT, is allowed"
	var all []service.Backend
	type where struct {
		netip.AddrPort
		host string
	}
	seen := make(map[where]bool)
	v.list("a list such as [\"10.0.0.1:80\"] is allowed", func(v value) {
		s, ok := v.text(allowed, false)
		if !ok {
			return
		}
		addr, host, problem := hostOrLiteral(s)
		switch {
		case problem != "" || host != "":
		case addr.Addr().IsUnspecified() || addr.Addr().IsMulticast() || addr.Addr() == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			problem = "is the address of no host"
		}
		if problem == "" && seen[where{addr, host}] {
			problem = "is written twice"
		}
		if problem != "" {
			v.fail(allowed, "%s %s", v.quote(), problem)
			return
		}
		seen[where{addr, host}] = true
		all = append(all, service.Backend{Addr: addr, Host: host, Weight: service.DefaultWeight})
	})
	if len(v.node.Content) == 0 && v.isList() {
		v.fail("at least one address is allowed", "has no backend")
	}
	slices.SortFunc(all, func(a, b service.Backend) int { return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Host, b.Host)) })
	return all
}

// hostOrLiteral reads an address, or dns:NAME:PORT, whose addr has the port only.
func hostOrLiteral(s string) (addr netip.AddrPort, host, problem string) {
	name, isName := strings.CutPrefix(s, "dns:")
	if !isName {
		addr, problem = literal(s)
		return addr, "", problem
	}
	name, port, ok := cutPort(name)
	if !ok || !validPort(port) {
		return addr, "", "has no port"
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return addr, "", "is an address: write it without dns:"
	}
	host, ok = service.HostName(name)
	if !ok {
		return addr, "", "is no host name"
	}
	n, _ := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(netip.Addr{}, uint16(n)), host, ""
}

// validAuthority accepts what may stand in :authority or Host: a name or address, with a port or without.
func validAuthority(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == ':', c == '-', c == '[', c == ']':
		default:
			return false
		}
	}
	return len(s) <= 255
}

// validLiteral accepts what services[].authority may say instead of keep or host: what a backend may get as :authority or Host (RFC 9110 7.2). The words in
// another case are taken for mistakes, not for names.
func validLiteral(s string) bool {
	if w := strings.ToLower(s); w == "keep" || w == "host" {
		return s == w
	}
	host, port := s, "80"
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return strings.HasSuffix(inner, "]") && err == nil && addr.Is6() && addr.Zone() == "" && validPort(port)
	}
	return host != "" && validAuthority(s) && !strings.ContainsAny(host, "[]:") && validPort(port)
}

func validPath(s string) bool {
	return strings.HasPrefix(s, "/") && len(s) <= 2048 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' })
}

func validServiceName(s string) bool {
	return len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
