package service

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Mute is one backend that a person took out, on this host or fleet-wide, until its time is over.
type Mute struct {
	Service string
	Addr    netip.AddrPort
	Author  string // the user who asked
	Host    string // the node where they asked
	Reason  string // never empty if Fleet
	Since   time.Time
	Until   time.Time
	Fleet   bool // a key in etcd, honoured by every agent; else on this host only
}

// Cause is the mute in the words of verdicts and events: `by alice on web-1 for 1 h (fleet): "bad disk", until 14:03`. Times are those of this host's zone.
func (m *Mute) Cause() string {
	var b strings.Builder
	if m.Fleet {
		fmt.Fprintf(&b, "by %s on %s for %s (fleet)", m.Author, m.Host, span(m.Until.Sub(m.Since)))
	} else {
		fmt.Fprintf(&b, "by %s for %s (this host)", m.Author, span(m.Until.Sub(m.Since)))
	}
	if m.Reason != "" {
		fmt.Fprintf(&b, ": %q", m.Reason)
	}
	since, until := m.Since.Local(), m.Until.Local()
	layout := "15:04"
	if until.Sub(since) < 2*time.Minute {
		layout = "15:04:05"
	}
	if until.YearDay() != since.YearDay() || until.Year() != since.Year() {
		layout = "2006-01-02 15:04"
	}
	return b.String() + ", until " + until.Format(layout)
}

// span is a duration as a person would have written it: `90 s`, `15 min`, `1 h`, `7 d`.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}} {
		if d >= unit.of && d%unit.of == 0 {
			return fmt.Sprintf("%d %s", d/unit.of, unit.name)
		}
	}
	switch {
	case d > 2*time.Hour:
		return fmt.Sprintf("%d h", (d+30*time.Minute)/time.Hour)
	case d > 2*time.Minute:
		return fmt.Sprintf("%d min", (d+30*time.Second)/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}
