package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
)

// usesTLS says whether e is spoken to by TLS: by the scheme of the first endpoint, as clientv3 does; without a scheme, if TLS files are named.
func (e *Etcd) usesTLS() bool {
	if len(e.Endpoints) == 0 {
		return false
	}
	scheme, _, ok := strings.Cut(e.Endpoints[0], "://")
	if !ok {
		return e.CAFile != "" || e.CertFile != ""
	}
	return scheme == "https" || scheme == "unixs"
}

// tlsFiles are TLS credentials that read their files at each handshake: new certificates, and a new authority, count from the next connection on.
type tlsFiles struct {
	credentials.TransportCredentials // of a client without files: Info

	etcd   Etcd
	failed func(error)
}

func newTLSFiles(e Etcd, failed func(error)) *tlsFiles {
	return &tlsFiles{TransportCredentials: credentials.NewTLS(&tls.Config{ServerName: e.ServerName, MinVersion: tls.VersionTLS12}), etcd: e, failed: failed}
}

func (t *tlsFiles) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := t.config()
	if err != nil {
		raw.Close()
		t.failed(err)
		return nil, nil, err
	}
	conn, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
	if err != nil && ctx.Err() == nil {
		t.failed(fmt.Errorf("tls handshake with %s: %w", authority, err))
	}
	return conn, info, err
}

func (t *tlsFiles) config() (*tls.Config, error) {
	cfg := &tls.Config{ServerName: t.etcd.ServerName, MinVersion: tls.VersionTLS12}
	if t.etcd.CAFile != "" {
		pem, err := os.ReadFile(t.etcd.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read etcd's authority: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read etcd's authority: %s: no certificate", t.etcd.CAFile)
		}
	}
	if t.etcd.CertFile != "" || t.etcd.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.etcd.CertFile, t.etcd.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for etcd: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

func (t *tlsFiles) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("tls credentials of a client")
}

func (t *tlsFiles) Clone() credentials.TransportCredentials { return newTLSFiles(t.etcd, t.failed) }

// OverrideServerName is part of the interface; grpc itself does not call it.
func (t *tlsFiles) OverrideServerName(name string) error {
	t.etcd.ServerName = name
	return nil
}
