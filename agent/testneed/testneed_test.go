package testneed

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// recorder is a test that notes how it ended.
type recorder struct {
	testing.TB
	ended, text string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.ended, r.text = "skipped", fmt.Sprintf(format, args...)
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.ended, r.text = "failed", fmt.Sprintf(format, args...)
}

func TestUnmetNeeds(t *testing.T) {
	needs := map[string]func(testing.TB){
		"the package no-such-package": func(t testing.TB) { Program(t, "no-such-program", "no-such-package") },
		"the package other-package":   func(t testing.TB) { Command(t, "other-package", "sh", "-c", "echo first; echo second; exit 3") },
		"exit status 3: second;":      func(t testing.TB) { Command(t, "other-package", "sh", "-c", "echo first; echo second; exit 3") },
	}
	for want, need := range needs {
		for _, mode := range []struct{ all, ended string }{{"", "skipped"}, {"0", "skipped"}, {"1", "failed"}} {
			t.Run(want+" all="+mode.all, func(t *testing.T) {
				t.Setenv(AllVariable, mode.all)
				r := &recorder{TB: t}
				need(r)
				if r.ended != mode.ended || !strings.Contains(r.text, want) {
					t.Errorf("%s with %q, want %s with %q", r.ended, r.text, mode.ended, want)
				}
			})
		}
	}
}

func TestMetNeeds(t *testing.T) {
	t.Setenv(AllVariable, "1")
	want, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{TB: t}
	if got := Program(r, "sh", "dash"); got != want {
		t.Errorf("Program(sh) = %q, want %q", got, want)
	}
	Command(r, "dash", "sh", "-c", "exit 0")
	if r.ended != "" {
		t.Errorf("%s: %s", r.ended, r.text)
	}
}
