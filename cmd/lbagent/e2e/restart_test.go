package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asked is a request on a connection of its own, whose answer is read later.
type asked struct {
	what string
	conn net.Conn
}

// ask connects and asks; neither may be refused.
func ask(t *testing.T, what, network, addr, path string) asked {
	t.Helper()
	conn, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return asked{what, conn}
}

func (q asked) wantOK(t *testing.T) {
	t.Helper()
	_ = q.conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(bufio.NewReader(q.conn), nil)
	if err != nil {
		t.Errorf("%s: %v", q.what, err)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s: status %d, %v", q.what, resp.StatusCode, err)
	}
}

func refused(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Over a restart, and over a crash, nobody is refused at any of the agent's sockets: who comes while there is no agent is served by the next one (6.2).
func TestRestartRefusesNobody(t *testing.T) {
	t.Parallel()
	web, _ := httpBackend(t, "b0")
	port := freePort(t)
	tcp := fmt.Sprintf("127.0.0.1:%d", port)
	a := newAgent(t, "")
	path := filepath.Join(a.dir, "web.sock")
	a.services = fmt.Sprintf("- {name: web, protocol: http1, backends: [%q], listen: [%q, \"unix:%s\"]}", web, tcp, path)
	a.tcp = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a.writeConfig()
	m := a.under(t)
	a.start()
	for _, end := range []func(){
		func() { a.stop() },
		func() { a.signal(syscall.SIGKILL); a.wait(-1) },
		func() { a.stop() },
	} {
		m.awaitKept(t, a.http, tcp, path, a.tcp)
		ask(t, "with an agent", "tcp", tcp, "/").wantOK(t)
		end()
		waiting := []asked{
			ask(t, "the service's port", "tcp", tcp, "/"),
			ask(t, "the service's unix socket", "unix", path, "/"),
			ask(t, "the page", "tcp", a.http, "/readyz"),
			ask(t, "the API", "unix", a.socket, "/v1/services"),
			ask(t, "the API by TCP", "tcp", a.tcp, "/v1/services"),
		}
		a.start()
		for _, q := range waiting[:2] {
			q.wantOK(t)
		}
		for _, q := range waiting[3:] {
			q.wantOK(t)
		}
		_ = waiting[2] // it may come before the agent is ready
	}
}

// What the configuration no longer names is refused after a restart and after a reload, and an address that takes the place of another one can be bound: stored sockets are
// in nobody's way.
func TestStoredListenersFollowTheConfiguration(t *testing.T) {
	t.Parallel()
	web, _ := httpBackend(t, "b0")
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	first, second, third := freePort(t), freePort(t), freePort(t)
	listen := func(ports ...int) string {
		return fmt.Sprintf("- {name: web, protocol: http1, backends: [%q], listen: %s}", web, strings.ReplaceAll(fmt.Sprint(ports), " ", ", "))
	}
	a := newAgent(t, listen(first, second, third))
	m := a.under(t)
	a.start()
	m.awaitKept(t, slices.Concat([]string{a.http}, loopbacks(first), loopbacks(second), loopbacks(third))...)
	a.stop()

	// The first port becomes one of all addresses, the third goes.
	a.extra = fmt.Sprintf("metrics: {listen: \"0.0.0.0:%d\"}\n", first)
	a.services = listen(second)
	a.writeConfig()
	a.start()
	ask(t, "the new address", "tcp", fmt.Sprintf("127.0.0.2:%d", first), "/healthz").wantOK(t)
	ask(t, "what it covers", "tcp", at(first), "/healthz").wantOK(t)
	m.awaitKept(t, append(loopbacks(second), a.http, fmt.Sprintf(":%d", first))...)
	if !refused(at(third)) {
		t.Error("a port that was removed before the restart is not refused")
	}

	// By reload.
	a.services = listen(third)
	a.writeConfig()
	if _, stderr, code := a.cli("reload"); code != 0 {
		t.Fatal(stderr)
	}
	ask(t, "a port that a reload brought", "tcp", at(third), "/").wantOK(t)
	if !refused(at(second)) {
		t.Error("a port that a reload took away is not refused")
	}
	m.awaitKept(t, append(loopbacks(third), a.http, fmt.Sprintf(":%d", first))...)
	a.stop()
	q := ask(t, "a port that a reload brought, without an agent", "tcp", at(third), "/")
	a.start()
	q.wantOK(t)
}

// The service manager's watchdog is fed, more often than it asks for.
func TestWatchdogIsFed(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "")
	m := a.under(t, "WATCHDOG_USEC=1000000")
	a.start()
	poll(t, "it is fed three times", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.fed >= 3
	})
}
