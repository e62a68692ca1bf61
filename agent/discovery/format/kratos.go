package format

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// kratos reads what kratos' contrib/registry/etcd writes: `<namespace>/<name>/<id>`, a JSON object with id, name, version, metadata and endpoints, each a URL
// such as grpc://10.0.0.1:9000?isSecure=false.
//
// An instance serves the same thing on several endpoints, so the backends are those of one scheme: those that `select: {scheme: http}` names, else the first
// of grpc, grpcs, http and https that the instance has. Other schemes wait to be selected. Scheme, version and the URL's parameters become metadata beside
// the instance's own, which goes before all but the scheme. The weight is metadata.weight, 100 if absent as for kratos' selectors; 0 is draining, and kratos
// never picks it either.
type kratos struct{ schemes []string }

func (k kratos) decode(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if err := setMetadata(&b, o.object("metadata")); err != nil {
		return dst, err
	}
	var endpoints []string
	if raw := o.take("endpoints"); raw != nil && json.Unmarshal(raw, &endpoints) != nil {
		return dst, errors.New("endpoints is not a list of URLs")
	}
	o.drop("id", "name") // the key has them
	o.dropBlank("version")
	b.Metadata = withFields(b.Metadata, o)
	urls, bad := k.choose(endpoints)
	for _, u := range urls {
		one := b
		if err := setURL(&one, u); err != nil {
			bad = cmp.Or(bad, fmt.Errorf("endpoint of scheme %.20s: %w", u.Scheme, err))
			continue
		}
		parameters := make(object)
		for name, values := range u.Query() {
			parameters[strings.ToValidUTF8(name, "\uFFFD")], _ = json.Marshal(values[0])
		}
		one.Metadata = with(withFields(one.Metadata, parameters), "scheme", u.Scheme)
		dst = append(dst, one)
	}
	return dst, bad
}

// choose returns the endpoints that are the service's, and what is wrong with the first that can't be read.
func (k kratos) choose(endpoints []string) (chosen []*url.URL, bad error) {
	best := -1
	for i, text := range endpoints {
		u, err := url.Parse(text)
		if err != nil {
			bad = cmp.Or(bad, fmt.Errorf("endpoint %d: %w", i, urlError(err)))
			continue
		}
		rank := slices.Index([]string{"https", "http", "grpcs", "grpc"}, u.Scheme)
		if len(k.schemes) > 0 {
			rank = min(slices.Index(k.schemes, u.Scheme), 0)
		}
		if rank > best {
			best, chosen = rank, nil
		}
		if rank >= 0 && rank == best {
			chosen = append(chosen, u)
		}
	}
	return chosen, bad
}

// kratos is an instance with one endpoint of the scheme in its metadata, grpc if there is none.
func (r *Registration) kratos() (string, error) {
	in := struct {
		ID        string            `json:"id"`
		Name      string            `json:"name"`
		Version   string            `json:"version"`
		Metadata  map[string]string `json:"metadata"`
		Endpoints []string          `json:"endpoints"`
	}{ID: r.Addr.String(), Name: r.Service, Version: r.Metadata["version"], Metadata: r.labels()}
	delete(in.Metadata, "version")
	delete(in.Metadata, "scheme")
	switch {
	case r.Draining:
		in.Metadata["weight"] = "0"
	case r.Weight > 0:
		in.Metadata["weight"] = strconv.FormatUint(uint64(r.Weight), 10)
	}
	in.Endpoints = []string{cmp.Or(r.Metadata["scheme"], "grpc") + "://" + r.Addr.String()}
	return marshal(in)
}
