package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// fleetPatience bounds the wait for all hosts.
const fleetPatience = 5 * time.Minute

// fleetRun is a fleet that is being measured.
type fleetRun struct {
	o        fleetOptions
	progress io.Writer
	access   fleetEtcd
	etcd     *process
	hosts    *hostsProcess
	r        fleetResult
}

// measureFleet measures with one kind of authentication.
func measureFleet(ctx context.Context, o fleetOptions, auth string, progress io.Writer) (fleetResult, error) {
	f := &fleetRun{o: o, progress: progress, r: fleetResult{Auth: auth}}
	dir, err := os.MkdirTemp("", "lbbench-fleet")
	if err != nil {
		return f.r, err
	}
	defer os.RemoveAll(dir)
	if f.access, err = fleetFiles(dir, auth); err != nil {
		return f.r, err
	}
	f.access.Bcrypt = o.bcrypt
	if f.access.Addr, err = freePort(); err != nil {
		return f.r, err
	}
	if f.etcd, err = f.access.start(ctx); err != nil {
		return f.r, err
	}
	defer func() { f.etcd.stop() }()
	if err := f.access.enable(ctx); err != nil {
		return f.r, err
	}
	root, err := f.access.root(true)
	if err != nil {
		return f.r, err
	}
	defer root.Close()
	if err := f.access.fill(ctx, o, root); err != nil {
		return f.r, err
	}
	for _, phase := range []func(context.Context, *clientv3.Client) error{f.begin, f.quiet, f.churn, f.restart} {
		if err := phase(ctx, root); err != nil {
			if f.hosts != nil {
				f.hosts.stop()
			}
			return f.r, err
		}
	}
	f.hosts.stop()
	return f.r, nil
}

func (f *fleetRun) say(format string, args ...any) {
	fmt.Fprintf(f.progress, "fleet, auth %s: %s\n", f.r.Auth, fmt.Sprintf(format, args...))
}

// begin starts all hosts at once.
func (f *fleetRun) begin(ctx context.Context, _ *clientv3.Client) error {
	f.say("%d hosts start", f.o.hosts)
	rss, err := f.etcd.rss()
	if err != nil {
		return err
	}
	cpu, err := f.etcd.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if f.hosts, err = startHosts(ctx, fleetJob{f.access.reach(), f.o.hosts, f.o.services, f.o.follows}); err != nil {
		return err
	}
	seen, err := f.allCurrent(ctx)
	if err != nil {
		return err
	}
	f.r.StartMs = spreadOf(seen.Current).Max*1000 - float64(began.UnixMicro())/1000
	f.r.StartDials = seen.Dials
	if f.r.StartCPU, err = f.spent(cpu); err != nil {
		return err
	}
	after, err := f.etcd.rss()
	f.r.HostKiB = float64(after-rss) / 1024 / float64(f.o.hosts)
	return err
}

// spent is etcd's CPU time since it was at `since`, in ms.
func (f *fleetRun) spent(since time.Duration) (float64, error) {
	now, err := f.etcd.cpu()
	return float64(now-since) / float64(time.Millisecond), err
}

// allCurrent waits until every host has heard of all its services, and resets what was seen.
func (f *fleetRun) allCurrent(ctx context.Context) (fleetSeen, error) {
	ctx, cancel := context.WithTimeout(ctx, fleetPatience)
	defer cancel()
	for last := -1; ; {
		s, err := f.hosts.seen(false)
		if err != nil {
			return s, err
		}
		if len(s.Current) == f.o.hosts {
			return f.hosts.seen(true)
		}
		if len(s.Current)/100 != last/100 {
			last = len(s.Current)
			f.say("%d hosts are current, %d clients made", last, s.Dials)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return s, fmt.Errorf("%d of %d hosts are current: %w", len(s.Current), f.o.hosts, err)
		}
	}
}

// quiet measures a time without changes.
func (f *fleetRun) quiet(ctx context.Context, _ *clientv3.Client) error {
	f.say("quiet for %v", f.o.duration)
	cpu, err := f.etcd.cpu()
	if err != nil {
		return err
	}
	if err := wait(ctx, f.o.duration); err != nil {
		return err
	}
	spent, err := f.spent(cpu)
	f.r.QuietCPU = spent / f.o.duration.Seconds()
	return err
}

