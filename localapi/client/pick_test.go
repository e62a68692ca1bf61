//go:build linux

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	verdict "github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func sorted(s ...string) []string { slices.Sort(s); return s }

func contains(s, part string) bool { return strings.Contains(s, part) }

// Picks come from batches that grow with use: few round trips, even shares, everything that the agent said of the backend.
func TestPick(t *testing.T) {
	r := newRig(t)
	r.set("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80")
	r.start()
	c := r.client()
	got := map[string]int{}
	for range 4000 {
		p, err := c.Pick(testContext(t), "user")
		if err != nil {
			t.Fatal(err)
		}
		if p.Metadata["a"] != p.Address {
			t.Fatal(p)
		}
		got[p.Address]++
	}
	for a, n := range got {
		if n < 900 || n > 1100 {
			t.Errorf("%s got %d of 4000", a, n)
		}
	}
	if given := r.api.Stats().Picks; given < 4000 || given > 4000+100 {
		t.Errorf("the agent gave %d picks for 4000", given)
	}
}

// fake is an agent that counts, delays and fails as a test says: a process on the other side of the border.
type fake struct {
	lbagentv1.UnimplementedLookupServiceServer
	calls atomic.Int32
	last  atomic.Uint32
	pick  func(context.Context, *lbagentv1.PickRequest) (*lbagentv1.PickResponse, error)
}

func (f *fake) Pick(ctx context.Context, r *lbagentv1.PickRequest) (*lbagentv1.PickResponse, error) {
	f.calls.Add(1)
	f.last.Store(r.Count)
	return f.pick(ctx, r)
}

func (f *fake) serve(t *testing.T, socket string) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	lbagentv1.RegisterLookupServiceServer(s, f)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
}

func answer(n uint32, valid time.Duration) (*lbagentv1.PickResponse, error) {
	return &lbagentv1.PickResponse{Picks: []*lbagentv1.Picked{{Address: "10.0.0.1:80", Count: n}}, ValidFor: durationpb.New(valid)}, nil
}

// The batch doubles while it is spent fast, up to the most, and shrinks when it expires unspent.
func TestBatchSize(t *testing.T) {
	b := &batch{want: 1}
	now := time.Unix(1000, 0)
	filled := func(n uint32) {
		b.picks = []*lbagentv1.Picked{{Address: "a", Count: n}}
		b.spent, b.taken, b.asked, b.filled, b.until = 0, 0, n, now, now.Add(10*time.Second)
	}
	spend := func(n int) {
		for range n {
			if _, ok := b.spend(now); !ok {
				t.Fatal("nothing left")
			}
		}
	}
	for _, want := range []uint32{2, 4, 8, 16, 32, 64, 100, 100} {
		filled(b.want)
		spend(int(b.want))
		if _, ok := b.spend(now); ok {
			t.Fatal("more was spent than was given")
		}
		b.size(now, 100)
		if b.want != want {
			t.Fatalf("%d, want %d", b.want, want)
		}
	}
	filled(100)
	spend(100)
	now = now.Add(5 * time.Second)
	if b.size(now, 100); b.want != 100 {
		t.Errorf("spent slowly: %d", b.want)
	}
	filled(100)
	spend(7)
	now = now.Add(10 * time.Second)
	if _, ok := b.spend(now); ok {
		t.Error("spent after valid_for")
	}
	if b.size(now, 100); b.want != 7 {
		t.Errorf("7 of 100 were used: %d", b.want)
	}
}

