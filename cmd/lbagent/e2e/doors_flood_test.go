package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// flood opens gRPC calls whose messages stop short of their end, up to Count, on as many connections as that takes, and stays until its standard input ends.
func (v *visitor) flood() error {
	const perConn, message = 500, 60_000
	var sent, ended atomic.Int64
	var all sync.WaitGroup
	for n := 0; n < v.job.Count; n += perConn {
		c, err := dialRaw(v.ctx, v.doors()[v.job.Door])
		if err != nil {
			return err
		}
		defer c.Close()
		f := &flooder{conn: c, framer: http2.NewFramer(c, c), ended: &ended}
		f.credit.L = &f.mu
		f.window = 65535
		go f.read()
		all.Go(func() {
			for i := range perConn {
				if !f.call(uint32(2*i+1), message) {
					return
				}
				sent.Add(1)
			}
		})
	}
	all.Wait()
	fmt.Printf("%d calls sent, %d ended\n", sent.Load(), ended.Load())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// flooder is a connection of HTTP/2 that keeps the rules but for the ends of its messages.
type flooder struct {
	conn   net.Conn
	framer *http2.Framer
	ended  *atomic.Int64 // calls that the agent has ended

	writing sync.Mutex
	mu      sync.Mutex
	credit  sync.Cond
	window  int // of the connection
	closed  bool
}

func (f *flooder) read() {
	for {
		fr, err := f.framer.ReadFrame()
		f.mu.Lock()
		switch fr := fr.(type) {
		case *http2.WindowUpdateFrame:
			if fr.StreamID == 0 {
				f.window += int(fr.Increment)
			}
		case *http2.MetaHeadersFrame, *http2.HeadersFrame, *http2.RSTStreamFrame:
			f.ended.Add(1)
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				go func() {
					f.writing.Lock()
					defer f.writing.Unlock()
					_ = f.framer.WriteSettingsAck()
				}()
			}
		}
		f.closed = err != nil
		f.credit.Broadcast()
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// call begins a call, and sends all but the last byte of its message.
func (f *flooder) call(stream uint32, message int) bool {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSize(0)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/lbagent.v1.LookupService/Report"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	f.writing.Lock()
	if stream == 1 {
		_, _ = io.WriteString(f.conn, http2.ClientPreface)
		_ = f.framer.WriteSettings()
	}
	err := f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
	f.writing.Unlock()
	if err != nil {
		return false
	}
	data := make([]byte, 5+message-1)
	data[2], data[3], data[4] = byte(message>>16), byte(message>>8), byte(message)
	for len(data) > 0 {
		n := f.take(min(len(data), 16<<10))
		if n == 0 {
			return false
		}
		f.writing.Lock()
		err := f.framer.WriteData(stream, false, data[:n])
		f.writing.Unlock()
		if err != nil {
			return false
		}
		data = data[n:]
	}
	return true
}

// take waits for credit; 0 if there will be none.
func (f *flooder) take(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.window == 0 && !f.closed {
		f.credit.Wait()
	}
	if f.closed {
		return 0
	}
	n = min(n, f.window)
	f.window -= n
	return n
}
