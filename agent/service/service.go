// Package service holds the vocabulary that every stage shares: a service's name, its backends, and its list.
package service

import (
	"net/netip"
	"strings"
	"time"
)

// MaxNameLength bounds a service name, in bytes (SEMANTICS 1.15).
const MaxNameLength = 253

// ValidName reports whether name may name a service: 1 to 253 of [A-Za-z0-9._:@-] (SEMANTICS 1.15), but not "." or "..", since a name also names files.
func ValidName(name string) bool {
	if name == "" || len(name) > MaxNameLength || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == ':', c == '@', c == '-':
		default:
			return false
		}
	}
	return true
}

// DefaultWeight is the static weight of a record that names none, in formats that have no default of their own.
const DefaultWeight = 100

// Backend is one address of a service, as its record says. It is immutable once it is part of a List.
//
// What comparing two lists reads comes first, on one cache line: lists have up to ten thousand of these.
type Backend struct {
	Addr     netip.AddrPort    // always an address in a List; within discovery, for a Host that is not resolved yet, the port only
	Weight   uint32            // static weight, >= 1; a record with weight 0 is Draining instead (1.11)
	Draining bool              // the record says that it is out of service (1.11)
	Fallback bool              // it is of the service's fallback, not of its own (1.16)
	Priority uint16            // tier: lower ones get the calls first (3.8)
	Created  int64             // CreateRevision of Key: another value for the same address is a restarted process (1.1)
	Modified int64             // ModRevision of Key
	Metadata map[string]string // nil if none; never written after the List is made
	Host     string            // the name that Addr was resolved from; empty for a literal address
	Zone     string            // empty if unknown
	Region   string            // empty if unknown
	Key      string            // the key this data came from (the one with the highest ModRevision, 1.1); empty for static
	Lease    int64             // the lease of Key; 0 = none
	Orphaned time.Time         // since when the backend is kept although its keys are gone (1.9); zero = it isn't
}

// Source says where a list came from (1.12).
type Source string

// Every source of a list.
const (
	FromEtcd   Source = "etcd"
	FromSpool  Source = "spool"
	FromStatic Source = "static"
	// FromFallback says that the backends in use are those of fallback:, wherever they came from (1.16).
	FromFallback Source = "fallback"
)

// BadRecord is a key whose value could not be read; it hides only itself (1.7).
type BadRecord struct {
	Key    string
	Reason string
}

// List is every backend of one service at one revision. It is immutable.
type List struct {
	Service   string
	Source    Source
	Epoch     uint64      // one life of an etcd cluster: its id, plus 1 for each life before (1.5); 0 for static
	Revision  int64       // etcd's revision; compares within an epoch only
	Confirmed time.Time   // when the source last said that this is so; age = now - Confirmed (1.3)
	Backends  []*Backend  // sorted by Addr, one each; lists share those that are the same, which is how a change is found (3.11)
	Bad       []BadRecord // at most MaxBadRecords
	BadCount  int         // all of them
	LeftOut   int         // addresses that `select:` leaves out of Backends
	Lost      []LostName  // at most MaxBadRecords
	LostCount int         // all of them
}

// LostName is a host name that can't be resolved (1.13). The addresses that it had last stay in the list.
type LostName struct {
	Host, Cause string
	Since       time.Time // it failed first
	Answered    time.Time // the last good answer came; zero = none ever did
}

// HostName returns s as DNS compares it, in lower case and without a dot at its end; false if it can't be a name of a host (RFC 1123 2.1, and the underscore,
// which Docker and Windows put into names). A last label of digits would be half an IPv4 address.
func HostName(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if len(s) > 253 {
		return "", false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", false
			}
		}
		last = label
	}
	return s, strings.Trim(last, "0123456789") != ""
}

// MaxBadRecords bounds the bad records that a List names; BadCount counts the others.
const MaxBadRecords = 20
