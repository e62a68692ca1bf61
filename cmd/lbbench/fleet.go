package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// fleetVerb measures what many hosts cost one etcd, and how fast a change reaches them: the discovery of so many agents, the real code, in a process of its own.
const fleetVerb = "fleet"

const fleetUsage = `lbbench fleet measures what the discovery of many hosts costs one etcd.

It starts an etcd and, in another process, the discovery of so many hosts, each with its own connection. Per kind of authentication it measures the start of all
hosts at once, a quiet time, a time of changes, and etcd killed and started again.

usage: lbbench fleet [flags]

flags:
`

// fleetOptions is what the fleet is like.
type fleetOptions struct {
	hosts, services, follows, keys int
	changes                        float64 // per second
	duration                       time.Duration
	bcrypt                         int
	auth                           []string
	json                           bool
}

// Kinds of authentication.
const (
	authNone     = "none"
	authPassword = "password"
	authCert     = "cert"
)

// fleetMain runs the verb: all that is printed but the result goes to stderr.
func fleetMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseFleet(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "lbbench fleet:", err)
		return 2
	}
	var (
		all    []fleetResult
		failed error
	)
	for _, auth := range o.auth {
		r, err := measureFleet(ctx, o, auth, stderr)
		if err != nil { // what the others have measured counts
			failed = errors.Join(failed, fmt.Errorf("auth %s: %w", auth, err))
			continue
		}
		all = append(all, r)
	}
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(all)
	} else if len(all) > 0 {
		err = printFleet(stdout, o, all)
	}
	if err = errors.Join(failed, err); err != nil {
		fmt.Fprintln(stderr, "lbbench fleet:", err)
		return 1
	}
	return 0
}

func parseFleet(args []string, stdout, stderr io.Writer) (fleetOptions, error) {
	var o fleetOptions
	f := flag.NewFlagSet(fleetVerb, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stdout, fleetUsage)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	f.IntVar(&o.hosts, "hosts", 1000, "hosts, each with a connection of its own")
	f.IntVar(&o.services, "services", 500, "services in etcd")
	f.IntVar(&o.follows, "follows", 50, "services that each host follows")
	f.IntVar(&o.keys, "keys", 20000, "keys in etcd, spread over the services")
	f.Float64Var(&o.changes, "changes", 100, "changes per second")
	f.DurationVar(&o.duration, "duration", 20*time.Second, "length of the quiet time and of the time of changes")
	f.IntVar(&o.bcrypt, "bcrypt-cost", 10, "etcd's --bcrypt-cost")
	auth := f.String("auth", "none,password,cert", "kinds of authentication, separated by commas")
	f.BoolVar(&o.json, "json", false, "print JSON")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.auth = strings.Split(*auth, ",")
	for _, a := range o.auth {
		if !slices.Contains([]string{authNone, authPassword, authCert}, a) {
			return o, fmt.Errorf("--auth: no kind %q; there are none, password, cert", a)
		}
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q: there are flags only", f.Arg(0))
	case o.hosts < 1 || o.hosts > 6000:
		return o, errors.New("--hosts has to be from 1 to 6000: more doesn't fit into the descriptors of a process")
	case o.services < 1 || o.follows < 1 || o.follows > o.services || o.keys < o.services || o.keys > 1_000_000:
		return o, errors.New("--follows has to be from 1 to --services, and --keys from --services to 1000000")
	case o.changes <= 0 || o.changes > 10_000 || o.duration < time.Second || o.duration > 10*time.Minute:
		return o, errors.New("--changes has to be up to 10000, and --duration from 1s to 10m")
	case o.bcrypt < 4 || o.bcrypt > 14:
		return o, errors.New("--bcrypt-cost has to be from 4 to 14")
	}
	return o, nil
}

// fleetResult is what was measured with one kind of authentication. Times are in milliseconds, CPU in milliseconds of etcd's process.
type fleetResult struct {
	Auth       string  `json:"auth"`
	StartMs    float64 `json:"start_ms"`     // until all hosts have all lists
	StartCPU   float64 `json:"start_cpu_ms"` // of etcd, for all
	StartDials int     `json:"start_dials"`  // clients that were made
	HostKiB    float64 `json:"etcd_kib_per_host"`

	QuietCPU float64 `json:"quiet_cpu_ms_per_s"`
	ChurnCPU float64 `json:"churn_cpu_ms_per_s"`
	HostsCPU float64 `json:"churn_hosts_cpu_ms_per_s"` // of all hosts together
	Changes  int     `json:"changes"`
	Unseen   int     `json:"changes_unseen"`    // by any host: overtaken by the next change of the same key, or of a service that no host follows
	EachMs   spread  `json:"change_to_host_ms"` // from before the put to the host's new list
	LastMs   spread  `json:"change_to_last_ms"` // the same, of the last host that follows the service

	DownMs       float64 `json:"restart_down_ms"`    // from the kill until etcd accepts again
	CurrentMs    spread  `json:"restart_current_ms"` // from then until a host has heard of all its services, over hosts
	RestartCPU   float64 `json:"restart_cpu_ms"`
	RestartDials int     `json:"restart_dials"`
}

