package localapi

import "sync"

// serviceCache keeps something small per service. Services come and go: when it has doubled, what belongs to none is dropped.
type serviceCache[T any] struct {
	mu sync.Mutex

	last    map[string]T
	sweepAt int
}

func (c *serviceCache[T]) get(name string) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.last[name]
	return v, ok
}

func (c *serviceCache[T]) put(name string, v T, followed func(name string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		c.last = map[string]T{}
	}
	c.last[name] = v
	if len(c.last) <= c.sweepAt {
		return
	}
	for n := range c.last {
		if !followed(n) {
			delete(c.last, n)
		}
	}
	c.sweepAt = 2*len(c.last) + 64
}
