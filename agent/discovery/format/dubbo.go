package format

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// dubboInterface reads what dubbo-go's registry/etcdv3 writes: `/dubbo/<interface>/providers/<URL>`, all of it in the key. The URL is escaped as a whole:
// dubbo://10.0.0.1:20000/com.x.Foo?methods=a&weight=100. Its folders are empty keys, and consumers, routers and configurators lie beside the providers; none
// of them is a backend. The scheme and the parameters become metadata, but those that are another for each process, or long. Default weight 100; a weight of 0,
// enabled=false and disabled=true are draining.
func dubboInterface(dst []service.Backend, key string, _ []byte) ([]service.Backend, error) {
	before, last := cutLast(key)
	if _, folder := cutLast(before); folder != "providers" || last == "" {
		return dst, nil
	}
	text, err := url.QueryUnescape(last)
	if err != nil {
		return dst, fmt.Errorf("the key is not an escaped URL: %.80q", err.Error())
	}
	u, err := dubboURL(text)
	if err != nil {
		return dst, err
	}
	switch u.Scheme {
	case "":
		return dst, errors.New("the key holds no URL")
	case "empty", "consumer", "override", "route", "condition", "script", "tag":
		return dst, nil
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if err := setURL(&b, u); err != nil {
		return dst, err
	}
	query := u.Query()
	b.Draining = strings.EqualFold(query.Get("enabled"), "false") || strings.EqualFold(query.Get("disabled"), "true")
	for _, name := range []string{"enabled", "disabled", "methods", "pid", "timestamp", "ip", "bean.name", "anyhost"} {
		query.Del(name)
	}
	if err := setQuery(&b, query); err != nil {
		return dst, err
	}
	b.Metadata = with(b.Metadata, "scheme", u.Scheme)
	return append(dst, b), nil
}

// dubboURL reads a URL as dubbo-go writes it: an IPv6 address has no brackets.
func dubboURL(text string) (*url.URL, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return parseURL(text)
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	from := strings.LastIndexByte(rest[:end], '@') + 1
	return parseURL(scheme + "://" + rest[:from] + bracketed(rest[from:end]) + rest[end:])
}

// dubboApplication reads what dubbo-go's service discovery writes: `/services/<app>/<host>:<port>`, a JSON instance with Host, Port, Enable, Healthy and Metadata.
// Enable and Healthy false are draining. A weight of 0 is none, as for dubbo-go's own reader, since its writer has no other way to say so: 100.
func dubboApplication(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	host, port := o.text("Host"), o.text("Port")
	if host == "" {
		return dst, nil
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if err := setAddr(&b, net.JoinHostPort(host, port)); err != nil {
		return dst, err
	}
	metadata := o.object("Metadata")
	weight := o.text("Weight")
	if err := setMetadata(&b, metadata); err != nil {
		return dst, err
	}
	if weight != "" && weight != "0" {
		if err := setWeight(&b, weight); err != nil {
			return dst, err
		}
	}
	if err := setSwitches(&b, o, "Enable", "Healthy"); err != nil {
		return dst, err
	}
	o.drop("ID", "ServiceName", "Address", "ServiceMetadata")
	o.dropBlank("GroupName", "Tag")
	b.Metadata = withFields(b.Metadata, o)
	return append(dst, b), nil
}

// setSwitches takes fields that say whether a backend is in service (SEMANTICS 1.11); absent is yes.
func setSwitches(b *service.Backend, o object, names ...string) error {
	for _, name := range names {
		off, err := o.no(name)
		if err != nil {
			return err
		}
		b.Draining = b.Draining || off
	}
	return nil
}
