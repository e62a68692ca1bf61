package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// nextVersion is another release of the program: the same code under another name of the same length.
const nextVersion = "v0.0.1-e2e"

// install puts the program at a.program as a package does: a new file in the place of the old one. text replaces the program itself if it isn't empty.
func (a *agent) install(version, text string) {
	a.t.Helper()
	if a.program == "" {
		a.program = filepath.Join(a.dir, "lbagent")
	}
	content := []byte(text)
	if text == "" {
		raw, err := os.ReadFile(binary)
		if err != nil {
			a.t.Fatal(err)
		}
		content = bytes.ReplaceAll(raw, []byte(testVersion), []byte(version))
	}
	if err := os.WriteFile(a.program+".new", content, 0o755); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(a.program+".new", a.program); err != nil {
		a.t.Fatal(err)
	}
}

// openLog is a pipe into a's log.
func (a *agent) openLog() *os.File {
	a.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		a.t.Fatal(err)
	}
	go func() {
		defer r.Close()
		_, _ = io.Copy(&lockedWriter{mu: &a.mu, w: &a.log}, r)
	}()
	return w
}

// upgrade has the installed program take the agent's place. It returns a channel that is closed when the old process has ended.
func (a *agent) upgrade() (old <-chan struct{}) {
	a.t.Helper()
	stdout, stderr, code := a.cli("upgrade")
	m := regexp.MustCompile(`pid (\d+)`).FindStringSubmatch(stdout)
	if code != 0 || m == nil {
		a.t.Fatalf("upgrade: %d %q %q", code, stdout, stderr)
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		a.t.Fatal(err)
	}
	// The old process's parent is the new one's: this one.
	process, err := os.FindProcess(pid)
	if err != nil {
		a.t.Fatal(err)
	}
	old = a.exited
	exited := make(chan struct{})
	a.cmd, a.exited = &exec.Cmd{Process: process}, exited
	go func() {
		if state, err := process.Wait(); err == nil {
			a.ended(state.ExitCode())
		}
		close(exited)
	}()
	return old
}

func (a *agent) wantVersion(version string) {
	a.t.Helper()
	st, err := a.status().Status(a.t.Context(), &lbagentv1.StatusRequest{})
	if err != nil || st.GetVersion() != version || int(st.GetPid()) != a.pid() || !st.GetReady() {
		a.t.Errorf("status: version %s, pid %d, ready %v, %v; want %s, pid %d", st.GetVersion(), st.GetPid(), st.GetReady(), err, version, a.pid())
	}
}

// From an old release to a new one and back, nobody notices: no call fails, a stream and a transfer that run go on to their end in the process that began them, watchers of the
// API are told to come again, and no second upgrade begins meanwhile (6.3).
func TestUpgrade(t *testing.T) {
	t.Parallel()
	bs := backends(t, 2, 0)
	bulk := newBulk(t)
	calls, bytesPort := freePort(t), freePort(t)
	a := newAgent(t, fmt.Sprintf("- {name: user, backends: [%s], listen: [%d]}\n- {name: bulk, protocol: tcp, backends: [%q], listen: [%d]}", join(addrs(bs)), calls, bulk, bytesPort))
	a.tcp = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a.writeConfig()
	a.install(testVersion, "")
	m := a.under(t, "WATCHDOG_USEC=600000000")
	a.start()
	stored := slices.Concat([]string{a.http, a.tcp}, loopbacks(calls), loopbacks(bytesPort))
	m.awaitKept(t, stored...)

	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", calls))
	stop := c.keepCalling(2)
	stopAsking := keepAsking(t, a.tcp)
	for i, to := range []string{nextVersion, testVersion} {
		stream, err := grpc.NewClientStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, c.conn, streamMethod)
		if err != nil {
			t.Fatal(err)
		}
		say := func(text string) {
			t.Helper()
			got := new(wrapperspb.BytesValue)
			if err := stream.SendMsg(wrapperspb.Bytes([]byte(text))); err != nil {
				t.Fatal(err)
			}
			if err := stream.RecvMsg(got); err != nil || string(got.GetValue()) != text {
				t.Fatalf("the stream: %q, %v", got.GetValue(), err)
			}
		}
		say("before")
		transfer := beginTransfer(t, bytesPort)
		watch, err := a.lookup().Watch(t.Context(), &lbagentv1.WatchRequest{Service: "user"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}

		a.install(to, "")
		before := a.pid()
		old := a.upgrade()
		if a.pid() == before {
			t.Fatal("the same process")
		}
		a.wantVersion(to)
		if m.mainPID() != a.pid() {
			t.Errorf("the service manager was told that the main process is %d, want %d", m.mainPID(), a.pid())
		}
		poll(t, "the next process feeds the watchdog at once, since the time that the old one began goes on", func() bool { return m.feeds() > 0 })
		if _, err := watch.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "upgraded, reconnect") {
			t.Errorf("a watch over the upgrade: %v", err)
		}
		if _, stderr, code := a.cli("upgrade"); code != 1 || !strings.Contains(stderr, "drain_timeout") {
			t.Errorf("an upgrade while the last one drains: %d %q", code, stderr)
		}
		say("after")
		transfer.end(t)
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != io.EOF {
			t.Errorf("the end of the stream: %v", err)
		}
		select {
		case <-old:
		case <-t.Context().Done():
		}
		if a.code != 0 {
			t.Errorf("upgrade %d: the old process ended with %d", i, a.code)
		}
		poll(t, "the next upgrade may come", func() bool { return !strings.Contains(a.upgradeRefusal(), "drain_timeout") })
	}
	stop()
	c.wantNoFailures()
	stopAsking()
	m.awaitKept(t, stored...)

	// What came out of an upgrade restarts like any other.
	a.install(testVersion, "")
	a.stop()
	q := ask(t, "without an agent", "tcp", fmt.Sprintf("127.0.0.1:%d", calls), "/")
	q.conn.Close()
	a.start()
	a.wantVersion(testVersion)
}

