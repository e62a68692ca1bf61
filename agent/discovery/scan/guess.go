package scan

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/discovery/format"
)

// guessed is what one key looks like.
type guessed struct {
	format      string
	name        string // valid
	prefix, key string
	schemes     []string
}

// guess says what a key looks like, by its form first and its value second. ok is false if it looks like no service's.
func guess(key string, value []byte) (g guessed, ok bool) {
	if !utf8.ValidString(key) {
		return g, false
	}
	for _, rule := range []func(string, []byte) (guessed, bool){byPath, byJSON, byText} {
		if g, ok = rule(key, value); ok {
			g.name = validName(g.name)
			return g, true
		}
	}
	return g, false
}

// in is a service whose keys are one level below prefix.
func in(format, prefix, name string) (guessed, bool) {
	return guessed{format: format, prefix: prefix, name: name}, name != ""
}

// byPath knows the formats that have a layout of their own, perhaps under a namespace.
func byPath(key string, value []byte) (guessed, bool) {
	for _, layout := range []struct{ marker, format string }{
		{"kitex/registry-etcd/", format.Kitex}, {"hertz/registry-etcd/", format.Hertz}, {"/micro/registry/", format.GoMicro},
	} {
		if before, rest, ok := cutSegment(key, layout.marker); ok {
			if name, _, ok := strings.Cut(rest, "/"); ok {
				return in(layout.format, before+name+"/", name)
			}
		}
	}
	if before, rest, ok := cutSegment(key, "/skydns/"); ok {
		if i := strings.LastIndexByte(rest, '/'); i > 0 {
			return in(format.SkyDNS, before+rest[:i+1], reversed(rest[:i]))
		}
	}
	if before, rest, ok := cutSegment(key, "/dubbo/"); ok {
		if part := strings.Split(rest, "/"); len(part) == 3 && part[1] == "providers" {
			return in(format.DubboInterface, before+part[0]+"/providers/", part[0])
		}
		return guessed{}, false // consumers, routers, ...
	}
	if before, rest, ok := cutSegment(key, "/service/"); ok {
		if g, ok := underService(before, rest, value); ok {
			return g, true
		}
	}
	if before, rest, ok := cutSegment(key, "/upstreams/"); ok && bytes.Contains(value, []byte(`"nodes"`)) && !strings.Contains(rest, "/") {
		return guessed{format: format.APISIX, key: key, name: apisixName(rest, value)}, strings.HasSuffix(before, "/upstreams/")
	}
	if g, ok := traefik(key); ok {
		return g, true
	}
	return byNet(key)
}

// underService tells Patroni's keys from goframe's, which both lie under /service/.
func underService(before, rest string, value []byte) (guessed, bool) {
	part := strings.Split(rest, "/")
	switch {
	case len(part) == 3 && part[1] == "members" && bytes.Contains(value, []byte(`"conn_url"`)), len(part) == 2 && patroniKey(part[1]):
		return in(format.Patroni, before+part[0]+"/", part[0])
	case len(part) == 5 && isAddress(strings.Split(part[4], ",")[0]):
		return in(format.GoFrame, before+strings.Join(part[:3], "/")+"/", part[2])
	}
	return guessed{}, false
}

// patroniKey reports whether Patroni keeps a key of that name beside the members of a cluster.
func patroniKey(name string) bool {
	switch name {
	case "leader", "config", "initialize", "status", "history", "sync", "failover", "failsafe":
		return true
	}
	return false
}

// apisixName is what an upstream is called, its id if nothing else.
func apisixName(id string, value []byte) string {
	var v struct{ Name string }
	if json.Unmarshal(value, &v) == nil && v.Name != "" {
		return v.Name
	}
	return "upstream-" + id
}

// traefik knows `traefik/http/services/<svc>/loadbalancer/servers/<n>/url`, in any case of letters.
func traefik(key string) (guessed, bool) {
	lower := strings.ToLower(key)
	i := strings.Index(lower, "/loadbalancer/servers/")
	if i < 0 || len(lower) != len(key) {
		return guessed{}, false
	}
	prefix, name := parent(key[:i])
	if !strings.HasSuffix(lower[:len(prefix)], "/services/") {
		return guessed{}, false
	}
	return in(format.Traefik, prefix+name+"/", name)
}

