package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/lbagent/lbagent/agent/config"
)

func noEnv(string) string { return "" }

func TestLogToTheJournal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	stream := func(name string) string {
		if name != "JOURNAL_STREAM" {
			return ""
		}
		return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	}
	log := newLog(config.Log{Level: "trace", Format: "auto"}, w, stream)
	log.Trace("t")
	log.Debug("d")
	log.Named("health").Info("verdict changed", "service", "user", "backend", "[::1]:80")
	log.Warn("[odd] message")
	log.Error("two lines", "error", "one\ntwo")
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `<7>t
<7>d
<6>health: verdict changed: service=user backend=[::1]:80
<4>[odd] message
<3>two lines:
<3>  error=
<3>  | one
<3>  | two
`
	if got := trimLines(string(out)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// trimLines drops spaces at line ends.
func trimLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

func TestLogFormats(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	elsewhere := func(string) string { return "1:2" } // stderr was redirected: it is not the journal's any more
	newLog(config.Log{Level: "info", Format: "auto"}, file, elsewhere).Info("hello", "service", "user")
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got := string(text); !strings.Contains(got, "[INFO]  hello: service=user\n") || strings.HasPrefix(got, "<") || strings.HasPrefix(got, "[") {
		t.Errorf("auto outside the journal: %q", got)
	}

	var b bytes.Buffer
	newLog(config.Log{Level: "info", Format: "json"}, &b, noEnv).Warn("hello", "service", "user")
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line["@message"] != "hello" || line["service"] != "user" || line["@level"] != "warn" {
		t.Errorf("json: %v: %s", err, b.String())
	}
}

func TestLogLevels(t *testing.T) {
	for level, want := range map[string]hclog.Level{"trace": hclog.Trace, "debug": hclog.Debug, "info": hclog.Info, "warn": hclog.Warn, "error": hclog.Error, "": hclog.Info} {
		if got := newLog(config.Log{Level: level, Format: "text"}, io.Discard, noEnv).GetLevel(); got != want {
			t.Errorf("level %q is %v, want %v", level, got, want)
		}
	}
}
