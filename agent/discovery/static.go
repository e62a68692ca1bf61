package discovery

import (
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// staticList is the list of a service whose backends stand in the configuration: sorted, an address once.
func staticList(now time.Time, f Follow) *service.List {
	backends := appendCopies(nil, f.Static)
	for i := range backends {
		if backends[i].Weight == 0 {
			backends[i].Weight = service.DefaultWeight
		}
	}
	slices.SortStableFunc(backends, site)
	backends = slices.CompactFunc(backends, func(a, b *service.Backend) bool { return site(a, b) == 0 })
	return &service.List{Service: f.Name, Source: service.FromStatic, Confirmed: now, Backends: backends}
}