// cutSegment cuts key behind marker, which begins where a segment does.
func cutSegment(key, marker string) (before, rest string, ok bool) {
	i := strings.Index(key, marker)
	if i < 0 || i > 0 && marker[0] != '/' && key[i-1] != '/' {
		return "", "", false
	}
	i += len(marker)
	return key[:i], key[i:], true
}

// reversed is the name of a path of CoreDNS: local/prod/foo is foo.prod.local.
func reversed(path string) string {
	labels := strings.Split(path, "/")
	for i, j := 0, len(labels)-1; i < j; i, j = i+1, j-1 {
		labels[i], labels[j] = labels[j], labels[i]
	}
	return strings.Join(labels, ".")
}

// byNet knows rpcx: the last part of the key is tcp@10.0.0.1:8972.
func byNet(key string) (guessed, bool) {
	prefix, last := parent(key)
	network, addr, ok := strings.Cut(last, "@")
	if !ok || network == "" || !isAddress(addr) {
		return guessed{}, false
	}
	return in(format.RPCX, prefix, name(prefix))
}

// parent cuts a key before its last part; prefix ends in /, or is empty.
func parent(key string) (prefix, last string) {
	i := strings.LastIndexByte(key, '/') + 1
	return key[:i], key[i:]
}

// name is the last part of a prefix.
func name(prefix string) string {
	_, last := parent(strings.TrimSuffix(prefix, "/"))
	return last
}

// byJSON knows the formats whose values are JSON objects, by their fields.
func byJSON(key string, value []byte) (guessed, bool) {
	if len(value) == 0 || value[0] != '{' {
		return guessed{}, false
	}
	var v struct {
		Op, Addr  json.RawMessage
		Endpoints []string `json:"endpoints"`
		MetadataX json.RawMessage
		// dubbo-go's
		ServiceName, Host string
	}
	if json.Unmarshal(value, &v) != nil {
		return guessed{}, false
	}
	prefix, _ := parent(key)
	switch {
	case len(v.Endpoints) > 0 && strings.Contains(v.Endpoints[0], "://"):
		g, ok := in(format.Kratos, prefix, name(prefix))
		for _, e := range v.Endpoints {
			if scheme, _, ok := strings.Cut(e, "://"); ok {
				g.schemes = append(g.schemes, scheme)
			}
		}
		return g, ok
	case v.ServiceName != "" && v.Host != "":
		return in(format.DubboApplication, prefix, name(prefix))
	case v.Addr != nil && v.MetadataX != nil:
		return in(format.Jupiter, prefix, jupiterName(name(prefix)))
	case v.Addr != nil:
		return in(format.GRPCNaming, prefix, name(prefix))
	}
	return guessed{}, false
}

// jupiterName is the service in <scheme>:<name>:v1:<mode>.
func jupiterName(text string) string {
	if part := strings.Split(text, ":"); len(part) == 4 {
		return part[1]
	}
	return text
}

// byText knows values that are an address.
func byText(key string, value []byte) (guessed, bool) {
	text := strings.TrimSpace(string(value))
	if len(text) > 300 || !utf8.ValidString(text) {
		return guessed{}, false
	}
	prefix, last := parent(key)
	switch {
	case isAddress(text) && isNumber(last):
		return in(format.GoZero, prefix, name(prefix))
	case isAddress(text), isURL(text):
		return in(format.Plain, prefix, name(prefix))
	}
	return guessed{}, false
}

// isAddress reports whether text is host:port; a host name has to have a dot or be localhost, so that no number with a colon is taken for one.
func isAddress(text string) bool {
	if _, err := netip.ParseAddrPort(text); err == nil {
		return true
	}
	i := strings.LastIndexByte(text, ':')
	if i < 1 || !isNumber(text[i+1:]) || len(text)-i > 6 {
		return false
	}
	host := text[:i]
	return (strings.Contains(host, ".") || host == "localhost") && !strings.ContainsAny(host, " /@:{}\"'\\\t\r\n")
}

func isURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme != "" && u.Host != "" && u.Port() != "" && isAddress(u.Host)
}

func isNumber(text string) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return text != ""
}
