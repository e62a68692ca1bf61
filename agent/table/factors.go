package table

import (
	"strconv"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// Factors are what a backend's static weight is multiplied by (3.2); 1 changes nothing.
type Factors struct {
	Dynamic   float32 // by how many of its calls succeed (3.3)
	SlowStart float32 // while it has just joined, or come back (3.7)
	Zone      float32 // by where it is (3.8); above 1 when the own zone has less to give than others take over
	Load      float32 // by what it says of itself (3.12)
}

func plain() Factors { return Factors{1, 1, 1, 1} }

// life is what moves a backend's weight and outlives views, as its State does. Guarded by Table.mu.
type life struct {
	dynamic dynamic
	slow    time.Time // the last slow start began
	shown   float32   // the product of its factors that those who watch know
	told    float32   // the dynamic weight that an event told last
	toldAt  time.Time

	// The load that its record of revision modified says, and when that was written, in Unix seconds; 0 = it says none.
	modified int64
	load     int64
	loadAt   int64
}

const (
	loadFresh = 60  // 3.12: an older load, in seconds, says nothing
	loadFloor = 0.1 // what is left of the weight at a load of 100: who is busy still gets some calls, and can be seen to be better
)

// loadFactor is 3.12 for the record b at now: it falls from 1 at no load to loadFloor at 100. Whoever wrote it has another clock: one that is ahead by more than loadFresh
// says nothing either.
func (f *life) loadFactor(now time.Time, b *service.Backend) float32 {
	if f.modified != b.Modified || f.modified == 0 {
		f.modified, f.load, f.loadAt = b.Modified, 0, 0
		load, err := strconv.ParseInt(b.Metadata["load"], 10, 64)
		at, err2 := strconv.ParseInt(b.Metadata["load_at"], 10, 64)
		if err == nil && err2 == nil && load >= 0 && load <= 100 {
			f.load, f.loadAt = load, at
		}
	}
	if age := now.Unix() - f.loadAt; age >= loadFresh || age <= -loadFresh {
		return 1
	}
	return 1 - (1-loadFloor)*float32(f.load)/100
}

// static is the record's weight.
func (b *Backend) static() float64 { return float64(max(b.Backend.Weight, 1)) }

// reweigh makes the effective weight of static x dynamic x slow start x load (3.2); the view multiplies it by the zone's factor.
func (b *Backend) reweigh() {
	f := &b.factors
	b.weight = b.static() * float64(f.Dynamic) * float64(f.SlowStart) * float64(f.Load)
}
