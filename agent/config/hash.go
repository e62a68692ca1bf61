package config

import "strings"

// decodeHash reads services[].hash (3.10).
func (dr *draft) decodeHash(v value) {
	v.object(keys{
		"header": func(v value) {
			v.str(&dr.HashHeader, "the name of a header such as x-user-id is allowed", true, validHeader)
			dr.HashHeader = strings.ToLower(dr.HashHeader)
		},
	})
}

// checkHash finds a hash that nobody would look at. That of defaults: may be for other services.
func (dr *draft) checkHash() {
	at, ok := dr.own["hash"]
	switch {
	case !ok || dr.HashHeader == "":
	case dr.Policy != "hash":
		at.fail("write policy: hash, or leave it out", "belongs to the policy hash, this one is %s", dr.Policy)
	case dr.Protocol == "tcp":
		at.fail("leave it out; keys come by the API then", "the header belongs to HTTP, the service is of protocol tcp")
	}
}

// validHeader reports whether s is a token (RFC 9110 5.6.2).
func validHeader(s string) bool {
	if len(s) > 100 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return true
}
