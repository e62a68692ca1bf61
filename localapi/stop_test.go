package localapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// unread opens connections of which the server has read nothing yet, and begins to stop it; ended waits for that.
func unread(t *testing.T, r *rig, n int) (conns []*net.UnixConn, ended func()) {
	t.Helper()
	for range n {
		c, _ := raw(t, r.cfg.Socket)
		conns = append(conns, c)
	}
	eventually(t, func() string {
		if got := r.Stats().Connections; got != n {
			return fmt.Sprintf("%d connections", got)
		}
		return ""
	})
	done := make(chan struct{})
	go func() {
		r.stop()
		close(done)
	}()
	<-r.stopping.Done()
	return conns, func() { <-done }
}

// Who connected before the end is served, though nothing was read of it (6.2).
func TestStopServesAccepted(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Limits.FirstBytes, c.Limits.Settle, c.Limits.Goodbye = time.Hour, 10*time.Second, 15*time.Second
	})
	conns, ended := unread(t, r, 2)
	if _, err := io.WriteString(conns[0], "GET /v1/services HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Error(err)
	}
	answer, err := io.ReadAll(conns[0])
	if err != nil || len(answer) < 12 || string(answer[:12]) != "HTTP/1.1 200" {
		t.Errorf("json: %v %q", err, answer)
	}
	if code, err := statusByHand(conns[1]); code != "0" {
		t.Errorf("grpc: status %q, %v", code, err)
	}
	ended()
}

// statusByHand calls by gRPC and returns the call's grpc-status. A real client may be told to connect anew before its call goes out.
func statusByHand(c net.Conn) (string, error) {
	defer c.Close()
	out := bytes.NewBufferString(http2.ClientPreface)
	var fields bytes.Buffer
	enc := hpack.NewEncoder(&fields)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", lbagentv1.StatusService_Status_FullMethodName}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return "", err
		}
	}
	fr := http2.NewFramer(out, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := errors.Join(
		fr.WriteSettings(),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true}),
		fr.WriteData(1, true, make([]byte, 5)), // an empty message
	); err != nil {
		return "", err
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		return "", err
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "", err
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			for _, field := range h.Fields {
				if field.Name == "grpc-status" {
					return field.Value, nil
				}
			}
		}
	}
}

// Who says nothing holds up the end for as long as Settle only, be it served or refused.
func TestStopCutsSilent(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Limits.FirstBytes, c.Limits.Settle, c.Limits.ConnectionsPerUID = time.Hour, 50*time.Millisecond, 1
	})
	conns, ended := unread(t, r, 1)
	if n, err := conns[0].Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Error(n, err)
	}
	ended()
}

// Likewise who begins to say something and doesn't go on: grpc's end would wait for it, and so would the GOAWAY for all others (6.2).
func TestStopCutsHalfSaid(t *testing.T) {
	for name, said := range map[string]string{"h2": "PRI ", "h2 without settings": http2.ClientPreface, "http": "GET /v1/services HTTP/1.1\r\n"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *Config) {
				c.Limits.FirstBytes, c.Limits.Settle, c.Limits.Goodbye = time.Hour, 50*time.Millisecond, time.Hour
			})
			c, _ := raw(t, r.cfg.Socket)
			if _, err := io.WriteString(c, said); err != nil {
				t.Fatal(err)
			}
			if name == "http" {
				eventually(t, func() string {
					if got := r.Stats().Connections; got != 1 {
						return fmt.Sprintf("%d connections", got)
					}
					return ""
				})
			} else if _, err := c.Read(make([]byte, 1)); err != nil { // grpc says its SETTINGS first
				t.Fatal(err)
			}
			r.stop()
		})
	}
}

// A socket that systemd keeps is served by one process after the other: nobody's call fails (6.2).
func TestRestartLosesNoCall(t *testing.T) {
	const callers, restarts, callsBetween = 6, 5, 30
	path := filepath.Join(publicDir(t), "s.sock")
	kept, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kept.Close() })
	process := func() *rig {
		f, err := kept.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ln, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		return newRig(t, func(c *Config) {
			c.Socket, c.AdminSocket, c.Listener = "", "", ln.(*net.UnixListener)
			c.Limits.Settle, c.Limits.Goodbye = 5*time.Second, 10*time.Second // this machine may be busy
		})
	}
	now := process()
	ctx, cancel := context.WithCancel(testContext(t))
	var calls atomic.Int64
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				var err error
				if i%2 == 0 {
					err = pickOnce(t, path)
				} else if code, text := ask(t, path, "GET", "/v1/services", ""); code != 200 {
					err = fmt.Errorf("%d %s", code, text)
				}
				if err != nil {
					t.Errorf("after %d calls: %v", calls.Load(), err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for range restarts {
		enough := calls.Load() + callsBetween
		eventually(t, func() string {
			if got := calls.Load(); got < enough && !t.Failed() {
				return fmt.Sprintf("%d calls, want %d", got, enough)
			}
			return ""
		})
		now.stop()
		now = process()
	}
	cancel()
	wg.Wait()
}

// pickOnce asks by a connection of its own.
func pickOnce(t *testing.T, socket string) error {
	cc := dial(t, socket)
	defer cc.Close()
	_, err := lbagentv1.NewLookupServiceClient(cc).Pick(testContext(t), &lbagentv1.PickRequest{Service: "user"})
	return err
}
