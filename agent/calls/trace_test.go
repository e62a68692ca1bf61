package calls

import (
	"regexp"
	"strings"
	"testing"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestTraceID(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for parent, want := range map[string]string{
		traceparent:                      id,
		"cc" + traceparent[2:]:           id,
		"cc" + traceparent[2:] + "-more": id,
		"cc" + traceparent[2:] + "more":  "",
		traceparent + "-more":            "",
		"ff" + traceparent[2:]:           "",
		strings.ToUpper(traceparent):     "",
		traceparent[:54]:                 "",
		strings.Replace(traceparent, id, strings.Repeat("0", 32), 1): "",
		strings.Replace(traceparent, "-", "_", 1):                    "",
		strings.Replace(traceparent, "4b", "g!", 1):                  "",
		"": "",
	} {
		if got := TraceID(parent); got != want {
			t.Errorf("%q: %q, want %q", parent, got, want)
		}
	}
}

func FuzzTraceID(f *testing.F) {
	f.Add(traceparent)
	f.Add("cc" + traceparent[2:] + "-x")
	hex := regexp.MustCompile(`^[0-9a-f]{32}$`)
	f.Fuzz(func(t *testing.T, s string) {
		if id := TraceID(s); id != "" && (!hex.MatchString(id) || !strings.Contains(s, "-"+id+"-")) {
			t.Fatalf("%q has the trace %q", s, id)
		}
	})
}
