package mute

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A restart changes nothing: what is muted stays so until its end, which may be while the agent is away.
func TestRestart(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "state", "mutes"), moment()
	r := newRig(t, Config{Dir: dir})
	r.Load(now)
	r.mute(now, Request{Address: "10.0.0.1:80", Reason: `"bad" disk`})
	r.mute(now, Request{Address: "[2001:db8::1]:80", For: time.Minute})
	was := r.List()

	r = newRig(t, Config{Dir: dir})
	r.Load(now.Add(time.Minute - 1))
	r.want("after a restart", "user 10.0.0.1:80 here alice@web-1", "user [2001:db8::1]:80 here alice@web-1")
	for i, m := range r.List() {
		if !same(m, was[i]) {
			t.Errorf("%+v came back as %+v", was[i], m)
		}
	}
	r = newRig(t, Config{Dir: dir})
	r.Load(now.Add(time.Minute))
	r.want("after the end of one", "user 10.0.0.1:80 here alice@web-1")
	if a := r.unmute(now.Add(time.Minute), Request{Address: "10.0.0.1:80"}); !a.Was || len(a.Warnings) != 0 {
		t.Errorf("unmute %+v", a)
	}
	r = newRig(t, Config{Dir: dir})
	r.Load(now.Add(time.Minute))
	r.want("after an unmute")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left on disk: %v, %v", entries, err)
	}
}

// A file that was cut short at any byte, or is of something else, mutes nobody and is set aside; what is muted after that is kept.
func TestTornFile(t *testing.T) {
	dir, now := t.TempDir(), moment()
	r := newRig(t, Config{Dir: dir})
	r.mute(now, Request{Address: "10.0.0.1:80"})
	path := filepath.Join(dir, "here.json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	contents := map[string]string{
		"foreign": "lbspool\n\x00\x00", "newer": `{"version":2,"mutes":[]}`, "huge": strings.Repeat(" ", maxFile) + string(whole), "a list": `[]`,
	}
	for n := 0; n < len(whole)-1; n += 5 { // the last byte is the end of the line
		contents[string(whole[:n])] = string(whole[:n])
	}
	for name, text := range contents {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(path + ".bad")
		r := newRig(t, Config{Dir: dir})
		r.Load(now)
		r.want(name)
		if bad, err := os.ReadFile(path + ".bad"); err != nil || string(bad) != text {
			t.Errorf("%s: set aside: %q, %v", name, bad, err)
		}
		r.mute(now, Request{Address: "10.0.0.2:80"})
		r = newRig(t, Config{Dir: dir})
		r.Load(now)
		r.want(name+", and muted anew", "user 10.0.0.2:80 here alice@web-1")
	}
}

// One line that can't be read costs only itself, and what a later release writes is skipped.
func TestOddLines(t *testing.T) {
	dir, now := t.TempDir(), moment()
	text := `{"version":1,"new":{},"mutes":[
{"service":"user","address":"10.0.0.1:80","author":"alice","host":"web-1","reason":"","since":"2026-03-01T13:00:00Z","until":"2026-03-01T14:00:00Z","new":1},
{"service":"us/er","address":"10.0.0.2:80","since":"2026-03-01T13:00:00Z","until":"2026-03-01T14:00:00Z"},
{"service":"user","address":"here","since":"2026-03-01T13:00:00Z","until":"2026-03-01T14:00:00Z"},
{"service":"user","address":"10.0.0.3:80","since":"2026-03-01T13:00:00Z"},
{"service":"user","address":"10.0.0.4:80","since":"2026-03-01T14:00:00Z","until":"2026-03-01T14:00:00Z"},
{"service":"user","address":"10.0.0.5:80","since":"2026-03-01T13:00:00+01:00","until":"2026-03-01T15:00:00+01:00"}]}`
	if err := os.WriteFile(filepath.Join(dir, "here.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, Config{Dir: dir})
	r.Load(now)
	r.want("read", "user 10.0.0.1:80 here alice@web-1", "user 10.0.0.5:80 here somebody@somebody")
}

// A disk that takes nothing doesn't keep an operator from muting and unmuting; the answer says what a restart would do, and it is written when it can be.
func TestDiskTakesNothing(t *testing.T) {
	root, now := t.TempDir(), moment()
	dir := filepath.Join(root, "mutes")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file in its place: root, too, can't make the folder
		t.Fatal(err)
	}
	r := newRig(t, Config{Dir: dir})
	r.Load(now)
	contains(t, "mute", r.mute(now, Request{Address: "10.0.0.1:80"}).Warnings, "a restart of the agent ends it: ")
	r.want("all the same", "user 10.0.0.1:80 here alice@web-1")
	contains(t, "unmute", r.unmute(now, Request{Address: "10.0.0.1:80"}).Warnings, "a restart of the agent would mute it again: ")
	r.want("all the same")
	r.mute(now, Request{Address: "10.0.0.2:80"})
	if r.Stats().FileError == "" {
		t.Error("the stats don't say it")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	r.save()
	if why := r.Stats().FileError; why != "" {
		t.Errorf("still %q", why)
	}
	r = newRig(t, Config{Dir: dir})
	r.Load(now)
	r.want("after a restart", "user 10.0.0.2:80 here alice@web-1")
}
