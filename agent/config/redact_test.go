package config

import (
	"slices"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	text := `# the password is hunter2
node: {name: web-17}
etcd:
  endpoints: [https://etcd-1:2379, "https://root:hunter3@etcd-2:2379", https://etcd-3:2379/]
  username: lbagent
  password: hunter4 # hunter5
  password_file: /etc/lbagent/etcd.password
  tls: {key_file: /etc/lbagent/key.pem}
notify: {url: "https://hooks.example.com/services/T0/B0/hunter6?x=hunter7"}
services:
  - name: user
    key: /prod/user
    authority: user.example.com
    hash: {header: x-user}
    probe: {auth: {basic: hunter8, more: [hunter9]}}
    listen: [7001]
extra: {plain: &x huntera, password: *x}
`
	out, err := Redact([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got := string(out)
	if strings.Contains(got, "hunter") || strings.Contains(got, "#") {
		t.Errorf("a secret or a comment is left:\n%s", got)
	}
	for _, want := range []string{
		"name: web-17", "https://etcd-1:2379", "https://etcd-2:2379/REDACTED", "https://etcd-3:2379/", "username: lbagent", "password: REDACTED", "/etc/lbagent/etcd.password",
		"/etc/lbagent/key.pem", "https://hooks.example.com/REDACTED", "key: /prod/user", "authority: user.example.com", "header: x-user", "7001",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing:\n%s", want, got)
		}
	}
	secrets := Secrets([]byte(text))
	slices.Sort(secrets)
	if want := []string{"hunter3", "hunter4", "hunter8", "hunter9", "huntera", "services/T0/B0/hunter6", "x=hunter7"}; !slices.Equal(secrets, want) {
		t.Errorf("secrets are %q, want %q", secrets, want)
	}
	if _, err := Redact([]byte("a: [")); err == nil || Secrets([]byte("a: [")) != nil {
		t.Error("what is no YAML is redacted")
	}
	if _, err := Redact(nil); err == nil {
		t.Error("nothing is redacted")
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("etcd: {password: geheim}\n"))
	f.Add([]byte("a: &x {token: geheim}\nb: *x\n"))
	f.Add([]byte("a: https://u:geheim@h/\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := Redact(data)
		if err != nil {
			return
		}
		for _, s := range Secrets(out) {
			if !strings.Contains(s, redacted) {
				t.Errorf("%q is left in\n%s", s, out)
			}
		}
	})
}
