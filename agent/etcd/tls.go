package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// usesTLS says whether e is spoken to by TLS: by the scheme of the first endpoint, as clientv3 does; without a scheme, if TLS files are named.
func (e *Config) usesTLS() bool {
	if len(e.Endpoints) == 0 {
		return false
	}
	scheme, _, ok := strings.Cut(e.Endpoints[0], "://")
	if !ok {
		return e.CAFile != "" || e.CertFile != ""
	}
	return scheme == "https" || scheme == "unixs"
}

// handshaker are the credentials of a connection: TLS, whose files are read at each handshake, so that new certificates and a new authority count from the next
// connection on; or none. Either way it tells why a connection came to nothing.
type handshaker struct {
	credentials.TransportCredentials // without files: Info

	etcd   Config
	at     *where
	failed func(error)
}

func newHandshaker(e Config, at *where, failed func(error)) *handshaker {
	h := &handshaker{TransportCredentials: insecure.NewCredentials(), etcd: e, at: at, failed: failed}
	if e.usesTLS() {
		h.TransportCredentials = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	return h
}

func (h *handshaker) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	creds := h.TransportCredentials
	if h.etcd.usesTLS() {
		cfg, err := h.config()
		if err != nil {
			raw.Close()
			h.failed(err)
			return nil, nil, err
		}
		creds = credentials.NewTLS(cfg)
		if h.etcd.ServerName != "" {
			authority = h.etcd.ServerName // grpc verifies the name in authority, whatever cfg.ServerName is
		}
	}
	conn, info, err := creds.ClientHandshake(ctx, authority, raw)
	if err != nil {
		if ctx.Err() == nil {
			h.failed(fmt.Errorf("tls handshake with %s: %w", raw.RemoteAddr(), err))
		}
		return nil, nil, err
	}
	h.at.shake(raw)
	return &firstRead{Conn: conn, failed: h.failed}, info, nil
}

func (h *handshaker) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if h.etcd.CAFile != "" {
		pem, err := os.ReadFile(h.etcd.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read etcd's authority: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read etcd's authority: %s: no certificate", h.etcd.CAFile)
		}
	}
	if h.etcd.CertFile != "" || h.etcd.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(h.etcd.CertFile, h.etcd.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for etcd: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

func (h *handshaker) Clone() credentials.TransportCredentials {
	return newHandshaker(h.etcd, h.at, h.failed)
}

// firstRead tells if a connection ends before a byte was read. That is how TLS 1.3 says that it does not want the client's certificate, and grpc keeps it to itself.
type firstRead struct {
	net.Conn
	failed func(error)
	done   atomic.Bool
}

func (c *firstRead) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n == 0 && err == nil || c.done.Swap(true) {
		return n, err
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.failed(fmt.Errorf("%s closed the connection: %w", c.RemoteAddr(), err))
	}
	return n, err
}
