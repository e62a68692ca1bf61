package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lbagent/lbagent/agent/config"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	bundleServices = 200      // whose explanations are in a bundle, the troubled ones first
	bundlePart     = 16 << 20 // bytes of one part at most
	shortest       = 4        // bytes of a secret that is looked for: shorter ones are in every text
)

// bundle collects what somebody else needs to understand this host, without its secrets.
type bundle struct {
	d       *doctor
	a       *app
	now     time.Time
	secrets []string // values that must not be in it

	parts   []bundlePiece
	missing []string // what could not be had, and why
}

type bundlePiece struct {
	name string
	data []byte
}

// writeBundle makes the file, which must not be there yet, for its owner alone.
func (a *app) writeBundle(ctx context.Context, d *doctor, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	b := &bundle{d: d, a: a, now: a.now()}
	b.collect(ctx)
	err = errors.Join(b.write(f), f.Close())
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("write the bundle: %w", err)
	}
	fmt.Fprintf(a.stderr, "lbagent: wrote %s, %s; look at MANIFEST in it before you send it\n", clean(path), plural(len(b.parts), "part"))
	for _, m := range b.missing {
		fmt.Fprintln(a.stderr, "  without "+clean(m))
	}
	return nil
}

// collect gets all parts; what can't be had is noted.
func (b *bundle) collect(ctx context.Context) {
	b.learnSecrets()
	findings, err := json.MarshalIndent(b.d.findings, "", "  ")
	b.add("doctor.json", findings, err)
	b.add("version.txt", []byte(thisBuild().line()+"\n"), nil)
	b.configuration()
	if b.d.agent == nil {
		left, err := json.MarshalIndent(b.a.leftovers(), "", "  ")
		b.add("left.json", left, err)
		b.lack("status, explanations, events", errors.New("no agent answers"))
	} else if err := b.a.ask(ctx, b.ask); err != nil {
		b.lack("what the agent says", err)
	}
	b.profiles(ctx)
	for _, name := range []string{"status", "limits"} {
		if pid := b.d.agentPID(); pid != 0 {
			text, err := os.ReadFile(filepath.Join(b.d.proc, fmt.Sprint(pid), name))
			b.add("proc-"+name+".txt", text, err)
		}
	}
	text, err := b.d.journal(ctx)
	b.add("journal.txt", text, err)
}

// add adds a part without its secrets, or notes why there is none.
func (b *bundle) add(name string, data []byte, err error) {
	if err != nil {
		b.lack(name, err)
		return
	}
	if !strings.HasSuffix(name, ".gz") { // profiles name functions and nothing else
		data = b.hide(data) // before it is cut: nobody would know the half of a secret
	}
	b.parts = append(b.parts, bundlePiece{name, data[:min(len(data), bundlePart)]})
}

func (b *bundle) lack(what string, err error) {
	first, _, _ := strings.Cut(err.Error(), "\n")
	b.missing = append(b.missing, what+": "+first)
}

func (b *bundle) addJSON(name string, m proto.Message, err error) {
	var data []byte
	if err == nil {
		data, err = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true, Indent: "  "}.Marshal(m)
	}
	b.add(name, data, err)
}

// learnSecrets finds out what must not be in the bundle: what the configuration says in clear, and what is in the files that it names.
func (b *bundle) learnSecrets() {
	for _, path := range b.configFiles() {
		if text, err := os.ReadFile(path); err == nil {
			b.secrets = append(b.secrets, config.Secrets(text)...)
		}
	}
	if b.d.c != nil && b.d.c.Etcd != nil {
		for _, path := range []string{b.d.c.Etcd.PasswordFile, b.d.c.Etcd.TLS.KeyFile} {
			if path == "" {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				continue // who can't read it has it from nowhere else
			}
			for line := range strings.Lines(string(text)) {
				if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") {
					b.secrets = append(b.secrets, line)
				}
			}
		}
	}
	for _, s := range slices.Clone(b.secrets) {
		b.secrets = append(b.secrets, inOtherWords(s)...)
	}
	b.secrets = slices.DeleteFunc(b.secrets, func(s string) bool { return len(s) < shortest })
	slices.SortFunc(b.secrets, func(x, y string) int { return len(y) - len(x) }) // a part of another one comes after it
}

// inOtherWords is s as it stands in URLs, in JSON of either kind, and in Go's quotes.
func inOtherWords(s string) []string {
	quoted := strconv.Quote(s)
	words := []string{url.QueryEscape(s), url.PathEscape(s), quoted[1 : len(quoted)-1]}
	var plain bytes.Buffer
	e := json.NewEncoder(&plain)
	e.SetEscapeHTML(false)
	escaped, err := json.Marshal(s)
	if errors.Join(err, e.Encode(s)) != nil { // as there is none for a text
		return words
	}
	for _, quoted := range [][]byte{escaped, bytes.TrimSpace(plain.Bytes())} {
		words = append(words, string(quoted[1:len(quoted)-1]))
	}
	return words
}

