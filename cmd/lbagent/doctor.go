package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/config"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// How a finding is to be taken.
const (
	findOK   = "ok"
	findWarn = "warn" // it works, but somebody should look
	findBad  = "bad"  // it must be mended
)

// finding is what one check of doctor says: what is, and how to mend it if that isn't well.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"`
	What  string `json:"what"`
	Mend  string `json:"mend,omitempty"`
}

// doctor looks at one host. What it sees of the system are fields, so that tests can show it a sick one.
type doctor struct {
	proc      string // /proc
	unitsRun  string // is there while systemd is the service manager
	systemctl func(ctx context.Context, args ...string) ([]byte, error)
	journal   func(ctx context.Context) ([]byte, error) // the last lines of the agent's
	now       time.Time
	file      string // of the configuration
	env       func(string) (string, bool)

	socket, adminSocket string

	c      *config.Config                        // nil = none can be had
	agent  *lbagentv1.StatusResponse             // nil = none answers
	unread map[string]*lbagentv1.ExplainResponse // services with records that can't be read

	findings []finding
}

func (d *doctor) ok(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, findOK, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(check, what, mend string) {
	d.findings = append(d.findings, finding{check, findWarn, what, mend})
}

func (d *doctor) bad(check, what, mend string) {
	d.findings = append(d.findings, finding{check, findBad, what, mend})
}

// well says ok if the check has found nothing since there were n findings.
func (d *doctor) well(n int, check, format string, args ...any) {
	if len(d.findings) == n {
		d.ok(check, format, args...)
	}
}

func (a *app) doctorVerb() *cobra.Command {
	var (
		file, bundle string
		asJSON       bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "what is wrong on this host, and how to mend it",
		Long: `Looks at the configuration, etcd and the rights in it, ports, sockets, files, limits, the kernel's
settings, the unit of systemd, and what the agent knows itself. It changes nothing, and needs no
agent; as root it sees more. "warn" is to be looked at, "bad" must be mended.

With --bundle it also writes a tar.gz for somebody else to look at: what it found, configuration,
status, explanations of all services, events, goroutines and profiles of the agent, the end of its
journal, as far as the caller may read them; without secrets.

Exit code 1 if something must be mended; that no agent runs is such a thing. Whether another host
has the same node.name can't be told: no key in etcd names the host that wrote it.`,
		Example: "  sudo lbagent doctor",
		GroupID: groupWhy,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &doctor{
				proc: "/proc", unitsRun: "/run/systemd/system", systemctl: systemctl, journal: journalctl, now: a.now(), file: file, env: environment(file, os.LookupEnv),
				socket: a.socket, adminSocket: a.adminSocket,
			}
			d.ask(cmd.Context(), a)
			if files := d.agent.GetConfigFiles(); len(files) > 0 && !cmd.Flags().Changed("config") {
				d.file = files[0]
				d.env = environment(d.file, os.LookupEnv)
			}
			d.examine(cmd.Context())
			if bundle != "" {
				if err := a.writeBundle(cmd.Context(), d, bundle); err != nil {
					return err
				}
			}
			return a.printFindings(d.findings, asJSON)
		},
	}
	cmd.Flags().StringVar(&bundle, "bundle", "", "write all that is known to `FILE`, a tar.gz that is not there yet")
	cmd.Flags().StringVar(&file, "config", config.DefaultPath, "`FILE`, else the running agent's")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// examine makes every check, in the order in which a person would mend things.
func (d *doctor) examine(ctx context.Context) {
	d.checkConfig()
	d.checkAgent()
	d.checkUnit(ctx)
	if d.c != nil {
		d.checkNode()
		d.checkEtcd(ctx)
		d.checkPorts()
		d.checkSockets()
		d.checkState()
		d.checkSecrets()
		d.checkDescriptors()
	}
	d.checkKernel()
	d.checkServices()
}

// ask asks the running agent, if there is one.
func (d *doctor) ask(ctx context.Context, a *app) {
	err := a.ask(ctx, func(ctx context.Context, c *agentConn) error {
		ctx, cancel := context.WithTimeout(ctx, a.patience)
		defer cancel()
		r, err := lbagentv1.NewStatusServiceClient(c).Status(ctx, &lbagentv1.StatusRequest{})
		d.agent = r
		if err == nil {
			d.unread = unreadable(ctx, lbagentv1.NewStatusServiceClient(c), r)
		}
		return err
	})
	if err == nil {
		return
	}
	d.agent = nil
	what, mend, _ := strings.Cut(err.Error(), "\n")
	d.bad("agent", what, oneLine(mend))
}

// unreadable asks for the bad records of the first services: each answer brings all backends, and doctor isn't to be a load.
func unreadable(ctx context.Context, c lbagentv1.StatusServiceClient, r *lbagentv1.StatusResponse) map[string]*lbagentv1.ExplainResponse {
	const most = 100
	all := make(map[string]*lbagentv1.ExplainResponse)
	for i, s := range r.GetServices() {
		if i == most {
			break
		}
		if e, err := c.Explain(ctx, &lbagentv1.ExplainRequest{Service: s.GetName()}); err == nil && e.GetBadRecordCount() > 0 {
			all[s.GetName()] = e
		}
	}
	return all
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// checkConfig reads the configuration as the agent would; the other checks go on with what is in force if it is invalid.
func (d *doctor) checkConfig() {
	const check = "configuration"
	if d.file == staticFlag {
		d.ok(check, "none: the agent runs with %s", staticFlag)
		return
	}
	o := config.Options{Env: d.env}
	c, err := o.Load(d.file)
	if err == nil {
		d.c = c
		d.ok(check, "%s", summary(c))
		if in := d.agent; in != nil && !in.GetConfigOk() {
			d.warn(check, "the file is valid, but the agent runs on an older one", "run lbagent reload")
		}
		return
	}
	mend := "mend the file, then run lbagent reload"
	if all, ok := errors.AsType[*config.Errors](err); ok {
		for i, one := range all.List {
			if i == 10 {
				d.bad(check, fmt.Sprintf("and %d more mistakes", len(all.List)-i+all.More), "run lbagent check "+d.file)
				break
			}
			if errors.Is(one.Cause, os.ErrPermission) {
				d.bad(check, one.Error(), "run doctor as root, or as the agent's user")
				continue
			}
			d.bad(check, one.Error(), mend)
		}
	} else {
		d.bad(check, err.Error(), mend)
	}
	if good, err := o.LoadGood(o.StateDirOf(d.file, config.DefaultStateDir), d.file); err == nil {
		d.c = good
		d.warn(check, "what follows is about the last configuration that worked, on which the agent runs or would start", mend)
	}
}

// environment is what ${NAME} in file stands for: the caller's, and for the packaged file what its unit reads.
func environment(file string, lookup func(string) (string, bool)) func(string) (string, bool) {
	unit := map[string]string{}
	if file == config.DefaultPath {
		text, err := os.ReadFile("/etc/default/lbagent")
		if err == nil {
			unit = assignments(string(text))
		}
	}
	return func(name string) (string, bool) {
		if v, ok := lookup(name); ok {
			return v, ok
		}
		v, ok := unit[name]
		return v, ok
	}
}

// assignments reads NAME=value lines, as EnvironmentFile= does where nobody is clever: quotes around the whole value are taken off.
func assignments(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		name, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
			continue
		}
		if n := len(v); n >= 2 && (v[0] == '"' || v[0] == '\'') && v[n-1] == v[0] {
			v = v[1 : n-1]
		}
		all[name] = v
	}
	return all
}

