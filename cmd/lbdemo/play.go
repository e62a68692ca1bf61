package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// errInterrupted ends a --check that was not played to its end.
var errInterrupted = errors.New("interrupted")

// errBroken says that a promise did not hold; which one was printed.
var errBroken = errors.New("the story broke a promise")

// play builds the stage, plays the acts and takes everything down again, however it ends.
func play(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "lbdemo-")
	if err != nil {
		return err
	}
	s := &stage{dir: dir, rate: float64(o.rate)}
	out := newScreen(os.Stdout, s, o.check)
	defer func() {
		out.clear()
		s.close()
		if ctx.Err() != nil {
			if err = nil; o.check {
				err = errInterrupted
			}
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			printTail(logFile(dir, "lbagent"))
		}
		if o.keep {
			fmt.Println("kept:", dir)
			return
		}
		os.RemoveAll(dir)
	}()

	began := time.Now()
	out.say("starting etcd, five backends and the agent")
	if err := s.build(ctx, o); err != nil {
		return err
	}
	screenCtx, stop := context.WithCancel(ctx)
	defer stop()
	go out.run(screenCtx)

	broken := false
	var seen, wrong int // faults of acts before
	for i, a := range acts {
		out.begin(i+1, a.title)
		figures, err := a.play(ctx, s, out.say)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failures, lies := s.caller.faults(seen, wrong)
		seen, wrong = seen+len(failures), wrong+len(lies)
		err = errors.Join(append([]error{err}, judgeFaults(failures, lies, s.kills)...)...)
		out.act(i+1, a.title, figures, err)
		broken = broken || err != nil
	}
	sum := s.caller.sums()
	out.line(fmt.Sprintf("%d calls answered, %d failed, all in %v", sum.answered, sum.failed, time.Since(began).Round(time.Second)))
	switch {
	case broken:
		return errBroken
	case o.check:
		return nil
	}
	out.line(epilogue(s))
	out.begin(0, "and so on, until Ctrl-C")
	out.say("")
	<-ctx.Done()
	return nil
}

// judgeFaults names every failure that nothing excuses, and every wrong answer; at most five of each.
func judgeFaults(failures []failure, wrong []string, kills []kill) []error {
	var errs []error
	bad := 0
	for _, f := range failures {
		if excused(f, kills) {
			continue
		}
		if bad++; bad <= 5 {
			errs = append(errs, fmt.Errorf("call %d failed after %v: %w", f.id, f.got.Sub(f.begun).Round(time.Millisecond), f.err))
		}
	}
	if bad > 5 {
		errs = append(errs, fmt.Errorf("and %d more failed", bad-5))
	}
	for i, text := range wrong {
		if i == 5 {
			errs = append(errs, fmt.Errorf("and %d more wrong answers", len(wrong)-5))
			break
		}
		errs = append(errs, errors.New(text))
	}
	return errs
}

// epilogue tells where to go on.
func epilogue(s *stage) string {
	return fmt.Sprintf(`
The story is over; everything goes on. In another terminal:

  export LBAGENT_SOCKET=%[1]s
  %[2]s explain %[4]s
  curl --unix-socket $LBAGENT_SOCKET http://lbagent/v1/services/%[4]s/pick
  grpcurl -plaintext 127.0.0.1:%[3]d grpc.health.v1.Health/Check
`, s.agent.socket, s.agent.binary, s.port, serviceName)
}

// printTail shows the end of a log file that is about to be removed.
func printTail(path string) {
	b, err := os.ReadFile(path)
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return
	}
	lines := bytes.Split(b, []byte("\n"))
	fmt.Fprintln(os.Stderr, "the end of the agent's log:")
	for _, l := range lines[max(0, len(lines)-20):] {
		fmt.Fprintf(os.Stderr, "  %s\n", l)
	}
}
