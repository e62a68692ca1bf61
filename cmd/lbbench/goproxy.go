package main

import (
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"time"
)

// goProxyVerb starts this program as the "go" contender: goProxyVerb LISTEN BACKEND,BACKEND.
const goProxyVerb = "go-reverse-proxy"

// runGoProxy is what a Go programmer writes first: net/http's reverse proxy, cleartext HTTP/2 on both sides, round robin.
func runGoProxy(listen string, backends []string) error {
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	var next atomic.Uint64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = backends[next.Add(1)%uint64(len(backends))]
		},
		Transport:     &http.Transport{Protocols: &h2c},
		FlushInterval: -1,
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: proxy, Protocols: &h2c, ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(l)
}
