package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// environment is a fixed environment.
func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func testOptions() Options {
	return Options{
		Env:      environment("ZONE", "eu-1a", "WORD", "word", "LONG", "/"+strings.Repeat("x", maxValue), "CONTROL", "/run/a\nb", "EMPTY", "", "PORT", "7001"),
		Hostname: "host",
		Cores:    2,
	}
}

// TestBadFiles compares the mistakes of whole configurations with testdata/bad/*/want.txt.
func TestBadFiles(t *testing.T) {
	dirs, err := filepath.Glob("testdata/bad/*")
	if err != nil || len(dirs) < 10 {
		t.Fatalf("found %d directories: %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			_, err := testOptions().Load(filepath.Join(dir, "lbagent.yaml"))
			list, ok := errors.AsType[*Errors](err)
			if !ok || len(list.List) == 0 {
				t.Fatalf("error %T %v, want *Errors", err, err)
			}
			got := strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
			golden := filepath.Join(dir, "want.txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if strings.Contains(got, "secret") {
				t.Error("the message shows a password")
			}
		})
	}
}
