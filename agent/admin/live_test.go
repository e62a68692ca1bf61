package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// bubble runs a page beside a table with one service of three backends, in virtual time.
func bubble(t *testing.T, f func(t *testing.T, p *page, api *fakeAPI)) {
	synctest.Test(t, func(t *testing.T) {
		events := event.NewLog(1000)
		tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: events})
		if err != nil {
			t.Fatal(err)
		}
		put(tab, "user", 1, 2, 3)
		api := &fakeAPI{table: tab}
		p, err := newPage(&Config{Log: hclog.NewNullLogger(), Table: tab, Events: events, API: api, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			p.run(ctx)
			close(done)
		}()
		f(t, p, api)
		cancel()
		<-done
	})
}

func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// watch opens a page that has seen the events up to after.
func (p *page) watch(after uint64) *watcher {
	w := &watcher{after: after, out: make(chan []byte, maxBehind)}
	p.live.joins <- w
	synctest.Wait()
	return w
}

// got are the messages that w has waiting, as "kind data", without heartbeats; ended says that there will be no more.
func (w *watcher) got() (all []string, ended bool) {
	for {
		select {
		case m, ok := <-w.out:
			if !ok {
				return all, true
			}
			kind, data := parse(string(m))
			if kind != "beat" {
				all = append(all, kind+" "+data)
			}
		default:
			return all, false
		}
	}
}

func parse(m string) (kind, data string) {
	for line := range strings.Lines(m) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "event: "); ok {
			kind = rest
		}
		if rest, ok := strings.CutPrefix(line, "data: "); ok {
			data = rest
		}
	}
	return kind, data
}

func TestWatchersAreToldWhatChanges(t *testing.T) {
	bubble(t, func(t *testing.T, p *page, api *fakeAPI) {
		w := p.watch(0)
		first, _ := w.got()
		var all everything
		if len(first) != 2 || json.Unmarshal([]byte(strings.TrimPrefix(first[0], "all ")), &all) != nil || len(all.Services) != 1 || all.Services[0].Usable != 3 ||
			!strings.HasPrefix(first[1], `events [{"id":1,`) {
			t.Fatalf("first: %q", first)
		}
		advance(4 * time.Second)
		if got, _ := w.got(); len(got) != 0 {
			t.Errorf("nothing has changed, and yet: %q", got)
		}
		s := p.table.Lookup("user")
		before := time.Now()
		p.table.SetVerdicts(before, []health.Change{{Group: "user", Addr: addr(2), State: s.View().Find(addr(2)).State,
			From: health.Part{Kind: health.Up}, To: health.Part{Kind: health.Down, Cause: "probe failed 3 times", Since: before}}})
		advance(calmFor)
		got, _ := w.got()
		if len(got) != 2 || !strings.Contains(got[0]+got[1], `"kind":"verdict","service":"user","backend":"10.0.0.2:80"`) ||
			!strings.Contains(got[0]+got[1], `"words":"1 of 3 backends out: 1 down","backends":3,"usable":2`) {
			t.Errorf("a verdict moved: %q", got)
		}
		put(p.table, "mail", 9)
		p.table.Remove(time.Now(), "user")
		advance(lookEvery + calmFor)
		got, _ = w.got()
		if text := strings.Join(got, "\n"); !strings.Contains(text, `"services":[{"name":"mail"`) || !strings.Contains(text, `"gone":["user"]`) {
			t.Errorf("a service came, another went: %q", got)
		}
		api.set(&lbagentv1.StatusResponse{Version: "v1.2.3", Ready: true, ConfigOk: true, Warnings: []string{"etcd is not reachable"}}, nil)
		advance(lookEvery)
		if got, _ = w.got(); !strings.Contains(strings.Join(got, ""), `"problems":[{"level":"warn","text":"etcd is not reachable"}]`) {
			t.Errorf("etcd went: %q", got)
		}
		api.set(nil, errors.New("broken"))
		advance(5 * time.Second)
		if got, ended := w.got(); ended || strings.Contains(strings.Join(got, ""), "change") {
			t.Errorf("no overview could be made: %q", got)
		}
	})
}

// A page that comes back gets the events that it missed, and all of them from another life of the agent.
func TestEventsGoOnWhereAPageWas(t *testing.T) {
	bubble(t, func(t *testing.T, p *page, _ *fakeAPI) {
		for i := range 5 {
			p.events.Add(event.Event{Time: time.Now(), Kind: event.Agent, Detail: fmt.Sprint("no. ", i)})
		}
		last := p.events
		for _, tt := range []struct {
			id   string
			want int
		}{{"", 6}, {p.instance + "-4", 2}, {p.instance + "-6", 0}, {"another-4", 6}, {p.instance + "-x", 6}, {p.instance, 6}} {
			w := p.watch(p.lastEvent(tt.id))
			first, _ := w.got()
			var got []told
			if err := json.Unmarshal([]byte(strings.TrimPrefix(first[1], "events ")), &got); err != nil || len(got) != tt.want {
				t.Errorf("after %q: %d events, want %d (%v)", tt.id, len(got), tt.want, err)
			}
			p.live.leaves <- w
		}
		w := p.watch(0)
		w.got()
		last.Add(event.Event{Time: time.Now(), Kind: event.Agent, Detail: "one more"})
		synctest.Wait()
		if m := string(<-w.out); !strings.Contains(m, "id: "+p.instance+"-7\n") || !strings.Contains(m, "one more") {
			t.Errorf("an event: %q", m)
		}
	})
}

