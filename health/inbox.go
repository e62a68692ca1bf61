package health

import (
	"iter"
	"sync/atomic"
)

// inbox is where the states' writers leave targets that crossed a threshold: a stack linked through the targets themselves, so that
// leaving one neither waits nor allocates, and each is in it once at most.
type inbox struct {
	head atomic.Pointer[target]
	wake chan struct{}
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// poke wakes the Monitor once, however often it is called before that is awake.
func (b *inbox) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// notify leaves t in its inbox.
func (t *target) notify() {
	if !t.queued.CompareAndSwap(false, true) {
		return // it is there already, and will be looked at after this
	}
	b := t.inbox
	for {
		head := b.head.Load()
		t.below = head
		if b.head.CompareAndSwap(head, t) {
			break
		}
	}
	b.poke()
}

// take empties the inbox.
func (b *inbox) take() iter.Seq[*target] {
	return func(yield func(*target) bool) {
		for t := b.head.Swap(nil); t != nil; {
			below := t.below
			t.below = nil
			// From here on t may be left again: what is read after this has seen all that was written before it was left.
			t.queued.Store(false)
			if !yield(t) {
				return
			}
			t = below
		}
	}
}
