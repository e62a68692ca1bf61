package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const h2loadOutput = `starting benchmark...
finished in 2.00s, 24747.50 req/s, 1.23MB/s
requests: 49495 total, 49505 started, 49495 done, 49493 succeeded, 1 failed, 1 errored, 0 timeout
status codes: 49495 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.46MB (2580000) total, 1.0MB (1048576) headers (space savings 50.00%), 1.51MB (1583840) data
                     min         max         mean         sd        +/- sd
time for request:       65us      4.41ms       349us       121us    87.33%
`

func TestParseH2load(t *testing.T) {
	got, err := parseH2load(h2loadOutput)
	if err != nil {
		t.Fatal(err)
	}
	if want := (loaded{requests: 49493, failed: 2, rate: 24747.5, mean: 349 * time.Microsecond}); got != want {
		t.Errorf("parsed %+v, want %+v", got, want)
	}
	if _, err := parseH2load("finished in a hurry"); err == nil {
		t.Error("an unknown form was taken")
	}
}

func TestParseLoad(t *testing.T) {
	if l, err := parseLoad("4x32"); err != nil || l != (load{4, 32}) {
		t.Errorf("4x32 = %v, %v", l, err)
	}
	for _, bad := range []string{"", "4", "4x", "x4", "0x1", "1x0", "1x251", "1001x1", "4x32x1"} {
		if _, err := parseLoad(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// The answers of both protocols are understood wherever the pieces that they come in are cut.
func TestWiresReadAnyPieces(t *testing.T) {
	body := bytes.Repeat([]byte{'x'}, smallBytes)
	ok := append([]byte("HTTP/1.1 200 OK\r\ncontent-LENGTH: 32\r\n\r\n"), body...)
	http1 := slices.Concat(ok, []byte("HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n"), ok, []byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"))
	h2 := slices.Concat(
		frame(frameSettings, 0, 0, []byte{0, settingMaxStreams, 0, 0, 0, 7}),
		frame(framePing, 0, 0, make([]byte, 8)),
		frame(frameHeaders, flagEndHeaders, 1, []byte{0x3f, 0xe1, 0x1f, 0x88}), // a change of the table's size, then 200
		frame(frameHeaders, flagEndHeaders|flagEndStream, 3, []byte{0x8d}),     // 404
		frame(frameData, flagEndStream, 1, body),
		frame(frameReset, 0, 5, make([]byte, 4)),
		frame(frameHeaders, flagEndHeaders, 7, []byte{0x8e}), // 500
		frame(frameData, flagEndStream, 7, nil),
	)
	for _, c := range []struct {
		name  string
		make  func(string) wire
		bytes []byte
		want  string
	}{
		{"http1", newHTTP1Wire, http1, "[0 true][1 false][2 true][3 false]"},
		{"h2", newH2Wire, h2, "[1 false][0 true][2 false][3 false]"},
	} {
		for piece := 1; piece <= len(c.bytes); piece++ {
			w, got, replies, have := c.make("127.0.0.1:1"), "", 0, []byte(nil)
			for part := range slices.Chunk(c.bytes, piece) {
				have = append(have, part...)
				for {
					used, err := w.read(have, func(n int, good bool) { got += fmt.Sprintf("[%d %v]", n, good) }, func([]byte) { replies++ })
					if err != nil {
						t.Fatal(err)
					}
					if have = have[used:]; used == 0 {
						break
					}
				}
			}
			if got != c.want {
				t.Fatalf("%s in pieces of %d: %s, want %s", c.name, piece, got, c.want)
			}
			if c.name == "h2" && (replies != 2 || w.limit() != 7) {
				t.Fatalf("%d replies, %d streams", replies, w.limit())
			}
		}
	}
	if _, err := newH2Wire("127.0.0.1:1").read(frame(frameGoAway, 0, 0, make([]byte, 8)), nil, nil); err == nil {
		t.Error("GOAWAY was ignored")
	}
}

// listen serves each connection by serve until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	addr, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = serveEach(context.Background(), []string{addr}, serve) }() // until the process ends, as in its own process
	for end := time.Now().Add(10 * time.Second); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(end) {
			t.Fatal("nobody listens")
		}
	}
}

// An open loop counts every request once, and a latency from when the request was due: a server that stalls shows in all that came during the stall.
func TestOpenLoop(t *testing.T) {
	addr := listen(t, answerHTTP1)
	const perSecond, seconds = 500, 0.4
	seen, err := runOpenLoop(t.Context(), newHTTP1Wire, addr, 8, perSecond, time.Duration(seconds*float64(time.Second)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := perSecond * seconds; seen.failed > 0 || float64(seen.requests) < want*0.6 || float64(seen.requests) > want*1.4 || len(seen.took) != seen.requests {
		t.Errorf("%d answered, %d failed; want about %v", seen.requests, seen.failed, want)
	}
	if !slices.IsSorted(seen.took) || seen.took[0] <= 0 || seen.elapsed < 300*time.Millisecond {
		t.Errorf("latencies from %v to %v in %v", seen.took[0], seen.took[len(seen.took)-1], seen.elapsed)
	}
}

func TestOpenLoopCountsWhatIsNotAnswered(t *testing.T) {
	answers := 0
	addr := listen(t, func(c net.Conn) {
		buf := make([]byte, 4096)
		for n, _ := c.Read(buf); n > 0; n, _ = c.Read(buf) {
			if answers++; answers == 1 { // the one that openOne waits for
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", smallBytes, bytes.Repeat([]byte{'x'}, smallBytes))
			} else {
				return // closes
			}
		}
	})
	seen, err := runOpenLoop(t.Context(), newHTTP1Wire, addr, 1, 1000, time.Second, nil)
	if err == nil || seen.requests != 0 || seen.failed != 1 {
		t.Errorf("%d answered, %d failed, %v; want one failed and the loss of every connection", seen.requests, seen.failed, err)
	}
}

// The server for HTTP/1.1 reads what is in the way of the next request, and answers each.
func TestAnswerHTTP1(t *testing.T) {
	conn, err := net.Dial("tcp", listen(t, answerHTTP1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 300<<10) // more than its buffer
	text := slices.Concat(
		fmt.Appendf(nil, "POST /body HTTP/1.1\r\ncontent-length: %d\r\n\r\n", len(body)), body,
		[]byte("GET /large HTTP/1.1\r\nHost: x\r\n\r\nGET /body HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte("POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"))
	go func() { _, _ = conn.Write(text) }()
	var got bytes.Buffer
	if _, err := got.ReadFrom(conn); err != nil {
		t.Fatal(err)
	}
	head := func(n int) int { return len(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n)) + n }
	last := "HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	if want := 2*head(smallBytes) + head(largeBytes) + len(last); got.Len() != want || !bytes.HasSuffix(got.Bytes(), []byte(last)) {
		t.Errorf("%d bytes, want %d", got.Len(), want)
	}
}

// The CPU clock of a process is what getrusage(2) says of it.
func TestCPUOf(t *testing.T) {
	times := func() (user, system time.Duration) {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano()), time.Duration(u.Stime.Nano())
	}
	used := func() time.Duration {
		user, system := times()
		return user + system
	}
	// Enough of both kinds that one of them alone would be seen to lack.
	for user, system := times(); user < 150*time.Millisecond || system < 150*time.Millisecond; user, system = times() {
	}
	low := used()
	got, err := cpuOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// The kernel scales what getrusage says to its own ticks, so that they may differ by some of these.
	const ticks = 50 * time.Millisecond
	if high := used(); got < low-ticks || got > high+ticks {
		t.Errorf("%v of CPU time, getrusage says %v to %v", got, low, high)
	}
	if _, err := cpuOf(1 << 27); err == nil {
		t.Error("a process that isn't there has a CPU clock")
	}
	if d, err := (*process)(nil).cpu(); d != 0 || err != nil {
		t.Errorf("no process used %v, %v", d, err)
	}
}
