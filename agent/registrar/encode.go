package registrar

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

// record is what etcd is to say of one registration now.
type record struct {
	service      string
	addr         netip.AddrPort
	weight       uint32
	zone, region string
	metadata     map[string]string
	load         int       // 0 to 100; -1 = none
	loadAt       time.Time // when load was so: a reader heeds one that is fresher than 60 s (3.12)
	draining     bool
}

// encoding is one format, as its own readers expect it (ETCD-FORMATS).
type encoding struct {
	prefix  string // of a service that isn't configured; {service} is its name
	mark    bool   // a record can say that it is out of service
	hasLoad bool   // and has room for metadata
	key     func(r *record) string
	value   func(r *record) any // a string as it is, anything else as JSON
}

func encodings() map[string]encoding {
	address := func(r *record) string { return r.addr.String() }
	return map[string]encoding{
		"grpc-naming": {prefix: "services/{service}/", mark: true, hasLoad: true, key: address, value: grpcNaming},
		"plain":       {prefix: "services/{service}/", key: address, value: func(r *record) any { return r.addr.String() }},
		"gozero":      {prefix: "{service}/", key: ownID, value: func(r *record) any { return r.addr.String() }},
		"kratos":      {prefix: "/microservices/{service}/", hasLoad: true, key: address, value: kratos},
		"kitex":       {prefix: "kitex/registry-etcd/{service}/", hasLoad: true, key: address, value: kitex},
	}
}

// Formats are the formats that can be written, sorted.
func Formats() []string { return slices.Sorted(maps.Keys(encodings())) }

// DefaultPrefix is where format's own readers look for service, without namespace.
func DefaultPrefix(format, service string) string {
	return strings.Replace(encodings()[format].prefix, "{service}", service, 1)
}

func checkFormat(name string) error {
	if _, ok := encodings()[name]; !ok {
		return fmt.Errorf("format %.40q can't be written; allowed: %s", name, strings.Join(Formats(), ", "))
	}
	return nil
}

// encode is r's key and value under prefix.
func (e encoding) encode(prefix string, r *record) (key, value string, err error) {
	v := e.value(r)
	text, ok := v.(string)
	if !ok {
		raw, err := json.Marshal(v)
		if err != nil {
			return "", "", fmt.Errorf("encode the record of %s: %w", r.service, err)
		}
		text = string(raw)
	}
	return prefix + e.key(r), text, nil
}

// ownID stands where go-zero has a lease's id or a number of one's own: it stays the same when the lease doesn't, so that there is never a second key (5.1).
func ownID(r *record) string {
	return strconv.FormatUint(xxhash.Sum64String(r.addr.String())>>1, 10) // go-zero's is an int64
}

// texts is the metadata of formats whose values are text.
func (r *record) texts() map[string]string {
	out := make(map[string]string, len(r.metadata)+5)
	maps.Copy(out, r.metadata)
	set := func(name, value string) {
		if value != "" {
			out[name] = value
		}
	}
	set("zone", r.zone)
	set("region", r.region)
	if r.load >= 0 {
		out["load"], out["load_at"] = strconv.Itoa(r.load), strconv.FormatInt(r.loadAt.Unix(), 10)
	}
	return out
}

func grpcNaming(r *record) any {
	var out struct {
		Op       uint8
		Addr     string
		Metadata map[string]any
	}
	if r.draining {
		out.Op = 1 // 1.11
	}
	out.Addr = r.addr.String()
	set := func(name string, value any) {
		if out.Metadata == nil {
			out.Metadata = make(map[string]any)
		}
		out.Metadata[name] = value
	}
	for k, v := range r.texts() {
		set(k, v)
	}
	if r.weight > 0 {
		set("weight", r.weight)
	}
	if r.load >= 0 {
		set("load", r.load)
		set("load_at", r.loadAt.Unix())
	}
	return out
}

func kratos(r *record) any {
	metadata := r.texts()
	if r.weight > 0 {
		metadata["weight"] = strconv.FormatUint(uint64(r.weight), 10)
	}
	scheme := "grpc"
	if s := metadata["scheme"]; s != "" {
		scheme = s
	}
	delete(metadata, "scheme")
	return struct {
		ID        string            `json:"id"`
		Name      string            `json:"name"`
		Version   string            `json:"version"`
		Metadata  map[string]string `json:"metadata"`
		Endpoints []string          `json:"endpoints"`
	}{r.addr.String(), r.service, metadata["version"], metadata, []string{scheme + "://" + r.addr.String() + "?isSecure=false"}}
}

func kitex(r *record) any {
	weight := r.weight
	if weight == 0 {
		weight = 10 // kitex's own default
	}
	return struct {
		Network string            `json:"network"`
		Address string            `json:"address"`
		Weight  uint32            `json:"weight"`
		Tags    map[string]string `json:"tags"`
	}{"tcp", r.addr.String(), weight, r.texts()}
}
