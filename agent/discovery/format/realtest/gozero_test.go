package realtest

import (
	"slices"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
)

// go-zero's core/discov writes, with the lease's id and with one of its own; package format reads.
func TestGoZero(t *testing.T) {
	logx.Disable()
	c, endpoints := start(t)
	for _, p := range []*discov.Publisher{
		discov.NewPublisher(endpoints, "user.rpc", "10.0.0.1:8080", discov.WithId(1)),
		discov.NewPublisher(endpoints, "user.rpc", "[2001:db8::1]:8080"),
	} {
		if err := p.KeepAlive(); err != nil {
			t.Fatal(err)
		}
		defer p.Stop()
	}
	eventually(t, "both are published", func() bool { return len(read(t, c, format.GoZero, "user.rpc/", nil)) == 2 })
	expect(t, c, format.GoZero, "user.rpc/", backend("10.0.0.1:8080", 100), backend("[2001:db8::1]:8080", 100))
}

// What package format writes, go-zero reads, and sees it go.
func TestGoZeroReadsOurs(t *testing.T) {
	logx.Disable()
	c, endpoints := start(t)
	var keys []string
	for _, r := range registrations() {
		keys = append(keys, write(t, c, format.GoZero, r))
	}
	s, err := discov.NewSubscriber(endpoints, "ours")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	has := func(want ...string) func() bool {
		return func() bool {
			got := s.Values()
			slices.Sort(got)
			return slices.Equal(got, want)
		}
	}
	eventually(t, "both are there", has("10.0.0.1:8080", "[2001:db8::1]:8080"))
	if _, err := c.Delete(t.Context(), keys[1]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is gone", has("10.0.0.1:8080"))
}
