package health

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	p, o := NewProber(), Options{Probe: ProbeTCP, Timeout: time.Minute}
	if got := p.Check(t.Context(), o, addr); got != (Check{Passed: true}) {
		t.Errorf("of a listener: %+v", got)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if got := p.Check(cancelled, o, addr); !got.Local || got.Passed {
		t.Errorf("cancelled: %+v, want no evidence", got)
	}
	l.Close()
	if got := p.Check(t.Context(), o, addr); got != (Check{Refused: true, Cause: "connection refused"}) {
		t.Errorf("of nobody: %+v", got)
	}
	if got := p.Check(t.Context(), Options{Probe: ProbeNone}, addr); !got.Passed {
		t.Errorf("no probe: %+v", got)
	}
}
