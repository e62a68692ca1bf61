package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/discovery/scan"
	"github.com/lbagent/lbagent/agent/etcd"
)

func (a *app) scanVerb() *cobra.Command {
	var (
		flags  etcdFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "scan [PREFIX]",
		Short: "which services an etcd holds, in which format; prints configuration",
		Long: `Reads all keys of an etcd, or those under PREFIX, and says which services it sees there, in which
format. What it prints is configuration, with the findings as comments: paste what you want of it.
It only reads, and needs no agent. It guesses; the agent itself never does.`,
		Example: `  lbagent scan --etcd http://127.0.0.1:2379
  lbagent scan services/ > /etc/lbagent/services.d/found.yaml`,
		GroupID: groupProcess,
		Args:    exactly("[PREFIX]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return a.scan(cmd.Context(), &flags, prefix, asJSON)
		},
	}
	flags.add(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) scan(ctx context.Context, flags *etcdFlags, prefix string, asJSON bool) error {
	e, namespace, err := flags.resolve()
	if err != nil {
		return err
	}
	c, err := dialEtcd(ctx, e)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := scan.Scan(ctx, c, prefix, a.scanProgress())
	if err != nil {
		return etcd.Plain(err)
	}
	if asJSON {
		raw, err := json.Marshal(scanned(r))
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		return writeJSON(a.stdout, raw, false)
	}
	printScan(a.stdout, r, prefix, namespace)
	if len(r.Services) == 0 {
		return &codedError{exitNone, fmt.Errorf("no services among %s", plural(r.Keys, "key"))}
	}
	return nil
}

// scanProgress says every two seconds how far a scan is.
func (a *app) scanProgress() func(keys int) {
	last := a.now()
	return func(keys int) {
		if now := a.now(); now.Sub(last) >= 2*time.Second {
			last = now
			fmt.Fprintf(a.stderr, "lbagent: %s read\n", plural(keys, "key"))
		}
	}
}

// scanService is a service as --json prints it.
type scanService struct {
	Name     string   `json:"name"`
	Format   string   `json:"format"`
	Prefix   string   `json:"prefix,omitempty"`
	Key      string   `json:"key,omitempty"`
	Keys     int      `json:"keys"`
	Backends int      `json:"backends"`
	Examples []string `json:"examples"`
	Bad      int      `json:"bad"`
	Reason   string   `json:"reason,omitempty"`
	Schemes  []string `json:"schemes,omitempty"`
}

// scanUnknown is a folder of keys that are no service's.
type scanUnknown struct {
	Prefix string `json:"prefix"`
	Keys   int    `json:"keys"`
}

// scanResult is what --json prints.
type scanResult struct {
	Revision int64         `json:"revision"`
	Keys     int           `json:"keys"`
	Services []scanService `json:"services"`
	Unknown  []scanUnknown `json:"unknown"`
}

func scanned(r scan.Result) scanResult {
	out := scanResult{Revision: r.Revision, Keys: r.Keys, Services: []scanService{}, Unknown: []scanUnknown{}}
	for _, f := range r.Services {
		out.Services = append(out.Services, scanService(f))
	}
	for _, u := range r.Unknown {
		out.Unknown = append(out.Unknown, scanUnknown(u))
	}
	return out
}

// printScan prints configuration, with what was found as comments: all of it is YAML.
func printScan(w io.Writer, r scan.Result, prefix, namespace string) {
	where := "all keys"
	if prefix != "" {
		where = "keys under " + clean(prefix)
	}
	fmt.Fprintf(w, "# %s: %s, revision %d, %s\n", where, plural(r.Keys, "key"), r.Revision, plural(len(r.Services), "service"))
	if r.TooMany > 0 {
		fmt.Fprintf(w, "# %s of more services than can be shown: scan a PREFIX\n", plural(r.TooMany, "key"))
	}
	for _, u := range r.Unknown {
		fmt.Fprintf(w, "# no service known by its look: %s under %s\n", plural(u.Keys, "key"), comment(u.Prefix))
	}
	if len(r.Services) == 0 {
		return
	}
	fmt.Fprintln(w, "services:")
	for _, f := range r.Services {
		printFound(w, f, namespace)
	}
}

func printFound(w io.Writer, f scan.Found, namespace string) {
	fmt.Fprintf(w, "  # %s in %s", plural(f.Backends, "backend"), plural(f.Keys, "key"))
	if len(f.Examples) > 0 {
		fmt.Fprintf(w, ": %s", comment(strings.Join(f.Examples, ", ")))
		if f.Backends > len(f.Examples) {
			fmt.Fprint(w, ", ...")
		}
	}
	fmt.Fprintln(w)
	if f.Bad > 0 {
		fmt.Fprintf(w, "  # %s can't be read as %s; the first: %s\n", plural(f.Bad, "key"), f.Format, comment(f.Reason))
	}
	if len(f.Schemes) > 1 {
		fmt.Fprintf(w, "  # endpoints of %s: select: {scheme: %s} chooses\n", comment(strings.Join(f.Schemes, ", ")), comment(f.Schemes[0]))
	}
	name, at := "prefix", f.Prefix
	if f.Key != "" {
		name, at = "key", f.Key
	}
	rest := ""
	if namespace != "" {
		if inside, ok := strings.CutPrefix(at, namespace); ok && inside != "" {
			at = inside
		} else {
			rest = `, namespace: ""`
		}
	}
	fmt.Fprintf(w, "  - {name: %s, %s: %s, format: %s%s}\n", quoteYAML(f.Name), name, quoteYAML(at), f.Format, rest)
}

// comment makes text from etcd fit for a comment: one line.
func comment(text string) string { return strings.ReplaceAll(clean(text), "\n", " ") }

// quoteYAML quotes text as JSON does, which YAML reads the same way, unless it is plain.
func quoteYAML(text string) string {
	for i := range len(text) {
		switch c := text[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0, c == '_', c == '/', (c == '-' || c == '.') && i > 0:
		default:
			raw, err := json.Marshal(text)
			if err != nil {
				return "''"
			}
			return string(raw)
		}
	}
	switch text {
	case "", "true", "false", "null", "yes", "no", "on", "off", "y", "n", "True", "False", "Null", "TRUE", "FALSE", "NULL":
		return `"` + text + `"`
	}
	return text
}
