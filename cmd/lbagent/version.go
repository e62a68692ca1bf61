package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is what is known of how this program was made.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// thisBuild takes the version from the linker's flag, else from the module.
func thisBuild() build {
	b := build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		b.Version = cmp.Or(b.Version, "unknown")
		return b
	}
	b.Version = cmp.Or(b.Version, info.Main.Version, "unknown")
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// line is b for a person; a + behind the revision means that the tree had changes.
func (b build) line() string {
	line := "lbagent " + b.Version
	if b.Revision != "" {
		line += " " + b.Revision[:min(12, len(b.Revision))]
		if b.Modified {
			line += "+"
		}
	}
	return line + " " + b.Go + " " + b.Platform
}

func (a *app) versionVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "the version of this program",
		GroupID: groupProcess,
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			b := thisBuild()
			if asJSON {
				raw, err := json.Marshal(b)
				if err != nil {
					return fmt.Errorf("write JSON: %w", err)
				}
				return writeJSON(a.stdout, raw, false)
			}
			fmt.Fprintln(a.stdout, b.line())
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
