package proxy

import (
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/table"
)

// protocol is how a client connection is served. The words are those of metrics and configuration.
type protocol uint8

const (
	protoTCP protocol = iota
	protoHTTP1
	protoH2
	protocols
)

func (k protocol) String() string { return [...]string{"tcp", "http1", "h2"}[k] }

// route is one configured service on the proxy. It stays the same across reloads, as long as the service is configured and the table follows it.
type route struct {
	name string
	svc  *table.Service

	opts   atomic.Pointer[options]
	budget retryBudget
	gone   bool         // guarded by http1.mu: no longer configured
	denied atomic.Int64 // when an event last told that the budget is used up, in units of tellEvery
}

// options are what a reload may change; a call takes them once, in its beginning.
type options struct {
	auto      bool     // told apart by the first bytes (4.9)
	protocol  protocol // unless auto
	authority string   // keep, host, or a literal (4.6)
	connect   time.Duration
	request   time.Duration // 0 = none
	idle      time.Duration // 0 = none; HTTP only (4.8)
	drain     time.Duration
	hash      string // the header that is a call's key; "" = none

	reconnectBase, reconnectMax time.Duration // 4.10

	retry *retryPolicy // 4.2; nil = never
}

// options are those of now.
func (rt *route) options() *options { return rt.opts.Load() }

func optionsOf(s *Service) *options {
	o := &options{
		authority: s.Authority, hash: s.HashHeader, connect: s.Connect, request: s.Request, idle: s.Idle, drain: s.Drain,
		reconnectBase: s.ReconnectBase, reconnectMax: s.ReconnectMax,
	}
	o.retry, _ = retryPolicyOf(s.Retry) // checked by Prepare
	switch s.Protocol {
	case "tcp":
		o.protocol = protoTCP
	case "http1":
		o.protocol = protoHTTP1
	case "h2":
		o.protocol = protoH2
	default:
		o.auto = true
	}
	return o
}

// authority is what a backend gets as :authority or Host for a request that came with the given one (4.6).
func authority(o *options, b *table.Backend, came string) string {
	switch {
	case o.authority == "" || o.authority == "keep":
		return came
	case o.authority != "host":
		return o.authority
	case b.Host != "" && b.Addr.Port() == 80:
		return b.Host // RFC 9110 4.2.1: without the default port
	case b.Host != "":
		return net.JoinHostPort(b.Host, strconv.Itoa(int(b.Addr.Port())))
	default:
		return b.Addr.String()
	}
}
