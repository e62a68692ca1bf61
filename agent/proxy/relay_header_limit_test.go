package proxy

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// What a client announces as the largest header list that it takes is kept to, and the connection goes on.
func TestClientHeaderLimit(t *testing.T) {
	for _, c := range []struct {
		limit                uint32
		first, rest, trailer int // bytes in the response, in its trailers
		grpc                 bool
		want                 string
	}{
		{1000, 10, 0, 0, false, "[200]"},
		{1000, 2000, 0, 0, false, "[502]lbagent: user: "},
		{1000, 2000, 0, 0, true, "[2008]"},
		{100, 10, 0, 0, false, "[200]"},
		{100, 100, 0, 0, false, "INTERNAL_ERROR"},
		{1000, 10, 5, 2000, true, "[200]xxxxx[8]"},
		{1000, 10, 5, 2000, false, "[200]xxxxx"},
		{1000, 10, 5, 10, false, "[200]xxxxx[]"},
	} {
		r := newRig(t, nil)
		b := newRawBackend(t)
		r.backends(b.addr)
		client := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.limit})
		if c.grpc {
			client.call(1, true, "/a/b", nil)
		} else {
			client.get(1, "/")
		}
		s := b.accept()
		s.request()
		s.headers(1, false, ":status", "103", "x", strings.Repeat("x", 2000)) // never passed on
		s.headers(1, c.rest == 0, ":status", "200", "x", strings.Repeat("x", c.first))
		if c.rest > 0 {
			s.fr.WriteData(1, false, []byte(strings.Repeat("x", c.rest)))
			s.headers(1, true, "x", strings.Repeat("x", c.trailer))
		}
		if got := client.answerOf(1); !strings.HasPrefix(got, c.want) || c.rest > 0 && strings.TrimSuffix(got, "[]") != strings.TrimSuffix(c.want, "[]") {
			t.Errorf("%+v: the client got %.60q", c, got)
		}
		client.get(3, "/")
		s.headers(s.request().id, true, ":status", "204")
		if got := client.answerOf(3); got != "[204]" {
			t.Errorf("%+v: then the client got %q", c, got)
		}
		r.quiet()
	}
}

// A backend's limit is kept to as well: the call goes elsewhere, and the others on the connection go on.
func TestBackendHeaderLimit(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "x", strings.Repeat("x", 2000)) // waits for the connection
	c := b.accept(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
	for _, id := range []uint32{1, 3} {
		if id == 3 {
			client.headers(3, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "x", strings.Repeat("x", 2000))
		}
		if got := client.answerOf(id); !strings.HasPrefix(got, "[503]") || !strings.Contains(got, "does not take a header list as large") {
			t.Errorf("the client got %q", got)
		}
	}
	client.get(5, "/")
	if f := c.request(); f.id != 1 || f.fields["x"] != "" {
		t.Errorf("the backend got %d %v", f.id, f.fields)
	}
	c.headers(1, true, ":status", "204")
	if got := client.answerOf(5); got != "[204]" {
		t.Errorf("the client got %q", got)
	}
	r.quiet()
}
