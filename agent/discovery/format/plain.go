package format

import (
	"errors"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// plain reads a value that is host:port or a URL, as go-kit and hand-made lists have it. The scheme of a URL becomes metadata, so that it can be selected;
// http and https have a default port. It has neither weights nor a mark for draining.
func plain(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	text := strings.TrimSpace(string(value))
	if text == "" {
		return dst, errors.New("the value is empty")
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if strings.Contains(text, "://") {
		u, err := parseURL(text)
		if err != nil {
			return dst, err
		}
		if err := setURL(&b, u); err != nil {
			return dst, err
		}
		b.Metadata = map[string]string{"scheme": u.Scheme}
		return append(dst, b), nil
	}
	if err := setAddr(&b, text); err != nil {
		return dst, err
	}
	return append(dst, b), nil
}
