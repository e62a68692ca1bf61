package etcd

import (
	"strconv"
	"strings"
)

// Plain is err without gRPC's dialect, whose codes, layers and quotes hide the one part that a person can use. errors.Is and errors.As see err.
func Plain(err error) error {
	if err == nil {
		return nil
	}
	return &plain{plainText(err.Error()), err}
}

type plain struct {
	text string
	err  error
}

func (p *plain) Error() string { return p.text }
func (p *plain) Unwrap() error { return p.err }

func plainText(text string) string {
	for {
		before, rest, found := strings.Cut(text, "rpc error: code = ")
		_, desc, described := strings.Cut(rest, " desc = ")
		if !found || !described {
			break
		}
		text = before + desc
	}
	for {
		before, rest, found := strings.Cut(text, "connection error: desc = ")
		quoted, err := strconv.QuotedPrefix(rest)
		if !found || err != nil {
			break
		}
		desc, err := strconv.Unquote(quoted)
		if err != nil {
			break
		}
		text = before + desc + rest[len(quoted):]
	}
	text, _, _ = strings.Cut(text, ", received prior goaway: ") // the code of a server that stops is NO_ERROR
	for _, layer := range []string{"closing transport due to: ", "error reading from server: ", "transport: ", "Error while dialing: ", "authentication handshake failed: "} {
		text = strings.ReplaceAll(text, layer, "")
	}
	for _, end := range [][2]string{
		{"EOF", "etcd ended the connection"},
		{"keepalive ping failed to receive ACK within timeout", "no answer to a keepalive"},
		{"context deadline exceeded", "no answer in time"},
		{"etcdserver: user name is empty", "etcd wants to know who asks, and no user is configured (etcd.username)"},
	} {
		if before, found := strings.CutSuffix(text, end[0]); found && (before == "" || strings.HasSuffix(before, ": ")) {
			return before + end[1]
		}
	}
	return text
}
