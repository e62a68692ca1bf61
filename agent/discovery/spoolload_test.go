package discovery

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/service"
)

// spoolFull spools services with backends each, as a fleet has them, and returns how to follow them.
func spoolFull(t testing.TB, dir string, services, backends int) []Follow {
	t.Helper()
	s := newSpool(dir, hclog.NewNullLogger())
	var follows []Follow
	for i := range services {
		f := Follow{Name: fmt.Sprintf("service-%d", i), Prefix: fmt.Sprintf("services/service-%d/", i), Format: "grpc-naming"}
		l := &service.List{Service: f.Name, Epoch: 1, Revision: 1000, Confirmed: time.Now()}
		for j := range backends {
			a := mustAddr(fmt.Sprintf("10.%d.%d.%d:8080", i>>8, i&255, j))
			l.Backends = append(l.Backends, service.Backend{
				Addr: a, Weight: 100, Zone: "eu-1a", Metadata: map[string]string{"version": fmt.Sprint("v", j%2)}, Key: f.Prefix + a.String(), Created: 100, Modified: 200,
			})
		}
		s.put(f, l)
		follows = append(follows, f)
	}
	s.flush()
	if s.trouble() != "" {
		t.Fatal(s.trouble())
	}
	return follows
}

// 1,000 services with 100 backends each are read in well under 100 ms.
func BenchmarkLoadSpool(b *testing.B) {
	dir := b.TempDir()
	follows := spoolFull(b, dir, 1000, 100)
	b.ReportAllocs()
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		d, err := New(Config{SpoolDir: dir, OnList: func(time.Time, *service.List) {}})
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range follows {
			d.Set(f)
		}
		begin := cpuTime()
		b.StartTimer()
		d.LoadSpool(time.Now())
		used += cpuTime() - begin
	}
	b.ReportMetric(float64(used)/float64(b.N)/1e6, "cpu-ms/op")
}