// keepAsking asks by api.listen, with a connection for each question, all of which have to be answered, until the func that it returns is called.
func keepAsking(t *testing.T, at string) (stop func()) {
	done := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
		for n := 0; ; n++ {
			select {
			case <-done:
				if n == 0 {
					t.Error("nothing was asked")
				}
				return
			default:
			}
			resp, err := client.Get("http://" + at + "/v1/services/user/pick")
			if err != nil {
				t.Errorf("question %d: %v", n, err)
				continue
			}
			if resp.Body.Close(); resp.StatusCode != http.StatusOK {
				t.Errorf("question %d: %s", n, resp.Status)
			}
		}
	})
	return func() { close(done); asking.Wait() }
}

// upgradeRefusal asks for an upgrade to a program that ends at once, and returns why it isn't made.
func (a *agent) upgradeRefusal() string {
	a.t.Helper()
	a.install("", "#!/bin/sh\nexit 3\n")
	_, stderr, code := a.cli("upgrade")
	if code != 1 {
		a.t.Errorf("upgrade to a program that ends: %d %q", code, stderr)
	}
	return stderr
}

// A new program that can't take over changes nothing: it ends, the old one goes on, says so, and can be upgraded later (6.3).
func TestUpgradeThatFails(t *testing.T) {
	t.Parallel()
	web, _ := httpBackend(t, "b0")
	port := freePort(t)
	a := newAgent(t, fmt.Sprintf("- {name: web, protocol: http1, backends: [%q], listen: [%d]}", web, port))
	a.install(testVersion, "")
	m := a.under(t)
	a.start()
	pid := a.pid()
	good, err := os.ReadFile(a.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, program, config, want string
	}{
		{"it crashes", "#!/bin/sh\nexit 3\n", "", "ended before it was ready"},
		{"it can't be started", "no program", "", a.program},
		{"it hangs", "#!/bin/sh\nexec sleep 60\n", "", "not ready in time"},
		{"its configuration is bad", "", "nonsense: 1\n", a.config + ":"},
	} {
		a.install(nextVersion, c.program)
		if err := os.WriteFile(a.config, append([]byte(c.config), good...), 0o644); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := a.cli("upgrade")
		if code != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: %d %q, want 1 and %q", c.name, code, stderr, c.want)
		}
		if a.wantVersion(testVersion); a.pid() != pid {
			t.Errorf("%s: another process", c.name)
		}
		if s := m.says(); !strings.Contains(s, "the upgrade failed") || !strings.Contains(s, c.want) {
			t.Errorf("%s: systemctl status says %q", c.name, s)
		}
		ask(t, c.name, "tcp", fmt.Sprintf("127.0.0.1:%d", port), "/").wantOK(t)
	}
	if err := os.WriteFile(a.config, good, 0o644); err != nil {
		t.Fatal(err)
	}
	old := a.upgrade()
	<-old
	a.wantVersion(nextVersion)
	ask(t, "after it has worked", "tcp", fmt.Sprintf("127.0.0.1:%d", port), "/").wantOK(t)
}

// newBulk is a server that sends a lot, and then, once it has been asked, the rest.
func newBulk(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if _, err := c.Write(bulkPart(0)); err != nil {
					return
				}
				if _, err := c.Read(make([]byte, 1)); err == nil {
					_, _ = c.Write(bulkPart(1))
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().String()
}

func bulkPart(n byte) []byte {
	b := make([]byte, 8<<20)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i*7) ^ n
	}
	return b
}

// transfer is a connection in the middle of its bytes.
type transfer struct {
	conn net.Conn
	sum  []byte
}

func beginTransfer(t *testing.T, port int) *transfer {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	x := &transfer{conn: conn}
	first := make([]byte, 1<<20)
	if _, err := io.ReadFull(conn, first); err != nil {
		t.Fatal(err)
	}
	x.sum = first
	return x
}

// end asks for the rest and compares all of it.
func (x *transfer) end(t *testing.T) {
	t.Helper()
	if _, err := x.conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(x.conn)
	x.conn.Close()
	want := sha256.Sum256(append(bulkPart(0), bulkPart(1)...))
	if got := sha256.Sum256(append(x.sum, rest...)); err != nil || got != want {
		t.Errorf("a transfer over the upgrade: %d bytes, other ones than were sent: %v, %v", len(x.sum)+len(rest), got != want, err)
	}
}
