package calls

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Taps are those who want records. The zero value has none, and so has nil. Safe for concurrent use.
//
// A record is only made for a call for which somebody was there when it began (of a tcp connection: when it ended): as long as there is nobody, a call costs one
// atomic load.
type Taps struct {
	all atomic.Pointer[[]*tap] // nil: nobody

	mu sync.Mutex // of who changes all
}

type tap struct {
	service string
	f       func(*Record)
}

// Add has f be given the record of every call of a service ("" = of all) that begins from now on, until remove is called; a call that ends at that moment may come yet.
//
// f runs where the call ended, which is an event loop: it must not wait, nor keep the record. It may run in several goroutines at once.
func (t *Taps) Add(service string, f func(*Record)) (remove func()) {
	one := &tap{service: service, f: f}
	t.mu.Lock()
	defer t.mu.Unlock()
	all := append(t.list(), one)
	t.all.Store(&all)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		left := slices.DeleteFunc(t.list(), func(o *tap) bool { return o == one })
		if len(left) == 0 {
			t.all.Store(nil)
			return
		}
		t.all.Store(&left)
	}
}

// list is a copy of all.
func (t *Taps) list() []*tap {
	if all := t.all.Load(); all != nil {
		return slices.Clone(*all)
	}
	return nil
}

// Wants reports whether a call of a service that begins now is to have a record.
func (t *Taps) Wants(service string) bool {
	if t == nil {
		return false
	}
	all := t.all.Load()
	return all != nil && wants(*all, service)
}

func wants(all []*tap, service string) bool {
	for _, o := range all {
		if o.service == "" || o.service == service {
			return true
		}
	}
	return false
}

// Ended gives a record to all who want it.
func (t *Taps) Ended(r *Record) {
	if t == nil {
		return
	}
	all := t.all.Load()
	if all == nil {
		return
	}
	for _, o := range *all {
		if o.service == "" || o.service == r.Service {
			o.f(r)
		}
	}
}
