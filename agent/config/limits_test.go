package config

import (
	"fmt"
	"strings"
	"testing"
)

// TestSizes: whole numbers of bytes, or of units of 1024; nothing that means 1000 to some.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		key, text string
		want      int64 // -1: refused
	}{
		{"buffered", "4194304", 4 << 20},
		{"buffered", "4MiB", 4 << 20},
		{"buffered", "4096KiB", 4 << 20},
		{"buffered", "1024GiB", 1 << 40},
		{"buffered", "1025GiB", -1},
		{"buffered", "4194303", -1},
		{"buffered", "0", 0},
		{"buffered", "off", 0},
		{"buffered", "0KiB", -1},
		{"buffered", "9223372036854775807GiB", -1},
		{"buffered", "99999999999999999999", -1},
		{"buffered", "-4MiB", -1},
		{"buffered", "+4MiB", -1},
		{"buffered", "04MiB", -1},
		{"buffered", "4.5MiB", -1},
		{"buffered", "4 MiB", -1},
		{"buffered", "4MB", -1},
		{"buffered", "4M", -1},
		{"buffered", "4mib", -1},
		{"buffered", "MiB", -1},
		{"buffered", "4MiBKiB", -1},
		{"buffered", "{}", -1},
		{"header_bytes", "4KiB", 4 << 10},
		{"header_bytes", "65536", 64 << 10},
		{"header_bytes", "1MiB", 1 << 20},
		{"header_bytes", "1048577", -1},
		{"header_bytes", "off", -1},
		{"header_bytes", "0", -1},
	} {
		got, err := parseText(fmt.Sprintf("limits: {%s: %s}\n", c.key, c.text))
		switch {
		case err != nil && c.want >= 0:
			t.Errorf("%s: %s: %v", c.key, c.text, err)
		case err != nil:
			if !strings.Contains(err.Error(), "lbagent.yaml:1: limits."+c.key+": ") || !strings.Contains(err.Error(), "MiB") {
				t.Errorf("%s: %s: the error doesn't say where, or what is allowed: %v", c.key, c.text, err)
			}
		case c.want < 0:
			t.Errorf("%s: %s is accepted", c.key, c.text)
		case c.key == "buffered" && got.Limits.Buffered != c.want, c.key == "header_bytes" && int64(got.Limits.HeaderBytes) != c.want:
			t.Errorf("%s: %s: got %+v", c.key, c.text, got.Limits)
		}
	}
	for n, want := range map[int64]string{1: "1", 1023: "1023", 1024: "1KiB", 1025: "1025", 3 << 20: "3MiB", 5 << 40: "5120GiB"} {
		if got := inBytes(n); got != want {
			t.Errorf("inBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestAuthorities are the literals that are allowed; testdata/bad/limits has those that aren't.
func TestAuthorities(t *testing.T) {
	for _, a := range []string{"keep", "host", "user.local", "user.local:80", "10.0.0.1", "10.0.0.1:8080", "[2001:db8::1]", "[2001:db8::1]:80", "user_1", "x"} {
		c, err := parseText(fmt.Sprintf("services: [{name: a, backends: [\"10.0.0.1:1\"], authority: %q}]\n", a))
		if err != nil {
			t.Errorf("%q: %v", a, err)
		} else if got := c.Services[0].Authority; got != a {
			t.Errorf("%q became %q", a, got)
		}
	}
}