// churn measures a time of changes.
func (f *fleetRun) churn(ctx context.Context, root *clientv3.Client) error {
	f.say("%.0f changes a second for %v", f.o.changes, f.o.duration)
	if _, err := f.hosts.seen(true); err != nil {
		return err
	}
	cpu, err := f.etcd.cpu()
	if err != nil {
		return err
	}
	hostsCPU, err := f.hosts.cpu()
	if err != nil {
		return err
	}
	if err := f.change(ctx, root); err != nil {
		return err
	}
	spent, err := f.spent(cpu)
	if err != nil {
		return err
	}
	f.r.ChurnCPU = spent / f.o.duration.Seconds()
	after, err := f.hosts.cpu()
	if err != nil {
		return err
	}
	f.r.HostsCPU = float64(after-hostsCPU) / float64(time.Millisecond) / f.o.duration.Seconds()
	if err := wait(ctx, 2*time.Second); err != nil { // what is on its way arrives
		return err
	}
	seen, err := f.hosts.seen(true)
	if err != nil {
		return err
	}
	expected := float64(f.r.Changes) * float64(f.o.hosts) * float64(f.o.follows) / float64(f.o.services)
	f.r.EachMs, f.r.LastMs, f.r.Unseen = spreadOf(seen.Each), spreadOf(seen.Last), f.r.Changes-len(seen.Last)
	f.say("%d of about %.0f (change, host) pairs seen", seen.Pairs, expected)
	return nil
}

// change makes changes at the wanted rate; a put that takes its time doesn't hold up the next.
func (f *fleetRun) change(ctx context.Context, root *clientv3.Client) error {
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		firstErr error
	)
	tick := time.NewTicker(time.Duration(float64(time.Second) / f.o.changes))
	defer tick.Stop()
	end := time.After(f.o.duration)
	for n := 0; ; n++ {
		select {
		case <-end:
			wg.Wait()
			f.r.Changes = n
			return firstErr
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		wg.Go(func() {
			i := rand.IntN(f.o.keys)
			if _, err := root.Put(ctx, fleetKey(f.o, i), fleetRecord(i, n, time.Now())); err != nil {
				mu.Lock()
				defer mu.Unlock()
				firstErr = fmt.Errorf("change %d: %w", n, err)
			}
		})
	}
}

// restart kills etcd and starts it again at once.
func (f *fleetRun) restart(ctx context.Context, _ *clientv3.Client) error {
	f.say("etcd is killed and started again")
	_ = f.etcd.cmd.Process.Kill()
	<-f.etcd.exited
	killed := time.Now()
	if _, err := f.hosts.seen(true); err != nil {
		return err
	}
	var err error
	if f.etcd, err = f.access.start(ctx); err != nil {
		return err
	}
	up := time.Now()
	f.r.DownMs = float64(up.Sub(killed)) / float64(time.Millisecond)
	seen, err := f.allCurrent(ctx)
	if err != nil {
		return err
	}
	var after []float64
	for _, at := range seen.Current {
		after = append(after, at*1000-float64(up.UnixMicro())/1000)
	}
	f.r.CurrentMs, f.r.RestartDials = spreadOf(after), seen.Dials
	f.r.RestartCPU, err = f.spent(0)
	return err
}

// startPiped starts argv, which speaks JSON on stdin and stdout.
func startPiped(ctx context.Context, argv ...string) (*process, *json.Encoder, *json.Decoder, error) {
	p := newProcess(exec.CommandContext(ctx, argv[0], argv[1:]...))
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	r, w, err := os.Pipe() // cmd's own would be closed by Wait while it's read
	if err != nil {
		return nil, nil, nil, err
	}
	p.cmd.Stdout = w
	err = p.start(nil)
	w.Close()
	if err != nil {
		return nil, nil, nil, err
	}
	return p, json.NewEncoder(in), json.NewDecoder(r), nil
}
