package proxy

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// What is malformed is not passed on, in neither direction, and costs nothing but its own stream (RFC 9113 8.1 to 8.3, 8.5).
func TestMalformedIsNotPassedOn(t *testing.T) {
	good := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}
	with := func(nv ...string) []string { return append(append([]string{}, good...), nv...) }
	but := func(name, value string) []string {
		nv := append([]string{}, good...)
		for i := 0; i < len(nv); i += 2 {
			if nv[i] == name {
				nv[i+1] = value
			}
		}
		return nv
	}
	without := func(name string) (nv []string) {
		for i := 0; i < len(good); i += 2 {
			if good[i] != name {
				nv = append(nv, good[i], good[i+1])
			}
		}
		return nv
	}
	fields := [][]string{
		{"UPPER", "x"}, {"sp ace", "x"}, {"col:on", "x"}, {"", "x"}, {"nul\x00", "x"}, {"hi\xff", "x"},
		{"x", "a\x00b"}, {"x", "a\rb"}, {"x", "a\nb"}, {"x", "a\r\nx-smuggled: 1"}, {"x", "\n"},
		{"connection", "close"}, {"proxy-connection", "close"}, {"keep-alive", "5"}, {"transfer-encoding", "chunked"}, {"upgrade", "h2c"},
		{"content-length", "-1"}, {"content-length", "+1"}, {"content-length", "1,1"}, {"content-length", ""}, {"content-length", "0x1"},
		{"content-length", "99999999999999999999"}, {"content-length", "0", "content-length", "1"}, {":unknown", "x"}, {":protocol", "websocket"},
	}
	requests := [][]string{
		without(":method"), without(":scheme"), without(":path"), {}, with(":path", "/"), with("x", "y", ":method", "GET"), with(":status", "200"),
		but(":method", ""), but(":method", "G T"), but(":method", "GET\r\n"), but(":scheme", "ht tp"), but(":scheme", ""), but(":path", ""), but(":path", "a"),
		but(":path", "/ HTTP/1.1\r\nx: y"), but(":path", "/\x00"), but(":path", "*"), but(":authority", "u@a"), but(":authority", "u:p@a"), but(":authority", "a,b"),
		but(":authority", "a/b"), but(":authority", "a b"), but(":authority", "a\r\n"), with("host", "b"), with("host", "a,b"), with("te", "gzip"), with("te", "trailers, gzip"),
		with("content-length", "5"), {":method", "CONNECT", ":authority", "a", ":path", "/"}, {":method", "CONNECT"},
	}
	for _, f := range fields {
		requests = append(requests, with(f...))
	}
	r := newRig(t, func(s *Service) { s.Connect = patience })
	b := newRawBackend(t)
	r.backends(b.addr)
	var c *rawConn
	count := uint64(0)
	for _, nv := range requests {
		client := newRawClient(t, r.addr)
		client.headers(1, true, nv...)
		if got := client.answerOf(1); got != "PROTOCOL_ERROR" {
			t.Errorf("%q: the client got %q", nv, got)
		}
		if count++; r.protected(protectMalformed) != count {
			t.Errorf("%q: not counted", nv)
		}
		client.headers(3, true, good...)
		if c == nil {
			c = b.accept()
		}
		f := c.request() // the good one, nothing before it
		if f.fields[":path"] != "/" || len(f.fields) != 4 {
			t.Errorf("%q: the backend got %v", nv, f.fields)
		}
		c.headers(f.id, true, ":status", "204")
		if got := client.answerOf(3); got != "[204]" {
			t.Errorf("%q: then the client got %q", nv, got)
		}
		client.Close()
	}
	bodies := []struct {
		name string
		send func(c *rawConn)
	}{
		{"body above content-length", func(c *rawConn) {
			c.headers(1, false, with("content-length", "2")...)
			c.fr.WriteData(1, false, []byte("abc"))
		}},
		{"body below content-length", func(c *rawConn) {
			c.headers(1, false, with("content-length", "2")...)
			c.fr.WriteData(1, true, []byte("a"))
		}},
		{"trailers with a pseudo field", func(c *rawConn) { c.headers(1, false, good...); c.headers(1, true, ":path", "/") }},
		{"trailers with a connection field", func(c *rawConn) { c.headers(1, false, good...); c.headers(1, true, "connection", "x") }},
		{"trailers with CRLF", func(c *rawConn) { c.headers(1, false, good...); c.headers(1, true, "x", "a\r\nb") }},
		{"trailers that end nothing", func(c *rawConn) { c.headers(1, false, good...); c.headers(1, false, "x", "y") }},
	}
	for _, one := range bodies {
		client := newRawClient(t, r.addr)
		one.send(client)
		if got := client.answerOf(1); got != "PROTOCOL_ERROR" {
			t.Errorf("%s: the client got %q", one.name, got)
		}
		c.until(func(f frame) bool { // it began there, and is cancelled
			if f.end || strings.Contains(string(f.data), "c") {
				t.Errorf("%s: the backend got an end, or %q", one.name, f.data)
			}
			_, ok := f.Frame.(*http2.RSTStreamFrame)
			return ok
		})
		client.Close()
	}
	r.quiet()

	responses := [][]string{{}, {"x", "y"}, {":status", "20"}, {":status", "2000"}, {":status", "abc"}, {":status", "101"}, {":status", ""}, {":status", "099"}, {":status", "200", ":status", "200"},
		{"x", "y", ":status", "200"}, {":status", "200", ":path", "/"}, {":status", "200", "te", "gzip"}}
	for _, f := range fields {
		responses = append(responses, append([]string{":status", "200"}, f...))
	}
	client := newRawClient(t, r.addr)
	id := uint32(1)
	for _, nv := range responses {
		client.get(id, "/")
		f := c.request()
		c.headers(f.id, false, nv...)
		if got := client.answerOf(id); !strings.HasPrefix(got, "[502]lbagent: user: "+b.addr+" sent a malformed response") {
			t.Errorf("%q: the client got %q", nv, got)
		}
		client.get(id+2, "/") // the connection goes on
		c.headers(c.request().id, true, ":status", "204")
		if got := client.answerOf(id + 2); got != "[204]" {
			t.Errorf("%q: then the client got %q", nv, got)
		}
		id += 4
	}
	r.quiet()
}
