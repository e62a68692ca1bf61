package format

import (
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// traefikWeight is what traefik gives a server that names no weight.
const traefikWeight = 1

// traefikRecord is the server that a key is about, as traefik's KV provider has it: `traefik/http/services/<svc>/loadbalancer/servers/<n>/url` and `.../weight`,
// and for tcp and udp `.../address`; in any case of letters. Other keys (routers, health checks, ...) are no backends.
func traefikRecord(key string) string {
	server, field := cutLast(strings.ToLower(key))
	switch field {
	case "url", "address", "weight":
	default:
		return ""
	}
	servers, name := cutLast(server)
	if name == "" || !strings.HasSuffix(servers, "/loadbalancer/servers") {
		return ""
	}
	return server
}

// joinTraefik gives the backend of one server to the key with its address: the keys of it are a url or address, and perhaps a weight. A weight alone waits for
// its address. One that is no number hides only itself; 0 is draining: traefik gives such a server no calls. Of keys that differ in case only, the one that was
// written last counts.
func joinTraefik(parts []Part) {
	var address, weight *Part
	for i := range parts {
		p := &parts[i]
		if _, field := cutLast(p.Key); strings.EqualFold(field, "weight") {
			weight = newest(weight, p)
		} else {
			address = newest(address, p)
		}
	}
	b := service.Backend{Weight: traefikWeight}
	if weight != nil && strings.TrimSpace(weight.value) != "" {
		weight.Err = setWeight(&b, strings.TrimSpace(weight.value))
	}
	if address == nil || strings.TrimSpace(address.value) == "" {
		return
	}
	if address.Err = traefikAddress(&b, strings.TrimSpace(address.value)); address.Err == nil {
		address.Backends = []service.Backend{b}
	}
}

// newest returns the part that was written last; of one transaction, the last key.
func newest(a, b *Part) *Part {
	if a != nil && a.Modified > b.Modified {
		return a
	}
	return b
}

// traefikAddress reads a URL, whose scheme becomes metadata, or host:port.
func traefikAddress(b *service.Backend, text string) error {
	if !strings.Contains(text, "://") {
		return setAddr(b, text)
	}
	u, err := parseURL(text)
	if err != nil {
		return err
	}
	b.Metadata = map[string]string{"scheme": u.Scheme}
	return setURL(b, u)
}
