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
	"strings"
	"syscall"
	"time"
)

const usage = `lbbench measures lbagent beside other proxies, on this machine, in one run.

usage: lbbench [flags] h2

shapes:
  h2    HTTP/2 requests of h2load over cleartext, to two nghttpd backends that answer 32 bytes

flags:
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the command line.
type options struct {
	shape      string
	contenders []string
	loads      []load
	rounds     int
	duration   time.Duration
	json       bool
	programs   programs
}

func run(args []string, stdout, stderr io.Writer) int {
	// The Go contender is this program again.
	if len(args) == 3 && args[0] == goProxyVerb {
		if err := runGoProxy(args[1], strings.Split(args[2], ",")); err != nil {
			fmt.Fprintln(stderr, "lbbench:", err)
			return 1
		}
		return 0
	}
	o, err := parse(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "lbbench:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results, err := bench(ctx, o, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "lbbench:", err)
		return 1
	}
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(results)
	} else {
		err = results.table(stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "lbbench:", err)
		return 1
	}
	return 0
}

func parse(args []string, stdout, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("lbbench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	contenders := f.String("contenders", "none,haproxy,nginx,go,lbagent", "who runs, separated by commas")
	loads := f.String("loads", "1x1,10x1,50x1,4x32,1x100", "connections x streams, separated by commas")
	f.IntVar(&o.rounds, "rounds", 5, "rounds; medians are printed with the least and the greatest")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "length of one measurement")
	f.BoolVar(&o.json, "json", false, "print every measurement as JSON")
	f.StringVar(&o.programs.haproxy, "haproxy", "", "an haproxy other than the one in the PATH")
	f.StringVar(&o.programs.nginx, "nginx", "", "an nginx other than the one in the PATH")
	f.StringVar(&o.programs.lbagent, "lbagent", "", "a built lbagent (default: builds ./cmd/lbagent)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() != 1 || f.Arg(0) != "h2" {
		return o, fmt.Errorf("say which shape to run: h2 (lbbench --help explains)")
	}
	o.shape = f.Arg(0)
	o.contenders = strings.Split(*contenders, ",")
	for _, name := range o.contenders {
		if !known(name) {
			return o, fmt.Errorf("--contenders: no contender %q; there are %s", name, strings.Join(contenderNames(), ", "))
		}
	}
	for _, text := range strings.Split(*loads, ",") {
		l, err := parseLoad(text)
		if err != nil {
			return o, fmt.Errorf("--loads: %w", err)
		}
		o.loads = append(o.loads, l)
	}
	if o.rounds < 1 || o.duration < 100*time.Millisecond {
		return o, fmt.Errorf("--rounds has to be at least 1 and --duration at least 100ms")
	}
	return o, nil
}
