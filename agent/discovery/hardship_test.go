package discovery

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// An etcd that takes a second for each answer is slow, and not lost: lists come and are followed, over one connection, with one read each.
func TestSlowEtcd(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	var follows []Follow
	for i := range 10 { // more than may read at once
		follows = append(follows, naming(fmt.Sprintf("s%d", i)))
		put(t, c, follows[i].Prefix+"a", record("10.0.0.1:80", 1))
	}
	proxy := etcdtest.StartProxy(t, s.Addr())
	proxy.Slow(time.Second)
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{proxy.Addr()}}}, follows...)
	for _, f := range follows {
		d.waitAddrs(t, f.Name, "10.0.0.1:80")
	}
	for _, f := range follows {
		put(t, c, f.Prefix+"b", record("10.0.0.2:80", 1))
	}
	for _, f := range follows {
		d.waitAddrs(t, f.Name, "10.0.0.1:80", "10.0.0.2:80")
	}
	if st := d.Status(); st.Reads != uint64(len(follows)) || st.Reconnects != 0 || proxy.Accepted() != 1 {
		t.Errorf("%d reads of %d prefixes, %d reconnects, %d connections", st.Reads, len(follows), st.Reconnects, proxy.Accepted())
	}
}

// A value of 1 MiB, and keys and values of any bytes, hide only themselves (1.7); what is shown of them is short and is text.
func TestLargeAndGarbageRecords(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/good", record("10.0.0.1:80", 1))
	large := strings.Repeat("x", 1<<20)
	garbage := map[string]string{
		"services/user/large":         large,
		"services/user/large-record":  `{"Op":0,"Addr":"10.0.0.2:80","Metadata":{"note":"` + large + `"}}`,
		"services/user/\x00\xff\xfe":  "\x00\xff\xfe",
		"services/user/":              "",
		"services/user//":             "{",
		"services/user/" + large[:60]: strings.Repeat("[", 100000),
		"services/user/\n\x1b[31m":    `{"Addr":"\u0000"}`,
	}
	for key, value := range garbage {
		put(t, c, key, value)
	}
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: t.TempDir()}, naming("user"))
	good := func(from *running) func() bool {
		return func() bool { l := from.last("user"); return l != nil && strings.HasPrefix(addrs(l), "10.0.0.1:80") }
	}
	eventually(t, time.Minute, "the good record", good(d))
	for key := range garbage { // and by the watch
		put(t, c, key, "again\xff"+key)
	}
	put(t, c, "services/user/last", record("10.0.0.3:80", 1))
	l := d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.3:80")
	if l.BadCount != len(garbage) {
		t.Errorf("%d bad records, want %d", l.BadCount, len(garbage))
	}
	for _, b := range l.Bad {
		if len(b.Reason) > 500 || !bytes.Equal([]byte(b.Key), bytes.ToValidUTF8([]byte(b.Key), nil)) && !strings.Contains(b.Key, "\uFFFD") {
			t.Errorf("bad record %q: %.600q", b.Key, b.Reason)
		}
	}
	d.stop()
	again := start(t, setup{SpoolDir: d.cfg.SpoolDir}, naming("user"))
	if got := addrs(again.last("user")); got != "10.0.0.1:80 10.0.0.3:80" {
		t.Errorf("the spool has %q", got)
	}
}

// Certificate, key and authority are replaced while the agent runs: the connection that stands goes on, also while the files are half written, and the next one
// uses the new ones.
func TestTLSFilesRotate(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	old, next := newAuthority(t, "old"), newAuthority(t, "next")
	writeFile(t, at("both"), old.pem+next.pem)
	old.issue("etcd.example", at("server.crt"), at("server.key"))
	old.issue("lbagent", at("agent.crt"), at("agent.key"))
	writeFile(t, at("agent.ca"), old.pem)
	s := etcdtest.Start(t, etcdtest.Config{TLS: &etcdtest.TLS{CertFile: at("server.crt"), KeyFile: at("server.key"), CAFile: at("both")}})
	pool := x509.NewCertPool()
	pool.AddCert(old.cert)
	pool.AddCert(next.cert)
	own := must[tls.Certificate](t)(tls.LoadX509KeyPair(at("agent.crt"), at("agent.key")))
	c := must[*clientv3.Client](t)(clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop(), TLS: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{own}}}))
	defer c.Close()
	proxy := etcdtest.StartProxy(t, s.Addr())
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{"https://" + proxy.Addr()}, CAFile: at("agent.ca"), CertFile: at("agent.crt"), KeyFile: at("agent.key"),
		ServerName: "etcd.example"}}, naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")

	whole := must[[]byte](t)(os.ReadFile(at("agent.crt")))
	writeFile(t, at("agent.crt"), string(whole[:len(whole)/2]))
	writeFile(t, at("agent.ca"), "")
	put(t, c, "services/user/b", record("10.0.0.2:80", 1))
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	if st := d.Status(); !st.Connected || st.Reconnects != 0 || proxy.Accepted() != 1 {
		t.Errorf("half written files: connected %v, %d reconnects, %d connections", st.Connected, st.Reconnects, proxy.Accepted())
	}

	proxy.Cut() // the connection breaks in the worst moment: nothing is lost but time
	proxy.Heal()
	eventually(t, time.Minute, "the reason", func() bool {
		return strings.Contains(d.Status().LastError, "agent.ca") || strings.Contains(d.Status().LastError, "certificate")
	})
	writeFile(t, at("agent.ca"), old.pem+next.pem)
	next.issue("lbagent", at("agent.crt"), at("agent.key"))
	next.issue("etcd.example", at("server.crt"), at("server.key"))
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	put(t, c, "services/user/c", record("10.0.0.3:80", 1))
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	d.never(t, "user", 1)
}
