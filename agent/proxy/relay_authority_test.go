package proxy

import (
	"strings"
	"testing"
)

// What a backend gets as :authority and host (4.6): every setting, for each way a client may write it.
func TestAuthority(t *testing.T) {
	ways := []struct {
		name   string
		fields []string
	}{
		{"authority", []string{":authority", "shop.example:7001"}},
		{"host", []string{"host", "shop.example:7001"}},
		{"both", []string{":authority", "shop.example:7001", "host", "shop.example:7001"}},
		{"none", nil},
	}
	for _, setting := range []string{"keep", "host", "fixed.example:99", "[2001:db8::1]:80"} {
		r := newRig(t, func(s *Service) { s.Authority = setting })
		b := newRawBackend(t)
		r.backends(b.addr)
		client := newRawClient(t, r.addr)
		var c *rawConn
		for i, way := range ways {
			id := uint32(2*i + 1)
			var pseudo, regular []string
			for j := 0; j < len(way.fields); j += 2 {
				if strings.HasPrefix(way.fields[j], ":") {
					pseudo = append(pseudo, way.fields[j:j+2]...)
				} else {
					regular = append(regular, way.fields[j:j+2]...)
				}
			}
			client.headers(id, true, append(append([]string{":method", "GET", ":scheme", "http", ":path", "/"}, pseudo...), regular...)...)
			if c == nil {
				c = b.accept()
			}
			f := c.request()
			want := setting
			if setting == "host" {
				want = b.addr
			}
			for _, name := range []string{":authority", "host"} {
				expect, there := want, false
				for j := 0; j < len(way.fields); j += 2 {
					there = there || way.fields[j] == name
				}
				switch {
				case setting == "keep" && there:
					expect = "shop.example:7001"
				case setting != "keep" && way.name == "none" && name == ":authority": // it has to be somewhere
				case !there:
					expect = ""
				}
				if got := f.fields[name]; got != expect {
					t.Errorf("authority %s, client wrote %s: %s is %q, want %q", setting, way.name, name, got, expect)
				}
			}
			c.headers(f.id, true, ":status", "200")
			client.answerOf(id)
		}
		r.quiet()
	}
}

// Each attempt gets the name of its own backend.
func TestAuthorityOfARetry(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Authority = "host"; retryOn("503")(s) })
	first, second := newRawBackend(t), newRawBackend(t)
	r.backends(first.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := first.accept()
	if got := c.request().fields[":authority"]; got != first.addr {
		t.Errorf("the first got %q", got)
	}
	r.backends(first.addr, second.addr)
	c.headers(1, true, ":status", "503")
	d := second.accept()
	if got := d.request().fields[":authority"]; got != second.addr {
		t.Errorf("the second got %q", got)
	}
	d.headers(1, true, ":status", "200")
	if got := client.answerOf(1); got != "[200]" {
		t.Errorf("the client got %q", got)
	}
	r.quiet()
}