// configFiles are those of the running agent, or those that it would start with.
func (b *bundle) configFiles() []string {
	if files := b.d.agent.GetConfigFiles(); len(files) > 0 {
		return files
	}
	if b.d.c != nil && len(b.d.c.Files) > 0 {
		return b.d.c.Files
	}
	return []string{b.d.file}
}

func (b *bundle) configuration() {
	for i, path := range b.configFiles() {
		if !filepath.IsAbs(path) && path != b.d.file {
			b.lack("config/"+path, errors.New("it is not said where it is"))
			continue
		}
		text, err := os.ReadFile(path)
		if err == nil {
			text, err = config.Redact(text)
		}
		b.add(fmt.Sprintf("config/%02d-%s", i, filepath.Base(path)), text, err)
	}
}

// ask gets what the agent says itself.
func (b *bundle) ask(ctx context.Context, c *agentConn) error {
	status := lbagentv1.NewStatusServiceClient(c)
	r, err := status.Status(ctx, &lbagentv1.StatusRequest{})
	b.addJSON("status.json", r, err)
	if err != nil {
		return err
	}
	services := slices.Clone(r.GetServices())
	slices.SortStableFunc(services, func(x, y *lbagentv1.ServiceInfo) int {
		return int(y.GetBackends()-y.GetUsable()) - int(x.GetBackends()-x.GetUsable())
	})
	if n := len(services) - bundleServices; n > 0 {
		b.lack(plural(n, "explanation"), errors.New("there are too many services"))
	}
	for _, s := range services[:min(len(services), bundleServices)] {
		ctx, cancel := context.WithTimeout(ctx, b.a.patience)
		e, err := status.Explain(ctx, &lbagentv1.ExplainRequest{Service: s.GetName()})
		cancel()
		b.addJSON("explain/"+strings.TrimPrefix(lbagentv1.ListFile(s.GetName()), ".")+".json", e, err)
	}
	stream, err := status.Events(ctx, &lbagentv1.EventsRequest{})
	var events bytes.Buffer
	for err == nil {
		var e *lbagentv1.EventsResponse
		if e, err = stream.Recv(); err == nil {
			err = printJSON(&events, e, true)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	b.add("events.jsonl", events.Bytes(), err)
	return nil
}

// profiles gets what Go tells of the agent's process, from the admin socket.
func (b *bundle) profiles(ctx context.Context) {
	if b.d.agent == nil {
		return
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", b.d.adminSocket)
		},
	}}
	for _, p := range []struct{ name, path string }{
		{"goroutines.txt", "goroutine?debug=2"}, {"heap.pb.gz", "heap"}, {"mutex.pb.gz", "mutex"}, {"cpu.pb.gz", "profile?seconds=2"},
	} {
		data, err := get(ctx, client, "http://lbagent/debug/pprof/"+p.path)
		b.add("profiles/"+p.name, data, err)
		if err != nil {
			return // the others can't be had, either
		}
	}
}

func get(ctx context.Context, client *http.Client, at string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, bundlePart))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the agent answered %s", resp.Status)
	}
	return data, err
}

// tellingURL finds a user and a password in a URL, which no part may have, whoever wrote it.
func tellingURL() *regexp.Regexp { return regexp.MustCompile(`://[^/\s"'@]*:[^/\s"'@]*@`) }

// hide takes the secrets out of a part.
func (b *bundle) hide(data []byte) []byte {
	for _, s := range b.secrets {
		data = bytes.ReplaceAll(data, []byte(s), []byte("REDACTED"))
	}
	return tellingURL().ReplaceAll(data, []byte("://REDACTED@"))
}

// write writes the archive: MANIFEST first, then the parts.
func (b *bundle) write(to io.Writer) error {
	z := gzip.NewWriter(to)
	t := tar.NewWriter(z)
	var m bytes.Buffer
	host, _ := os.Hostname() // only a name for who reads it
	fmt.Fprintf(&m, "A bundle of lbagent on %s, made %s by %s.\n\nSecrets are taken out: comments and telling values of the configuration, what the files with passwords and\n"+
		"keys hold, users and passwords in URLs. Names of services, addresses and metadata of backends are in it.\n\n", host, b.now.Format(time.RFC3339), thisBuild().line())
	for _, p := range b.parts {
		fmt.Fprintf(&m, "%10d  %s\n", len(p.data), p.name)
	}
	for _, what := range b.missing {
		fmt.Fprintf(&m, "\nmissing: %s\n", what)
	}
	dir := "lbagent-" + b.now.Format("20060102-150405") + "/"
	for _, p := range append([]bundlePiece{{"MANIFEST", b.hide(m.Bytes())}}, b.parts...) {
		if err := t.WriteHeader(&tar.Header{Name: dir + p.name, Mode: 0o600, Size: int64(len(p.data)), ModTime: b.now}); err != nil {
			return err
		}
		if _, err := t.Write(p.data); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}
