package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestClassify(t *testing.T) {
	const open = protocols // not known yet
	for in, want := range map[string]protocol{
		"":                                   open,
		"P":                                  open,
		"PR":                                 open,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r":     open,
		preface:                              protoH2,
		preface + "\x00\x00\x00":             protoH2,
		"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n":   protoTCP,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\rxx": protoTCP,
		"G":                                  open,
		"GET":                                open,
		"GET ":                               protoHTTP1,
		"GET / HTTP/1.1\r\n":                 protoHTTP1,
		"GETX":                               protoTCP,
		"get / HTTP/1.1":                     protoTCP,
		"POST /":                             protoHTTP1,
		"PO":                                 open,
		"PROP":                               open,
		"PROPFIND /":                         protoHTTP1,
		"OPTIONS *":                          protoHTTP1,
		"CONNECT x:1":                        protoHTTP1,
		"\x16\x03\x01\x02\x00\x01":           protoTCP, // TLS
		"*1\r\n$4\r\nPING\r\n":               protoTCP,
		"PING\r\n":                           protoTCP,
		"\x00":                               protoTCP,
		" GET / ":                            protoTCP,
	} {
		k, known := classify([]byte(in))
		if !known {
			k = open
		}
		if k != want {
			t.Errorf("classify(%q) = %v, want %v", in, k, want)
		}
	}
}

// What is known of a beginning holds for all that follows it, so that it doesn't matter how the bytes were cut.
func FuzzClassify(f *testing.F) {
	for _, s := range []string{preface, "GET / HTTP/1.1\r\n\r\n", "PROPFIND", "\x16\x03\x01", "PRI * HTTP/1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, known := classify(b)
		for n := range b {
			part, knew := classify(b[:n])
			if knew && (!known || part != whole) {
				t.Fatalf("%q is %v, but %q is %v, %v", b[:n], part, b, whole, known)
			}
		}
	})
}

func asAuto(s *Service) { s.Protocol = "auto" }

// The three ways, one byte at a time as well (4.9).
func TestSniffing(t *testing.T) {
	grpc := newGRPC(t)
	web := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"+r.Method+"\n")
	})
	raw := tcpBackend(t, "tcp4", named("raw:"))
	for _, step := range []int{1, 7, 1 << 20} {
		r := newRig(t, asAuto)
		send := func(s string) *net.TCPConn {
			c := r.client()
			c.SetNoDelay(true)
			for b := []byte(s); len(b) > 0; {
				n := min(step, len(b))
				if _, err := c.Write(b[:n]); err != nil {
					t.Fatal(err)
				}
				b = b[n:]
				r.onLoop(func(*relay) {}) // seen, most likely
			}
			return c
		}
		r.backends(grpc.addr)
		var settings bytes.Buffer
		http2.NewFramer(&settings, nil).WriteSettings()
		fr := http2.NewFramer(nil, send(preface+settings.String()))
		if f, err := fr.ReadFrame(); err != nil || f.Header().Type != http2.FrameSettings {
			t.Errorf("step %d: HTTP/2 preface was answered by %v, %v", step, f, err)
		}
		r.backends(web)
		if resp, err := http.ReadResponse(bufio.NewReader(send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")), nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("step %d: HTTP/1.1 was answered by %v, %v", step, resp, err)
		}
		r.backends(raw)
		hello := "\x16\x03\x01" + strings.Repeat("h", 300)
		read(t, send(hello), "raw:"+hello)
		s := r.stats()
		if s.Sniffed["h2"] != 1 || s.Sniffed["http1"] != 1 || s.Sniffed["tcp"] != 1 || s.Silent != 0 {
			t.Errorf("step %d: sniffed %v, silent %d", step, s.Sniffed, s.Silent)
		}
		if hints := r.proxy.Hints("user"); len(hints) > 0 {
			t.Errorf("hints %q", hints)
		}
	}
}

// A loop that was late itself doesn't take a client for silent whose request it hasn't read yet (4.9).
func TestLateIsNotSilent(t *testing.T) {
	r := newRig(t, asAuto)
	r.backends(web(t, saying("web")))
	ours, theirs := tcpPair(t)
	fd, err := dupOf(theirs)
	if err != nil {
		t.Fatal(err)
	}
	rt := r.proxy.routes["user"]
	r.proxy.clients.Add(1)
	r.onLoop(func(k *relay) {
		s := &sniffer{w: r.proxy.workers[0], rt: rt}
		if s.conn, err = s.w.loop.Add(fd, s, nil); err != nil {
			t.Error(err)
			return
		}
		s.timer.F = s.silent
		io.WriteString(ours, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		await(t, "the bytes", s.conn.Waiting)
		s.silent() // what the timer does before the loop reads
	})
	if resp := answer(t, bufio.NewReader(ours), "GET"); resp.StatusCode != 200 || bodyOf(t, resp) != "web" {
		t.Errorf("%v", resp)
	}
	if s := r.stats(); s.Sniffed["http1"] != 1 || s.Sniffed["tcp"] != 0 || s.Silent != 0 {
		t.Errorf("sniffed %v, silent %d", s.Sniffed, s.Silent)
	}
}

// A server that speaks first is reached after 200 ms of silence, and explain says how to spare them.
func TestSilenceIsTCP(t *testing.T) {
	r := newRig(t, asAuto)
	r.backends(tcpBackend(t, "tcp4", named("220 ready\r\n")))
	began := time.Now()
	c := r.client()
	read(t, c, "220 ready\r\n")
	if took := time.Since(began); took < sniffTimeout {
		t.Errorf("tcp after %v", took)
	}
	c.Close()
	want := "1 connection was silent for 200 ms and treated as tcp; set protocol: tcp to skip the wait"
	if hints := r.proxy.Hints("user"); len(hints) != 1 || hints[0] != want {
		t.Errorf("hints %q, want %q", hints, want)
	}
	if hints := r.proxy.Hints("other"); len(hints) != 0 {
		t.Errorf("hints of another service: %q", hints)
	}
	fixed := newRig(t, asTCP)
	fixed.backends(tcpBackend(t, "tcp4", named("220 ready\r\n")))
	c = fixed.client()
	read(t, c, "220 ready\r\n")
	if s := fixed.stats(); s.Silent != 0 || s.Sniffed["tcp"] != 0 {
		t.Errorf("sniffed %v with a fixed protocol", s)
	}
}

// What began like HTTP and ended is passed on as it is, end included.
func TestSniffedHalfAMethod(t *testing.T) {
	r := newRig(t, asAuto)
	r.backends(tcpBackend(t, "tcp4", named("")))
	c := r.client()
	io.WriteString(c, "GE")
	c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "GE" {
		t.Errorf("read %q, %v", got, err)
	}
}

// A port check costs no backend anything.
func TestPortCheckReachesNoBackend(t *testing.T) {
	r := newRig(t, asAuto)
	r.backends(tcpBackend(t, "tcp4", named("")))
	for range 10 {
		r.client().Close()
	}
	await(t, "all gone", func() bool { return r.proxy.clients.Load() == 0 })
	if s := r.stats(); s.Picks != 0 {
		t.Errorf("stats: %+v", s)
	}
}
