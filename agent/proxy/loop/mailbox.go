package loop

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// mailbox is how other goroutines reach the loop: a queue of funcs and an eventfd, written once however many are posted before the loop looks.
type mailbox struct {
	fd int

	mu sync.Mutex

	queue  []func()
	closed bool

	running []func() // the loop's: swapped with queue
	rung    bool     // the loop's: the eventfd fired since the last run
}

func newMailbox() (*mailbox, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	return &mailbox{fd: fd}, nil
}

// Post runs f on the loop, after what was posted before. From any goroutine; it never blocks. False if the loop has ended (f will not run).
func (l *Loop) Post(f func()) bool { return l.box.post(f) }

func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, f)
	if len(m.queue) == 1 {
		// Under the lock, so that close can't give the descriptor to somebody else in between.
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		unix.Write(m.fd, one[:]) // can't fail short of 2^64 writes
	}
	return true
}

func (m *mailbox) ready(uint32) { m.rung = true }

// run runs what was posted until now, if the eventfd fired; what these funcs post comes in the next wake-up.
func (m *mailbox) run() {
	if !m.rung {
		return
	}
	m.rung = false
	m.mu.Lock()
	m.queue, m.running = m.running[:0], m.queue
	m.mu.Unlock()
	for i, f := range m.running {
		m.running[i] = nil
		f()
	}
	if cap(m.running) > 1024 { // after a flood: keep no large array
		m.running = nil
	}
}

// runOrClose runs what is left; if nothing is, it closes the mailbox and reports false.
func (m *mailbox) runOrClose() bool {
	m.mu.Lock()
	if len(m.queue) == 0 {
		m.closed = true
		unix.Close(m.fd)
		m.mu.Unlock()
		return false
	}
	m.mu.Unlock()
	m.rung = true
	m.run()
	return true
}
