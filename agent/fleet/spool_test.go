package fleet

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestSpool(t *testing.T) {
	now := time.Unix(5000, 0).UTC()
	dir := t.TempDir()
	s := &spool{dir: dir, log: hclog.NewNullLogger()}
	path := filepath.Join(dir, spoolName)
	one := spooled{Prefix: "f/", Epoch: 1 << 63, Revision: 7, Confirmed: now, Entries: []Entry{
		{Key: "user", Now: "name: user\n\x00\xff", Modified: 5, Good: "x", Held: now}, {Key: "user/new", Now: "y"},
	}}
	one.Entries[0].Now = "name: user\n"
	two := spooled{Prefix: "f/", Revision: 8, Confirmed: now}
	if got := s.load("f/", now); got != nil {
		t.Errorf("nothing was written: %+v", got)
	}
	if !s.save(one) || !reflect.DeepEqual(*s.load("f/", now), one) {
		t.Errorf("got %+v, want %+v", s.load("f/", now), one)
	}
	if s.load("g/", now) != nil {
		t.Error("the items of another prefix are taken")
	}
	if got := s.load("f/", now.Add(-time.Hour)); !got.Confirmed.Equal(now.Add(-time.Hour)) {
		t.Errorf("confirmed in the future: %v", got.Confirmed)
	}
	if !s.save(two) || s.load("f/", now).Revision != 8 {
		t.Error("the second generation isn't there")
	}

	// 1.8: a torn file is set aside, and the generation before it is used.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-2] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.load("f/", now); got == nil || got.Revision != 7 {
		t.Errorf("after a torn file: %+v", got)
	}
	if _, err := os.Stat(path + ".bad"); err != nil {
		t.Error("the torn file wasn't set aside:", err)
	}

	// A disk that can't be written is said, and found well again.
	s.dir = filepath.Join(dir, "nosuch")
	if s.save(two) || s.trouble() == "" {
		t.Error("writing into a folder that isn't there went well")
	}
	s.dir = dir
	if !s.save(two) || s.trouble() != "" {
		t.Error("still in trouble:", s.trouble())
	}
	if !s.save(spooled{}) || s.load("f/", now) != nil {
		t.Error("a fleet that isn't followed any more is still on disk")
	}
	if !s.save(spooled{}) {
		t.Error("removing twice")
	}
}
