package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// brokenWorkers call a service at the same time, each with brokenPause between two calls.
	brokenWorkers = 4
	brokenPause   = 20 * time.Millisecond

	// brokenDeadline is that of each call by gRPC: no backend that is well takes so long, nor a slow one.
	brokenDeadline = 3 * time.Second
)

// deed is one call. chosen is when its backend was: with a call through the proxy when it began, else when the batch was picked that it belongs to.
type deed struct {
	backend string // who answered, or (if the caller chose) was byAsking; "" if nobody knows
	fault   string // "" if it went well
	chosen  time.Time
	ended   time.Time
}

// ledger is what became of all calls, by service.
type ledger struct {
	mu    sync.Mutex
	deeds map[string][]deed
}

func (l *ledger) note(service string, d deed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deeds[service] = append(l.deeds[service], d)
}

// among are the deeds of a service whose backend was chosen in [from, to); a zero to is now.
func (l *ledger) among(service string, from, to time.Time) (out []deed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.deeds[service] {
		if !d.chosen.Before(from) && (to.IsZero() || d.chosen.Before(to)) {
			out = append(out, d)
		}
	}
	return out
}

// share is how many of the calls went to the backend.
func share(deeds []deed, backend string) (part float64, calls int) {
	n := 0
	for _, d := range deeds {
		if d.backend == backend {
			n++
		}
	}
	return float64(n) / float64(max(1, len(deeds))), len(deeds)
}

func faults(deeds []deed) (out []deed) {
	for _, d := range deeds {
		if d.fault != "" {
			out = append(out, d)
		}
	}
	return out
}

// blamed are those of the faults that nothing but a mistake explains: while the machine stands still, deadlines pass whatever anybody does.
func blamed(deeds []deed) []deed {
	return slices.DeleteFunc(faults(deeds), func(d deed) bool { return machine.undecided(d.chosen, d.ended) })
}

// keepAt has workers call until the context ends.
func (l *ledger) keepAt(ctx context.Context, all *sync.WaitGroup, service string, call func() (backend string, err error)) {
	for range brokenWorkers {
		all.Go(func() {
			for ctx.Err() == nil {
				d := deed{chosen: time.Now()}
				var err error
				if d.backend, err = call(); err != nil {
					d.fault = err.Error()
				}
				d.ended = time.Now()
				l.note(service, d)
				select {
				case <-time.After(brokenPause):
				case <-ctx.Done():
				}
			}
		})
	}
}

// callGRPC is one call through the port.
func callGRPC(t *testing.T, port int) func() (string, error) {
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", port), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), quickReconnects)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), brokenDeadline)
		defer cancel()
		var trailer metadata.MD
		err := conn.Invoke(ctx, echoMethod, wrapperspb.Bytes([]byte("hello")), new(wrapperspb.BytesValue), grpc.Trailer(&trailer))
		return strings.Join(trailer.Get(nameHeader), ""), err
	}
}

// callHTTP is the same by HTTP/1.1.
func callHTTP(t *testing.T, port int) func() (string, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: brokenWorkers}, Timeout: patience}
	t.Cleanup(client.CloseIdleConnections)
	return func() (string, error) {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, text)
		}
		return resp.Header.Get(nameHeader), err
	}
}

// ask runs the Python program that picks, calls and reports, until stop is called.
func (l *ledger) ask(a *agent, services []string) (stop func()) {
	a.t.Helper()
	protoset := filepath.Join(a.dir, "lbagent.protoset")
	if err := os.WriteFile(protoset, a.reflect("lbagent.v1.LookupService"), 0o644); err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(python, append([]string{"testdata/asker.py", a.socket, protoset, echoMethod}, services...)...)
	cmd.Env = append(os.Environ(), "no_proxy=127.0.0.0/8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	var read sync.WaitGroup
	read.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w := strings.Fields(lines.Text())
			if len(w) < 5 {
				a.t.Errorf("the Python program says %q", lines.Text())
				continue
			}
			d := deed{backend: w[1], chosen: nanos(w[3]), ended: nanos(w[4])}
			if w[2] != "OK" {
				d.fault = strings.Join(slices.Concat(w[2:3], w[5:]), " ")
			}
			if w[1] == "-" {
				d.backend = ""
			}
			l.note(w[0], d)
		}
	})
	stop = sync.OnceFunc(func() {
		in.Close()
		read.Wait()
		if err := cmd.Wait(); err != nil {
			a.t.Errorf("the Python program: %v\n%s", err, said.Bytes())
		}
	})
	a.t.Cleanup(stop)
	return stop
}

// nanos is a time as Python's time.time_ns() says it.
func nanos(s string) time.Time {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Unix(0, n)
}
