package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lbagent/lbagent/cmd/lbbench/sim"
)

// simVerb lives days of a fleet in virtual time.
const simVerb = "sim"

const simUsage = `lbbench sim lives the days of a fleet in virtual time: hosts that call backends which are slow, fail, flap or drown.

Who gets a call is decided by lbagent's own table, picker and health: for calls that it carries (lbagent), and for callers that pick batches of 8, make their calls
themselves and report them (lbagent_asked). Beside it by round robin and least request (of two drawn), which know nothing of health, and by an oracle that knows the true
state of every backend and all queues at any moment. One seed gives the same calls to all of them.

usage: lbbench sim [flags] [scenario ...]

columns: P50, P99, P99.9 of the calls that succeeded, and P99 by the oracle's; calls that failed, of all and of those while a backend was bad; the share of a bad
backend (1 = fair), and from 10 s on; the shares of backends that were always good; how many calls stay in their host's zone, and of hosts in one that is hurt; in how many seconds a host had a bad one out (median, last), by how
many failed calls at most; how often a minute, and how many were well again before; after how many seconds a backend that is well had its share again, how
often it was taken out after that, and how often one that was never bad; the first success after all were gone.

scenarios (all, or none named, is every one):
`

// simOptions is the command line.
type simOptions struct {
	sim.Config
	scenarios, contenders []string
	seeds                 int
	json                  bool
}

// simMain runs the verb: all that is printed but the result goes to stderr.
func simMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseSim(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "lbbench sim:", err)
		return 2
	}
	all, err := simulate(ctx, o, stderr)
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = errors.Join(err, enc.Encode(all))
	} else {
		err = errors.Join(err, printSim(stdout, all))
	}
	if err != nil {
		fmt.Fprintln(stderr, "lbbench sim:", err)
		return 1
	}
	return 0
}

func parseSim(args []string, stdout, stderr io.Writer) (simOptions, error) {
	var o simOptions
	f := flag.NewFlagSet(simVerb, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stdout, simUsage)
		for _, s := range sim.Scenarios() {
			fmt.Fprintf(stdout, "  %-10s %s\n", s[0], s[1])
		}
		fmt.Fprint(stdout, "\nflags:\n")
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	f.IntVar(&o.Hosts, "hosts", 0, "hosts (default: the scenario's)")
	f.IntVar(&o.Backends, "backends", 0, "backends (default: the scenario's)")
	f.Float64Var(&o.Rate, "rate", 0, "calls per second of each host (default: the scenario's)")
	f.DurationVar(&o.Mean, "mean", 10*time.Millisecond, "mean service time")
	dist := f.String("dist", string(sim.Exponential), fmt.Sprintf("distribution of service times: %v", sim.Distributions()))
	f.Float64Var(&o.Load, "load", 0.5, "load of the servers if all backends are good: each gets as many as that takes, 4 at least")
	f.DurationVar(&o.Timeout, "timeout", time.Second, "the callers' deadline")
	f.Uint64Var(&o.Seed, "seed", 1, "the first seed")
	f.IntVar(&o.seeds, "seeds", 1, "how many seeds, each one more than the one before")
	contenders := f.String("contenders", strings.Join(sim.Contenders(), ","), "who takes part, separated by commas")
	f.StringVar(&o.Settings, "set", "", "keys of lbagent's service, as `YAML`: \"policy: round_robin, eject: off\"")
	f.BoolVar(&o.json, "json", false, "print JSON")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.Distribution, o.contenders, o.scenarios = sim.Distribution(*dist), strings.Split(*contenders, ","), f.Args()
	var known []string
	for _, s := range sim.Scenarios() {
		known = append(known, s[0])
	}
	if len(o.scenarios) == 0 || slices.Equal(o.scenarios, []string{"all"}) {
		o.scenarios = known
	}
	for _, name := range o.scenarios {
		if !slices.Contains(known, name) {
			return o, fmt.Errorf("no scenario %q; there are %s, and all", name, strings.Join(known, ", "))
		}
	}
	for _, name := range o.contenders {
		if !slices.Contains(sim.Contenders(), name) {
			return o, fmt.Errorf("--contenders: no contender %q; there are %s", name, strings.Join(sim.Contenders(), ", "))
		}
	}
	if o.seeds < 1 || o.seeds > 1000 {
		return o, errors.New("--seeds has to be from 1 to 1000")
	}
	return o, o.Check()
}

