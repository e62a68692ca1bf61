package format

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

// etcd is the keys of one service, and what a decoder that was told every change says of them.
type etcd struct {
	format string
	dec    *Decoder
	rev    int64
	keys   map[string]Part
	gives  map[string]Part // by key
}

func newEtcd(format string) *etcd {
	dec, _ := New(format, nil)
	return &etcd{format: format, dec: dec, keys: make(map[string]Part), gives: make(map[string]Part)}
}

// put and del tell the decoder one change, as a watch does; commit asks what has changed.
func (e *etcd) put(key, value string) *etcd {
	e.rev++
	e.keys[key] = Part{Key: key, Created: e.rev, Modified: e.rev, value: value}
	e.dec.Joiner().Put(key, []byte(value), e.rev, e.rev, 7)
	return e
}

func (e *etcd) del(key string) *etcd {
	e.rev++
	delete(e.keys, key)
	delete(e.gives, key)
	e.dec.Joiner().Delete(key)
	return e
}

func (e *etcd) commit() *etcd {
	for _, p := range e.dec.Joiner().Changed() {
		e.gives[p.Key] = p
	}
	return e
}

// backends returns those of all keys, by key.
func (e *etcd) backends() []service.Backend {
	var all []service.Backend
	for _, key := range slices.Sorted(maps.Keys(e.gives)) {
		all = append(all, e.gives[key].Backends...)
	}
	return all
}

// bad returns the keys that are bad, with the reason.
func (e *etcd) bad() string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(e.gives)) {
		if err := e.gives[key].Err; err != nil {
			all = append(all, fmt.Sprintf("%s: %v", key, err))
		}
	}
	return strings.Join(all, "\n")
}

// whole is what a new decoder says of the same keys, which reads them in order as a whole read does.
func (e *etcd) whole() *etcd {
	next := newEtcd(e.format)
	for _, key := range slices.Sorted(maps.Keys(e.keys)) {
		p := e.keys[key]
		next.dec.Joiner().Put(key, []byte(p.value), p.Created, p.Modified, 7)
	}
	return next.commit()
}

func (e *etcd) check(t *testing.T, what string, want ...service.Backend) {
	t.Helper()
	e.commit()
	if got := e.backends(); !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\ngot  %+v\nwant %+v", what, got, want)
	}
	if got := e.whole().backends(); !reflect.DeepEqual(got, want) {
		t.Errorf("%s, read anew:\ngot  %+v\nwant %+v", what, got, want)
	}
}

// Golden lines of traefik, and what becomes of a server as each of its keys comes, changes and goes.
func TestTraefik(t *testing.T) {
	const server = "traefik/http/services/foo/loadbalancer/servers/0"
	http := meta("scheme", "http")
	e := newEtcd(Traefik)
	e.put(server+"/weight", "3").check(t, "a weight waits for its address")
	e.put(server+"/url", "http://10.0.0.1:8080").check(t, "golden", backend("10.0.0.1:8080", weight(3), http))
	if p := e.gives[server+"/url"]; p.Created != 2 || p.Modified != 2 || p.Lease != 7 {
		t.Errorf("the backend is of revision %d %d, lease %d; want those of its address", p.Created, p.Modified, p.Lease)
	}
	e.put(server+"/weight", "7").check(t, "another weight", backend("10.0.0.1:8080", weight(7), http))
	e.put("traefik/http/services/foo/loadbalancer/servers/1/url", "http://[2001:db8::1]:8080").
		check(t, "golden IPv6, no weight", backend("10.0.0.1:8080", weight(7), http), backend("[2001:db8::1]:8080", weight(1), http))
	e.put(server+"/weight", "0").check(t, "weight 0 drains (1.11)", backend("10.0.0.1:8080", weight(1), draining, http), backend("[2001:db8::1]:8080", weight(1), http))
	e.put(server+"/weight", "heavy").check(t, "a bad weight hides only itself (1.7)", backend("10.0.0.1:8080", weight(1), http), backend("[2001:db8::1]:8080", weight(1), http))
	if bad := e.bad(); !strings.HasPrefix(bad, server+"/weight: weight") || strings.Contains(bad, "\n") {
		t.Errorf("bad keys %q", bad)
	}
	e.del(server+"/weight").check(t, "the weight is deleted", backend("10.0.0.1:8080", weight(1), http), backend("[2001:db8::1]:8080", weight(1), http))
	e.put(server+"/url", "https://10.0.0.2").check(t, "another address", backend("10.0.0.2:443", weight(1), meta("scheme", "https")), backend("[2001:db8::1]:8080", weight(1), http))
	e.put(server+"/weight", "5").del(server+"/url").check(t, "the address is deleted", backend("[2001:db8::1]:8080", weight(1), http))
	e.put(server+"/url", "http://10.0.0.1:1").check(t, "and comes back", backend("10.0.0.1:1", weight(5), http), backend("[2001:db8::1]:8080", weight(1), http))
	e.put(server+"/url", "ftp://[::1").check(t, "no URL", backend("[2001:db8::1]:8080", weight(1), http))
	if bad := e.bad(); !strings.HasPrefix(bad, server+"/url: not a URL") {
		t.Errorf("bad keys %q", bad)
	}
	e.del(server+"/url").del(server+"/weight").del("traefik/http/services/foo/loadbalancer/servers/1/url").check(t, "all gone")
	if n := len(e.dec.Joiner().parts); n != 0 {
		t.Errorf("%d records kept", n)
	}
}