// spread is a distribution in short.
type spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// spreadOf sorts values.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[min(len(values)-1, int(q*float64(len(values))))] }
	return spread{at(0.5), at(0.99), values[len(values)-1]}
}

func (s spread) String() string { return fmt.Sprintf("%.0f / %.0f / %.0f", s.P50, s.P99, s.Max) }

func printFleet(w io.Writer, o fleetOptions, all []fleetResult) error {
	fmt.Fprintf(w, "%d hosts, each following %d of %d services; %d keys; %.0f changes a second; one etcd, --bcrypt-cost %d; load average %s\n\n",
		o.hosts, o.follows, o.services, o.keys, o.changes, o.bcrypt, loadAverage())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what string, cell func(r fleetResult) string) {
		cells := make([]string, 0, len(all))
		for _, r := range all {
			cells = append(cells, cell(r))
		}
		fmt.Fprintf(t, "%s\t%s\n", what, strings.Join(cells, "\t"))
	}
	number := func(format string, of func(r fleetResult) float64) func(fleetResult) string {
		return func(r fleetResult) string { return fmt.Sprintf(format, of(r)) }
	}
	hosts := float64(o.hosts)
	row("AUTH", func(r fleetResult) string { return r.Auth })
	row("all hosts start: until the last has all lists, s", number("%.1f", func(r fleetResult) float64 { return r.StartMs / 1000 }))
	row("  CPU of etcd per host, ms", number("%.2f", func(r fleetResult) float64 { return r.StartCPU / hosts }))
	row("  clients made", number("%.0f", func(r fleetResult) float64 { return float64(r.StartDials) }))
	row("memory of etcd per host, KiB", number("%.0f", func(r fleetResult) float64 { return r.HostKiB }))
	row("quiet: CPU of etcd per host, us per s", number("%.0f", func(r fleetResult) float64 { return r.QuietCPU * 1000 / hosts }))
	row("changes: CPU of etcd, % of a core", number("%.0f", func(r fleetResult) float64 { return r.ChurnCPU / 10 }))
	row("  CPU of a host's discovery, us per s", number("%.0f", func(r fleetResult) float64 { return r.HostsCPU * 1000 / hosts }))
	row("  from the put to a host, ms, p50 / p99 / max", func(r fleetResult) string { return r.EachMs.String() })
	row("  from the put to the last host, ms", func(r fleetResult) string { return r.LastMs.String() })
	row("  changes, and those that no host saw", func(r fleetResult) string { return fmt.Sprintf("%d, %d", r.Changes, r.Unseen) })
	row("etcd killed: until it accepts again, s", number("%.1f", func(r fleetResult) float64 { return r.DownMs / 1000 }))
	row("  until a host is current, ms, p50 / p99 / max", func(r fleetResult) string { return r.CurrentMs.String() })
	row("  CPU of etcd per host until then, ms", number("%.2f", func(r fleetResult) float64 { return r.RestartCPU / hosts }))
	row("  clients made", number("%.0f", func(r fleetResult) float64 { return float64(r.RestartDials) }))
	return t.Flush()
}

// fleetFiles are what a kind of authentication needs, in dir.
func fleetFiles(dir, auth string) (fleetEtcd, error) {
	e := fleetEtcd{Dir: dir + "/data", Auth: auth}
	switch auth {
	case authPassword:
		e.PasswordFile = dir + "/password"
		return e, os.WriteFile(e.PasswordFile, []byte(fleetPassword), 0o600)
	case authCert:
		e.CA, e.Cert, e.Key = dir+"/ca.pem", dir+"/agent.pem", dir+"/agent.key"
		e.RootCert, e.RootKey = dir+"/root.pem", dir+"/root.key"
		return e, writeCerts(e)
	}
	return e, nil
}