// simulate runs everything, and returns what it has when that is interrupted.
func simulate(ctx context.Context, o simOptions, progress io.Writer) (all []*sim.Result, err error) {
	for _, scenario := range o.scenarios {
		for seed := o.Seed; seed < o.Seed+uint64(o.seeds); seed++ {
			for _, contender := range o.contenders {
				cfg := o.Config
				cfg.Scenario, cfg.Contender, cfg.Seed = scenario, contender, seed
				began := time.Now()
				fmt.Fprintf(progress, "%s, seed %d: %s ... ", scenario, seed, contender)
				r, err := sim.Run(ctx, cfg)
				if err != nil {
					fmt.Fprintln(progress)
					return all, fmt.Errorf("%s: %w", scenario, err)
				}
				fmt.Fprintf(progress, "%.1f s\n", time.Since(began).Seconds())
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// printSim prints a table per scenario.
func printSim(w io.Writer, all []*sim.Result) error {
	what := map[string]string{}
	for _, s := range sim.Scenarios() {
		what[s[0]] = s[1]
	}
	for len(all) > 0 {
		first, n := all[0], 1
		for n < len(all) && all[n].Scenario == first.Scenario {
			n++
		}
		fmt.Fprintf(w, "%s: %s\n%d hosts x %d backends of %d servers, %.4g calls a second each\n\n", first.Scenario, what[first.Scenario], first.Hosts, first.Backends, first.Servers, first.Rate)
		if err := printScenario(w, all[:n]); err != nil {
			return err
		}
		if all = all[n:]; len(all) > 0 {
			fmt.Fprintln(w)
		}
	}
	return nil
}

func printScenario(w io.Writer, all []*sim.Result) error {
	oracle := map[uint64]float64{}
	for _, r := range all {
		if r.Contender == sim.Oracle {
			oracle[r.Seed] = r.P99
		}
	}
	columns := simColumns(oracle)
	columns = slices.DeleteFunc(columns, func(c simColumn) bool { // those that say nothing in this scenario
		return !slices.ContainsFunc(all, func(r *sim.Result) bool { return c.cell(r) != "-" })
	})
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cell func(c simColumn) string) {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = cell(c)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	line(func(c simColumn) string { return c.head })
	for _, r := range all {
		line(func(c simColumn) string { return c.cell(r) })
	}
	return t.Flush()
}

// simColumn is a column of the table; "-" is a cell without a meaning.
type simColumn struct {
	head string
	cell func(r *sim.Result) string
}

func simColumns(oracle map[uint64]float64) []simColumn {
	when := func(ok bool, format string, values ...any) string {
		if !ok {
			return "-"
		}
		return fmt.Sprintf(format, values...)
	}
	return []simColumn{
		{"CONTENDER", func(r *sim.Result) string { return r.Contender }},
		{"SEED", func(r *sim.Result) string { return fmt.Sprint(r.Seed) }},
		{"P50 ms", func(r *sim.Result) string { return fmt.Sprintf("%.1f", r.P50) }},
		{"P99", func(r *sim.Result) string { return fmt.Sprintf("%.1f", r.P99) }},
		{"P99.9", func(r *sim.Result) string { return fmt.Sprintf("%.1f", r.P999) }},
		{"/ORACLE", func(r *sim.Result) string { return when(oracle[r.Seed] > 0, "%.2f", r.P99/oracle[r.Seed]) }},
		{"FAILED%", func(r *sim.Result) string { return when(r.Fails > 0, "%.3f", r.Fails) }},
		{"MEANWHILE", func(r *sim.Result) string { return when(r.Lost > 0, "%.3f", r.Lost) }},
		{"BAD", func(r *sim.Result) string { return when(r.BadShare > 0, "%.2f", r.BadShare) }},
		{">10s", func(r *sim.Result) string { return when(r.BadSettled > 0, "%.2f", r.BadSettled) }},
		{"GOOD", func(r *sim.Result) string { return when(r.Most > 0, "%.2f-%.2f", r.Least, r.Most) }},
		{"IN ZONE", func(r *sim.Result) string { return when(r.Near > 0, "%.3f, hurt %.3f", r.Near, r.NearHurt) }},
		{"OUT s", func(r *sim.Result) string { return when(r.Outs > 0, "%.1f-%.1f", r.OutP50, r.OutMax) }},
		{"BY", func(r *sim.Result) string { return when(r.Outs > 0, "%d", r.FailsUntil) }},
		{"/MIN", func(r *sim.Result) string { return when(r.OutsMinute > 0, "%.1f", r.OutsMinute) }},
		{"MISSED", func(r *sim.Result) string { return when(r.Missed > 0 && r.Outs > 0, "%d", r.Missed) }},
		{"BACK s", func(r *sim.Result) string {
			if r.Return < 0 {
				return "never"
			}
			return when(r.Return > 0, "%.0f", r.Return)
		}},
		{"AGAIN", func(r *sim.Result) string { return when(r.Relapses > 0, "%d", r.Relapses) }},
		{"WRONG", func(r *sim.Result) string { return when(r.Wrong > 0, "%d", r.Wrong) }},
		{"1ST OK ms", func(r *sim.Result) string { return when(r.FirstOK > 0, "%.0f", r.FirstOK) }},
	}
}
