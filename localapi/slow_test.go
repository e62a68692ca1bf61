package localapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// haltingConn is the connection of a client that stops to read while halt is locked.
type haltingConn struct {
	net.Conn

	halt *sync.RWMutex
}

func (c haltingConn) Read(b []byte) (int, error) {
	c.halt.RLock()
	c.halt.RUnlock() //nolint:staticcheck // it waits, that is all
	return c.Conn.Read(b)
}

// Readers that don't read hold up nobody, and see the last list once they do: the latest wins. What lies between, in bytes, is what the kernel takes for a socket (wmem_default), and of the
// agent's memory: what grpc writes ahead (64 KiB for a stream, and one message over that), for the JSON face the gateway's end of it (another window), and one message in the making.
// Without a bound it would be all of them: windows that grow by measured bandwidth are 16 MiB in the end.
func TestSlowWatch(t *testing.T) {
	r := newRig(t, nil)
	patient, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // this is much to do for a machine that has little time
	defer cancel()
	const changes, backends = 60, 300
	ids := make([]int, backends)
	for i := range ids {
		ids[i] = i + 1
	}
	r.set("user", ids...)

	// The gateway's connection has been busy: there was bandwidth to be measured.
	many := make([]int, 3000)
	for i := range many {
		many[i] = i
	}
	r.set("large", many...)
	busy := httpClient(t, r.cfg.Socket)
	busy.Timeout = 0
	for range 8 {
		answer, err := busy.Get("http://lbagent/v1/services/large/backends")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status, err)
		}
		answer.Body.Close()
	}

	var halt sync.RWMutex
	greedy := dial(t, r.cfg.Socket, grpc.WithInitialWindowSize(1<<30), grpc.WithInitialConnWindowSize(1<<30),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", r.cfg.Socket)
			return haltingConn{c, &halt}, err
		}))
	slow, err := lbagentv1.NewLookupServiceClient(greedy).Watch(patient, &lbagentv1.WatchRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := slow.Recv()
	if err != nil {
		t.Fatal(err)
	}
	halt.Lock()
	c, lines := raw(t, r.cfg.Socket)
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "GET /v1/services/user/watch HTTP/1.1\r\nHost: x\r\n\r\n")
	lookup := r.lookup()
	for i := range changes {
		r.set("user", ids[i%2:]...)
		if _, err := lookup.Pick(patient, &lbagentv1.PickRequest{Service: "user"}); err != nil { // meanwhile the watches have their turn
			t.Fatal(err)
		}
	}
	r.set("user", 77)
	halt.Unlock()

	kept := 0
	for {
		l, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Backends) == 1 && l.Backends[0].Address == addr(77).String() {
			break
		}
		kept++
	}
	keptJSON, sizeJSON := 0, 0
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(line, `"address"`) == 1 {
			break
		}
		if strings.HasPrefix(line, "{") {
			keptJSON++
			sizeJSON = len(line)
		}
	}
	const ahead, buffered, single = 64 << 10, 32 << 10, 5 // single: in the making, over the quota, being written, being read, and over what the kernel takes
	size, kernel := proto.Size(first), kernelTakes(t)
	most := (kernel+ahead+2*buffered)/size + single
	mostJSON := kernel/max(1, sizeJSON) + (ahead+streamWindow)/size + single
	t.Logf("of %d lists %d were kept, at most %d; as JSON %d, at most %d", changes, kept, most, keptJSON, mostJSON)
	if kept > most || keptJSON > mostJSON {
		t.Errorf("of %d lists that nobody read %d were kept, want at most %d; as JSON %d, want at most %d", changes, kept, most, keptJSON, mostJSON)
	}
}

// kernelTakes is how many bytes lie in a unix socket that nobody reads.
func kernelTakes(t *testing.T) int {
	b, err := os.ReadFile("/proc/sys/net/core/wmem_default")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Whoever does not send the body of a request is cut off, also where the answer may take for ever: a holder is one who has said what it holds.
func TestSlowHold(t *testing.T) {
	change := func(c *Config) { c.Limits.Body = 50 * time.Millisecond }
	r, at := newTCPRig(t, change)
	for network, addr := range map[string]string{"unix": r.cfg.Socket, "tcp": at} {
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		if _, err := io.WriteString(c, "POST /v1/registrations/hold HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: who sends no body is still there after 30 s: %v", network, err)
		}
	}
}
