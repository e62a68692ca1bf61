package format

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/lbagent/lbagent/agent/service"
)

// skyPriority is what CoreDNS gives a record that names none; lower ones come first.
const skyPriority = 10

// skyDNS reads what CoreDNS' plugin etcd serves: the name reversed under `/skydns`, so that foo.prod.local is `/skydns/local/prod/foo/` with all below it, and JSON
// with host, port, priority, weight, text, ttl, group. A priority is a tier. An absent weight is 100, as in CoreDNS' SRV answers; 0 is draining (CoreDNS leaves 0
// out when it writes). Records without a host (TXT) and those for mail (MX) are no backends; one without a port is of no use, and says so.
func skyDNS(dst []service.Backend, _ string, value []byte) ([]service.Backend, error) {
	if blank(value) {
		return dst, nil
	}
	o, err := parse(value)
	if err != nil {
		return dst, err
	}
	host, port := o.text("host"), o.text("port")
	if host == "" || o.text("mail") == "true" {
		return dst, nil
	}
	if port == "" || port == "0" {
		return dst, errors.New("the record has no port")
	}
	b := service.Backend{Weight: service.DefaultWeight}
	if err := setAddr(&b, net.JoinHostPort(host, port)); err != nil {
		return dst, err
	}
	if b.Priority, err = skyTier(o.text("priority")); err != nil {
		return dst, err
	}
	o.drop("ttl", "targetstrip") // for DNS answers
	if err := setMetadata(&b, o); err != nil {
		return dst, err
	}
	return append(dst, b), nil
}

func skyTier(text string) (uint16, error) {
	if text == "" || text == "0" {
		return skyPriority, nil
	}
	p, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("priority %.40q is not a number from 0 to 65535", text)
	}
	return uint16(p), nil
}
