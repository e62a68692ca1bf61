package proxy

import (
	"net/netip"
	"testing"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
)

// authority: host is the name that a backend was resolved from (1.13), with its port unless that is HTTP's own (RFC 9110 4.2.1).
func TestAuthorityOfHostNames(t *testing.T) {
	for _, tt := range []struct{ setting, host, addr, want string }{
		{"host", "", "10.0.0.1:80", "10.0.0.1:80"},
		{"host", "db.svc", "10.0.0.1:80", "db.svc"},
		{"host", "db.svc", "10.0.0.1:8080", "db.svc:8080"},
		{"host", "db.svc", "[2001:db8::1]:8080", "db.svc:8080"},
		{"keep", "db.svc", "10.0.0.1:8080", "came"},
		{"", "db.svc", "10.0.0.1:8080", "came"},
		{"fixed:1", "db.svc", "10.0.0.1:8080", "fixed:1"},
	} {
		b := &table.Backend{Backend: &service.Backend{Addr: netip.MustParseAddrPort(tt.addr), Host: tt.host}}
		if got := authority(&options{authority: tt.setting}, b, "came"); got != tt.want {
			t.Errorf("%s, host %q, %s: %q, want %q", tt.setting, tt.host, tt.addr, got, tt.want)
		}
	}
}
