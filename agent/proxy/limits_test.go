package proxy

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

// A header list over a limit is answered in words, and the connection goes on.
func TestHeaderLimits(t *testing.T) {
	r := newRig(t, nil)
	l := DefaultLimits()
	l.HeaderBytes, l.HeaderFields = 8000, 50
	r.proxy.SetLimits(l)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	const says = "lbagent: user: the request's header list is above limits.header_bytes (8000) or limits.header_fields (50)"
	large := []string{"x", strings.Repeat("y", 7900)} // its block is smaller
	var many []string
	for i := range 60 {
		many = append(many, fmt.Sprint("x", i), "")
	}
	get := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}
	post := []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a", "content-type", "application/grpc"}
	for i, k := range []struct {
		fields []string
		end    bool
		want   string
	}{
		{append(get, large...), true, "[431]" + says + "\n"},
		{append(get, many...), true, "[431]" + says + "\n"},
		{append(post, large...), false, "[2008]"},
		{append(post, many...), true, "[2008]"},
		{append([]string{":method", "HEAD"}, append(get[2:], large...)...), true, "[431]"},
	} {
		id := uint32(2*i + 1)
		client.headers(id, k.end, k.fields...)
		if !k.end {
			client.fr.WriteData(id, true, make([]byte, 100))
		}
		if k.want == "[2008]" {
			f := client.until(func(f frame) bool { return f.id == id && f.fields != nil })
			if !f.end || f.fields["grpc-status"] != "8" || f.fields["grpc-message"] != says {
				t.Errorf("request %d: got %v", i, f.fields)
			}
		} else if got := client.answerOf(id); got != k.want {
			t.Errorf("request %d: got %q, want %q", i, got, k.want)
		}
	}
	client.get(101, "/")
	c := b.accept()
	c.request()
	var fields []string
	for i := range 60 {
		fields = append(fields, fmt.Sprint("x", i), "")
	}
	c.headers(1, true, append([]string{":status", "200"}, fields...)...)
	if got, want := client.answerOf(101), "[502]lbagent: user: "+b.addr+" sent a header list above limits.header_bytes or limits.header_fields\n"; got != want {
		t.Errorf("of a response: got %q, want %q", got, want)
	}
	r.quiet()
	if n := r.protected(protectHeaders); n != 6 {
		t.Errorf("%d counted", n)
	}
	if events := r.told(); len(events) != 1 || !strings.Contains(events[0].Detail, "header list too large in bytes or fields (limit 8000)") {
		t.Errorf("told: %+v", events)
	}
}

// A reload's limits hold for new connections; those that run keep what they were told.
func TestLimitsOfNewConnections(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	told := func(c *rawConn) (streams uint32) {
		f := c.until(func(f frame) bool { _, ok := f.Frame.(*http2.SettingsFrame); return ok })
		streams, _ = f.Frame.(*http2.SettingsFrame).Value(http2.SettingMaxConcurrentStreams)
		return streams
	}
	old := newRawClient(t, r.addr)
	if got := told(old); got != 250 {
		t.Errorf("told %d", got)
	}
	l := DefaultLimits()
	l.StreamsPerConnection, l.Connections = 2, 2
	r.proxy.SetLimits(l)
	young := newRawClient(t, r.addr)
	if got := told(young); got != 2 {
		t.Errorf("told %d", got)
	}
	for i := range 3 {
		old.get(uint32(2*i+1), "/")
		young.get(uint32(2*i+1), "/")
	}
	c := b.accept()
	for range 5 {
		c.headers(c.request().id, true, ":status", "200")
	}
	for i := range 3 {
		if got := old.answerOf(uint32(2*i + 1)); got != "[200]" {
			t.Errorf("the old connection got %s", got)
		}
	}
	if got := young.answerOf(5); got != "REFUSED_STREAM" {
		t.Errorf("the young connection got %s", got)
	}
	third := newRawClient(t, r.addr) // one more than limits.connections, which holds at once
	if f, err := third.read(); err == nil {
		t.Errorf("over the limit: %v", f)
	}
	await(t, "it was counted", func() bool { return r.proxy.Stats().Refused == 1 })
	if events := r.told(); len(events) != 2 || events[1].Detail != "client connection refused: the process has too many (limit 2)" {
		t.Errorf("told: %+v", events)
	}
	r.quiet()
}

// limits.connections never takes the descriptors that the agent itself needs.
func TestLimitsOfDescriptors(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	most := int(min(files.Cur, 1<<30)) - ownDescriptors
	r := newRig(t, nil)
	for _, k := range []struct{ asked, want int }{{0, most}, {1, 1}, {most, most}, {most + 1, most}, {1 << 40, most}} {
		r.proxy.SetLimits(Limits{Connections: k.asked})
		if got := r.proxy.limits.Load().Connections; got != k.want {
			t.Errorf("limits.connections %d: %d in force, want %d", k.asked, got, k.want)
		}
	}
}
