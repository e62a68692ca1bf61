// Command lbagent is the load-balancing agent of a host and the tool that asks it: one binary, many verbs.
package main

import (
	"context"
	"os"
	"time"
)

// version is set by the build: -ldflags "-X main.version=v1.2.3". Else the module's build information says it.
var version string

func main() { os.Exit(run()) }

func run() int {
	a := &app{stdout: &output{w: os.Stdout}, stderr: os.Stderr, getenv: os.Getenv, now: time.Now, patience: answerTimeout}
	return a.execute(context.Background(), os.Args[1:])
}
