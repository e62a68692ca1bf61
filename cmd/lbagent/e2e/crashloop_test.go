package e2e

import (
	wire "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// records counts what the manager keeps that is no listener.
func (m *manager) records() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.store {
		if k.name == "starts" {
			n++
		}
	}
	return n
}

// In a crash loop nobody hangs: between two starts ports and sockets refuse, the API lets its callers go at once, starts go on, and systemctl status says so. An end that
// somebody wants ends the loop (6.6).
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	web, _ := httpBackend(t, "b0")
	tcp := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a := newAgent(t, "")
	path := filepath.Join(a.dir, "web.sock")
	a.services = fmt.Sprintf("- {name: web, protocol: http1, backends: [%q], listen: [%q, \"unix:%s\"]}", web, tcp, path)
	a.writeConfig()
	m := a.under(t)
	a.start()
	kept := func() {
		poll(t, "the listeners are kept", func() bool { return m.listeners() == 3 && m.records() == 1 })
	}
	kept()
	for range 3 { // with the first, four starts
		a.signal(syscall.SIGKILL)
		a.wait(-1)
		waits := ask(t, "no loop yet", "tcp", tcp, "/")
		a.start()
		waits.wantOK(t)
		kept()
	}
	a.signal(syscall.SIGKILL)
	a.wait(-1)
	waits := ask(t, "who came before it was a loop", "tcp", tcp, "/")
	begun := time.Now()
	a.launch()
	poll(t, "the manager is told", func() bool { return strings.Contains(m.says(), "a crash loop: 5 starts") })
	if _, err := io.ReadAll(waits.conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v", waits.what, err)
	}
	stored := m.listeners()
	turnedAway := func() (wrong []string) {
		if !refused(tcp) {
			wrong = append(wrong, "the port doesn't refuse")
		}
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			wrong = append(wrong, "the socket doesn't refuse")
		}
		return wrong
	}
	wrong := turnedAway()
	if looked := time.Since(begun); looked >= 5*time.Second {
		t.Logf("this machine took %v to look: the start was over by then", looked)
	} else if len(wrong) > 0 || stored > 0 {
		t.Errorf("between two starts: %q; %d listeners are kept", wrong, stored)
	}
	for _, path := range []string{a.socket, a.admin} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("%s belongs to the manager: %v", path, err)
			continue
		}
		if time.Since(begun) >= 5*time.Second { // nobody is to go any more
			c.Close()
			continue
		}
		_ = c.SetDeadline(begun.Add(patience))
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %d, %v", path, n, err)
		}
		c.Close()
	}
	poll(t, "the start", func() bool { code, _ := a.get("/readyz"); return code == 200 })
	if took := time.Since(begun); took < 5*time.Second {
		t.Errorf("it started after %v", took)
	}
	ask(t, "the port", "tcp", tcp, "/").wantOK(t)
	ask(t, "the unix socket", "unix", path, "/").wantOK(t)
	ask(t, "the API", "unix", a.socket, "/v1/services").wantOK(t)
	if stdout, _, code := a.cli("status"); code != 0 || !strings.Contains(stdout, "crash loop (5 starts in a minute") {
		t.Errorf("status: %d\n%s", code, stdout)
	}
	poll(t, "the manager is told that it was one", func() bool { return strings.Contains(m.says(), "crash loop (5 starts in a minute") })

	// One more crash: nobody waits for what comes next. Stopped, it ends at once.
	a.signal(syscall.SIGKILL)
	a.wait(-1)
	if wrong := turnedAway(); len(wrong) > 0 {
		t.Errorf("without an agent: %q", wrong)
	}
	a.launch()
	poll(t, "the manager is told", func() bool { return strings.Contains(m.says(), "a crash loop: 6 starts") })
	a.stop()

	// That was the end of the loop.
	a.start()
	kept()
	if strings.Contains(m.says(), "crash loop") {
		t.Errorf("the manager was told %q", m.says())
	}
}

// Whoever restarts the agent often, or upgrades it, makes no crash loop; and a stop in one keeps the listeners for the next process (6.2, 6.6).
func TestRestartsAreNoCrashLoop(t *testing.T) {
	t.Parallel()
	web, _ := httpBackend(t, "b0")
	tcp := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a := newAgent(t, fmt.Sprintf("- {name: web, protocol: http1, backends: [%q], listen: [%q]}", web, tcp))
	m := a.under(t)
	for range 6 {
		a.start()
		poll(t, "the listeners are kept", func() bool { return m.listeners() == 2 })
		a.stop()
	}
	if log := a.logTail(1 << 20); strings.Contains(log, "crash loop") {
		t.Errorf("restarts are a crash loop:\n%s", log)
	}

	m.forgeStarts(t, 10)
	a.start()
	poll(t, "the manager is told, and keeps no listener", func() bool { return strings.Contains(m.says(), "crash loop (11 starts") && m.listeners() == 0 })
	a.stop()
	m.awaitKept(t, a.http, tcp)
	waits := ask(t, "after a restart in a crash loop", "tcp", tcp, "/")
	a.start()
	waits.wantOK(t)
}

// forgeStarts writes starts of just now into the record.
func (m *manager) forgeStarts(t *testing.T, n int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.store, func(k kept) bool { return k.name == "starts" })
	if i < 0 {
		t.Fatal("there is no record of starts")
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	var record []byte
	for k := range n {
		record = wire.BigEndian.AppendUint64(record, uint64(ts.Nano()-int64(n-k)*int64(time.Second)))
	}
	if _, err := m.store[i].file.WriteAt(record, 0); err != nil {
		t.Fatal(err)
	}
}

// A crash before the list of a service is on disk: who calls the next process waits for etcd's, for 2 s at most, and doesn't hear that there is none (6.4).
func TestCrashBeforeTheSpool(t *testing.T) {
	t.Parallel()
	web, _ := httpBackend(t, "b0")
	putKey(t, etcdClient(t, etcd.Endpoints()...), namespace(t)+"services/web/a", fmt.Sprintf(`{"Addr":%q}`, web))
	tcp := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a := newAgent(t, fmt.Sprintf("- {name: web, protocol: http1, prefix: services/web/, listen: [%q]}", tcp), etcd.Endpoints()...)
	m := a.under(t)
	a.start()
	for range 3 {
		poll(t, "the listeners are kept", func() bool { return m.listeners() == 2 })
		begun := time.Now()
		a.signal(syscall.SIGKILL)
		a.wait(-1)
		if err := os.RemoveAll(filepath.Join(a.dir, "state", "lists")); err != nil {
			t.Fatal(err)
		}
		waiting := []asked{ask(t, "the port", "tcp", tcp, "/"), ask(t, "the API", "unix", a.socket, "/v1/services/web/pick")}
		a.start()
		if machine.undecided(begun, time.Now()) {
			continue // etcd may have taken longer than those 2 s
		}
		for _, q := range waiting {
			q.wantOK(t)
		}
	}
}
