package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"golang.org/x/sys/unix"
)

// two is a proxy with two loops before services a and b, whose only backend says the service's name.
type two struct {
	*testing.T
	p      *Proxy
	table  *table.Table
	events *event.Log
	cancel context.CancelFunc
	ended  chan error
}

func newTwo(t *testing.T, change ...func(*Config)) *two {
	t.Helper()
	r := &two{T: t, events: event.NewLog(100), ended: make(chan error, 1)}
	var err error
	r.table, err = table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(100)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		r.table.SetSpec(time.Now(), table.Spec{Name: name, Policy: picker.P2C, InUse: true})
		addr := netip.MustParseAddrPort(tcpBackend(t, "tcp4", named(name)))
		r.table.Apply(time.Now(), &service.List{Service: name, Source: service.FromStatic, Backends: []*service.Backend{{Addr: addr, Weight: 1}}})
	}
	cfg := Config{Table: r.table, Events: r.events, Loops: 2}
	for _, f := range change {
		f(&cfg)
	}
	if r.p, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.ended <- r.p.Run(ctx) }()
	t.Cleanup(r.stop)
	return r
}

func (r *two) stop() {
	if r.ended == nil {
		return
	}
	r.cancel()
	select {
	case err := <-r.ended:
		if err != nil {
			r.Error(err)
		}
	case <-time.After(patience):
		r.Error("the proxy did not stop")
	}
	r.ended = nil
}

func svc(name string, listen ...Addr) Service {
	return Service{Name: name, Protocol: "tcp", Connect: time.Second, Drain: time.Second, Listen: listen}
}

func free(t *testing.T) Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return Addr{TCP: l.Addr().(*net.TCPAddr).AddrPort()}
}

func (r *two) apply(services ...Service) {
	r.Helper()
	c, err := r.p.Prepare(services)
	if err != nil {
		r.Fatal(err)
	}
	c.Commit()
	c.Abort() // after Commit it has no effect
}

// says is what a connection to a hears first, "" if it is refused.
func (r *two) says(a Addr) string {
	r.Helper()
	network, at := "tcp", a.String()
	if a.Unix != "" {
		network, at = "unix", a.Unix
	}
	c, err := net.Dial(network, at)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return err.Error()
	}
	return string(b)
}

func TestReloadTouchesOnlyWhatChanges(t *testing.T) {
	r := newTwo(t)
	one, other, path := free(t), free(t), Addr{Unix: t.TempDir() + "/a.sock"}
	r.apply(svc("a", one, path))
	if r.says(one) != "a" || r.says(path) != "a" {
		t.Fatal("not served")
	}
	running, err := net.Dial("tcp", one.String())
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	running.SetDeadline(time.Now().Add(patience))
	read(t, running, "a")
	fd := r.p.bindings[one].fd

	// b comes, a loses its unix socket, and keeps the other one.
	changed := svc("a", one)
	changed.Connect = 2 * time.Second
	r.apply(changed, svc("b", other))
	if r.says(one) != "a" || r.says(other) != "b" {
		t.Error("after the reload: not served")
	}
	await(t, "the unix socket to be gone", func() bool { _, err := os.Lstat(path.Unix); return errors.Is(err, fs.ErrNotExist) })
	if r.p.bindings[one].fd != fd {
		t.Error("a listener that did not change was bound again")
	}
	if got := r.p.routes["a"].options().connect; got != 2*time.Second {
		t.Errorf("timeout.connect is %v after the reload", got)
	}
	io.WriteString(running, "still")
	read(t, running, "still")

	// Both swap their addresses: the sockets stay, the service behind them changes.
	r.apply(svc("a", other), svc("b", one))
	if r.says(one) != "b" || r.says(other) != "a" || r.p.bindings[one].fd != fd {
		t.Error("after the swap: wrong service, or a new socket")
	}

	// Nothing is left: refused, while the running connection goes on.
	r.apply()
	await(t, "refusal", func() bool { return r.says(one) == "" && r.says(other) == "" })
	io.WriteString(running, "on")
	read(t, running, "on")
	events, _ := r.events.Since(0)
	var told []string
	for _, e := range events {
		told = append(told, e.Service+": "+e.Detail)
	}
	for _, want := range []string{"a: listening on " + path.String(), "a: no longer listening on " + path.String(), "b: listening on " + other.String()} {
		if !strings.Contains(strings.Join(told, "\n"), want) {
			t.Errorf("no event %q among %q", want, told)
		}
	}
}

