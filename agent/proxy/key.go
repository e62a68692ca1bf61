package proxy

import (
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/proxy/h1"
	"github.com/lbagent/lbagent/agent/proxy/h2"
)

// h2Key is the key of a request (3.10): the value of the first header of that name; 0 = it has none, or there is no such rule.
func h2Key(header string, fields []h2.Field) uint64 {
	if header == "" {
		return 0
	}
	for i := range fields {
		if fields[i].Name == header {
			return picker.KeyOf(fields[i].Value)
		}
	}
	return 0
}

// h1Key is h2Key for HTTP/1, so that a key's calls meet whichever of the two they come by.
func h1Key(header string, fields []h1.Field) uint64 {
	if header == "" {
		return 0
	}
	for i := range fields {
		if h1.Is(fields[i].Name, header) {
			return picker.KeyOf(string(fields[i].Value))
		}
	}
	return 0
}
