package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// What the backends of HTTP answer.
const (
	smallPath, smallBytes = "/body", 32
	largePath, largeBytes = "/large", 1 << 20
)

// twoBackends starts two of the same, each with its own address, to be stopped with the rig.
func (r *rig) twoBackends(start func(addr string) (*process, error)) ([]string, error) {
	var addrs []string
	for range 2 {
		addr, err := freePort()
		if err != nil {
			return nil, err
		}
		p, err := start(addr)
		if err != nil {
			return nil, err
		}
		r.onClose(p.stop)
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// h2Backends are nghttpd, the cheapest real HTTP/2 server at hand, so that the proxy is the larger part of the work.
func (r *rig) h2Backends(ctx context.Context) ([]string, error) {
	path, err := program("", "nghttpd", "nghttp2-server")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSkip, err)
	}
	if err := r.writeBodies(); err != nil {
		return nil, err
	}
	return r.twoBackends(func(addr string) (*process, error) {
		_, port, _ := strings.Cut(addr, ":")
		// Its own windows are 64 KiB, which would make a proxy wait for uploads.
		return startProcess(ctx, addr, nil, path, "--no-tls", "-m", "1000", "-w", "20", "-W", "24", "-a", "127.0.0.1", "-d", r.dir, port)
	})
}

func (r *rig) writeBodies() error {
	for path, n := range map[string]int{smallPath: smallBytes, largePath: largeBytes} {
		if err := os.WriteFile(filepath.Join(r.dir, path), bytes.Repeat([]byte{'x'}, n), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// selfBackends are two of this program, run as one of its parts.
func (r *rig) selfBackends(ctx context.Context, verb string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return r.twoBackends(func(addr string) (*process, error) { return startProcess(ctx, addr, nil, self, verb, addr) })
}

// listenPart listens where a part of this program shall be reached, until ctx ends.
func listenPart(ctx context.Context, addr string) (net.Listener, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // Go's default, and slower
	l, err := plain.Listen(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	return l, nil
}

// serveEach listens on the address in args and serves each connection by serve.
func serveEach(ctx context.Context, args []string, serve func(net.Conn)) error {
	if len(args) != 1 {
		return errors.New("want LISTEN")
	}
	l, err := listenPart(ctx, args[0])
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

// http1BackendVerb starts this program as an HTTP/1.1 server: http1BackendVerb LISTEN.
const http1BackendVerb = "http1-backend"

// answerHTTP1 is as little of an HTTP/1.1 server as proxies need: keep-alive, bodies of a stated length, two paths. nghttpd speaks no HTTP/1.1, and every
// other server costs more than some of the proxies that are to be measured.
func answerHTTP1(conn net.Conn) {
	answer := func(n int) []byte {
		return append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n), bytes.Repeat([]byte{'x'}, n)...)
	}
	small, large := answer(smallBytes), []byte(nil)
	buf, have := make([]byte, 256<<10), 0
	for {
		end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
		if end < 0 {
			n, err := conn.Read(buf[have:])
			if err != nil {
				return
			}
			have += n
			continue
		}
		head, rest := buf[:end+2], have-end-4
		if bytes.Contains(head, []byte("chunked")) {
			_, _ = conn.Write([]byte("HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
			return
		}
		text := small
		if bytes.HasPrefix(head, []byte("GET "+largePath+" ")) {
			if large == nil {
				large = answer(largeBytes)
			}
			text = large
		}
		body := contentLength(head)
		copy(buf, buf[end+4:have])
		for have = rest; have < body; {
			body -= have
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			have = n
		}
		have = copy(buf, buf[body:have])
		if _, err := conn.Write(text); err != nil {
			return
		}
	}
}

// contentLength reads the length of a body in a head whose lines all end in CR LF; 0 if it has none.
func contentLength(head []byte) int {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && bytes.EqualFold(name, []byte("content-length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err == nil && n >= 0 {
				return n
			}
		}
	}
	return 0
}
