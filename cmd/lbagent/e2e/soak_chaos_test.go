package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// soakDrain is drain: in the soak's configuration: short enough that some calls on removed backends are cut.
const soakDrain = 2 * time.Second

// mishap is what happened to a backend.
type mishap uint8

const (
	killed  mishap = iota // SIGKILL; refuses connections until it is started again
	hung                  // SIGSTOP, until SIGCONT
	ended                 // SIGTERM: GOAWAY, no new connections, the calls that run go on
	removed               // not in the list, or draining there
)

func (m mishap) String() string { return [...]string{"killed", "hung", "ended", "removed"}[m] }

// incident is one mishap: [from, to], and back when the backend was well again.
type incident struct {
	what           mishap
	service        string
	backend        string
	from, to, back time.Time
}

func (i incident) String() string {
	clock := func(t time.Time) string { return t.Format("15:04:05.000") }
	return fmt.Sprintf("%s %s %s, over %s, well again %s", clock(i.from), i.backend, i.what, clock(i.to), clock(i.back))
}

// soakBackend is a backend in a process of its own.
type soakBackend struct {
	name, kind, addr, notes string
	cmd                     *exec.Cmd
	gone                    chan struct{} // closed when the process has ended
	listed, draining        bool
}

func (b *soakBackend) start() error {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), raceOptions, "GOMAXPROCS=1", soakAs+"="+strings.Join([]string{b.kind, b.name, b.addr, b.notes}, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("%s says %q, %v", b.name, line, err)
	}
	b.cmd, b.gone = cmd, make(chan struct{})
	go func(gone chan struct{}) {
		_ = cmd.Wait() // signalled, as a rule
		close(gone)
	}(b.gone)
	return nil
}

func (b *soakBackend) signal(sig syscall.Signal) { _ = b.cmd.Process.Signal(sig) }

func (b *soakBackend) kill() {
	if b.cmd != nil {
		b.signal(syscall.SIGKILL)
		<-b.gone
	}
}

// chaos does to backends what happens to them in production.
type chaos struct {
	t        *testing.T
	a        *agent
	etcd     *clientv3.Client
	services map[string][]*soakBackend
	stop     chan struct{}
	running  sync.WaitGroup

	mu sync.Mutex

	incidents []incident
	reloads   int
}

func newChaos(t *testing.T, a *agent) *chaos {
	c := &chaos{t: t, a: a, etcd: etcdClient(t, etcd.Endpoints()...), services: map[string][]*soakBackend{}, stop: make(chan struct{})}
	for _, kind := range []string{"grpc", "web", "tcp"} {
		for i := range 4 {
			b := &soakBackend{name: fmt.Sprintf("%s%d", kind, i), kind: kind, addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), listed: true}
			b.notes = filepath.Join(a.dir, b.name+".notes")
			if err := b.start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(b.kill)
			c.services[kind] = append(c.services[kind], b)
		}
	}
	return c
}

func (c *chaos) start() {
	for service := range c.services {
		c.running.Go(func() { c.torment(service) })
	}
	c.running.Go(func() {
		for c.pause(3*time.Second, 9*time.Second) {
			c.reload() // of a file that says the same
		}
	})
}

// end stops it; every backend is well and listed then.
func (c *chaos) end() {
	close(c.stop)
	c.running.Wait()
}

// pause waits for a time between min and max; false when it is over.
func (c *chaos) pause(least, most time.Duration) bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(least + rand.N(most-least)):
		return true
	}
}

// torment goes on with one mishap after the other, in a new order each time; between two all backends of the service are well.
func (c *chaos) torment(service string) {
	all := c.services[service]
	mishaps := []func(victims []*soakBackend){
		func(v []*soakBackend) { c.kill(v[:1], 0) },
		func(v []*soakBackend) { c.kill(v[:1], 3*time.Second) },
		func(v []*soakBackend) { c.kill(v[:3], 2*time.Second) }, // all but one
		func(v []*soakBackend) { c.hang(v[:1], 2*time.Second, false) },
		func(v []*soakBackend) { c.hang(v[:1], 7*time.Second, false) },
		func(v []*soakBackend) { c.hang(v[:2], 3*time.Second, true) },
		func(v []*soakBackend) { c.finish(v[0]) },
		func(v []*soakBackend) { c.remove(v[0], 500*time.Millisecond) }, // back before its drain is over
		func(v []*soakBackend) { c.remove(v[0], 4*time.Second) },
		func(v []*soakBackend) { c.drain(v[0], 4*time.Second) },
	}
	for c.pause(time.Second, 2*time.Second) {
		for _, i := range rand.Perm(len(mishaps)) {
			victims := make([]*soakBackend, 0, len(all))
			for _, k := range rand.Perm(len(all)) {
				victims = append(victims, all[k])
			}
			mishaps[i](victims)
			if !c.pause(500*time.Millisecond, 3*time.Second) {
				return
			}
		}
	}
}

