package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

var errAgain = errors.New("the client wants another connection")

// 6.2: a connection that was accepted just before the proxy stops is served, though its client's first bytes come after: it can't know that it should call again.
func TestStopServesWhoWasAccepted(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!h2)
		protocols.SetUnencryptedHTTP2(h2)
		r := newTwo(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		backend := &http.Server{Handler: saying("well"), Protocols: protocols}
		defer backend.Close()
		go func() { _ = backend.Serve(l) }()
		applyList(t, r.table, "a", l.Addr().String())
		at := free(t)
		s := svc("a", at)
		s.Protocol = "auto"
		r.apply(s)
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		await(t, "it to be accepted", func() bool { return r.p.clients.Load() == 1 })
		r.cancel()
		await(t, "the drain to begin", func() bool {
			draining := make(chan bool, 1)
			r.p.workers[0].loop.Post(func() { draining <- r.p.workers[0].draining })
			return <-draining
		})
		dials := 0
		tr := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, errAgain
			}
			return conn, nil
		}}
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("http://x/")
		if h2 && errors.Is(err, errAgain) { // GOAWAY came before it had sent its request: that's as good
			r.stop()
			continue
		}
		if err != nil {
			t.Fatalf("h2 %v: %v", h2, err)
		}
		said, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(said) != "well" || err != nil {
			t.Errorf("h2 %v: %q, %v", h2, said, err)
		}
		began := time.Now()
		r.stop() // nothing else is left
		if took := time.Since(began); took >= stopGrace {
			t.Errorf("h2 %v: the end took %v more", h2, took)
		}
		tr.CloseIdleConnections()
	}
}
