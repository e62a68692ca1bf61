package registrar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
)

// ownAddress is the address from which this host reaches etcd, which is one that other hosts know it by (5.5). Nothing is sent: the kernel looks up the route.
func ownAddress(ctx context.Context, endpoints []string) (netip.Addr, error) {
	var why []error
	for _, endpoint := range endpoints {
		target := endpoint
		if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
			target = u.Host
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "udp", target)
		if err != nil {
			why = append(why, err)
			continue
		}
		a := localIP(c)
		c.Close()
		if err := usable(a); err != nil {
			why = append(why, fmt.Errorf("the route to %s begins at %s: %w", target, a, err))
			continue
		}
		return a, nil
	}
	if why == nil {
		why = append(why, errors.New("no etcd is configured"))
	}
	return netip.Addr{}, fmt.Errorf("this host's own address isn't known; write address: HOST:PORT (%w)", errors.Join(why...))
}

func localIP(c net.Conn) netip.Addr {
	if u, ok := c.LocalAddr().(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
