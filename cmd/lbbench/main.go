// Command lbbench measures lbagent beside HAProxy, nginx, the Go standard library's reverse proxy and no proxy at all: on this machine, over loopback, on the
// same backends, interleaved in one run. Its main figure is CPU time of the proxy process per request, which holds on a noisy machine where throughput
// doesn't.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `lbbench measures lbagent beside other proxies, on this machine, in one run.

usage: lbbench [flags] [shape ...]
       lbbench fleet [flags]        what the discovery of many hosts costs one etcd
       lbbench sim [flags] [name]   who gets a fleet's calls, in virtual time, when backends are slow or fail

shapes (all, or none named, is every one):
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the command line.
type options struct {
	shapes                       []string
	contenders                   []string
	loads                        []load
	rounds, settle               int // settle = rounds before the first one that counts
	duration                     time.Duration
	rate                         float64 // 0 = half of HAProxy's maximum
	idle                         int
	gomaxprocs                   []int // of lbagent; 0 = as it chooses itself
	quick, json                  bool
	haproxy, nginx, lbagent, old string // paths; empty = from the PATH, or built
}

// agentEnv is the environment that sets GOMAXPROCS; 0 leaves it to the agent.
func (options) agentEnv(gomaxprocs int) []string {
	if gomaxprocs == 0 {
		return nil
	}
	return []string{"GOMAXPROCS=" + strconv.Itoa(gomaxprocs)}
}

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Backends, one of the contenders and the makers of noise are this program again.
	if len(args) > 0 {
		if part := parts()[args[0]]; part != nil {
			if err := part(ctx, args[1:]); err != nil && ctx.Err() == nil {
				fmt.Fprintf(stderr, "lbbench %s: %v\n", args[0], err)
				return 1
			}
			return 0
		}
	}
	if len(args) > 0 && args[0] == fleetVerb {
		return fleetMain(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == simVerb {
		return simMain(ctx, args[1:], stdout, stderr)
	}
	o, err := parse(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "lbbench:", err)
		return 2
	}
	results, err := bench(ctx, o, stderr)
	if results != nil {
		err = errors.Join(err, results.print(stdout, o.json))
	}
	if err != nil {
		fmt.Fprintln(stderr, "lbbench:", err)
		return 1
	}
	return 0
}

func (r *results) print(w io.Writer, asJSON bool) error {
	if !asJSON {
		return r.table(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// parts are the other programs in this binary, by their first argument.
func parts() map[string]func(ctx context.Context, args []string) error {
	return map[string]func(context.Context, []string) error{
		goProxyVerb: func(ctx context.Context, args []string) error {
			if len(args) != 3 {
				return errors.New("want MODE LISTEN BACKENDS")
			}
			return runGoProxy(ctx, mode(args[0]), args[1], strings.Split(args[2], ","))
		},
		http1BackendVerb: func(ctx context.Context, args []string) error { return serveEach(ctx, args, answerHTTP1) },
		grpcBackendVerb:  runGRPCBackend,
		etcdVerb:         runEtcd,
		fleetEtcdVerb:    runFleetEtcd,
		fleetHostsVerb:   runFleetHosts,
		noiseVerb:        runNoise,
		tcpBackendVerb:   func(ctx context.Context, args []string) error { return serveEach(ctx, args, answerTCP) },
	}
}

func parse(args []string, stdout, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("lbbench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stdout, usage)
		for _, s := range shapes() {
			fmt.Fprintf(stdout, "  %-7s %s\n", s.name, s.what)
		}
		fmt.Fprint(stdout, "\nflags:\n")
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	names := f.String("contenders", "none,haproxy,nginx,go,lbagent", "who takes part, separated by commas")
	loads := f.String("loads", "1x1,10x1,50x1,4x32,1x100", "connections x streams of the closed loop, separated by commas; HTTP/1.1 takes those with one stream")
	procs := f.String("gomaxprocs", "0", "GOMAXPROCS of lbagent, 0 = as it chooses itself; noisy compares several, separated by commas, the others take the first")
	f.IntVar(&o.rounds, "rounds", 5, "rounds that count, after one that doesn't; medians are printed with the least and the greatest")
	f.DurationVar(&o.duration, "duration", 2*time.Second, "length of one measurement")
	f.Float64Var(&o.rate, "rate", 0, "requests per second of the fixed rate (default: half of the most that haproxy does in this run; noisy: 5000)")
	f.IntVar(&o.idle, "idle", 5000, "client connections of the idle shape")
	f.BoolVar(&o.quick, "quick", false, "one short round, to see that everything works: its figures mean nothing")
	f.BoolVar(&o.json, "json", false, "print every measurement as JSON")
	f.StringVar(&o.haproxy, haproxy, "", "an haproxy other than the one in the PATH")
	f.StringVar(&o.nginx, nginx, "", "an nginx other than the one in the PATH")
	f.StringVar(&o.lbagent, lbagent, "", "a built lbagent (default: builds ./cmd/lbagent)")
	f.StringVar(&o.old, old, "", "another built lbagent, to be measured beside it")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.quick {
		o.rounds, o.settle, o.duration, o.idle = 1, 0, 200*time.Millisecond, 200
	} else {
		o.settle = 1
	}
	return o, o.check(f.Args(), *names, *loads, *procs)
}

// check fills in what was given as lists.
func (o *options) check(shapes []string, names, loads, procs string) error {
	o.shapes = shapes
	if len(shapes) == 0 || slices.Equal(shapes, []string{"all"}) {
		o.shapes = shapeNames()
	}
	for _, name := range o.shapes {
		if !slices.Contains(shapeNames(), name) {
			return fmt.Errorf("no shape %q; there are %s, and all", name, strings.Join(shapeNames(), ", "))
		}
	}
	o.contenders = strings.Split(names, ",")
	if o.old != "" {
		o.contenders = append(o.contenders, old)
	}
	for _, name := range o.contenders {
		if !slices.Contains(contenderNames(), name) {
			return fmt.Errorf("--contenders: no contender %q; there are %s", name, strings.Join(contenderNames(), ", "))
		}
	}
	for text := range strings.SplitSeq(loads, ",") {
		l, err := parseLoad(text)
		if err != nil {
			return fmt.Errorf("--loads: %w", err)
		}
		o.loads = append(o.loads, l)
	}
	for text := range strings.SplitSeq(procs, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 1024 {
			return fmt.Errorf("--gomaxprocs: %q is not a number from 0 to 1024", text)
		}
		o.gomaxprocs = append(o.gomaxprocs, n)
	}
	if o.rounds < 1 || o.duration < 100*time.Millisecond {
		return errors.New("--rounds has to be at least 1 and --duration at least 100ms")
	}
	if o.idle < 1 || o.idle > 6000 {
		return errors.New("--idle has to be from 1 to 6000: more doesn't fit into the descriptors of every contender")
	}
	if o.rate < 0 || o.rate > 1e6 {
		return errors.New("--rate has to be from 0 to 1000000")
	}
	return nil
}
