package format

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// plain reads a value that is host:port or a URL, as go-kit and hand-made lists have it. The scheme of a URL becomes metadata, so that it can be selected;
// http and https have a default port.
func plain(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	text := strings.TrimSpace(string(value))
	if text == "" {
		return dst, errors.New("the value is empty")
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil {
			return dst, urlError(err)
		}
		if text, err = hostPort(u); err != nil {
			return dst, err
		}
		b.Metadata = map[string]string{"scheme": u.Scheme}
	}
	var err error
	if b.Addr, err = parseAddr(text); err != nil {
		return dst, err
	}
	return append(dst, b), nil
}

// urlError is err without the URL itself, which may hold a password.
func urlError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return fmt.Errorf("not a URL: %.80q", err.Error())
}

// hostPort is the address in u, with the scheme's own port if it names none.
func hostPort(u *url.URL) (string, error) {
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return "", errors.New("the URL has no host")
	}
	if port == "" {
		switch u.Scheme {
		case "http":
			port = "80"
		case "https":
			port = "443"
		default:
			return "", fmt.Errorf("the URL has no port, and its scheme %.20q has no default port", u.Scheme)
		}
	}
	return net.JoinHostPort(host, port), nil
}
