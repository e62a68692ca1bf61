package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/lbagent/lbagent/agent/config"
)

// newLog returns the agent's logger on stderr, as log.level and log.format say: text, json, or auto = journald's priorities where stderr is the journal, else text.
func newLog(c config.Log, stderr io.Writer, getenv func(string) string) hclog.Logger {
	o := &hclog.LoggerOptions{Level: hclog.LevelFromString(c.Level), Output: stderr, JSONFormat: c.Format == "json"}
	if o.Level == hclog.NoLevel {
		o.Level = hclog.Info
	}
	if c.Format == "auto" && toJournal(stderr, getenv) {
		o.Output, o.DisableTime = journal{stderr}, true // the journal has its own clock
	}
	return hclog.New(o)
}

// toJournal reports whether w is the stream that systemd connected to the journal: JOURNAL_STREAM names its device and inode, and a redirected
// stderr has others (systemd.exec(5)).
func toJournal(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journal puts the priority in front of each line, for which journald looks (sd-daemon(3)), in place of hclog's word for the level.
type journal struct{ w io.Writer }

// LevelWrite implements hclog.LevelWriter.
func (j journal) LevelWrite(level hclog.Level, p []byte) (int, error) {
	priority := byte('6')
	switch level {
	case hclog.Error:
		priority = '3'
	case hclog.Warn:
		priority = '4'
	case hclog.Debug, hclog.Trace:
		priority = '7'
	}
	if bytes.HasPrefix(p, []byte("[")) {
		if _, rest, ok := bytes.Cut(p, []byte("]")); ok {
			p = bytes.TrimLeft(rest, " ")
		}
	}
	out := make([]byte, 0, len(p)+16)
	for line := range bytes.Lines(p) { // a value with line ends would lose its priority on the second
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		out = append(append(out, '<', priority, '>'), line...)
	}
	_, err := j.w.Write(out)
	return len(p), err
}

// Write implements io.Writer; hclog uses LevelWrite.
func (j journal) Write(p []byte) (int, error) { return j.LevelWrite(hclog.Info, p) }
