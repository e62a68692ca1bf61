package mute

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

const (
	maxValue = 4 << 10 // of a key of etcd
	maxName  = 253     // of author and host
)

// record is a mute as it is written: to the file, and (without service and address, which are the key) to etcd.
type record struct {
	Service string    `json:"service,omitempty"`
	Address string    `json:"address,omitempty"`
	Author  string    `json:"author"`
	Host    string    `json:"host"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
}

func recordOf(m *service.Mute) record {
	return record{
		Service: m.Service, Address: m.Addr.String(), Author: m.Author, Host: m.Host, Reason: m.Reason, Since: m.Since.UTC(), Until: m.Until.UTC(),
	}
}

// mute is r, checked.
func (r *record) mute(fleet bool) (service.Mute, error) {
	addr, err := parseAddr(r.Address)
	switch {
	case !service.ValidName(r.Service):
		return service.Mute{}, fmt.Errorf("%q is no name of a service", clip(r.Service, 64))
	case err != nil:
		return service.Mute{}, err
	case r.Since.IsZero() || r.Until.IsZero():
		return service.Mute{}, errors.New("since and until are needed, as 2006-01-02T15:04:05Z")
	case !r.Until.After(r.Since):
		return service.Mute{}, errors.New("until is not after since")
	}
	// Since and until have no monotonic reading: they count by the wall clock, which is what the other hosts have in common.
	return service.Mute{
		Service: r.Service, Addr: addr, Author: word(r.Author), Host: word(r.Host), Reason: text(r.Reason, MaxReason), Since: r.Since, Until: r.Until, Fleet: fleet,
	}, nil
}

// encodeKey is the key of a fleet-wide mute.
func encodeKey(prefix string, m *service.Mute) string {
	return prefix + m.Service + "/" + m.Addr.String()
}

// encodeValue is its value.
func encodeValue(m *service.Mute) (string, error) {
	r := recordOf(m)
	r.Service, r.Address = "", ""
	text, err := json.Marshal(r)
	return string(text), err
}

// decode reads a key below prefix. Nothing but the spelling that encodeKey has is taken: two keys must not mean the same backend.
func decode(prefix, etcdKey string, value []byte) (service.Mute, error) {
	name, addr, ok := strings.Cut(strings.TrimPrefix(etcdKey, prefix), "/")
	if !ok {
		return service.Mute{}, errors.New("the key is not SERVICE/ADDRESS")
	}
	if len(value) > maxValue {
		return service.Mute{}, fmt.Errorf("the value has more than %d bytes", maxValue)
	}
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return service.Mute{}, fmt.Errorf("the value is not the JSON of a mute: %w", err)
	}
	r.Service, r.Address = name, addr
	m, err := r.mute(true)
	if err != nil {
		return service.Mute{}, err
	}
	if encodeKey(prefix, &m) != etcdKey {
		return service.Mute{}, fmt.Errorf("the address is to be written as %s", m.Addr)
	}
	return m, nil
}

// parseAddr reads the address of a backend, in the form that lists have.
func parseAddr(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q is no address of a backend, such as 10.0.0.1:80 or [2001:db8::1]:80", clip(s, 64))
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// word is one word of a person's or host's name as it may be shown.
func word(s string) string {
	if s = strings.Join(strings.Fields(text(s, maxName)), " "); s == "" {
		return "somebody"
	}
	return s
}

// text is s, as it may be shown: one line, of at most n characters.
func text(s string, n int) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s))
	return clip(s, n)
}

// clip is at most n characters of s.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
