package admin

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// policy is what a browser may do with what comes from here: nothing but the page's own files, nothing inline, no HTML from strings, no frame, no form.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; " +
	"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guard keeps the browsers of this host from being used against the agent. It refuses names of other hosts, so that a page can't read the agent by DNS rebinding: with that trick the
// browser sends the attacker's name as Host. And it refuses what another site's page asks for, so that such a page can't take the places of those who watch; a link to here is let through.
// No answer allows another origin to read it.
func guard(listen string, next http.Handler) http.Handler {
	own, _, _ := net.SplitHostPort(listen)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		switch {
		case !hostAllowed(r, own):
			writeText(w, http.StatusMisdirectedRequest, fmt.Sprintf("lbagent answers here to localhost, a loopback address or %s, not to the name %q", listen, r.Host))
		case foreignPage(r.Header):
			writeText(w, http.StatusForbidden, "lbagent doesn't answer to pages of other sites")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// foreignPage reports whether a browser says that another site's page asks, and not a person who follows a link.
func foreignPage(h http.Header) bool {
	switch h.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site": // another port of this host is the same site
		return h.Get("Sec-Fetch-Mode") != "navigate" || h.Get("Sec-Fetch-Dest") != "document"
	}
	return false
}

// hostAllowed reports whether the request is for this host: localhost, a loopback address, the host of admin.listen (own), or the address that the connection came to.
func hostAllowed(r *http.Request, own string) bool {
	host, ok := hostOf(r.Host)
	switch {
	case !ok:
		return false
	case host == "": // HTTP/1.0 without Host: no browser does that
		return true
	case strings.EqualFold(host, "localhost"), own != "" && strings.EqualFold(host, own):
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return addr.IsLoopback() || local != nil && addr.Unmap() == local.AddrPort().Addr().Unmap()
}

// hostOf is the host of a Host header, without the port, the brackets of an IPv6 address and the dot that ends a name.
func hostOf(header string) (host string, ok bool) {
	host, port := header, ""
	if i := strings.LastIndexByte(header, ':'); i >= 0 && !strings.HasSuffix(header, "]") {
		host, port = header[:i], header[i+1:]
	}
	if strings.Trim(port, "0123456789") != "" {
		return "", false
	}
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		inner, closed := strings.CutSuffix(inner, "]")
		return inner, closed && strings.Contains(inner, ":")
	}
	return strings.TrimSuffix(host, "."), !strings.ContainsAny(host, ":[]@/")
}