// note keeps an incident.
func (c *chaos) note(b *soakBackend, what mishap, from, to time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.incidents = append(c.incidents, incident{what, b.kind, b.name, from, to, time.Now()})
}

// kill ends processes at once, and starts them again after up to most.
func (c *chaos) kill(victims []*soakBackend, most time.Duration) {
	from := time.Now()
	for _, b := range victims {
		b.kill()
	}
	to := time.Now()
	if most > 0 {
		c.pause(most/4, most)
	}
	for _, b := range victims {
		c.must(b.start())
		c.note(b, killed, from, to)
	}
}

// hang stops processes; they go on after up to most, or are killed.
func (c *chaos) hang(victims []*soakBackend, most time.Duration, kill bool) {
	from := time.Now()
	for _, b := range victims {
		b.signal(syscall.SIGSTOP)
	}
	c.pause(most/2, most)
	if kill {
		c.kill(victims, most)
	}
	to := time.Now()
	for _, b := range victims {
		b.signal(syscall.SIGCONT)
		c.note(b, hung, from, to)
	}
}

// finish lets a process end in good order.
func (c *chaos) finish(b *soakBackend) {
	from := time.Now()
	b.signal(syscall.SIGTERM)
	<-b.gone
	to := time.Now()
	c.pause(100*time.Millisecond, time.Second)
	c.must(b.start())
	c.note(b, ended, from, to)
}

// list puts a backend into its list, or takes it out.
func (c *chaos) list(b *soakBackend, listed bool) {
	c.mu.Lock() // reloads read it
	b.listed = listed
	c.mu.Unlock()
	c.publish(b)
}

// remove takes a backend out of the list for a time.
func (c *chaos) remove(b *soakBackend, d time.Duration) {
	from := time.Now()
	c.list(b, false)
	c.pause(d, d+time.Second)
	c.list(b, true)
	c.note(b, removed, from, time.Now())
}

// drain marks a backend as out of service; a static list knows no such mark.
func (c *chaos) drain(b *soakBackend, d time.Duration) {
	if b.kind != "grpc" {
		c.remove(b, d)
		return
	}
	from := time.Now()
	b.draining = true
	c.publish(b)
	c.pause(d, d+time.Second)
	b.draining = false
	c.publish(b)
	c.note(b, removed, from, time.Now())
}

// publish says by etcd or the configuration what b is now.
func (c *chaos) publish(b *soakBackend) {
	if b.kind != "grpc" {
		c.reload()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	key := namespace(c.t) + "services/grpc/" + b.addr
	if !b.listed {
		_, err := c.etcd.Delete(ctx, key)
		c.must(err)
		return
	}
	op := 0
	if b.draining {
		op = 1
	}
	_, err := c.etcd.Put(ctx, key, fmt.Sprintf(`{"Op":%d,"Addr":%q}`, op, b.addr))
	c.must(err)
}

// reload writes the configuration and has it read.
func (c *chaos) reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloads++
	c.a.services = c.config()
	c.a.writeConfig()
	if _, stderr, code := c.a.cli("reload"); code != 0 {
		c.t.Errorf("reload: %d %s", code, stderr)
	}
}

// config is the list under services:. The protocol of gRPC is said: a client whose first bytes come late, on a machine that is busy, would be relayed as TCP, since gRPC's server
// speaks first (4.9), and its calls would share the fate of one backend.
func (c *chaos) config() string {
	static := func(service string) string {
		var out []string
		for _, b := range c.services[service] {
			if b.listed {
				out = append(out, b.addr)
			}
		}
		return join(out)
	}
	common := fmt.Sprintf("drain: %s, timeout: {connect: 1s, idle: 3s}", soakDrain)
	return fmt.Sprintf(`
  - {name: grpc, prefix: services/grpc/, protocol: h2, listen: [%d], %s}
  - {name: web, backends: [%s], listen: [%d], %s}
  - {name: tcp, backends: [%s], listen: [%d], protocol: tcp, %s}
`, soakPorts(c.a)["grpc"], common, static("web"), soakPorts(c.a)["web"], common, static("tcp"), soakPorts(c.a)["tcp"], common)
}

func (c *chaos) must(err error) {
	if err != nil {
		c.t.Error(err)
	}
}

// all backends of all services.
func (c *chaos) all() (all []*soakBackend) {
	for _, bs := range c.services {
		all = append(all, bs...)
	}
	return all
}

// byAddr are the names of backends by their addresses.
func (c *chaos) byAddr() map[string]string {
	out := map[string]string{}
	for _, b := range c.all() {
		out[b.addr] = b.name
	}
	return out
}
