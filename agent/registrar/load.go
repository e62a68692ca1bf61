package registrar

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// How often load is written (5.6, 3.12): each write goes to every host that follows the service.
const (
	loadStep    = 10               // a smaller change is not worth one
	loadEvery   = 10 * time.Second // nor is one sooner
	loadRefresh = 45 * time.Second // readers heed only what is fresher than 60 s; a load below loadStep is as good as none, and goes stale
	sampleEvery = 5 * time.Second  // the host's load is that of so long
)

// loads is one registration's load: what is known and what was written.
type loads struct {
	known   bool
	latest  int // 0 to 100
	written int
	at      time.Time // when that was written, and how it was; zero = never
}

// next is when latest is to be written; zero = not until it changes.
func (l *loads) next() time.Time {
	switch {
	case !l.known:
		return time.Time{}
	case l.at.IsZero():
		return time.Unix(0, 0) // at once
	case max(l.latest-l.written, l.written-l.latest) >= loadStep:
		return l.at.Add(loadEvery)
	case l.written >= loadStep:
		return l.at.Add(loadRefresh)
	}
	return time.Time{}
}

// take is what the record is to say now; at is zero while it says nothing.
func (l *loads) take(now time.Time) (load uint8, at time.Time) {
	if due := l.next(); !due.IsZero() && !due.After(now) {
		l.written, l.at = l.latest, now
	}
	return uint8(l.written), l.at
}

// cpu is /proc/stat's count of what the processors did since the boot, in ticks.
type cpu struct{ busy, all uint64 }

func readCPU() (cpu, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpu{}, err
	}
	return parseCPU(text)
}

// parseCPU reads the first line: cpu user nice system idle iowait irq softirq steal guest guest_nice (proc_stat(5)). guest is part of user.
func parseCPU(text []byte) (cpu, error) {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 5 || string(fields[0]) != "cpu" {
		return cpu{}, errors.New("/proc/stat has no line of all processors")
	}
	var c cpu
	for i, f := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return cpu{}, fmt.Errorf("/proc/stat: %w", err)
		}
		c.all += n
		if i != 3 && i != 4 { // idle, iowait
			c.busy += n
		}
	}
	return c, nil
}

// since is how busy the processors were from before to c, 0 to 100.
func (c cpu) since(before cpu) int {
	all := int64(c.all - before.all)
	if all <= 0 {
		return 0
	}
	return int(min(max(int64(c.busy-before.busy)*100/all, 0), 100))
}
