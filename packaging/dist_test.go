package packaging

import (
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// testDist looks at what lies beside the packages, and at what they were made of.
func testDist(t *testing.T, p built) {
	binary := filepath.Join(p.dist, runtime.GOARCH, "lbagent")
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", "cd '"+p.dist+"' && sha256sum --strict -c SHA256SUMS | wc -l").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "3" {
		t.Errorf("SHA256SUMS: %v %s", err, out)
	}
	testStatic(t, binary)
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}

	// The bill of materials has every module that is linked in, and Go; each with its licence, whose text is shipped.
	var bill struct {
		BOMFormat, SpecVersion string
		Metadata               struct{ Component struct{ Version string } }
		Components             []struct {
			Name, Version, PURL string
			Licenses            []struct{ Expression string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, one(t, p.dist+"/*.cdx.json"))), &bill); err != nil {
		t.Fatal(err)
	}
	if bill.BOMFormat != "CycloneDX" || bill.SpecVersion != "1.5" || bill.Metadata.Component.Version != "v0.1.0" {
		t.Errorf("bill of %+v", bill.Metadata)
	}
	texts := output(t, "gzip", "-dc", filepath.Join(p.dist, runtime.GOARCH, "licences.gz"))
	known := make(map[string]bool)
	for _, c := range bill.Components {
		known[c.Name+" "+c.Version] = true
		if len(c.Licenses) != 1 || c.Licenses[0].Expression == "" || c.PURL != "pkg:golang/"+c.Name+"@"+c.Version {
			t.Errorf("component %+v", c)
		}
		if !strings.Contains(texts, "\n"+c.Name+" "+c.Version+": LICEN") {
			t.Errorf("no licence of %s", c.Name)
		}
	}
	for _, m := range info.Deps {
		if !known[m.Path+" "+m.Version] {
			t.Errorf("%s %s is linked in and not in the bill", m.Path, m.Version)
		}
	}
	if len(bill.Components) != len(info.Deps)+1 || !known["stdlib "+strings.TrimPrefix(info.GoVersion, "go")] {
		t.Errorf("%d components, %d modules", len(bill.Components), len(info.Deps))
	}

	output(t, "bash", "-n", filepath.Join(p.dist, "completion/bash"))
	testVerbPages(t, p, binary)
}

// testStatic: the program needs no library and no loader, so that it runs on every distribution.
func testStatic(t *testing.T, binary string) {
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, segment := range f.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("linked dynamically: %v", segment.Type)
		}
	}
}

// testVerbPages: every verb of the help has a page, and none has a mistake.
func testVerbPages(t *testing.T, p built, binary string) {
	pages, err := filepath.Glob(p.dist + "/man/*.8.gz")
	if err != nil {
		t.Fatal(err)
	}
	have := strings.Join(pages, "\n") + "\n"
	verbs := 0
	for line := range strings.Lines(output(t, binary, "help")) {
		if verb := strings.Fields(line); strings.HasPrefix(line, "  ") && line[2] >= 'a' && line[2] <= 'z' && verb[0] != "help" && verb[0] != "lbagent" {
			verbs++
			if !strings.Contains(have, "/lbagent-"+verb[0]+".8.gz\n") {
				t.Errorf("no page of %s", verb[0])
			}
		}
	}
	if verbs < 20 {
		t.Errorf("the help has %d verbs", verbs)
	}
	groff := testneed.Program(t, "groff", "groff-base")
	text := output(t, "sh", "-c", "gzip -dc '"+p.dist+"'/man/*.8.gz | '"+groff+"' -mandoc -wmac -Tutf8 -z")
	if text != "" {
		t.Errorf("groff says\n%s", text)
	}
}

// testRpmlint asks the checker of the rpm world.
func testRpmlint(t *testing.T, p built) {
	rpmlint := testneed.Program(t, "rpmlint", "rpmlint")
	out, err := exec.CommandContext(t.Context(), rpmlint, "-c", "rpm/rpmlint.toml", p.rpm).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "; 0 errors, 0 warnings,") {
		t.Errorf("rpmlint: %v\n%s", err, out)
	}
}
