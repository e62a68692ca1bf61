package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse: no input panics; a mistake is a *Errors that names the file; what loads loads again identically from the last good configuration.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/bad/*/lbagent.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), "services: [{name: x, backends: [\"10.0.0.1:1\"]}]\n")
	}
	f.Add(withEtcd+"services:\n  - {name: \"${WORD}\", prefix: 'a$$b/', listen: [\"${PORT}\"], authority: >-\n      ab\n  }\n", "")
	f.Add("state_dir: \"/\\U0001F600\\u0085$$\"\nnode: {name: null, zone: ~, region: 0x10}\n", "# c\n")
	f.Fuzz(func(t *testing.T, main, dropIn string) {
		if len(main)+len(dropIn) > 1<<12 {
			return
		}
		o := testOptions().withDefaults()
		c, err := o.parse([]source{{name: "main", data: []byte(main)}, {name: "drop", data: []byte(dropIn)}})
		if err != nil {
			list, ok := errors.AsType[*Errors](err)
			if !ok || len(list.List) == 0 {
				t.Fatalf("error %T %v", err, err)
			}
			for _, e := range list.List {
				if e.File != "main" && e.File != "drop" || strings.ContainsAny(e.Error(), "\n\x00\x1b") {
					t.Fatalf("error %q", e.Error())
				}
			}
			return
		}
		good, err := c.good.text()
		if err != nil {
			t.Fatal(err)
		}
		o.Env = environment()
		again, err := o.parse([]source{{name: "good", data: good}})
		if err != nil {
			t.Fatalf("%v\nin\n%s", err, good)
		}
		if !sameConfig(c, again) {
			t.Fatalf("%s\nin\n%s", Compare(c, again), good)
		}
		if text, err := again.good.text(); err != nil || string(text) != string(good) {
			t.Fatalf("saved again as\n%s\nwas\n%s\n%v", text, good, err)
		}
	})
}

// TestDeepAndWide: inputs made to cost much end soon, as errors.
func TestDeepAndWide(t *testing.T) {
	for name, text := range map[string]string{
		"flow":     strings.Repeat("[", maxFile),
		"maps":     strings.Repeat("{a: ", maxFile/4),
		"block":    strings.Repeat("- ", maxFile/2),
		"indent":   indented(1000),
		"bomb":     "a: &a [x,x,x,x,x,x,x,x]\n" + strings.Repeat("b: &a [*a,*a,*a,*a,*a,*a,*a,*a]\n", 1000),
		"keys":     strings.Repeat("k: 1\n", 20_000),
		"services": "services:\n" + strings.Repeat("- {name: a}\n", 10_000),
		"unclosed": strings.Repeat("# a line\n", 5000) + "a: [",
		"quotes":   "a: '" + strings.Repeat("'", maxFile-10),
	} {
		_, err := parseText(text[:min(len(text), maxFile)])
		if err == nil {
			t.Errorf("%s is accepted", name)
			continue
		}
		if list := err.(*Errors); name == "unclosed" && list.List[0].Line != 5001 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func indented(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}
