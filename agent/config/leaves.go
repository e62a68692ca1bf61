package config

import (
	"fmt"
	"net/url"
	"strconv"
)

// AccessLog is access_log: the calls that are written, and where.
type AccessLog struct {
	Path   string  // "" = off
	Sample float64 // the share of calls that is written: 0 to 1
	Errors bool    // calls that failed are written in any case
}

func (a *AccessLog) decode(v value) {
	if v.isOff() {
		return
	}
	*a = AccessLog{Sample: 1, Errors: true}
	found := v.object(keys{
		"path":   func(v value) { v.absolute(&a.Path, false) },
		"sample": func(v value) { v.share(&a.Sample) },
		"errors": func(v value) {
			which := "all"
			v.oneOf(&which, []string{"all", "sampled"})
			a.Errors = which == "all"
		},
	})
	if _, ok := found["path"]; !ok && v.isMap() {
		v.fail("write access_log.path, such as /var/log/lbagent/access.log, or access_log: off", "path is missing")
	}
}

// share reads a part of a whole.
func (v value) share(to *float64) {
	const allowed = "a number from 0 (none) to 1 (all) is allowed, such as 0.01 for one of a hundred"
	s, ok := v.text(allowed, false)
	if !ok {
		return
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1) { // not a number, too
		v.fail(allowed, "%s is none", v.quote())
		return
	}
	*to = f
}

// maxURL bounds notify.url.
const maxURL = 2048

// notify reads notify:. What stands in the address is often a secret, so messages don't repeat it.
func (s *sections) notify(v value) {
	if v.isOff() {
		return
	}
	if !v.isMap() {
		v.fail("a map is allowed: url", "is no map")
		return
	}
	v.object(keys{"url": func(v value) {
		const allowed = `an address such as https://ops.example/events, or "", is allowed`
		text, ok := v.text(allowed, true)
		if !ok || text == "" || text == "off" {
			return
		}
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
			v.fail(allowed, "is no http or https address")
		case u.User != nil:
			v.fail("put what proves who this host is into the path or the query, and keep the file from others", "a user has no place in the address")
		case u.Fragment != "":
			v.fail(allowed, "has a #, and what is behind it would never be sent")
		case u.Port() != "" && !validPort(u.Port()):
			v.fail("a port from 1 to 65535 is allowed", "has no such port")
		case len(text) > maxURL:
			v.fail(fmt.Sprintf("at most %d bytes are allowed", maxURL), "is too long")
		default:
			s.cfg.NotifyURL = text
		}
	}})
}
