package calls

import "strings"

// TraceID is the trace-id in a traceparent header (W3C Trace Context 3.2): version, trace-id, parent-id and flags in lower-case hex; empty if that isn't what it is. A
// version to come may have more behind it.
func TraceID(parent string) string {
	const whole = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(parent) < whole || len(parent) > whole && (parent[:2] == "00" || parent[whole] != '-') || parent[:2] == "ff" {
		return ""
	}
	for i := range whole {
		dash := i == 2 || i == 35 || i == 52
		if c := parent[i]; dash != (c == '-') || !dash && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return ""
		}
	}
	id := parent[3:35]
	if strings.Trim(id, "0") == "" {
		return ""
	}
	return strings.Clone(id)
}
