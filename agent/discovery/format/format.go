// Package format turns what a key of etcd holds into backends, and a registration into what a key holds: one file per key/value format of service lists.
//
// A format appends the backends of one key: none (the record says nothing yet), one, or many (a value that lists them); they may stand in the value or in the
// key, so it gets both. Where a backend is what several keys say together (traefik's url and weight), the decoder has a Joiner, which keeps those keys.
package format

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

// Names of the formats, as `format:` in the configuration has them.
const (
	GRPCNaming       = "grpc-naming"
	GoZero           = "gozero"
	Kratos           = "kratos"
	Kitex            = "kitex"
	Hertz            = "hertz"
	GoMicro          = "go-micro"
	RPCX             = "rpcx"
	SkyDNS           = "skydns"
	DubboInterface   = "dubbo-interface"
	DubboApplication = "dubbo-application"
	GoFrame          = "goframe"
	Jupiter          = "jupiter"
	Traefik          = "traefik"
	APISIX           = "apisix"
	Patroni          = "patroni"
	Plain            = "plain"
)

// Names returns every format, the default first.
func Names() []string {
	return []string{GRPCNaming, GoZero, Kratos, Kitex, Hertz, GoMicro, RPCX, SkyDNS, DubboInterface, DubboApplication, GoFrame, Jupiter, Traefik, APISIX, Patroni, Plain}
}

// maxValue bounds a value in bytes. Registrations have some hundred bytes; a larger limit lets one key cost more memory and time.
const maxValue = 64 << 10

// Decoder reads one service's keys. It is for one goroutine.
type Decoder struct {
	decode func(dst []service.Backend, key string, value []byte) ([]service.Backend, error)
	shared sharer
	joiner *Joiner // nil for most formats
}

// New returns a decoder of the format called name. What a service selects (`select:`) is for those formats whose records name several endpoints of one process:
// they give only the selected ones, or, if nothing is selected among them, those of the scheme that the format's file says comes first.
func New(name string, selected map[string][]string) (*Decoder, error) {
	d := &Decoder{}
	switch name {
	case GRPCNaming:
		d.decode = (&grpcNaming{}).decode
	case GoZero:
		d.decode = goZero
	case Kratos:
		d.decode = kratos{schemes: selected["scheme"]}.decode
	case Kitex, Hertz:
		d.decode = kitex{hertz: name == Hertz}.decode
	case GoMicro:
		d.decode = goMicro
	case RPCX:
		d.decode = rpcx
	case SkyDNS:
		d.decode = skyDNS
	case DubboInterface:
		d.decode = dubboInterface
	case DubboApplication:
		d.decode = dubboApplication
	case GoFrame:
		d.decode = goFrame
	case Jupiter:
		d.decode = jupiter
	case Traefik:
		d.join(traefikRecord, joinTraefik)
	case APISIX:
		d.decode = apisix
	case Patroni:
		d.join(patroniRecord, joinPatroni)
	case Plain:
		d.decode = plain
	default:
		return nil, fmt.Errorf("format %q is not known: use one of %s", name, strings.Join(Names(), ", "))
	}
	return d, nil
}

// Append appends the backends of one key to dst, without Key, Created and Modified; one by host name has it in Host, and an invalid Addr with its port. The error
// says what is wrong with this key in words for `explain` (SEMANTICS 1.7), in valid UTF-8. A value that lists many backends may give both: what could be read is
// appended, and the error is about the first that could not. What dst held before stays as it was in any case.
func (d *Decoder) Append(dst []service.Backend, key string, value []byte) ([]service.Backend, error) {
	switch {
	case !utf8.ValidString(key):
		return dst, errors.New("the key is not valid UTF-8")
	case len(value) > maxValue:
		return dst, fmt.Errorf("the value has %d bytes, more than %d", len(value), maxValue)
	}
	n := len(dst)
	out, err := d.decode(dst, key, value)
	for i := n; i < len(out); i++ {
		d.shared.share(&out[i])
	}
	return out, err
}
