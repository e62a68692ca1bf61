package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	_, err := testOptions().Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
	if want := path + ": cannot be read: no such file or directory"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.yaml")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge.yaml")
	if err := os.WriteFile(huge, []byte("#"+strings.Repeat("x", maxFile)), 0o644); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(dir, "loop.yaml")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo: "it is no regular file", dir: "it is no regular file", huge: "it has more than 1 MiB", loop: "too many levels of symbolic links",
	} {
		_, err := testOptions().Load(path)
		if list, ok := errors.AsType[*Errors](err); !ok || !strings.Contains(list.Error(), want) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}

	// The mistakes of the other files come all the same.
	main := write(t, "lbagent.yaml", "zz: 1\n", "services.d/b.yaml", "zz: 1\n")
	if err := os.Mkdir(filepath.Join(dropInDir(main), "a.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := testOptions().Load(main)
	if list, ok := errors.AsType[*Errors](err); !ok || len(list.List) != 3 {
		t.Errorf("error %v, want 3 mistakes", err)
	}
}

func TestTooMuchTogether(t *testing.T) {
	files := []string{"lbagent.yaml", ""}
	for i := range maxSources/maxFile + 1 {
		files = append(files, fmt.Sprintf("services.d/%02d.yaml", i), strings.Repeat("#", maxFile))
	}
	_, err := testOptions().read(write(t, files...))
	if len(err.List) != 1 || !strings.Contains(err.Error(), "services.d/16.yaml: is one too many") {
		t.Errorf("error %v", err)
	}
}

// TestReplacedWhileRead: what an editor does between two reads starts the reading over; the result is what stood there together at one moment.
func TestReplacedWhileRead(t *testing.T) {
	replace := func(t *testing.T, path, text string) {
		t.Helper()
		if err := os.WriteFile(path+"~", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	}
	one := func(name string) string {
		return "services: [{name: " + name + ", backends: [\"10.0.0.1:1\"]}]\n"
	}
	for name, change := range map[string]func(t *testing.T, main string){
		"replaced by rename": func(t *testing.T, main string) { replace(t, main, one("new")) },
		"written in place": func(t *testing.T, main string) {
			if err := os.WriteFile(main, []byte(one("new")+"# longer\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"moved to a drop-in": func(t *testing.T, main string) {
			replace(t, filepath.Join(dropInDir(main), "b.yaml"), one("new"))
			replace(t, main, "")
		},
		"drop-in vanishes": func(t *testing.T, main string) {
			if err := os.Remove(filepath.Join(dropInDir(main), "a.yaml")); err != nil {
				t.Fatal(err)
			}
			replace(t, main, one("new"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			main := write(t, "lbagent.yaml", one("old"), "services.d/a.yaml", "")
			o := testOptions()
			changed := 0
			o.afterRead = func(path string) {
				if path == main && changed == 0 {
					changed++
					change(t, main)
				}
			}
			c, err := o.Load(main)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Services) != 1 || c.Services[0].Name != "new" {
				t.Errorf("services %+v", c.Services)
			}
		})
	}
}

// TestGoneForAMoment: some editors move the old file away before they write the new one.
func TestGoneForAMoment(t *testing.T) {
	main := write(t, "lbagent.yaml", "node: {name: a}\n", "services.d/a.yaml", "")
	o := testOptions()
	reads := 0
	o.afterRead = func(path string) {
		switch reads++; reads {
		case 1: // between the main file and its drop-in: both looks see it gone
			if err := os.Rename(main, main+"~"); err != nil {
				t.Error(err)
			}
		case 3: // the second round got the drop-in only
			if err := os.Rename(main+"~", main); err != nil {
				t.Error(err)
			}
		}
	}
	c, err := o.Load(main)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Name != "a" {
		t.Errorf("node %+v", c.Node)
	}
}

func TestKeepsChanging(t *testing.T) {
	main := write(t, "lbagent.yaml", "")
	o := testOptions()
	text := ""
	o.afterRead = func(string) {
		text += "#"
		if err := os.WriteFile(main, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	_, err := o.Load(main)
	if err == nil || !strings.Contains(err.Error(), "keeps changing while it is read") {
		t.Errorf("error %v", err)
	}
	if len(text) != readTries {
		t.Errorf("read %d times, want %d", len(text), readTries)
	}
}