// A service that is refused makes connections by the hundred: they push no verdict out of the page.
func TestConnectionsAreNoNewsOfThePage(t *testing.T) {
	bubble(t, func(t *testing.T, p *page, _ *fakeAPI) {
		p.events.Add(event.Event{Time: time.Now(), Kind: event.Verdict, Service: "user", Detail: "was up, now ejected"})
		for range 2 * firstEvents {
			p.events.Add(event.Event{Time: time.Now(), Kind: event.Connection, Service: "user", Detail: "connect failed"})
		}
		w := p.watch(0)
		first, _ := w.got()
		if all := strings.Join(first, ""); !strings.Contains(all, "now ejected") || strings.Contains(all, "connect failed") {
			t.Errorf("a new page has %s", all)
		}
		p.events.Add(event.Event{Time: time.Now(), Kind: event.Connection, Service: "user", Detail: "connect failed"})
		p.events.Add(event.Event{Time: time.Now(), Kind: event.Verdict, Service: "user", Detail: "was ejected, now up"})
		advance(calmFor + time.Millisecond)
		next, _ := w.got()
		if all := strings.Join(next, ""); !strings.Contains(all, "now up") || strings.Contains(all, "connect failed") {
			t.Errorf("it is told %s", all)
		}
		p.live.leaves <- w
	})
}

// A page that does not read is let go, and holds up nobody.
func TestSlowWatchersAreLetGo(t *testing.T) {
	bubble(t, func(t *testing.T, p *page, _ *fakeAPI) {
		slow, quick := p.watch(0), p.watch(0)
		for range 2 * maxBehind {
			p.events.Add(event.Event{Time: time.Now(), Kind: event.Agent})
			advance(calmFor + time.Millisecond)
			if _, ended := quick.got(); ended {
				t.Fatal("who reads was let go")
			}
		}
		if got, ended := slow.got(); !ended || len(got) > maxBehind {
			t.Errorf("who doesn't read has %d messages, let go: %v", len(got), ended)
		}
		p.live.leaves <- slow // as its handler does
	})
}

func TestHeartbeatsAndSlots(t *testing.T) {
	bubble(t, func(t *testing.T, p *page, _ *fakeAPI) {
		advance(slotLength) // a baseline
		w := p.watch(0)
		w.got()
		call(p.table.Lookup("user"), 1, 4, health.Failure)
		advance(2 * slotLength)
		kinds := make(map[string]int)
		for len(w.out) > 0 {
			kind, data := parse(string(<-w.out))
			if kinds[kind]++; kind == "slot" && kinds[kind] == 1 && !strings.Contains(data, `"time":`) {
				t.Errorf("a slot: %s", data)
			}
		}
		if kinds["beat"] != 2 || kinds["slot"] != 2 {
			t.Errorf("in two slots: %v", kinds)
		}
		p.live.leaves <- w
		synctest.Wait()
		if p.live.seen != nil {
			t.Error("the overview is kept although nobody watches")
		}
	})
}

// stream opens the real thing.
func (f *fixture) stream(t *testing.T) (*bufio.Reader, *http.Response) {
	t.Helper()
	r := f.raw(t, 0, "GET /ui/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
	return bufio.NewReader(r.Body), r
}

func TestStreamsAreBoundedAndEnd(t *testing.T) {
	f := serve(t, nil)
	var open []*http.Response
	for range maxWatchers {
		b, r := f.stream(t)
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/event-stream" || r.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%d %v", r.StatusCode, r.Header)
		}
		if line, err := b.ReadString('\n'); line != "event: all\n" {
			t.Fatalf("the stream begins with %q, %v", line, err)
		}
		open = append(open, r)
	}
	_, over := f.stream(t)
	if over.StatusCode != 503 || over.Header.Get("Retry-After") == "" {
		t.Errorf("one more than %d: %d", maxWatchers, over.StatusCode)
	}
	if got := f.raw(t, 0, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); got.StatusCode != 200 {
		t.Errorf("metrics beside open pages: %d", got.StatusCode)
	}
	f.stop()
	for _, r := range open {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Errorf("a stream was broken off at the stop: %v", err)
		}
	}
}

// Who leaves makes room.
func TestPlacesComeBack(t *testing.T) {
	f := serve(t, nil)
	for range 2 * maxWatchers {
		c, err := net.Dial("tcp", f.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for { // the server sees the end of the one before in its own time
			io.WriteString(c, "GET /ui/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.StatusCode == 200 {
				break
			}
			io.Copy(io.Discard, r.Body)
		}
		c.Close()
	}
}
