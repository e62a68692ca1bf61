package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// secretsRun is an agent that is told secrets, and all that was ever heard of it.
type secretsRun struct {
	*agent
	etcd     *etcdtest.Server
	tap      *tap // between the two
	password string
	heard    map[string]string // what it said, by where
	planted  map[string]string // the secrets, by what they are
}

// A run with every failure that has to do with secrets: a wrong password, etcd gone, a password that was changed, files of the configuration that hold the secret itself, TLS,
// a crash. Whatever the agent and its verbs say, at the most talkative level, and whatever it keeps on disk: no secret is in it.
func TestSecrets(t *testing.T) {
	t.Parallel()
	r := newSecretsRun(t)
	r.start()
	poll(t, "the wrong password is told", func() bool { return strings.Contains(r.must("status"), "authentication failed") })
	r.listen("wrong password")

	r.setPassword("the right password")
	poll(t, "the list", func() bool { return len(r.addresses("user")) == 1 })
	r.planted["the token"] = r.token()
	r.must("lookup", "user")
	r.listen("right password")
	r.bundle("right password", "profiles/heap.pb.gz", "config/00-lbagent.yaml", "explain/user.json", "events.jsonl")

	r.etcd.Stop()
	poll(t, "etcd's absence is told", func() bool {
		st, err := r.status().Status(t.Context(), &lbagentv1.StatusRequest{})
		return err == nil && !st.GetEtcd().GetConnected()
	})
	r.listen("etcd gone")
	r.setPassword("a password that was changed") // etcd forgets its tokens when it starts
	if err := r.etcd.Start(); err != nil {
		t.Fatal(err)
	}
	poll(t, "the login fails again", func() bool { return strings.Contains(r.must("status"), "authentication failed") })
	r.listen("changed password")

	// The secret where its file's name should be, in clear or by the environment; each is refused, and quoted by nobody.
	good, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	etcdLine := regexp.MustCompile(`(?m)^etcd: .*\n`)
	right := r.planted["the right password"]
	for _, broken := range []string{"username: u, password_file: \"${PLANTED}\"", "username: u, password_file: " + right, "username: u, password: " + right,
		"tls: {cert_file: /x, key_file: \"${PLANTED}\"}", "endpoints: [\"http://u:" + right + "@127.0.0.1:1\"]"} {
		if !strings.Contains(broken, "endpoints") {
			broken += ", endpoints: [\"https://127.0.0.1:1\"]"
		}
		text := etcdLine.ReplaceAllLiteralString(string(good), "etcd: {"+broken+"}\n")
		if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, code := r.say("broken configuration", "reload"); code != 1 {
			t.Errorf("%s was taken", broken)
		}
		r.say("broken configuration", "check", r.config)
	}
	r.listen("broken configuration")
	r.bundle("broken configuration", "config/00-lbagent.yaml", "doctor.json", "status.json")

	// A client's key, and a server that does not speak TLS.
	key := r.writeKey()
	tls := fmt.Sprintf("etcd: {endpoints: [\"https://%s\"], tls: {ca_file: %s, cert_file: %[2]s, key_file: %s}}\n", r.etcd.Addr(), key+".pem", key)
	if err := os.WriteFile(r.config, etcdLine.ReplaceAllLiteral(good, []byte(tls)), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must("reload")
	poll(t, "the handshake fails", func() bool { return strings.Contains(r.must("status"), "handshake") })
	r.listen("TLS")
	r.bundle("TLS", "config/00-lbagent.yaml", "profiles/goroutines.txt")

	r.signal(syscall.SIGQUIT)
	<-r.exited
	r.cmd = nil
	r.listen("after a crash")
	r.bundle("after a crash", "config/00-lbagent.yaml", "left.json")
	r.heard["the log"] = r.logTail(1 << 20)
	if !strings.Contains(r.heard["the log"], "notify") {
		t.Error("nothing was posted")
	}
	if !strings.Contains(r.heard["the log"], "goroutine 1 ") || !strings.Contains(r.heard["the log"], "[TRACE]") && !strings.Contains(r.heard["the log"], "[DEBUG]") {
		t.Errorf("no dump, or no talkative log:\n%.2000s", r.heard["the log"])
	}
	r.judge()
}

func newSecretsRun(t *testing.T) *secretsRun {
	r := &secretsRun{etcd: etcdtest.Start(t, etcdtest.Config{}), heard: make(map[string]string), planted: map[string]string{
		"the right password": "Right-Horse-7f3a", "the wrong password": "Wrong-Staple-91bc", "a password that was changed": "Changed-Battery-55de", "the environment": "Env-Correct-c0de",
		"the address for events": "Notify-Token-2b7e",
	}}
	c := etcdtest.NewClient(t, r.etcd)
	for _, step := range []func() error{
		func() error { _, err := c.Put(t.Context(), "services/user/a", "127.0.0.1:1"); return err },
		func() error { _, err := c.UserAdd(t.Context(), "root", "root"); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := c.RoleAdd(t.Context(), "reader"); return err },
		func() error {
			_, err := c.RoleGrantPermission(t.Context(), "reader", "services/", clientv3.GetPrefixRangeEnd("services/"), clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { _, err := c.UserAdd(t.Context(), "lbagent", r.planted["the right password"]); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), "lbagent", "reader"); return err },
		func() error { _, err := c.AuthEnable(t.Context()); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	r.tap = newTap(t, r.etcd.Addr())
	r.agent = newAgent(t, `- {name: user, prefix: services/user/, format: plain, probe: off}`)
	r.password = filepath.Join(r.dir, "password")
	r.setPassword("the wrong password")
	r.extra = fmt.Sprintf("etcd: {endpoints: [\"http://%s\"], username: lbagent, password_file: %s}\nlog: {level: trace}\nnotify: {url: \"http://127.0.0.1:%d/%s?key=${PLANTED}\"}\n",
		r.tap.addr, r.password, freePort(t), r.planted["the address for events"])
	r.writeConfig()
	// As talkative as the libraries can be made, and a dump of all that runs.
	r.wrapper = []string{"env", "PLANTED=" + r.planted["the environment"], "GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99", "GOTRACEBACK=all",
		"ETCD_CLIENT_DEBUG=debug"}
	r.environment = []string{"PLANTED=" + r.planted["the environment"]}
	return r
}

// token is what etcd gave the agent for its password, as it went over the wire.
func (r *secretsRun) token() string {
	r.t.Helper()
	r.tap.mu.Lock()
	defer r.tap.mu.Unlock()
	for _, c := range r.tap.conns {
		if token := regexp.MustCompile(`[A-Za-z]{16}\.[0-9]+`).Find(c.answered.Bytes()); token != nil {
			return string(token)
		}
	}
	r.t.Fatal("no token went over the wire")
	return ""
}

func (r *secretsRun) setPassword(which string) {
	r.t.Helper()
	if err := os.WriteFile(r.password, []byte(r.planted[which]+"\n"), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// writeKey makes a key and its certificate, at the path and beside it, and returns the path.
func (r *secretsRun) writeKey() string {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(r.dir, "key")
	for name, block := range map[string]*pem.Block{path: {Type: "PRIVATE KEY", Bytes: der}, path + ".pem": {Type: "CERTIFICATE", Bytes: cert}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.planted["the key"] = base64.StdEncoding.EncodeToString(der)[64:96]
	return path
}

// say runs a verb, which has the secret in its environment too, and keeps what it says.
func (r *secretsRun) say(when string, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	stdout, stderr, code = r.cli(args...)
	r.heard[when+": lbagent "+strings.Join(args, " ")] += stdout + stderr
	return stdout, stderr, code
}

// listen keeps whatever can be had of the agent now.
func (r *secretsRun) listen(when string) {
	r.t.Helper()
	for _, verb := range []string{"status", "status --json", "services --json", "list user --json", "explain user", "explain user --json", "events", "events --json", "mute", "env user",
		"lookup user --json", "doctor --config " + r.config, "doctor --json --config " + r.config, "check --json " + r.config} {
		r.say(when, strings.Fields(verb)...)
	}
	for _, page := range []string{"/", "/metrics", "/readyz", "/healthz"} {
		_, r.heard[when+": "+page] = r.get(page)
	}
	for _, path := range []string{"/v1/status", "/v1/events", "/v1/services/user/explain", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/cmdline", "/debug/pprof/allocs"} {
		_, r.heard[when+": "+path] = r.json(r.admin, "GET", path, "")
	}
}

// bundle keeps every part of a bundle, which has to have those that are wanted; what is packed in it is unpacked.
func (r *secretsRun) bundle(when string, wanted ...string) {
	r.t.Helper()
	path := filepath.Join(r.dir, strings.ReplaceAll(when, " ", "-")+".tar.gz")
	r.say(when, "doctor", "--bundle", path, "--config", r.config) // its exit code is about this machine
	parts := untar(r.t, path)
	for _, name := range append(wanted, "MANIFEST", "version.txt") {
		if len(parts[name]) == 0 {
			r.t.Errorf("%s: the bundle has no %s", when, name)
		}
	}
	for name, text := range parts {
		if strings.HasSuffix(name, ".gz") {
			z, err := gzip.NewReader(strings.NewReader(text))
			if err != nil {
				r.t.Fatalf("%s: %s: %v", when, name, err)
			}
			raw, err := io.ReadAll(z)
			if err != nil {
				r.t.Fatalf("%s: %s: %v", when, name, err)
			}
			text = string(raw)
		}
		r.heard[when+": the bundle's "+name] = text
	}
}

// judge looks for the secrets in all that was heard, and in what the agent keeps on disk.
func (r *secretsRun) judge() {
	state := filepath.Join(r.dir, "state")
	if err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); d.Name() == "config.good" && (err != nil || info.Mode().Perm() == 0o600) {
			return nil // it has what the file has, for nobody else
		}
		b, err := os.ReadFile(path)
		r.heard[path] = string(b)
		return err
	}); err != nil {
		r.t.Error(err)
	}
	if len(r.heard) < 100 || len(r.planted) < 7 {
		r.t.Errorf("only %d things were heard, and %d secrets planted", len(r.heard), len(r.planted))
	}
	for what, secret := range r.planted {
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), strings.ToLower(secret), fmt.Sprintf("%x", secret)} {
			for where, text := range r.heard {
				if i := strings.Index(text, form); i >= 0 {
					r.t.Errorf("%s is in %s: ...%s...", what, where, bytes.ToValidUTF8([]byte(text[max(0, i-100):min(len(text), i+100)]), nil))
				}
			}
		}
	}
}
