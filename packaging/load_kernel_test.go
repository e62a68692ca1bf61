package packaging

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lost is what the kernel dropped of the connections in a network, by its own counters. On loopback that is never noise, however busy the machine is: a SYN has its answer before connect
// returns, unless a backlog is full, and is sent again after 1, 3, 7 s then. So this says what a wait of a second only suggests. (That a SYN was sent again says nothing: it is, and
// at once, where its port is one that a connection of a process that was killed had, too.)
type lost map[string]uint64

// lostCounters are those of /proc/net/netstat.
func lostCounters() []string {
	return []string{"ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPReqQFullDoCookies", "SyncookiesSent"}
}

// lostSoFar reads them in the network of this process.
func lostSoFar() (lost, error) {
	text, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return nil, err
	}
	return parseLost(string(text))
}

func parseLost(text string) (lost, error) {
	var names []string
	out := lost{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0 || fields[0] != "TcpExt:":
		case names == nil:
			names = fields
		default:
			for _, counter := range lostCounters() {
				i := slices.Index(names, counter)
				if i < 0 || i >= len(fields) {
					return nil, fmt.Errorf("/proc/net/netstat has no %s", counter)
				}
				n, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					return nil, fmt.Errorf("/proc/net/netstat: %s: %w", counter, err)
				}
				out[counter] = n
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("/proc/net/netstat has no TcpExt")
}

// since is what came after before, without what is 0.
func (l lost) since(before lost) lost {
	out := lost{}
	for name, n := range l {
		if n > before[name] {
			out[name] = n - before[name]
		}
	}
	return out
}

// faults are complaints about it.
func (l lost) faults() (complaints []string) {
	for _, name := range slices.Sorted(maps.Keys(l)) {
		complaints = append(complaints, fmt.Sprintf("the kernel counts %s: %d", name, l[name]))
	}
	return complaints
}

// starved is for how long threads of the agent's process wanted a CPU and had none, in sum, since it began: what is a long wait there was one of the machine, not of the agent.
func (a *around) starved(t *testing.T) time.Duration {
	t.Helper()
	var sum time.Duration
	out, _ := a.m.try("cat /proc/$(systemctl show -P MainPID lbagent)/task/*/schedstat 2>/dev/null") // on a CPU, waiting for one, how often; in ns
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) == 3 {
			ns, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += time.Duration(ns)
		}
	}
	return sum
}

// TestLost: a backlog that is full is counted.
func TestLost(t *testing.T) {
	before, err := lostSoFar()
	if err != nil {
		t.Fatal(err)
	}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	l := socket()
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 1)); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if err := unix.Connect(socket(), addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
	}
	if now, err := lostSoFar(); err != nil || len(now.since(before).faults()) == 0 {
		t.Errorf("%v, %v, and before %v", now, err, before)
	}
}

func TestParseLost(t *testing.T) {
	now, err := lostSoFar()
	if err != nil || len(now) != len(lostCounters()) {
		t.Fatal(now, err)
	}
	const head = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPReqQFullDoCookies TCPReqQFullDrop TCPSynRetrans\n"
	got, err := parseLost("IpExt: A\nIpExt: 1\n" + head + "TcpExt: 0 7 8 0 0 9\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := got.since(lost{"ListenOverflows": 5, "ListenDrops": 8}); !maps.Equal(diff, lost{"ListenOverflows": 2}) || len(diff.faults()) != 1 {
		t.Error(diff)
	}
	for _, text := range []string{"", head, head + "TcpExt: 0 7\n", head + "TcpExt: x x x x x x\n", "TcpExt: A\nTcpExt: 1\n"} {
		if got, err := parseLost(text); err == nil {
			t.Errorf("%q: %v, no error", text, got)
		}
	}
}
