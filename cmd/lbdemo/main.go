// Command lbdemo shows in two minutes what lbagent does: it starts a real etcd, five real gRPC backends that register themselves, and the real agent,
// calls through one gRPC connection, and shows how the calls spread while backends are killed, etcd stops and the agent restarts.
//
// With --check it plays the same story without a terminal and exits 0 only if every promise held.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `lbdemo: etcd, five gRPC backends, the agent, and one connection that is spread over all of them

Usage:
  lbdemo            show the story in this terminal; Ctrl-C ends it
  lbdemo --check    play it without a terminal, one line per act; exit 0 only if every promise held

Flags:
`

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	// Its own children are this same binary: `lbdemo etcd`, `lbdemo backend`.
	if len(args) > 0 {
		switch args[0] {
		case "etcd":
			return ended("etcd", runEtcd(ctx, args[1:]))
		case "backend":
			return ended("backend", runBackend(ctx, args[1:]))
		}
	}

	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	return ended("lbdemo", play(ctx, o))
}

// options are the command line.
type options struct {
	check bool   // play without a terminal, judge, end
	agent string // path of a built lbagent; empty: build it
	keep  bool   // leave the working folder
	rate  int    // calls per second
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("lbdemo", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	fs.BoolVar(&o.check, "check", false, "play the story without a terminal and judge it")
	fs.StringVar(&o.agent, "agent", "", "the lbagent `binary` to use; built with the go command if empty")
	fs.BoolVar(&o.keep, "keep", false, "keep the working folder with its logs")
	fs.IntVar(&o.rate, "rate", 400, "calls per second")
	for _, a := range args {
		if a == "--help" || a == "-help" || a == "-h" {
			fs.SetOutput(os.Stdout)
		}
	}
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 || o.rate < 100 || o.rate > 5000 {
		err := fmt.Errorf("lbdemo takes no arguments, and a rate of 100 to 5000")
		fmt.Fprintln(os.Stderr, err)
		return o, err
	}
	return o, nil
}

func ended(what string, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	return 1
}
