package config

import "time"

// guard is services[].guard while it is read.
type guard struct {
	off  bool
	hold time.Duration
}

// decode reads the map, or the mode alone.
func (g *guard) decode(v value) {
	mode := func(v value) {
		var s string
		v.oneOf(&s, []string{"hold", "off"})
		if s != "" {
			g.off = s == "off"
		}
	}
	if v.isScalar() {
		mode(v)
		return
	}
	v.object(keys{
		"mode": mode,
		"hold": func(v value) { v.duration(&g.hold, true, time.Second, 7*24*time.Hour) },
	})
}

// kept is how long; 0 = not at all.
func (g *guard) kept() time.Duration {
	if g.off {
		return 0
	}
	return g.hold
}
