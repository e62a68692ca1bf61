package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// load is how many connections send how many requests at once each.
type load struct{ connections, streams int }

func (l load) String() string { return fmt.Sprintf("%dx%d", l.connections, l.streams) }

func parseLoad(text string) (load, error) {
	c, s, ok := strings.Cut(text, "x")
	connections, err1 := strconv.Atoi(c)
	streams, err2 := strconv.Atoi(s)
	if !ok || err1 != nil || err2 != nil || connections < 1 || streams < 1 || connections > 1000 || streams > 250 {
		return load{}, fmt.Errorf("%q is not CONNECTIONSxSTREAMS with 1 to 1000 and 1 to 250", text)
	}
	return load{connections, streams}, nil
}

// startBackends starts n of the cheapest real HTTP/2 servers at hand, so that the proxy is the larger part of the work.
func startBackends(ctx context.Context, dir string, n int) ([]*process, []string, error) {
	path, err := program("", "nghttpd", "nghttp2-server")
	if err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "body"), []byte(strings.Repeat("x", 31)+"\n"), 0o600); err != nil {
		return nil, nil, err
	}
	var all []*process
	var addrs []string
	for range n {
		addr, err := freePort()
		if err == nil {
			var p *process
			_, port, _ := strings.Cut(addr, ":")
			if p, err = startProcess(ctx, addr, path, "--no-tls", "-m", "1000", "-a", "127.0.0.1", "-d", dir, port); err == nil {
				all, addrs = append(all, p), append(addrs, addr)
			}
		}
		if err != nil {
			for _, p := range all {
				p.stop()
			}
			return nil, nil, err
		}
	}
	return all, addrs, nil
}

var (
	requestsLine = regexp.MustCompile(`requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored`)
	rateLine     = regexp.MustCompile(`finished in [^,]+, ([0-9.]+) req/s`)
	latencyLine  = regexp.MustCompile(`time for request: +(\S+) +(\S+) +(\S+)`)
)

// loaded is what h2load saw.
type loaded struct {
	requests, failed int
	rate             float64
	mean             time.Duration
}

// h2load sends requests to addr for d.
func h2load(ctx context.Context, addr string, l load, d time.Duration) (loaded, error) {
	path, err := program("", "h2load", "nghttp2-client")
	if err != nil {
		return loaded{}, err
	}
	cmd := exec.CommandContext(ctx, path, "-c", strconv.Itoa(l.connections), "-m", strconv.Itoa(l.streams), "-D", fmt.Sprintf("%dms", d.Milliseconds()), "http://"+addr+"/body")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return loaded{}, fmt.Errorf("h2load: %w: %s", err, out)
	}
	return parseH2load(string(out))
}

func parseH2load(out string) (loaded, error) {
	requests, rate, latency := requestsLine.FindStringSubmatch(out), rateLine.FindStringSubmatch(out), latencyLine.FindStringSubmatch(out)
	if requests == nil || rate == nil || latency == nil {
		return loaded{}, fmt.Errorf("h2load printed an unknown form: %s", out)
	}
	var r loaded
	var succeeded, failed, errored int
	if _, err := fmt.Sscan(strings.Join(requests[2:], " "), &succeeded, &failed, &errored); err != nil {
		return loaded{}, fmt.Errorf("h2load: %w", err)
	}
	r.requests, r.failed = succeeded, failed+errored
	var err error
	if r.rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return loaded{}, fmt.Errorf("h2load: rate: %w", err)
	}
	if r.mean, err = time.ParseDuration(latency[3]); err != nil {
		return loaded{}, fmt.Errorf("h2load: mean latency: %w", err)
	}
	return r, nil
}
