// Package accesslog writes a line of JSON for calls that the proxy relayed (`access_log: {path, sample, errors}`).
//
// Who relays never waits for the disk: a line goes on a list that needs no lock, and one goroutine writes what is there, ten times a second. What a disk that is full,
// slow or hanging doesn't take is bounded, and counted.
package accesslog

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/calls"
)

const (
	// every is how often lines are written. Longer costs less, and loses more when the process is killed.
	every = 100 * time.Millisecond
	// bound is how many bytes of lines may wait for the disk: some 20,000 lines.
	bound = 8 << 20
	// lookEvery is how often the file is looked for under its name, as logrotate takes it away.
	lookEvery = time.Second
	// lastWords is how long a stop waits for the disk.
	lastWords = time.Second
)

// Options say which calls are written, and where.
type Options struct {
	Path   string  // "" = off
	Sample float64 // the share of calls that is written: 1 = all, 0 = none
	Errors bool    // calls that failed are written in any case
}

// Stats are counters for metrics.
type Stats struct {
	On      bool
	OK      bool   // the file can be written, as far as is known
	Written uint64 // lines
	Dropped uint64 // lines that could not be written, or did not fit into memory while the disk took none
}

// Log is the access log. Safe for concurrent use.
type Log struct {
	log  hclog.Logger
	fail func(err error) // told once when the file can't be written, nil when it can again; on Run's goroutine

	options atomic.Pointer[Options] // nil = off
	first   atomic.Pointer[line]    // the list, the newest first
	waiting atomic.Int64            // bytes in it
	written atomic.Uint64
	dropped atomic.Uint64
	ok      atomic.Bool
	reopen  atomic.Bool
	changed chan struct{}

	mu sync.Mutex // of who changes options and taps

	taps   *calls.Taps
	remove func()
}

// line is an element of the list.
type line struct {
	next *line
	text []byte
}

// New returns a Log that is off; Set turns it on, Run writes. taps is where calls come from. fail may be nil.
func New(log hclog.Logger, taps *calls.Taps, fail func(error)) *Log {
	l := &Log{log: log, taps: taps, fail: fail, changed: make(chan struct{}, 1)}
	if l.fail == nil {
		l.fail = func(error) {}
	}
	l.ok.Store(true)
	return l
}

// Set changes what is written, from the next call on, and opens the file anew.
func (l *Log) Set(o Options) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reopen.Store(true)
	if o.Path == "" {
		l.options.Store(nil)
	} else {
		l.options.Store(&o)
	}
	switch {
	case o.Path == "" && l.remove != nil:
		l.remove()
		l.remove = nil
	case o.Path != "" && l.remove == nil:
		l.remove = l.taps.Add("", l.Ended)
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// Stats returns the counters.
func (l *Log) Stats() Stats {
	return Stats{On: l.options.Load() != nil, OK: l.ok.Load(), Written: l.written.Load(), Dropped: l.dropped.Load()}
}

// Ended takes the record of a call. It never waits.
func (l *Log) Ended(r *calls.Record) {
	o := l.options.Load()
	if o == nil || !(o.Errors && r.Failed()) && !sampled(o.Sample) {
		return
	}
	if l.waiting.Load() > bound {
		l.dropped.Add(1)
		return
	}
	e := &line{text: appendRecord(make([]byte, 0, 512), r)}
	l.waiting.Add(int64(len(e.text)))
	for {
		e.next = l.first.Load()
		if l.first.CompareAndSwap(e.next, e) {
			return
		}
	}
}

func sampled(share float64) bool { return share >= 1 || share > 0 && rand.Float64() < share }

// take empties the list into b, the oldest line first, and returns how many they are.
func (l *Log) take(b []byte) (text []byte, lines int) {
	var first *line
	for e := l.first.Swap(nil); e != nil; {
		e.next, first, e = first, e, e.next
	}
	before := len(b)
	for e := first; e != nil; e = e.next {
		b = append(b, e.text...)
		lines++
	}
	l.waiting.Add(int64(before - len(b)))
	return b, lines
}

// Run writes until ctx ends, then what is left, for at most a second.
func (l *Log) Run(ctx context.Context) error {
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // a disk that hangs must hold up nobody, not even the stop
		defer close(ended)
		l.write(stop)
	}()
	<-ctx.Done()
	close(stop)
	last := time.NewTimer(lastWords)
	defer last.Stop()
	select {
	case <-ended:
	case <-last.C:
		l.log.Warn("the access log's disk took too long; its last lines are lost")
	}
	return nil
}

// write is Run's goroutine, which alone has the file.
func (l *Log) write(stop <-chan struct{}) {
	f := &file{l: l}
	defer f.close()
	var buffer []byte
	for {
		select {
		case <-stop:
			l.flush(f, buffer)
			return
		case <-l.changed:
		}
		tick := time.NewTicker(every)
		for on := true; on; {
			select {
			case <-tick.C:
			case <-l.changed:
			case <-stop:
				tick.Stop()
				l.flush(f, buffer)
				return
			}
			buffer = l.flush(f, buffer)
			on = l.options.Load() != nil
		}
		tick.Stop()
		f.close()
		buffer = nil
	}
}

// flush writes what is there. It returns the buffer, to be used again.
func (l *Log) flush(f *file, buffer []byte) []byte {
	o := l.options.Load()
	if l.reopen.Swap(false) {
		f.close()
	}
	text, lines := l.take(buffer[:0])
	switch {
	case o == nil:
		l.dropped.Add(uint64(lines)) // it was turned off just now
	case lines > 0 || f.f == nil:
		lost := f.write(o.Path, text)
		l.written.Add(uint64(lines - lost))
		l.dropped.Add(uint64(lost))
	}
	if cap(text) > 1<<20 {
		return nil
	}
	return text
}
