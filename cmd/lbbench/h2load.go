package main

import (
	"context"
	"fmt"
	"os/exec"
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

// asked is what h2load asks for.
type asked struct {
	http1  bool
	path   string
	upload string // a file to send as the body of a POST; empty = GET
}

// h2load sends requests to addr for d, each connection and stream its next one when the last is answered.
func h2load(ctx context.Context, addr string, a asked, l load, d time.Duration) (loaded, error) {
	path, err := program("", "h2load", "nghttp2-client")
	if err != nil {
		return loaded{}, err
	}
	args := []string{"-c", strconv.Itoa(l.connections), "-m", strconv.Itoa(l.streams), "-D", fmt.Sprintf("%dms", d.Milliseconds())}
	if a.http1 {
		args = append(args, "--h1")
	}
	if a.upload != "" {
		args = append(args, "-d", a.upload)
	}
	cmd := exec.CommandContext(ctx, path, append(args, "http://"+addr+a.path)...)
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