func TestTraefikKeys(t *testing.T) {
	e := newEtcd(Traefik)
	e.put("traefik/tcp/services/db/loadbalancer/servers/0/address", "10.0.0.1:5432").check(t, "golden tcp", backend("10.0.0.1:5432", weight(1)))
	e = newEtcd(Traefik)
	e.put("traefik/tcp/services/db/loadbalancer/servers/0/address", "[2001:db8::1]:5432").check(t, "golden tcp IPv6", backend("[2001:db8::1]:5432", weight(1)))
	e = newEtcd(Traefik)
	e.put("traefik/udp/services/db/loadbalancer/servers/0/address", "Db-1:53").check(t, "udp, host name (1.13)", named("db-1", 53, weight(1)))

	e = newEtcd(Traefik)
	e.put("Traefik/HTTP/services/Foo/loadBalancer/Servers/A/URL", "http://10.0.0.1:1").put("traefik/http/services/foo/loadbalancer/servers/a/Weight", " 4\n")
	e.check(t, "letters of any case", backend("10.0.0.1:1", weight(4), meta("scheme", "http")))
	e.put("traefik/http/services/foo/loadbalancer/servers/a/url", "http://10.0.0.2:2").check(t, "the newest of two spellings", backend("10.0.0.2:2", weight(4), meta("scheme", "http")))
	e.del("traefik/http/services/foo/loadbalancer/servers/a/url").check(t, "and the other again", backend("10.0.0.1:1", weight(4), meta("scheme", "http")))

	e = newEtcd(Traefik)
	for _, key := range []string{
		"traefik/http/routers/r/rule", "traefik/http/services/foo/loadbalancer/healthcheck/path", "traefik/http/services/foo/loadbalancer/servers/0/preservepath",
		"traefik/http/services/foo/weighted/services/0/weight", "traefik/http/services/foo/loadbalancer/servers/url", "url", "",
	} {
		e.put(key, "http://10.0.0.1:1")
	}
	e.check(t, "other keys")
	e.put("traefik/http/services/foo/loadbalancer/servers/0/url", "").check(t, "no value yet")
}

// Golden lines of patroni, and a failover key by key.
func TestPatroni(t *testing.T) {
	const pg1, pg2, leader = "/service/batman/members/pg1", "/service/batman/members/pg2", "/service/batman/leader"
	member := func(ip, role, more string) string {
		return `{"conn_url":"postgres://` + ip + `:5432/postgres","api_url":"http://` + ip + `:8008/patroni","state":"running","role":"` + role + `","version":"4.0.0","xlog_location":1` + more + `}`
	}
	is := func(name, role string, pairs ...string) func(*service.Backend) {
		return meta(append([]string{"name", name, "role", role, "state", "running", "version", "4.0.0"}, pairs...)...)
	}
	e := newEtcd(Patroni)
	e.put(pg1, `{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"primary","version":"4.0.0"}`)
	e.check(t, "golden", backend("10.0.0.1:5432", is("pg1", "primary")))
	e.put(leader, "pg1").check(t, "golden leader", backend("10.0.0.1:5432", is("pg1", "primary")))
	e.put(pg2, member("[2001:db8::2]", "replica", "")).check(t, "golden IPv6", backend("10.0.0.1:5432", is("pg1", "primary")), backend("[2001:db8::2]:5432", is("pg2", "replica")))
	e.put(leader, "pg2").check(t, "the leader's key changes first", backend("10.0.0.1:5432", is("pg1", "replica")), backend("[2001:db8::2]:5432", is("pg2", "primary")))
	e.put(pg1, member("10.0.0.1", "replica", "")).put(pg2, member("[2001:db8::2]", "master", ""))
	e.check(t, "then the members", backend("10.0.0.1:5432", is("pg1", "replica")), backend("[2001:db8::2]:5432", is("pg2", "primary")))
	e.del(leader).check(t, "no leader's key: the members' own words, master is primary", backend("10.0.0.1:5432", is("pg1", "replica")), backend("[2001:db8::2]:5432", is("pg2", "primary")))
	e.put(leader, "pg2").put("/service/batman/config", `{"ttl":30,"standby_cluster":{"host":"x"}}`)
	e.check(t, "a standby cluster", backend("10.0.0.1:5432", is("pg1", "replica")), backend("[2001:db8::2]:5432", is("pg2", "standby_leader")))
	e.put("/service/batman/config", `{"ttl":30,"standby_cluster":null}`).del(pg2).check(t, "the leader is gone", backend("10.0.0.1:5432", is("pg1", "replica")))

	e.put(pg1, member("10.0.0.1", "replica", `,"tags":{"noloadbalance":true,"zone":"a","tag":"t"}`)).
		check(t, "noloadbalance drains a replica (1.11)", backend("10.0.0.1:5432", draining, zone("a"), is("pg1", "replica", "tag", "t")))
	e.put(leader, "pg1").check(t, "but not the primary", backend("10.0.0.1:5432", zone("a"), is("pg1", "primary", "tag", "t")))
	e.put(pg1, `{"conn_url":"postgres://u:p@Pg-1/postgres","state":"stopped","role":"replica"}`).
		check(t, "a stopped one drains (1.11); host name (1.13), default port", named("pg-1", 5432, draining, meta("name", "pg1", "role", "primary", "state", "stopped")))
	e.put(pg1, "postgres://u:p@10.0.0.1:5433/postgres?application_name=http://10.0.0.1:8008").check(t, "Governor's form", backend("10.0.0.1:5433", meta("name", "pg1", "role", "primary")))
	e.put(pg1, `{"state":"creating replica"}`).check(t, "no address yet")
	e.put(pg1, "").check(t, "no value yet")
	e.put("/service/batman/status", "{}").put("/service/batman/history", "[]").check(t, "other keys")
	e.put(pg1, `{"conn_url":"postgres://u:secret@[::1/postgres"}`).check(t, "no URL")
	if bad := e.bad(); !strings.HasPrefix(bad, pg1+": not a URL") || strings.Contains(bad, "secret") {
		t.Errorf("bad keys %q", bad)
	}
	e.put(pg1, `[`).check(t, "garbage")
	if bad := e.bad(); !strings.HasPrefix(bad, pg1+": the value is not JSON") {
		t.Errorf("bad keys %q", bad)
	}
}

