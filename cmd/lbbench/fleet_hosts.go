package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
)

// fleetHostsVerb starts this program as all hosts of a fleet: fleetHostsVerb JSON. It answers each line of its stdin with what the hosts have seen, and ends with
// its stdin.
const fleetHostsVerb = "fleet-hosts"

// fleetJob is what the hosts are to do.
type fleetJob struct {
	Etcd                     *etcd.Config
	Hosts, Services, Follows int
}

// fleetSeen is what the hosts have seen since the last answer that reset.
type fleetSeen struct {
	Current []float64 // for each host that has heard of all its services: when the last of them was, in seconds since 1970
	Each    []float64 // ms from the put of a change to a host's list
	Last    []float64 // the same, of the last host, by change
	Pairs   int       // (change, host) pairs seen
	Dials   int
}

// fleetHosts is every host, and what they have seen.
type fleetHosts struct {
	hosts []*fleetHost
	dials atomic.Int64

	mu sync.Mutex

	each []float64
	last map[int]float64 // by change
}

// fleetHost is the discovery of one host.
type fleetHost struct {
	all       *fleetHosts
	links     *etcd.Links
	discovery *discovery.Discovery

	mu sync.Mutex

	revisions map[string]int64     // newest ModRevision that was looked at, by service
	heard     map[string]time.Time // first time since the reset, by service
	follows   int
	current   time.Time // when the last of them was heard of
}

func runFleetHosts(ctx context.Context, args []string) error {
	var job fleetJob
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &job) != nil {
		return errors.New("want one argument, JSON")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := &fleetHosts{last: make(map[int]float64)}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range job.Hosts {
		h, err := all.add(job)
		if err != nil {
			return err
		}
		wg.Go(func() { _ = h.links.Run(ctx) })
		wg.Go(func() { _ = h.discovery.Run(ctx) })
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var reset bool
		if err := in.Decode(&reset); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(all.seen(reset)); err != nil {
			return err
		}
	}
}

// add makes a host that follows random services.
func (a *fleetHosts) add(job fleetJob) (*fleetHost, error) {
	h := &fleetHost{all: a, revisions: make(map[string]int64), heard: make(map[string]time.Time), follows: job.Follows}
	h.links = etcd.New(etcd.Options{Etcd: job.Etcd, Dial: func(ctx context.Context, c etcd.Config, failed func(error)) (etcd.Client, error) {
		a.dials.Add(1)
		return etcd.Dial(ctx, c, failed)
	}})
	var err error
	if h.discovery, err = discovery.New(discovery.Config{Etcd: h.links, OnList: h.onList, OnConfirm: h.onConfirm}); err != nil {
		return nil, err
	}
	for _, n := range rand.Perm(job.Services)[:job.Follows] {
		name := fleetService(n)
		h.discovery.Set(discovery.Follow{Name: name, Prefix: fleetPrefix + name + "/", Format: "grpc-naming"})
	}
	a.hosts = append(a.hosts, h)
	return h, nil
}

// onList takes the changes out of a list.
func (h *fleetHost) onList(now time.Time, l *service.List) {
	if l.Source != service.FromEtcd {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hear(l.Service, now)
	since, newest := h.revisions[l.Service], int64(0)
	for i := range l.Backends {
		b := l.Backends[i]
		newest = max(newest, b.Modified)
		if b.Modified <= since || since == 0 {
			continue
		}
		change, err1 := strconv.Atoi(b.Metadata["change"])
		at, err2 := strconv.ParseInt(b.Metadata["at"], 10, 64)
		if err1 == nil && err2 == nil {
			h.all.saw(change, float64(now.UnixNano()-at)/1e6)
		}
	}
	h.revisions[l.Service] = max(since, newest)
}

func (h *fleetHost) onConfirm(name string, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hear(name, at)
}

// hear notes that a service was heard of.
func (h *fleetHost) hear(name string, at time.Time) {
	if _, ok := h.heard[name]; ok {
		return
	}
	h.heard[name] = at
	if len(h.heard) == h.follows {
		h.current = at
	}
}

func (a *fleetHosts) saw(change int, ms float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.each = append(a.each, ms)
	a.last[change] = max(a.last[change], ms)
}

// seen is what was seen since the last reset.
func (a *fleetHosts) seen(reset bool) fleetSeen {
	a.mu.Lock()
	out := fleetSeen{Pairs: len(a.each), Dials: int(a.dials.Load())}
	if reset {
		out.Each = a.each
		for _, ms := range a.last {
			out.Last = append(out.Last, ms)
		}
		a.each, a.last = nil, make(map[int]float64)
		a.dials.Store(0)
	}
	a.mu.Unlock()
	for _, h := range a.hosts {
		h.mu.Lock()
		if !h.current.IsZero() {
			out.Current = append(out.Current, float64(h.current.UnixNano())/1e9)
		}
		if reset {
			clear(h.heard)
			h.current = time.Time{}
		}
		h.mu.Unlock()
	}
	return out
}

// startHosts starts the process of all hosts.
func startHosts(ctx context.Context, job fleetJob) (*hostsProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arg, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	p := &hostsProcess{}
	if p.process, p.in, p.out, err = startPiped(ctx, self, fleetHostsVerb, string(arg)); err != nil {
		return nil, fmt.Errorf("start the hosts: %w", err)
	}
	return p, nil
}

// hostsProcess is the process of all hosts.
type hostsProcess struct {
	*process

	in  *json.Encoder
	out *json.Decoder
}

func (p *hostsProcess) seen(reset bool) (fleetSeen, error) {
	var s fleetSeen
	if err := p.in.Encode(reset); err != nil {
		return s, fmt.Errorf("ask the hosts: %w", err)
	}
	if err := p.out.Decode(&s); err != nil {
		return s, fmt.Errorf("ask the hosts: %w", err)
	}
	return s, nil
}
