package registrar

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/service"
)

// What a registration may bring. A record is read by every host that follows the service, so it is small.
const (
	maxMetadata      = 64   // entries
	maxMetadataBytes = 4096 // of all names and values
)

// Registration is a service that runs on this host, as somebody wants it in etcd.
type Registration struct {
	Service  string            `json:"service"`
	Address  string            `json:"address"`            // literal host:port; ":8080" is this host's own address, from its route to etcd (5.5)
	Format   string            `json:"format,omitempty"`   // empty = that of Place
	Prefix   string            `json:"prefix,omitempty"`   // of its key, with the namespace; empty = that of Place
	Weight   uint32            `json:"weight,omitempty"`   // 0 = the record names none
	Zone     string            `json:"zone,omitempty"`     // empty = the record names none
	Region   string            `json:"region,omitempty"`   // likewise
	Metadata map[string]string `json:"metadata,omitempty"` // further data of the record, in formats that have room for it
	HostLoad bool              `json:"host_load,omitempty"`
	Probe    Probe             `json:"probe,omitzero"`
}

// Probe is how a registration is probed: it is announced only while its probe passes (5.2). Zero fields have the defaults of withDefaults.
type Probe struct {
	Type      string        `json:"type,omitempty"` // tcp, http, grpc, none
	Interval  time.Duration `json:"interval,omitempty"`
	Timeout   time.Duration `json:"timeout,omitempty"`
	Rise      int           `json:"rise,omitempty"`
	Fall      int           `json:"fall,omitempty"`
	Port      uint16        `json:"port,omitempty"` // 0 = that of the registration
	Path      string        `json:"path,omitempty"`
	StatusMin int           `json:"status_min,omitempty"`
	StatusMax int           `json:"status_max,omitempty"`
	Service   string        `json:"service,omitempty"` // of the gRPC health service
}

// Origin says who wants a registration.
type Origin string

// Every origin; in this order they win where two registrations would have one key.
const (
	FromConfig Origin = "configuration"
	FromAPI    Origin = "api"  // kept in the state directory
	FromHold   Origin = "hold" // lives as long as the process that holds it
)

// id names a registration: a service may be on this host several times, on several ports.
type id struct{ service, address string }

func (r *Registration) id() id { return id{r.Service, r.Address} }

func (i id) String() string { return i.service + " at " + i.address }

// equal says whether two registrations ask for the same.
func (r *Registration) equal(o *Registration) bool {
	return reflect.DeepEqual(r, o)
}

// Check says what is wrong with a registration, in words for whoever asked for it.
func (r *Registration) Check() error {
	if !service.ValidName(r.Service) {
		return fmt.Errorf("service %.80q: 1 to %d letters, digits and . _ : @ - are allowed", r.Service, service.MaxNameLength)
	}
	if _, _, err := parseAddress(r.Address); err != nil {
		return err
	}
	if r.Format != "" {
		if err := CheckFormat(r.Format); err != nil {
			return err
		}
	}
	if err := r.Probe.check(); err != nil {
		return err
	}
	size := 0
	for k, v := range r.Metadata {
		size += len(k) + len(v)
		switch {
		case k == "" || !utf8.ValidString(k) || !utf8.ValidString(v):
			return fmt.Errorf("metadata %.40q: names and values are text, and names are not empty", k)
		case reserved(k):
			return fmt.Errorf("metadata %s: it has a place of its own beside the metadata", k)
		}
	}
	if len(r.Metadata) > maxMetadata || size > maxMetadataBytes {
		return fmt.Errorf("metadata has %d entries and %d bytes; at most %d and %d are allowed", len(r.Metadata), size, maxMetadata, maxMetadataBytes)
	}
	return nil
}

// CheckFormat says whether registrations can be written in a format.
func CheckFormat(name string) error {
	if !slices.Contains(format.Writable(), name) {
		return fmt.Errorf("format %.40q can't be written; allowed: %s", name, strings.Join(format.Writable(), ", "))
	}
	return nil
}

// reserved are the names that records use for what lbagent understands.
func reserved(name string) bool {
	switch strings.ToLower(name) {
	case "weight", "zone", "region", "load", "load_at":
		return true
	}
	return false
}

// parseAddress reads an address; own is true if the host part is left out. An address that other hosts can't use is refused (5.5).
func parseAddress(s string) (a netip.AddrPort, own bool, err error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		a, err = netip.ParseAddrPort("0.0.0.0:" + port)
		if err != nil || a.Port() == 0 {
			return a, true, fmt.Errorf("address %.80q: the port is not a number from 1 to 65535", s)
		}
		return a, true, nil
	}
	a, err = netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return a, false, fmt.Errorf("address %.80q: write host:port with a literal address, or :port for this host's own", s)
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if err := usable(a.Addr()); err != nil {
		return a, false, fmt.Errorf("address %s: %w; write the address that they use, or :port for this host's own", s, err)
	}
	return a, false, nil
}

var errNotOthers = errors.New("other hosts can't reach it")

// usable refuses addresses that mean another host, or none, to everybody else (5.5).
func usable(a netip.Addr) error {
	switch {
	case a.IsLoopback():
		return fmt.Errorf("it is a loopback address: %w", errNotOthers)
	case a.IsUnspecified():
		return fmt.Errorf("it is the address of no host: %w", errNotOthers)
	case a.IsLinkLocalUnicast(), a.Zone() != "":
		return fmt.Errorf("it is a link-local address: %w", errNotOthers)
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("it is the address of many hosts: %w", errNotOthers)
	}
	return nil
}
