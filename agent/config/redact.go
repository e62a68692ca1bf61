package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"gopkg.in/yaml.v3"
)

// redacted stands for what isn't shown.
const redacted = "REDACTED"

// Redact returns the text of a configuration file as it may be shown to others: without comments and without secrets. Values of keys whose names sound like a secret's
// are left out, paths of files excepted; of a URL only scheme and host stay, as some carry a password or a token behind that. It is for valid and invalid files alike, as long as
// they are YAML.
func Redact(data []byte) ([]byte, error) {
	first, second, err := parseYAML(data)
	switch {
	case err != nil:
		return nil, errors.New("redact the configuration: it is no YAML") // the error may quote a secret
	case first == nil || second != nil:
		return nil, errors.New("redact the configuration: it is not one YAML document")
	}
	redact(first, false)
	out, err := yaml.Marshal(first)
	if err != nil {
		return nil, fmt.Errorf("redact the configuration: %w", err)
	}
	return out, nil
}

// redact goes through n; hidden says that all values below are secret.
func redact(n *yaml.Node, hidden bool) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	switch n.Kind {
	case yaml.ScalarNode:
		if v := public(n.Value, hidden); v != n.Value {
			n.SetString(v)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			redact(n.Content[i], false)
			redact(n.Content[i+1], hidden || secretKey(n.Content[i].Value))
		}
	case yaml.AliasNode: // what it stands for is redacted where it is, and here
		if hidden {
			if n.Alias.Kind == yaml.ScalarNode {
				n.Alias.SetString(redacted)
			}
			*n = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: redacted}
		}
	default:
		for _, c := range n.Content {
			redact(c, hidden)
		}
	}
}

// public is a value as it may be shown.
func public(v string, hidden bool) string {
	if hidden && v != "" {
		return redacted
	}
	scheme, rest, ok := strings.Cut(v, "://")
	if !ok {
		return v
	}
	u, err := url.Parse(v)
	if err != nil {
		return scheme + "://" + redacted
	}
	if u.User == nil && strings.Trim(strings.TrimPrefix(rest, u.Host), "/") == "" {
		return v
	}
	return u.Scheme + "://" + u.Host + "/" + redacted
}

// secretKey reports whether a key's name sounds like a secret's.
func secretKey(name string) bool {
	name = strings.ToLower(name)
	if strings.HasSuffix(name, "_file") || name == "key" || name == "hash_key" { // a path; a key of etcd
		return false
	}
	for _, word := range []string{"password", "passwd", "secret", "token", "credential", "private", "auth", "cookie", "_key", "apikey"} {
		if strings.Contains(name, word) && name != "authority" {
			return true
		}
	}
	return false
}

// Secrets are the values in a configuration file that Redact hides, so that they can be looked for elsewhere.
func Secrets(data []byte) []string {
	first, _, err := parseYAML(data)
	if err != nil || first == nil {
		return nil
	}
	var all []string
	var walk func(n *yaml.Node, hidden bool)
	walk = func(n *yaml.Node, hidden bool) {
		switch n.Kind {
		case yaml.ScalarNode:
			if hidden && n.Value != "" {
				all = append(all, n.Value)
			} else if public(n.Value, false) != n.Value {
				all = append(all, secretsOfURL(n.Value)...)
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				walk(n.Content[i+1], hidden || secretKey(n.Content[i].Value))
			}
		case yaml.AliasNode:
			if hidden && n.Alias.Kind == yaml.ScalarNode {
				all = append(all, n.Alias.Value)
			}
		default:
			for _, c := range n.Content {
				walk(c, hidden)
			}
		}
	}
	walk(first, false)
	return all
}

// secretsOfURL are the parts of a URL behind its host, and a password.
func secretsOfURL(v string) (all []string) {
	u, err := url.Parse(v)
	if err != nil {
		return []string{v}
	}
	if p, ok := u.User.Password(); ok {
		all = append(all, p)
	}
	if p := strings.Trim(u.Path, "/"); p != "" {
		all = append(all, p)
	}
	if u.RawQuery != "" {
		all = append(all, u.RawQuery)
	}
	return all
}
