package discovery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
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

// must runs a step of a test's setup.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// withAuth turns authentication on: root may do all, agent only read services/.
func withAuth(t *testing.T, c *clientv3.Client, password string) {
	t.Helper()
	ctx := t.Context()
	steps := []func() error{
		func() error { _, err := c.UserAdd(ctx, "root", "rootpw"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.RoleAdd(ctx, "reader"); return err },
		func() error {
			_, err := c.RoleGrantPermission(ctx, "reader", "services/", clientv3.GetPrefixRangeEnd("services/"), clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { _, err := c.UserAdd(ctx, "agent", password); return err },
		func() error { _, err := c.UserGrantRole(ctx, "agent", "reader"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func rootClient(t *testing.T, s *etcdtest.Server) *clientv3.Client {
	t.Helper()
	c := must[*clientv3.Client](t)(clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Username: "root", Password: "rootpw", Logger: zap.NewNop()}))
	t.Cleanup(func() { c.Close() })
	return c
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// User and password: the token expires, the password changes, rights are missing (1.4).
func TestPassword(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{TokenTTL: time.Second})
	withAuth(t, etcdtest.NewClient(t, s), "first")
	root := rootClient(t, s)
	put(t, root, "services/user/a", record("10.0.0.1:80", 1))
	put(t, root, "secret/a", record("10.0.9.1:80", 1))
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "wrong\n")
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: s.Endpoints(), Username: "agent", PasswordFile: file}}, naming("user"))
	eventually(t, time.Minute, "the login fails", func() bool { return strings.Contains(d.Status().LastError, "invalid user ID or password") })
	writeFile(t, file, "first\n")
	d.waitAddrs(t, "user", "10.0.0.1:80")

	d.Set(Follow{Name: "secret", Prefix: "secret/", Format: "grpc-naming"})
	eventually(t, time.Minute, "the denial is told", func() bool {
		return strings.Contains(d.log.String(), "cannot follow service: service=secret") && strings.Contains(d.log.String(), "permission denied")
	})
	if strings.Contains(d.log.String(), "etcd is lost; lists stay as they are: cause=\"watch") {
		t.Error("a denial was taken for a loss")
	}

	// The token of the watch stream expires: a watch that is made after that needs another login.
	expired := time.NewTimer(3 * time.Second)
	<-expired.C
	put(t, root, "services/later/a", record("10.0.1.1:80", 1))
	d.Set(naming("later"))
	d.waitAddrs(t, "later", "10.0.1.1:80")
	put(t, root, "services/later/b", record("10.0.1.2:80", 1))
	d.waitAddrs(t, "later", "10.0.1.1:80", "10.0.1.2:80")

	// The password changes, in etcd and in the file, and etcd restarts: all old tokens are void.
	if _, err := root.UserChangePassword(t.Context(), "agent", "second"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, "second\n")
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	put(t, root, "services/user/a", record("10.0.0.2:80", 1))
	d.waitAddrs(t, "user", "10.0.0.2:80")
	d.never(t, "user", 1)
	d.never(t, "later", 1)
	if strings.Contains(d.log.String(), "second") || strings.Contains(d.log.String(), "first") {
		t.Error("a password is in the log")
	}
}

// Authentication is turned on while the agent runs without a user: that is said, and ends when a user is configured; lists stay.
func TestAuthTurnedOn(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	withAuth(t, c, "pw")
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the reason", func() bool { return strings.Contains(d.Status().LastError, "no user is configured (etcd.username)") })
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "pw")
	d.links.Set(&etcd.Config{Endpoints: s.Endpoints(), Username: "agent", PasswordFile: file})
	put(t, rootClient(t, s), "services/user/b", record("10.0.0.2:80", 1))
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	d.never(t, "user", 1)
}

// authority makes certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return &authority{t: t, cert: must[*x509.Certificate](t)(x509.ParseCertificate(der)), key: key, pem: pemOf("CERTIFICATE", der)}
}

// issue writes a certificate for 127.0.0.1 and name, and its key.
func (a *authority) issue(name, certFile, keyFile string) {
	a.t.Helper()
	key := must[*ecdsa.PrivateKey](a.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := must[[]byte](a.t)(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	writeFile(a.t, certFile, pemOf("CERTIFICATE", der))
	writeFile(a.t, keyFile, pemOf("EC PRIVATE KEY", must[[]byte](a.t)(x509.MarshalECPrivateKey(key))))
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// TLS both ways. Certificates of an authority that etcd, or the agent, does not know are refused with a reason; files that are put right count from the next
// connection on, without a change of configuration.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	good, bad := newAuthority(t, "good"), newAuthority(t, "bad")
	writeFile(t, at("ca"), good.pem)
	good.issue("etcd.example", at("server.crt"), at("server.key"))
	good.issue("lbagent", at("own.crt"), at("own.key"))
	s := etcdtest.Start(t, etcdtest.Config{TLS: &etcdtest.TLS{CertFile: at("server.crt"), KeyFile: at("server.key"), CAFile: at("ca")}})

	pool := x509.NewCertPool()
	pool.AddCert(good.cert)
	own := must[tls.Certificate](t)(tls.LoadX509KeyPair(at("own.crt"), at("own.key")))
	c := must[*clientv3.Client](t)(clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop(), TLS: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{own}}}))
	defer c.Close()
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))

	bad.issue("lbagent", at("agent.crt"), at("agent.key"))
	writeFile(t, at("agent.ca"), bad.pem)
	e := &etcd.Config{Endpoints: s.Endpoints(), CAFile: at("agent.ca"), CertFile: at("agent.crt"), KeyFile: at("agent.key"), ServerName: "etcd.example"}
	d := start(t, setup{Etcd: e}, naming("user"))
	reason := func(want string) {
		t.Helper()
		eventually(t, time.Minute, want, func() bool { return strings.Contains(d.Status().LastError, want) })
	}
	reason("certificate signed by unknown authority")
	writeFile(t, at("agent.ca"), good.pem)
	reason("closed the connection: remote error: tls") // etcd's refusal comes after the handshake
	good.issue("lbagent", at("agent.crt"), at("agent.key"))
	d.waitAddrs(t, "user", "10.0.0.1:80")

	d.links.Set(&etcd.Config{Endpoints: e.Endpoints, CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile, ServerName: "other.example"})
	reason("other.example")
	os.Remove(at("agent.key"))
	d.links.Set(e)
	reason("read the certificate for etcd")
	good.issue("lbagent", at("agent.crt"), at("agent.key"))
	put(t, c, "services/user/b", record("10.0.0.2:80", 1))
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	d.never(t, "user", 1)
}

// A call of the real client ends with its context, whatever etcd does.
func TestClientEndsWithContext(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	proxy := etcdtest.StartProxy(t, s.Addr())
	cl := must[etcd.Client](t)(etcd.Dial(t.Context(), etcd.Config{Endpoints: []string{proxy.Addr()}}, func(error) {}))
	defer cl.Close()
	if err := cl.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.Pause()
	defer proxy.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := cl.Page(ctx, "a/", "a/", 0, 10); err == nil {
		t.Error("a page came through")
	}
	for range cl.Watch(ctx, "a/", 1) {
		t.Error("a watch came through")
	}
}
