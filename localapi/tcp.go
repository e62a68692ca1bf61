package localapi

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
)

// tcpSocket is the socket of Config.Listen.
type tcpSocket struct{ *net.TCPListener }

// openTCP binds a host:port, or takes over what a former process bound.
func openTCP(listen string, inherited func(string) net.Listener) (tcpSocket, error) {
	if inherited != nil {
		if l, ok := inherited(listen).(*net.TCPListener); ok {
			return tcpSocket{l}, nil
		}
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // which Go turns on by itself, and which costs on loopback
	l, err := plain.Listen(context.Background(), "tcp", listen)
	if err != nil {
		return tcpSocket{}, err
	}
	return tcpSocket{l.(*net.TCPListener)}, nil
}

func (s tcpSocket) accept() (rawConn, error) { return s.AcceptTCP() }

func (s tcpSocket) close() { _ = s.Close() }

// noBrowsers keeps browsers from being used against the agent: a page of any site can have one send requests to whatever host:port the browser reaches, and could
// report outcomes, or read lists once its own name points here (DNS rebinding). Programs send none of what gives a browser away. A person may type the address.
// gRPC needs no such care: no page can speak it without a proxy.
func noBrowsers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r.Context())
		if c == nil || !c.peer.Addr.IsValid() {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case r.Header.Get("Origin") != "" || site != "" && site != "none":
			writeError(r.Context(), nil, jsonMarshaler(), w, r, failure(codes.PermissionDenied, reasonForbidden, "", "lbagent doesn't answer to web pages"))
		case !isAddress(r.Host):
			writeError(r.Context(), nil, jsonMarshaler(), w, r, failure(codes.PermissionDenied, reasonForbidden, "",
				"lbagent answers here to localhost and to addresses, not to the name %q: ask by http://ADDRESS:PORT, or send Host: localhost", r.Host))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isAddress reports whether a Host header is localhost or an address, with a port or without: a page's own name is neither. That some router translates an address is no
// matter, so it needn't be the one that the connection came to. HTTP/1.0 may go without; no browser does.
func isAddress(host string) bool {
	if h, port, err := net.SplitHostPort(host); err == nil && strings.Trim(port, "0123456789") == "" {
		host = h
	}
	if host == "" || strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	_, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return err == nil
}
