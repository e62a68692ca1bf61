package mute

import (
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

const goodValue = `{"author":"alice","host":"web-1","reason":"bad disk","since":"2026-03-01T13:03:00Z","until":"2026-03-01T14:03:00Z"}`

func TestDecode(t *testing.T) {
	m, err := decode("p/", "p/user/10.0.0.1:80", []byte(goodValue))
	if err != nil || line(&m) != "user 10.0.0.1:80 fleet alice@web-1" || m.Reason != "bad disk" || m.Until.Sub(m.Since) != time.Hour {
		t.Errorf("%+v, %v", m, err)
	}
	if value, err := encodeValue(&m); err != nil || value != goodValue {
		t.Errorf("written as %s, %v", value, err)
	}
	if m, err = decode("p/", "p/user/[2001:db8::1]:80", []byte(goodValue)); err != nil || encodeKey("p/", &m) != "p/user/[2001:db8::1]:80" {
		t.Errorf("IPv6: %+v, %v", m, err)
	}
	for _, tt := range []struct{ key, value, want string }{
		{"p/user", goodValue, "the key is not SERVICE/ADDRESS"},
		{"p/", goodValue, "the key is not SERVICE/ADDRESS"},
		{"p//10.0.0.1:80", goodValue, "is no name of a service"},
		{"p/us er/10.0.0.1:80", goodValue, "is no name of a service"},
		{"p/user/10.0.0.1", goodValue, "is no address"},
		{"p/user/web/10.0.0.1:80", goodValue, "is no address"},
		{"p/user/[2001:DB8::1]:80", goodValue, "the address is to be written as [2001:db8::1]:80"},
		{"p/user/[::ffff:10.0.0.1]:80", goodValue, "the address is to be written as 10.0.0.1:80"},
		{"p/user/10.0.0.1:080", goodValue, "is to be written as 10.0.0.1:80"},
		{"p/user/10.0.0.1:80", "", "not the JSON of a mute"},
		{"p/user/10.0.0.1:80", "true", "not the JSON of a mute"},
		{"p/user/10.0.0.1:80", `{"until":"tomorrow"}`, "not the JSON of a mute"},
		{"p/user/10.0.0.1:80", `{"until":"2026-03-01T14:03:00Z"}`, "since and until are needed"},
		{"p/user/10.0.0.1:80", `{"since":"2026-03-01T14:03:00Z","until":"2026-03-01T13:03:00Z"}`, "until is not after since"},
		{"p/user/10.0.0.1:80", goodValue + strings.Repeat(" ", maxValue), "more than 4096 bytes"},
	} {
		if m, err := decode("p/", tt.key, []byte(tt.value)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s = %.40s: %+v, %v, want %q", tt.key, tt.value, m, err, tt.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("user/10.0.0.1:80", []byte(goodValue))
	f.Add("user/[2001:db8::1]:80", []byte(`{"since":"2026-03-01T13:03:00Z","until":"2026-03-01T14:03:00.5+01:00","reason":"\u0000\ud800"}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		m, err := decode("p/", "p/"+name, value)
		if err != nil {
			return
		}
		// What was read is bounded, can be shown, and is written so that it is read as the same.
		if !service.ValidName(m.Service) || m.Author == "" || m.Host == "" || strings.ContainsAny(m.Author+m.Host+m.Reason, "\x00\x1b\n\r") || len([]rune(m.Reason)) > MaxReason {
			t.Errorf("%+v", m)
		}
		_ = m.Cause()
		again, err := encodeValue(&m)
		if err != nil {
			t.Skip() // a year that JSON has no form for
		}
		if len(again) > maxValue {
			t.Skip()
		}
		n, err := decode("p/", encodeKey("p/", &m), []byte(again))
		if err != nil || !same(m, n) {
			t.Errorf("%+v came back as %+v, %v", m, n, err)
		}
	})
}
