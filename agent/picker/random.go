package picker

import "math/rand/v2"

// Random is where picks draw from. The zero value is the runtime's generator, which needs no lock; a simulation brings a seeded source, so that it can be run
// again, and then picks from one goroutine only.
type Random struct{ source rand.Source }

// NewRandom draws from source.
func NewRandom(source rand.Source) Random { return Random{source} }

// Uint64 is a random word.
func (r Random) Uint64() uint64 {
	if r.source == nil {
		return rand.Uint64()
	}
	return r.source.Uint64()
}

// Float64 is a random number in [0, 1).
func (r Random) Float64() float64 { return float64(r.Uint64()>>11) / (1 << 53) }

// IntN is a random number in [0, n), for an n from 1 to 2^32: a multiple of 2^-32 from even, far below what a share can show.
func (r Random) IntN(n int) int { return int(r.Uint64() >> 32 * uint64(n) >> 32) }
