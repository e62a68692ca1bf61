package format

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// rpcxWeight is what rpcx' selectors give a server that names no weight.
const rpcxWeight = 1

// rpcx reads what rpcx-etcd writes: `<base>/<service>/<network>@<host:port>`, without a network it is tcp, and a URL query as the value: weight=7&group=a. Its
// folders are keys too (`/rpcx` = rpcx_path, `/rpcx/Arith` = Arith); they have no port at their end, and are no backends. state=inactive and a weight of 0 are
// draining. The network becomes metadata `protocol`; those that don't run over TCP (quic, kcp, unix) wait, since nothing here could call them.
func rpcx(dst []service.Backend, key string, value []byte) ([]service.Backend, error) {
	address := key[strings.LastIndexByte(key, '/')+1:]
	network, rest, ok := strings.Cut(address, "@")
	if ok {
		address = rest
	} else {
		network = "tcp"
	}
	switch network {
	case "tcp", "tcp4", "tcp6", "http", "ws", "wss":
	default:
		return dst, nil
	}
	if !ok && !strings.Contains(address, ":") {
		return dst, nil
	}
	b := service.Backend{Weight: rpcxWeight}
	if err := setAddr(&b, address); err != nil {
		return dst, err
	}
	query, err := url.ParseQuery(strings.TrimSpace(string(value)))
	if err != nil {
		return dst, fmt.Errorf("the value is not a URL query: %.80q", err.Error())
	}
	if query.Get("state") == "inactive" {
		b.Draining = true
	}
	for _, name := range []string{"state", "calls", "connections"} {
		query.Del(name) // the last two are rates, written anew with every refresh
	}
	if err := setQuery(&b, query); err != nil {
		return dst, err
	}
	b.Metadata = with(b.Metadata, "protocol", network)
	return append(dst, b), nil
}