// A key that can be no part of a record leaves it: what the decoder knew of it before is not so any more.
func TestJoinerForgetsWhatItCannotRead(t *testing.T) {
	const key = "traefik/http/services/foo/loadbalancer/servers/0/url"
	e := newEtcd(Traefik)
	e.put(key, "http://10.0.0.1:1").commit()
	e.dec.Joiner().Put(key, make([]byte, maxValue+1), 1, 2, 0)
	e.put("traefik/http/services/foo/loadbalancer/servers/0/weight", "1")
	if parts := e.dec.Joiner().Changed(); len(parts) != 1 || len(parts[0].Backends) != 0 {
		t.Errorf("got %+v, want the weight alone", parts)
	}
	if _, err := e.dec.Append(nil, key, make([]byte, maxValue+1)); err == nil {
		t.Error("no error")
	}
	e.put(key, "http://10.0.0.1:1").dec.Joiner().Reset()
	if parts := e.dec.Joiner().Changed(); len(parts) != 0 {
		t.Errorf("after a reset: %+v", parts)
	}
}

func FuzzTraefik(f *testing.F) {
	fuzzJoin(f, Traefik, "traefik/http/services/foo/loadbalancer/servers/0/url http://10.0.0.1:8080\ntraefik/http/services/foo/loadbalancer/servers/0/weight 3\nTraefik/http/services/foo/loadBalancer/servers/0/URL http://10.0.0.1:1")
}

func FuzzPatroni(f *testing.F) {
	fuzzJoin(f, Patroni, "/service/a/members/pg1 {\"conn_url\":\"postgres://10.0.0.1:5432/postgres\",\"state\":\"running\",\"role\":\"master\",\"tags\":{\"noloadbalance\":true}}\n"+
		"/service/a/members/pg2 postgres://x@y/z\n/service/a/leader pg1\n/service/a/config {\"standby_cluster\":{}}")
}

// fuzzJoin: in whatever order keys come and go, the decoder says what one says that reads them all at once.
func fuzzJoin(f *testing.F, format, lines string) {
	f.Add(lines, uint64(0b100))
	f.Fuzz(func(t *testing.T, lines string, commits uint64) {
		e := newEtcd(format)
		for i, line := range strings.Split(lines, "\n") {
			key, value, put := strings.Cut(line, " ")
			if put && utf8.ValidString(key) {
				e.put(key, value)
			} else {
				e.del(key)
			}
			if commits>>(i%64)&1 == 1 {
				e.commit()
			}
		}
		e.commit()
		next := e.whole()
		if e.bad() != next.bad() || !utf8.ValidString(e.bad()) {
			t.Errorf("bad: got %q, read anew %q", e.bad(), next.bad())
		}
		got := e.backends()
		if !reflect.DeepEqual(got, next.backends()) {
			t.Errorf("got %+v\nread anew %+v", got, next.backends())
		}
		for i := range got {
			if reason := unusable(&got[i]); reason != "" {
				t.Errorf("%s: %+v", reason, got[i])
			}
		}
	})
}
