package agent

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/handoff"
	"github.com/lbagent/lbagent/agent/testneed"
)

// starter is what counts starts under a service manager, with what it told and logged.
func starter(t *testing.T, pause time.Duration) (p *pacer, told *[]string, log *bytes.Buffer) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	sockets, _, _, err := handoff.Inherit()
	if err != nil {
		t.Fatal(err)
	}
	told, log = new([]string), new(bytes.Buffer)
	return &pacer{
		sockets: sockets, pause: pause,
		tell: func(s string) { *told = append(*told, s) },
		log:  func() hclog.Logger { return hclog.New(&hclog.LoggerOptions{Output: log}) },
	}, told, log
}

// The fifth start in a minute is a crash loop's; it and those behind it wait, and say so (6.6).
func TestCrashLoopBegins(t *testing.T) {
	p, told, log := starter(t, time.Millisecond)
	for i, c := range []struct {
		at   time.Duration
		want int
	}{{0, 0}, {10 * time.Second, 0}, {20 * time.Second, 0}, {30 * time.Second, 0}, {59 * time.Second, 5}, {59*time.Second + 1, 6}, {120 * time.Second, 0}} {
		*told = nil
		log.Reset()
		if got := p.pace(t.Context(), time.Hour+c.at); got != c.want {
			t.Errorf("start %d: %d, want %d", i+1, got, c.want)
		}
		words := fmt.Sprintf("%d starts in the last minute", c.want)
		if c.want > 0 && (len(*told) != 1 || !strings.Contains((*told)[0], words) || !strings.Contains(log.String(), "[ERROR] a crash loop")) {
			t.Errorf("start %d: told %q, logged %q", i+1, *told, log)
		}
		if c.want == 0 && (len(*told) > 0 || log.Len() > 0) {
			t.Errorf("start %d: told %q, logged %q", i+1, *told, log)
		}
	}
}

// Whoever stops the agent doesn't wait for the pause.
func TestCrashLoopStops(t *testing.T) {
	p, _, _ := starter(t, time.Hour)
	for i := range loopStarts - 1 {
		p.pace(t.Context(), time.Hour+time.Duration(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	p.tell = func(string) { cancel() }
	p.pace(ctx, time.Hour+time.Minute-1)
	if ctx.Err() == nil {
		t.Error("it didn't wait")
	}
}

// A process that lives for a minute from when it is ready is no part of a crash loop, one that lives for less is.
func TestCrashLoopOutlived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for lives, want := range map[time.Duration]bool{loopOver - time.Second: false, loopOver + time.Second: true, time.Hour: true} {
			ctx, cancel := context.WithTimeout(t.Context(), lives)
			well, begun := time.Duration(0), time.Now()
			outlive(ctx, func() { well = time.Since(begun) })
			if (well == loopOver) != want || time.Since(begun) != lives {
				t.Errorf("%v: well after %v, over after %v", lives, well, time.Since(begun))
			}
			cancel()
		}
	})
}

// In a crash loop the service manager keeps no listener: the next process has none that callers could wait at. Once the loop is over, it keeps all of them, also those of a
// reload in between, and nothing speaks of the loop any more (6.6).
func TestCrashLoopKeepsNoListeners(t *testing.T) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	var mu sync.Mutex
	stored, status := 0, ""
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			for line := range strings.Lines(string(b[:n])) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				switch {
				case key == "STATUS":
					status = value
				case key == "FDNAME" && strings.HasPrefix(value, "l-") && strings.HasPrefix(string(b[:n]), "FDSTORE="):
					stored++
				case key == "FDNAME" && strings.HasPrefix(value, "l-"):
					stored--
				}
			}
			mu.Unlock()
		}
	}()
	kept := func(what string, want int, words bool) {
		t.Helper()
		await(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return stored == want && strings.Contains(status, "crash loop") == words
		})
	}
	one := backend(t, "one")
	listen := func(n int) string {
		return fmt.Sprintf("  - {name: a, listen: [\"127.0.0.1:%d\"], backends: [%q]}\n", n, one)
	}
	first, second := testneed.Port(t), testneed.Port(t)
	d := start(t, listen(first))
	kept("one listener is kept", 1, false)

	d.loop.Store(7)
	d.tell(d.notifier.Status(d.summary(nil)))
	d.write(listen(second))
	if _, err := d.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept("none is kept in a crash loop", 0, true)
	if got := d.status().GetWarnings(); !strings.Contains(strings.Join(got, "\n"), "crash loop (7 starts") {
		t.Errorf("warnings: %q", got)
	}
	want(t, "in the loop", get(second), "one")

	d.well()
	kept("one is kept again", 1, false)
	if got := d.status().GetWarnings(); len(got) > 0 {
		t.Errorf("warnings: %q", got)
	}
	d.well() // nothing more to say
	if events, _ := d.events.Since(0); strings.Count(fmt.Sprint(events), "the crash loop is over") != 1 {
		t.Errorf("it has to be over once: %+v", events)
	}
}

// await waits until ok holds.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	enough := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-enough:
			t.Fatalf("never: %s", what)
		}
	}
}
