package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// ErrNoDrainMark says that a format has no way to mark a registration as out of service: it is deleted instead (SEMANTICS 5.6).
var ErrNoDrainMark = errors.New("the format has no mark for draining")

// Registration is what this host says of one service that runs on it (SEMANTICS 5). What a format has no place for is left out.
type Registration struct {
	Service  string
	Prefix   string            // of the service's keys, ends in /; empty = Home
	Addr     netip.AddrPort    // also what makes the key, so that the same backend never has two
	Weight   uint32            // 0 = none is written, which is the format's default
	Zone     string            //
	Region   string            //
	Metadata map[string]string // weight, zone and region in it count if the fields are not set. kratos: scheme is the endpoint's (grpc), version the instance's
	Draining bool              // ErrNoDrainMark if the format has no mark
	Load     uint8             // 0 to 100; written as metadata load and load_at (Unix seconds), if LoadAt is set (3.12)
	LoadAt   time.Time
}

// Writable returns the formats that Encode writes (SEMANTICS 5.5), the default first.
func Writable() []string { return []string{GRPCNaming, GoZero, Kratos, Kitex, Plain} }

// Home is the prefix under which the format's own libraries look for a service, without namespace; for those that leave it to the user the one of on_demand.
func Home(name, service string) string {
	switch name {
	case GoZero:
		return service + "/"
	case Kratos:
		return "/microservices/" + service + "/"
	case Kitex:
		return "kitex/registry-etcd/" + service + "/"
	}
	return "services/" + service + "/"
}

// Encode returns the key and the value that say r in the format called name. Equal registrations have equal bytes.
func Encode(name string, r Registration) (key, value string, err error) {
	if err := r.settle(); err != nil {
		return "", "", fmt.Errorf("register %q: %w", r.Service, err)
	}
	id := r.Addr.String()
	switch name {
	case GRPCNaming:
		value, err = r.grpcNaming()
	case Kratos:
		value, err = r.kratos()
	case GoZero, Kitex, Plain:
		switch {
		case r.Draining:
			return "", "", ErrNoDrainMark
		case name == Kitex:
			value, err = r.kitex()
		case name == GoZero:
			id, value = r.number(), id
		default:
			value = id
		}
	default:
		return "", "", fmt.Errorf("format %q cannot be written: use one of %s", name, strings.Join(Writable(), ", "))
	}
	if err != nil {
		return "", "", fmt.Errorf("register %q as %s: %w", r.Service, name, err)
	}
	if r.Prefix == "" {
		r.Prefix = Home(name, r.Service)
	}
	return r.Prefix + id, value, nil
}

// settle checks r and moves what Metadata says of weight, zone and region into the fields.
func (r *Registration) settle() error {
	if !r.Addr.IsValid() || r.Addr.Port() == 0 || r.Addr.Addr().Zone() != "" {
		return fmt.Errorf("address %s: not host:port", r.Addr)
	}
	r.Addr = netip.AddrPortFrom(r.Addr.Addr().Unmap(), r.Addr.Port())
	if r.Prefix != "" && !strings.HasSuffix(r.Prefix, "/") {
		return fmt.Errorf("prefix %q does not end in /", r.Prefix)
	}
	m := maps.Clone(r.Metadata)
	if w := m["weight"]; w != "" && r.Weight == 0 {
		b := service.Backend{Draining: r.Draining}
		if err := setWeight(&b, w); err != nil {
			return err
		}
		r.Weight, r.Draining = b.Weight, b.Draining
	}
	if r.Zone == "" {
		r.Zone = m["zone"]
	}
	if r.Region == "" {
		r.Region = m["region"]
	}
	for _, name := range []string{"weight", "zone", "region"} {
		delete(m, name)
	}
	r.Metadata = m
	return nil
}

// labels is everything but the weight as a flat map, for formats that keep it so.
func (r *Registration) labels() map[string]string {
	m := make(map[string]string, len(r.Metadata)+4)
	maps.Copy(m, r.Metadata)
	if r.Zone != "" {
		m["zone"] = r.Zone
	}
	if r.Region != "" {
		m["region"] = r.Region
	}
	if !r.LoadAt.IsZero() {
		m["load"] = strconv.Itoa(int(min(r.Load, 100)))
		m["load_at"] = strconv.FormatInt(r.LoadAt.Unix(), 10)
	}
	return m
}

// number is an id of the publisher's own, as go-zero's WithId takes it, instead of the lease's: a lease that was lost would leave a second key behind (5.1).
func (r *Registration) number() string {
	h := fnv.New64a()
	h.Write([]byte(r.Addr.String()))
	return strconv.FormatUint(h.Sum64()>>1, 10)
}

// marshal is v as JSON; maps come out sorted.
func marshal(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}