func TestAbortLeavesEverything(t *testing.T) {
	r := newTwo(t)
	one, other := free(t), free(t)
	r.apply(svc("a", one))
	c, err := r.p.Prepare([]Service{svc("b", one, other)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.p.Prepare(nil); err == nil {
		t.Error("a second change at the same time")
	}
	c.Abort()
	c.Abort()
	c.Commit() // has no effect any more
	if r.says(one) != "a" || r.says(other) != "" {
		t.Errorf("after Abort: %q and %q", r.says(one), r.says(other))
	}
	r.apply(svc("b", other))
	if r.says(other) != "b" {
		t.Error("not served after an aborted change")
	}
}

func TestPrepareNamesAllErrors(t *testing.T) {
	r := newTwo(t)
	kept, good := free(t), free(t)
	r.apply(svc("a", kept))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := "/tmp/" + strings.Repeat("x", 200)
	bad := svc("b", good, Addr{TCP: taken.Addr().(*net.TCPAddr).AddrPort()}, Addr{Unix: file}, Addr{Unix: long}, Addr{Unix: "/no/such/dir/s"}, Addr{})
	odd := svc("odd")
	odd.Protocol = "h3"
	_, err = r.p.Prepare([]Service{svc("a", kept), bad, svc("c", good), odd, svc("a"), {Name: "zero", Protocol: "tcp"}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`service "b": listen on ` + taken.Addr().String() + ": address already in use",
		`service "b": listen on unix:` + file + ": there is a file that isn't a socket",
		`service "b": listen on unix:` + long + ": invalid argument",
		`service "b": listen on unix:/no/such/dir/s: no such file or directory`,
		`service "b": listen on invalid AddrPort: not an address`,
		`service "c": listen on ` + good.String() + `: service "b" listens there`,
		`service "odd": protocol "h3": allowed are auto, h2, http1, tcp`,
		`service "a": configured twice`,
		`service "zero": timeout.connect has to be more than 0`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if r.says(kept) != "a" {
		t.Error("the old configuration isn't served")
	}
	if r.says(good) != "" {
		t.Error("a listener of a refused configuration is left")
	}
}

func TestUnixSocketFiles(t *testing.T) {
	dir := t.TempDir()
	path := Addr{Unix: filepath.Join(dir, "user.sock")}
	// A socket that a killed process left is replaced.
	stale, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(stale, &unix.SockaddrUnix{Name: path.Unix}); err != nil {
		t.Fatal(err)
	}
	unix.Close(stale)

	r := newTwo(t)
	r.apply(svc("a", path))
	info, err := os.Lstat(path.Unix)
	if err != nil || info.Mode() != fs.ModeSocket|0o666 {
		t.Fatalf("mode %v, %v; want a socket with 0666", info.Mode(), err)
	}
	// One that somebody listens on isn't.
	other, err := New(Config{Table: r.table, Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Prepare([]Service{svc("a", path)}); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a second listener: %v", err)
	}
	if r.says(path) != "a" {
		t.Error("the first listener is gone")
	}
	// Another process's socket in its place is not removed.
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(path.Unix, moved); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path.Unix)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.stop()
	if _, err := os.Lstat(path.Unix); err != nil {
		t.Errorf("the other's socket was removed: %v", err)
	}
}

func TestStopRemovesUnixSocketsAndRefuses(t *testing.T) {
	r := newTwo(t)
	one, path := free(t), Addr{Unix: t.TempDir() + "/a.sock"}
	r.apply(svc("a", one, path))
	c, err := net.Dial("tcp", one.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	read(t, c, "a")
	before := openFiles(t)
	r.cancel()
	await(t, "the drain to begin", func() bool {
		draining := make(chan bool, 1)
		r.p.workers[0].loop.Post(func() { draining <- r.p.workers[0].draining })
		return <-draining
	})
	io.WriteString(c, "last words") // a running connection has its time (6.2)
	read(t, c, "last words")
	c.Close()
	r.stop()
	if r.says(one) != "" {
		t.Error("still listening")
	}
	if _, err := os.Lstat(path.Unix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
	if _, err := r.p.Prepare(nil); err == nil {
		t.Error("prepared after the end")
	}
	if after := openFiles(t); after >= before {
		t.Errorf("%d descriptors before, %d after the end", before, after)
	}
	if s := r.p.Stats(); s.Missing != 0 || len(s.Services) != 1 || s.Services[0].calls("tcp", "ok") != 1 {
		t.Errorf("stats after the end: %+v", s)
	}
}

func TestConnectionsSpreadOverLoops(t *testing.T) {
	r := newTwo(t)
	one := free(t)
	r.apply(svc("a", one))
	for range 20 {
		c, err := net.Dial("tcp", one.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		read(t, c, "a")
	}
	for _, w := range r.p.workers {
		if n := w.load.Load(); n != 10 {
			t.Errorf("loop %d has %d of 20 connections", w.index, n)
		}
	}
	s := r.p.Stats()
	if len(s.Loops) != 2 || s.Clients != 20 || s.Services[0].Active["tcp"] != 20 {
		t.Errorf("stats %+v", s)
	}
}

func TestTooManyClientsAreRefused(t *testing.T) {
	r := newTwo(t)
	one := free(t)
	r.apply(svc("a", one))
	r.p.clients.Store(int64(DefaultLimits().Connections))
	if got := r.says(one); got == "a" {
		t.Error("served over the limit")
	}
	if n := r.p.refused.Load(); n != 1 {
		t.Errorf("%d refused", n)
	}
	r.p.clients.Store(0)
	if got := r.says(one); got != "a" {
		t.Errorf("%q below the limit", got)
	}
}

func TestHostWithoutIPv6(t *testing.T) {
	v4, v6 := Addr{TCP: netip.MustParseAddrPort("127.0.0.1:80")}, Addr{TCP: netip.MustParseAddrPort("[::1]:80")}
	for _, c := range []struct {
		name string
		err  error
		at   Addr
		all  []Addr
		want bool
	}{
		{"bare port", unix.EADDRNOTAVAIL, v6, []Addr{v4, v6}, true},
		{"no such family", unix.EAFNOSUPPORT, v6, []Addr{v4, v6}, true},
		{"only IPv6 was asked for", unix.EADDRNOTAVAIL, v6, []Addr{v6}, false},
		{"taken", unix.EADDRINUSE, v6, []Addr{v4, v6}, false},
		{"IPv4", unix.EADDRNOTAVAIL, v4, []Addr{v4, v6}, false},
		{"another port", unix.EADDRNOTAVAIL, v6, []Addr{{TCP: netip.MustParseAddrPort("127.0.0.1:81")}, v6}, false},
	} {
		if got := withoutIPv6(c.err, c.at, c.all); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func applyList(t *testing.T, to *table.Table, name string, addrs ...string) {
	t.Helper()
	l := &service.List{Service: name, Source: service.FromStatic}
	for _, a := range addrs {
		l.Backends = append(l.Backends, &service.Backend{Addr: netip.MustParseAddrPort(a), Weight: 100})
	}
	to.Apply(time.Now(), l)
}

// held keeps the accepting loop from looking at anything until release is called.
func (r *two) held() (release func()) {
	r.Helper()
	looks, block := make(chan struct{}), make(chan struct{})
	if !r.p.workers[0].loop.Post(func() { close(looks); <-block }) {
		r.Fatal("the loop has ended")
	}
	<-looks
	return sync.OnceFunc(func() { close(block) })
}

// One reload takes an address away, the next one wants it again: it waits for the loop to have closed it.
func TestAddressRemovedAndWantedAgain(t *testing.T) {
	r := newTwo(t)
	one, path := free(t), Addr{Unix: t.TempDir() + "/a.sock"}
	for range 5 {
		r.apply(svc("a", one, path))
		release := r.held()
		r.apply() // the loop hears of it later
		time.AfterFunc(20*time.Millisecond, release)
		r.apply(svc("b", one, path))
		if r.says(one) != "b" || r.says(path) != "b" {
			t.Fatal("not served again")
		}
	}
}

// Who has taken an address away finds nobody there afterwards, however late the loop looks.
func TestAwaitClosed(t *testing.T) {
	r := newTwo(t)
	one := free(t)
	for range 5 {
		r.apply(svc("a", one))
		release := r.held()
		r.apply()
		time.AfterFunc(20*time.Millisecond, release)
		if r.p.AwaitClosed(); r.says(one) != "" {
			t.Fatal("somebody still listens")
		}
	}
}

// freeEverywhere is a port that nobody uses on any address, and that no outgoing connection is given.
func freeEverywhere(t *testing.T) uint16 {
	t.Helper()
	for range 1000 {
		port := 20_000 + rand.N(uint16(12_000))
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) // both families
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// One address of the host becomes all of them in one reload, and back: what runs until then is served until then, also if nothing comes of it (6.1).
func TestAddressWidensAndNarrows(t *testing.T) {
	for name, wide := range map[string]netip.Addr{"127.0.0.1": netip.IPv4Unspecified(), "::1": netip.IPv6Unspecified()} {
		r := newTwo(t)
		port := freeEverywhere(t)
		narrow := Addr{TCP: netip.AddrPortFrom(netip.MustParseAddr(name), port)}
		all := Addr{TCP: netip.AddrPortFrom(wide, port)}
		r.apply(svc("a", narrow))
		serves := func(want string) {
			t.Helper()
			if got := r.says(narrow); got != want {
				t.Errorf("%s: %q serves, want %q", name, got, want)
			}
		}
		for _, step := range []struct {
			before, after string
			listen        Addr
		}{{"a", "b", all}, {"b", "a", narrow}} {
			c, err := r.p.Prepare([]Service{svc(step.after, step.listen)})
			if err != nil {
				t.Fatal(err)
			}
			serves(step.before)
			c.Abort()
			serves(step.before)
			if c, err = r.p.Prepare([]Service{svc(step.after, step.listen)}); err != nil {
				t.Fatal(err)
			}
			serves(step.before)
			c.Commit()
			await(t, "the swap", func() bool { return r.says(narrow) == step.after })
			if v, err := unix.GetsockoptInt(r.p.bindings[step.listen].fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || v != 0 {
				t.Errorf("SO_REUSEPORT is left at %d, %v", v, err)
			}
		}
		// Both at once is what the kernel doesn't give.
		if c, err := r.p.Prepare([]Service{svc("a", narrow), svc("b", all)}); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s and %s together: %v", narrow, all, err)
			c.Abort()
		}
		serves("a")
	}
}

// Who has connected before the listener went is served.
func TestWaitingClientIsServedWhenItsListenerGoes(t *testing.T) {
	r := newTwo(t)
	one := free(t)
	r.apply(svc("a", one))
	release := r.held()
	defer release()
	c, err := net.Dial("tcp", one.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	// The loop doesn't hear of the client before it hears of the removal.
	r.apply(svc("a"))
	release()
	read(t, c, "a")
	await(t, "refusal", func() bool { return r.says(one) == "" })
}

// A service whose listener went is still the same one to the clients that it has: options of a later reload hold for them.
func TestOptionsReachClientsWithoutListener(t *testing.T) {
	r := newTwo(t)
	one := free(t)
	r.apply(svc("a", one))
	c, err := net.Dial("tcp", one.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	read(t, c, "a")
	before := r.p.routes["a"]
	r.apply(svc("a"))
	changed := svc("a")
	changed.Drain = 10 * time.Millisecond
	r.apply(changed)
	if rt := r.p.routes["a"]; rt != before || rt.options().drain != 10*time.Millisecond {
		t.Errorf("another route, or drain %v", rt.options().drain)
	}
}
