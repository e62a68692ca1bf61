package proxy

import (
	"io"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h1"
)

// tunnel relays bytes in both directions behind a 101 response, until both have ended or the drain is over (4.7). It has no timeout: keepalive finds who is gone.
// Ends and resets pass as what they are.
func (x *exchange) tunnel(a *attempt) bool {
	client, backend := &x.c.wire, &a.conn.wire
	if x.timer != nil {
		x.timer.Stop() // an upgraded connection is no request
	}
	x.stopUpload()
	out := x.work.resp.AppendResponse(x.work.out[:0], h1.AsLength, h1.OptionUpgrade)
	backend.skip(a.conn.head)
	if x.begin() && x.send(out) == nil {
		x.unbound()
		x.c.freeWork()
		x.work = nil
		done := make(chan struct{})
		go func() {
			defer close(done)
			x.in += x.pump(backend, client)
		}()
		x.out = x.pump(client, backend)
		<-done
	}
	return false
}

// unbound takes the deadlines of requests from the client's connection.
func (x *exchange) unbound() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tunnels = true
	if x.cause == nil {
		x.c.SetDeadline(time.Time{})
	}
}

// pump relays one direction, returns how many bytes went there, and holds a buffer only while something is in it.
func (x *exchange) pump(to, from *wire) (passed int64) {
	for {
		err := from.wait()
		if err != nil {
			x.blame(from, err)
		}
		if err == io.EOF && (x.half.Swap(true) || !from.wasReset()) { // behind a FIN of ours, the kernel doesn't tell them apart
			to.CloseWrite()
			return passed
		}
		if err == nil {
			var n int
			if n, err = to.Write(from.buffered()); err != nil {
				x.blame(to, err)
			}
			passed += int64(n)
			from.bulk = len(from.buffered()) == len(from.buf)
			from.release()
		}
		if err != nil {
			x.broken()
			return passed
		}
	}
}

// blame notes whose end, or error, ends a tunnel: the first that there is.
func (x *exchange) blame(of *wire, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.conn == nil:
	case x.cause == nil && of == &x.c.wire:
		x.conn.blame(closedClient, "")
	default:
		x.conn.blameCall(x.cause, err)
	}
}

// broken ends both directions of a tunnel: by resets, as without the relay, unless it's us who end it (4.7).
func (x *exchange) broken() {
	x.mu.Lock()
	if x.cause == nil || x.cause == errVanished {
		reset(x.c.Conn)
		if x.conn != nil {
			reset(x.conn.Conn)
		}
	}
	x.mu.Unlock()
	x.cancel(errClientGone) // whoever it was
}