// systemctl asks the service manager.
func systemctl(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, cmp.Or(oneLine(said.String()), "no words"))
	}
	return out.Bytes(), nil
}

// journalctl reads the end of the agent's.
func journalctl(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "journalctl", "--unit=lbagent", "--lines=2000", "--no-pager", "--output=short-precise")
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("journalctl: %w: %s", err, oneLine(said.String()))
	}
	return out, nil
}

// printFindings prints what was found; the error, if something must be mended, has been said by that.
func (a *app) printFindings(all []finding, asJSON bool) error {
	bad, warn := 0, 0
	for _, f := range all {
		switch f.State {
		case findBad:
			bad++
		case findWarn:
			warn++
		}
	}
	if asJSON {
		raw, err := json.Marshal(map[string]any{"ok": bad == 0, "findings": all})
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		if err := writeJSON(a.stdout, raw, false); err != nil {
			return err
		}
	} else {
		printFindingLines(a.stdout, all)
		switch {
		case bad > 0:
			fmt.Fprintf(a.stdout, "\n%s to mend, %s\n", plural(bad, "thing"), plural(warn, "warning"))
		case warn > 0:
			fmt.Fprintf(a.stdout, "\nnothing to mend, %s\n", plural(warn, "warning"))
		default:
			fmt.Fprintln(a.stdout, "\nall is well")
		}
	}
	if bad > 0 {
		return &codedError{exitFailure, errors.New("")}
	}
	return nil
}

func printFindingLines(w io.Writer, all []finding) {
	for _, f := range all {
		hanging(w, pad(f.State, 4)+"  "+pad(f.Check, 13)+"  ", f.What)
		if f.Mend != "" {
			hanging(w, strings.Repeat(" ", 21)+"-> ", f.Mend)
		}
	}
}