// However many wait, one asks; one caller's cancel is not the others' error.
func TestPickSharesOneRequest(t *testing.T) {
	r := newRig(t)
	entered, release := make(chan struct{}, 10), make(chan struct{})
	f := &fake{pick: func(ctx context.Context, _ *lbagentv1.PickRequest) (*lbagentv1.PickResponse, error) {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		return answer(1000, time.Minute)
	}}
	f.serve(t, r.socket)
	c := r.client()
	c.patience = 2 * time.Minute
	first, cancel := context.WithCancel(testContext(t))
	gaveUp := make(chan error)
	go func() {
		_, err := c.Pick(first, "user")
		gaveUp <- err
	}()
	<-entered
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := c.Pick(testContext(t), "user"); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-entered
	close(release)
	wg.Wait()
	if n := f.calls.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// What the agent says is believed: its errors are the caller's, with the reason, and no file is used.
func TestPickErrors(t *testing.T) {
	r := newRig(t)
	r.file("nobody", "10.0.0.9:80 100\n")
	r.file("user", "10.0.0.9:80 100\n")
	r.set()
	r.start()
	c := r.client()
	_, err := c.Pick(testContext(t), "nobody")
	if Reason(err) != "SERVICE_UNKNOWN" || status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	_, err = c.Pick(testContext(t), "user")
	if Reason(err) != "NO_USABLE_BACKEND" {
		t.Error(err)
	}
}

// With no agent, a dying one, or one that says nothing, the list on disk is used by its weights, and the agent again as soon as it is there.
func TestPickFromFile(t *testing.T) {
	for name, agent := range map[string]func(*testing.T, *rig){
		"away": func(*testing.T, *rig) {},
		"dead": func(t *testing.T, r *rig) { // its socket is still there
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			ln.SetUnlinkOnClose(false)
			_ = ln.Close()
		},
		"silent": func(t *testing.T, r *rig) {
			ln, err := net.Listen("unix", r.socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
		},
		"stuck": func(t *testing.T, r *rig) {
			f := &fake{pick: func(ctx context.Context, _ *lbagentv1.PickRequest) (*lbagentv1.PickResponse, error) {
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			}}
			f.serve(t, r.socket)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.file("user", "10.0.0.1:80 300\n10.0.0.2:80 100\n10.0.0.3:80 0\n")
			agent(t, r)
			c := r.client()
			c.patience = 100 * time.Millisecond
			got := map[string]int{}
			for range 4000 {
				p, err := c.Pick(testContext(t), "user")
				if err != nil {
					t.Fatal(err)
				}
				got[p.Address]++
			}
			if len(got) != 2 || got["10.0.0.1:80"] < 2800 || got["10.0.0.1:80"] > 3200 {
				t.Error(got)
			}
			if _, err := c.Pick(testContext(t), "other"); err == nil {
				t.Error("a pick of a service without a file")
			}
			w, err := c.Watch("user")
			if err != nil {
				t.Fatal(err)
			}
			l, err := w.Next(testContext(t))
			if name != "stuck" && err == nil && (l.Provenance.Source != "file" || len(l.Backends) != 3 || !l.Backends[0].Usable || l.Backends[2].Usable) {
				t.Error(l, err)
			}
			// The next question to the agent holds up nobody.
			patient := r.client()
			patient.patience = 2 * time.Minute
			patient.batches["user"] = &batch{want: 1, file: []line{{"10.0.0.1:80", 1}}}
			begin := time.Now()
			if _, err := patient.Pick(testContext(t), "user"); err != nil || time.Since(begin) > time.Minute {
				t.Errorf("a pick took %v: %v", time.Since(begin), err)
			}
		})
	}
}

// Only what no agent answered, and what an agent that can't answer says, makes the client look at the disk.
func TestAway(t *testing.T) {
	said := func(code codes.Code, reason string) error {
		st, err := status.New(code, "x").WithDetails(&errdetails.ErrorInfo{Domain: "lbagent", Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{status.Error(codes.Unavailable, "connection refused"), true},
		{status.Error(codes.DeadlineExceeded, ""), true},
		{said(codes.Unavailable, "STOPPING"), true},
		{said(codes.Unavailable, "NOT_READY"), true},
		{said(codes.Unavailable, "NO_USABLE_BACKEND"), false},
		{said(codes.NotFound, "SERVICE_UNKNOWN"), false},
		{status.Error(codes.ResourceExhausted, "too many calls"), false},
		{status.Error(codes.Unimplemented, ""), false},
	} {
		if away(c.err) != c.want {
			t.Errorf("away(%v) is %v", c.err, !c.want)
		}
	}
}

func TestPickAgentComes(t *testing.T) {
	r := newRig(t)
	r.file("user", "10.0.0.9:80 100\n")
	c := r.client()
	pick := func() string {
		p, err := c.Pick(testContext(t), "user")
		if err != nil {
			t.Fatal(err)
		}
		return p.Address
	}
	if got := pick(); got != "10.0.0.9:80" {
		t.Error(got)
	}
	r.set("10.0.0.1:80")
	r.start()
	eventually(t, func() string {
		if got := pick(); got != "10.0.0.1:80" {
			return "still " + got
		}
		return ""
	})
}

func TestReport(t *testing.T) {
	r := newRig(t)
	r.set("10.0.0.1:80")
	r.start()
	var all []*lbagentv1.Outcome
	for range 2500 {
		all = append(all, &lbagentv1.Outcome{Service: "user", Address: "10.0.0.1:80", Result: lbagentv1.Result_RESULT_SUCCESS})
	}
	for range 300 { // large ones: more than one message's worth
		all = append(all, &lbagentv1.Outcome{Service: strings.Repeat("x", 250), Address: "10.0.0.1:80", Result: lbagentv1.Result_RESULT_SUCCESS})
	}
	unknown, err := r.client().Report(testContext(t), all...)
	if err != nil || unknown != 300 {
		t.Error(unknown, err)
	}
	if n := r.api.Stats().Reports; n != 2500 {
		t.Error(n)
	}
}

// Names never leave the lists directory.
func TestReadList(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(filepath.Join(r.dir, "secret"), []byte("10.0.0.1:80 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.file("%2Ex", "10.0.0.2:80 1\n")
	c := r.client()
	for _, name := range []string{"", "../secret", "/etc/passwd", "a/b", "%2Ex"} {
		if l, err := c.readList(name); err == nil {
			t.Errorf("%q: %v", name, l)
		}
	}
	if l, err := c.readList(".x"); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
}

// Whatever the file holds: no panic, only addresses and weights that can be used, and what is well formed is read.
func FuzzParseList(f *testing.F) {
	f.Add([]byte("10.0.0.1:80 100\n[::1]:80 0.5 later-field\n\nx y\n10.0.0.1 5\n10.0.0.1:80 -1\n10.0.0.1:80 NaN\n10.0.0.1:80 Inf\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		lines := parseList(text)
		again := ""
		for _, l := range lines {
			if _, _, err := net.SplitHostPort(l.addr); err != nil || !(l.weight >= 0) {
				t.Fatalf("%+v", l)
			}
			again += fmt.Sprintf("%s %v\n", l.addr, l.weight)
		}
		if got := parseList([]byte(again)); !slices.Equal(got, lines) {
			t.Fatalf("%v became %v", lines, got)
		}
		if len(lines) > 0 {
			draw(lines)
		}
	})
}

func TestParseList(t *testing.T) {
	got := parseList([]byte("10.0.0.1:80 100\n[::1]:80 0.5 later-field\n\nx y\n10.0.0.1 5\n10.0.0.1:80 -1\n10.0.0.1:80 NaN\n10.0.0.1:80 Inf\nlast:80 1"))
	if want := []line{{"10.0.0.1:80", 100}, {"[::1]:80", 0.5}}; !slices.Equal(got, want) {
		t.Error(got)
	}
	if only := fromFile("x", []line{{"10.0.0.1:80", 0}}); !only.Backends[0].Usable {
		t.Error("what is left is not used")
	}
}

// A batch ends early when the service changes (3.5): what was given for the next seconds is not spent on a backend that is out.
func TestBatchIsRevoked(t *testing.T) {
	r := newRig(t)
	r.set("10.0.0.1:80", "10.0.0.2:80")
	r.start()
	c, err := New(Config{Socket: r.socket, MaxBatch: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	b, err := c.batchOf("user")
	if err != nil {
		t.Fatal(err)
	}
	b.want = 10_000
	pick := func() string {
		t.Helper()
		p, err := c.Pick(t.Context(), "user")
		if err != nil {
			t.Fatal(err)
		}
		return p.Address
	}
	revoked := func() {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
			b.mu.Lock()
			yes := b.revoked
			b.mu.Unlock()
			switch {
			case yes:
				return
			case time.Now().After(deadline):
				t.Fatal("the batch is not revoked")
			}
		}
	}
	pick()
	revoked() // by the watch's first list
	b.want = 10_000
	for range 100 {
		pick()
	}
	r.judge("10.0.0.2:80", verdict.Part{Kind: verdict.Down, Cause: "probe failed 3 times"})
	revoked()
	for range 1000 {
		if at := pick(); at != "10.0.0.1:80" {
			t.Fatalf("given to %s, which is out", at)
		}
	}
}
