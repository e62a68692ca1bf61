package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"time"
)

// goProxyVerb starts this program as the "go" contender: goProxyVerb MODE LISTEN BACKEND,BACKEND.
const goProxyVerb = "go-proxy"

// runGoProxy is what a Go programmer writes first: net/http's reverse proxy for HTTP, io.Copy for TCP; round robin.
func runGoProxy(ctx context.Context, m mode, listen string, backends []string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	var turn atomic.Uint64
	next := func() string { return backends[turn.Add(1)%uint64(len(backends))] }
	if m == modeTCP {
		return copyTCP(l, next)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(m == modeH2)
	protocols.SetHTTP1(m == modeHTTP1)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = next()
		},
		Transport:     &http.Transport{Protocols: &protocols, MaxIdleConnsPerHost: 256},
		FlushInterval: -1,
	}
	server := &http.Server{Handler: proxy, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(l)
}

// copyTCP relays connections by io.Copy, which splices where both ends are TCP.
func copyTCP(l net.Listener, next func() string) error {
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			backend, err := net.Dial("tcp", next())
			if err != nil {
				return
			}
			defer backend.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = io.Copy(backend, client)
				_ = backend.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(client, backend)
			_ = client.(*net.TCPConn).CloseWrite()
			<-done
		}()
	}
}
