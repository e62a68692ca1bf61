package handoff

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startsWithin = time.Minute // older starts don't count (SEMANTICS 6.6)
	mostStarts   = 64          // that are counted
	startBytes   = 8           // of one in the record
)

// SinceBoot is the clock of the record of starts: nobody sets it, and it is the same for all processes.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // can't be on Linux
	}
	return time.Duration(ts.Nano())
}

// Started writes into the record that this process starts now, and returns how many starts of the last minute are in it: those of processes that ended without Settled. The record is
// a file in memory that the service manager keeps beside the listeners, and has when this returns. Without a service manager there is none, and nothing is counted.
func (s *Sockets) Started(now time.Duration) (int, error) {
	if !s.Kept() {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	starts, err := s.readStartsLocked(now)
	if err != nil { // none yet, or none that can be read
		if s.starts, err = newRecord(); err != nil {
			return 0, fmt.Errorf("make the record of starts: %w", err)
		}
		delete(s.stored, startsName)
	}
	starts = append(starts, now)
	starts = starts[max(0, len(starts)-mostStarts):]
	if err := s.writeStartsLocked(starts); err != nil {
		return 0, err
	}
	if _, has := s.stored[startsName]; !has {
		if err := tellFDs("FDSTORE=1\nFDNAME="+startsName, s.starts); err != nil {
			return 0, err
		}
		s.stored[startsName] = struct{}{}
	}
	return len(starts), nil
}

// Settled empties the record: this process has lived long enough, or ends because somebody wants it to.
func (s *Sockets) Settled() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starts < 0 {
		return nil
	}
	return s.writeStartsLocked(nil)
}

func newRecord() (fd int, err error) {
	fd, err = unix.MemfdCreate("lbagent-starts", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3
		fd, err = unix.MemfdCreate("lbagent-starts", unix.MFD_CLOEXEC)
	}
	return fd, os.NewSyscallError("memfd_create", err)
}

// readStartsLocked returns the starts of the last minute; what can't be read is closed.
func (s *Sockets) readStartsLocked(now time.Duration) ([]time.Duration, error) {
	if s.starts < 0 {
		return nil, errors.New("no record")
	}
	b := make([]byte, mostStarts*startBytes)
	n, err := unix.Pread(s.starts, b, 0)
	if err != nil {
		unix.Close(s.starts)
		s.starts = -1
		return nil, os.NewSyscallError("pread", err)
	}
	return recent(b[:n], now), nil
}

func (s *Sockets) writeStartsLocked(starts []time.Duration) error {
	var b []byte
	for _, at := range starts {
		b = binary.BigEndian.AppendUint64(b, uint64(at))
	}
	if _, err := unix.Pwrite(s.starts, b, 0); err != nil {
		return fmt.Errorf("write the record of starts: %w", err)
	}
	if err := unix.Ftruncate(s.starts, int64(len(b))); err != nil {
		return fmt.Errorf("write the record of starts: %w", err)
	}
	return nil
}

// recent are the starts in a record that count now. They rise: what doesn't is the rest of a longer record, whose writer died between its two steps.
func recent(record []byte, now time.Duration) []time.Duration {
	var out []time.Duration
	for last := time.Duration(-1); len(record) >= startBytes && len(out) < mostStarts; record = record[startBytes:] {
		at := time.Duration(binary.BigEndian.Uint64(record))
		if at <= last || at > now {
			break
		}
		last = at
		if now-at < startsWithin {
			out = append(out, at)
		}
	}
	return out
}

// Refuse ends every inherited listener, also where the service manager keeps it: whoever connects is refused at once. What isn't a listener stays.
func (s *Sockets) Refuse() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for addr := range s.listeners {
		s.endLocked(addr)
	}
	for name := range s.stored {
		if name != startsName {
			errs = append(errs, s.forgetLocked(name))
		}
	}
	return errors.Join(errs...)
}

// TurnAway lets callers of the API's sockets go as soon as they come, until ctx ends. These sockets belong to units of the service manager: they can't refuse.
func (s *Sockets) TurnAway(ctx context.Context) {
	if s == nil {
		return
	}
	var wg sync.WaitGroup
	for _, l := range s.apiListeners() {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		wg.Go(func() {
			defer stop()
			defer l.Close()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		})
	}
	wg.Wait()
}

// apiListeners are duplicates of the API's sockets.
func (s *Sockets) apiListeners() []*net.UnixListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*net.UnixListener
	for _, fd := range s.api {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstFD)
		if err != nil {
			continue
		}
		if l, ok := listenerOf(dup).(*net.UnixListener); ok {
			l.SetUnlinkOnClose(false)
			out = append(out, l)
		}
	}
	return out
}
