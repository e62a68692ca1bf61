package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// fleetEtcdVerb starts this program as the fleet's etcd: fleetEtcdVerb JSON.
const fleetEtcdVerb = "fleet-etcd"

// The fleet's etcd has these users; with certificates their common name is the user.
const (
	fleetUser     = "lbagent"
	fleetPassword = "fleet-of-one"
	fleetPrefix   = "services/"
)

// fleetEtcd is the etcd of a fleet, and how to reach it.
type fleetEtcd struct {
	Dir, Addr, Auth   string
	Bcrypt            int
	PasswordFile      string
	CA, Cert, Key     string // of the hosts, and of etcd itself
	RootCert, RootKey string
}

func runFleetEtcd(ctx context.Context, args []string) error {
	var e fleetEtcd
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &e) != nil {
		return errors.New("want one argument, JSON")
	}
	cfg := etcdtest.Config{Dir: e.Dir, Addr: e.Addr, Bcrypt: e.Bcrypt, LogLevel: "fatal"}
	if e.Auth == authCert {
		cfg.TLS = &etcdtest.TLS{CertFile: e.Cert, KeyFile: e.Key, CAFile: e.CA}
	}
	s, err := etcdtest.Run(cfg)
	if err != nil {
		return err
	}
	<-ctx.Done()
	s.Close()
	return nil
}

// start starts it and returns when it accepts.
func (e fleetEtcd) start(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arg, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, e.Addr, nil, self, fleetEtcdVerb, string(arg))
}

// reach is how a host reaches it.
func (e fleetEtcd) reach() *etcd.Config {
	c := &etcd.Config{Endpoints: []string{e.endpoint()}, CAFile: e.CA, CertFile: e.Cert, KeyFile: e.Key}
	if e.Auth == authPassword {
		c.Username, c.PasswordFile = fleetUser, e.PasswordFile
	}
	return c
}

func (e fleetEtcd) endpoint() string {
	if e.Auth == authCert {
		return "https://" + e.Addr
	}
	return "http://" + e.Addr
}

// root is a client that may do everything.
func (e fleetEtcd) root(withPassword bool) (*clientv3.Client, error) {
	cfg := clientv3.Config{Endpoints: []string{e.endpoint()}, Logger: zap.NewNop(), DialTimeout: startsWithin}
	if withPassword && e.Auth == authPassword {
		cfg.Username, cfg.Password = "root", fleetPassword
	}
	if e.Auth == authCert {
		pair, err := tls.LoadX509KeyPair(e.RootCert, e.RootKey)
		if err != nil {
			return nil, err
		}
		ca, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
	}
	return clientv3.New(cfg)
}

// enable turns authentication on: root may do all, the hosts may read services.
func (e fleetEtcd) enable(ctx context.Context) error {
	if e.Auth == authNone {
		return nil
	}
	c, err := e.root(false)
	if err != nil {
		return err
	}
	defer c.Close()
	user := func(name string) error {
		_, err := c.UserAddWithOptions(ctx, name, fleetPassword, &clientv3.UserAddOptions{NoPassword: e.Auth == authCert})
		return err
	}
	for _, step := range []func() error{
		func() error { return user("root") },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.RoleAdd(ctx, "consumer"); return err },
		func() error {
			_, err := c.RoleGrantPermission(ctx, "consumer", fleetPrefix, clientv3.GetPrefixRangeEnd(fleetPrefix), clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { return user(fleetUser) },
		func() error { _, err := c.UserGrantRole(ctx, fleetUser, "consumer"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("turn on authentication: %w", err)
		}
	}
	return nil
}

// fill writes the lists.
func (e fleetEtcd) fill(ctx context.Context, o fleetOptions, c *clientv3.Client) error {
	var puts []clientv3.Op
	for i := range o.keys {
		puts = append(puts, clientv3.OpPut(fleetKey(o, i), fleetRecord(i, -1, time.Time{})))
		if len(puts) < 100 && i < o.keys-1 {
			continue
		}
		if _, err := c.Txn(ctx).Then(puts...).Commit(); err != nil {
			return fmt.Errorf("write the lists: %w", err)
		}
		puts = puts[:0]
	}
	return nil
}

func fleetService(n int) string { return fmt.Sprintf("s%d", n) }

// fleetAddr is the address of key i.
func fleetAddr(i int) string { return fmt.Sprintf("10.%d.%d.%d:80", i>>16&255, i>>8&255, i&255) }

func fleetKey(o fleetOptions, i int) string {
	return fleetPrefix + fleetService(i%o.services) + "/" + fleetAddr(i)
}

// fleetRecord is a registration as services write it; that of a change has its number and time.
func fleetRecord(i, change int, at time.Time) string {
	if change < 0 {
		return record(fleetAddr(i), 100)
	}
	return fmt.Sprintf(`{"Op":0,"Addr":%q,"Metadata":{"weight":%d,"change":"%d","at":"%d"}}`, fleetAddr(i), 1+change%100, change, at.UnixNano())
}

// writeCerts makes an authority, and certificates of the hosts (which etcd uses, too) and of root.
func writeCerts(e fleetEtcd) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fleet"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return err
	}
	return errors.Join(
		writePEM(e.CA, "CERTIFICATE", der),
		issue(ca, key, fleetUser, e.Cert, e.Key),
		issue(ca, key, "root", e.RootCert, e.RootKey),
	)
}

// issue makes a certificate for name, of this machine's loopback address, and its key.
func issue(ca *x509.Certificate, caKey *ecdsa.PrivateKey, name, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(certFile, "CERTIFICATE", der), writePEM(keyFile, "EC PRIVATE KEY", keyDER))
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(filepath.Clean(path), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
