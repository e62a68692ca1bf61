package config

import (
	"fmt"
	"strings"
)

// maxValue bounds one value after expansion. Nothing that can be configured needs more.
const maxValue = 4096

// expand replaces ${NAME} by what env says and $$ by $. Everything else that starts with a $ is an error: it is more often a slip than meant.
func expand(s string, env func(string) (string, bool)) (string, error) {
	if !strings.Contains(s, "$") {
		return s, nil
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "$")
		b.WriteString(before)
		switch {
		case !found:
			return b.String(), nil
		case strings.HasPrefix(rest, "$"):
			b.WriteByte('$')
			s = rest[1:]
		case strings.HasPrefix(rest, "{"):
			name, after, closed := strings.Cut(rest[1:], "}")
			if !closed || !validVariable(name) {
				return "", fmt.Errorf("%q is no variable", clip("${"+name, 40))
			}
			text, ok := env(name)
			if !ok {
				return "", fmt.Errorf("the environment variable %s is not set", name)
			}
			b.WriteString(text)
			s = after
		default:
			return "", fmt.Errorf("there is a lone $")
		}
		if b.Len() > maxValue {
			return "", fmt.Errorf("it has more than %d bytes", maxValue)
		}
	}
}

func validVariable(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case '0' <= c && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return true
}

// clip shortens s to n bytes or a little less, for messages.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
