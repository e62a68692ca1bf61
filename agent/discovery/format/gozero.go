package format

import (
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// goZero reads what go-zero's core/discov writes: `<key>/<lease id>`, or an id of the publisher's own, with host:port as the value. It has neither weights nor
// a mark for draining: a service that goes away deletes its key.
func goZero(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	text := strings.TrimSpace(string(value))
	if text == "" {
		return dst, nil
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if err := setAddr(&b, text); err != nil {
		return dst, err
	}
	return append(dst, b), nil
}
