package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
)

// accessLine is what the tests look at in a line of the access log.
type accessLine struct {
	Time                                                   time.Time
	Service, Protocol, Client, Method, Path, Host, Backend string
	Attempts, Status                                       int
	GRPCStatus                                             *int    `json:"grpc_status"`
	In                                                     int     `json:"bytes_in"`
	Out                                                    int     `json:"bytes_out"`
	Wait                                                   float64 `json:"wait_ms"`
	FirstByte                                              float64 `json:"first_byte_ms"`
	Total                                                  float64 `json:"total_ms"`
	EndedBy                                                string  `json:"ended_by"`
	Flags, Phase, Cause                                    string
	TraceID                                                string `json:"trace_id"`
}

// accessLines are those of a file, "" for none.
func accessLines(t *testing.T, path string) (all []accessLine) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var one accessLine
		if err := json.Unmarshal(s.Bytes(), &one); err != nil {
			t.Fatalf("%v: %s", err, s.Text())
		}
		all = append(all, one)
	}
	return all
}

// TestAccessLog: each call that ended is one line that says who ended it; renamed, the file is opened anew at SIGHUP; an invalid reload and a full disk hurt no call.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	const parent, trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"
	bs := backends(t, 1, 2*time.Millisecond)
	saw := make(chan metadata.MD, 1)
	bs[0].saw = saw
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprint(w, "hello ", r.Header.Get("Traceparent"))
	}))
	defer web.Close()
	user, page, gone := freePort(t), freePort(t), freePort(t)
	a := newAgent(t, fmt.Sprintf("\n- {name: user, backends: [%q], listen: [%d]}\n- {name: web, backends: [%q], listen: [%d]}\n- {name: gone, backends: [\"127.0.0.1:%d\"], listen: [%d], protocol: http1}\n",
		bs[0].addr, user, strings.TrimPrefix(web.URL, "http://"), page, freePort(t), gone))
	path := filepath.Join(a.dir, "access.log")
	a.extra = fmt.Sprintf("access_log: {path: %s}\n", path)
	a.writeConfig()
	a.start()
	began := time.Now()
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", user))
	if _, err := c.echo(metadata.AppendToOutgoingContext(t.Context(), "traceparent", parent), 10); err != nil {
		t.Fatal(err)
	}
	if got := (<-saw).Get("traceparent"); len(got) != 1 || got[0] != parent {
		t.Errorf("the backend got traceparent %q", got)
	}
	get := func(port int, path string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", parent)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	get(page, "/good?password=hunter2")
	get(page, "/bad")
	get(gone, "/nobody")
	var lines []accessLine
	poll(t, "four lines", func() bool { lines = accessLines(t, path); return len(lines) == 4 })
	byPath := map[string]accessLine{}
	for _, l := range lines {
		byPath[l.Path] = l
		if l.Time.Before(began.Add(-time.Second)) || !strings.HasPrefix(l.Client, "127.0.0.1:") || l.TraceID != trace || l.Total <= 0 {
			t.Errorf("%+v", l)
		}
	}
	if l := byPath[echoMethod]; l.Service != "user" || l.Protocol != "grpc" || l.Method != "POST" || l.Backend != bs[0].addr || l.Attempts != 1 || l.Status != 200 || l.GRPCStatus == nil ||
		*l.GRPCStatus != 0 || l.In == 0 || l.Out == 0 || l.Flags != "--" || l.Phase != "done" || l.FirstByte < 1.9 || l.Total < l.FirstByte || l.Wait <= 0 {
		t.Errorf("gRPC: %+v", l)
	}
	if l := byPath["/good"]; l.Service != "web" || l.Protocol != "http1" || l.Method != "GET" || l.Status != 200 || l.GRPCStatus != nil || l.Out != len("hello "+parent) || l.Flags != "--" {
		t.Errorf("HTTP/1.1: %+v", l)
	}
	if l := byPath["/bad"]; l.Status != 500 || l.Flags != "--" || l.EndedBy != "backend" {
		t.Errorf("a backend's 500: %+v", l)
	}
	if l := byPath["/nobody"]; l.Status != 503 || l.Flags != "AC" || l.EndedBy != "agent" || l.Phase != "connect" || l.Cause == "" {
		t.Errorf("no backend: %+v", l)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "hunter2") {
		t.Errorf("the query is in the log: %v", err)
	}

	// logrotate's way, told at once.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	a.signal(syscall.SIGHUP)
	poll(t, "the reload", func() bool { v, _ := a.metric("lbagent_config_reloads_total{result=\"ok\"}"); return v == 1 })
	get(page, "/rotated")
	poll(t, "a line in the new file", func() bool { l := accessLines(t, path); return len(l) == 1 && l[0].Path == "/rotated" })

	// Off, by a reload: nobody is told of calls any more; and the last one is in the file.
	get(page, "/last")
	a.extra = "access_log: off\n"
	a.writeConfig()
	if out, stderr, code := a.cli("reload"); code != 0 {
		t.Fatal(out, stderr)
	}
	get(page, "/unseen")
	a.stop()
	for _, l := range accessLines(t, path) {
		if l.Path == "/unseen" {
			t.Error("it is off, and a call was written")
		}
	}
}

// notification is what is posted.
type notification struct {
	Version     int
	Node, Agent string
	Events      []struct {
		ID                             uint64
		Kind, Service, Backend, Detail string
	}
}

// TestNotify: what happens to a backend reaches the operator's endpoint, what the agent says last too, and an endpoint that hangs holds up neither calls nor the stop.
func TestNotify(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var posts []notification
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hangs" {
			<-hang
			return
		}
		mu.Lock()
		defer mu.Unlock()
		var one notification
		if err := json.NewDecoder(r.Body).Decode(&one); err != nil {
			t.Error(err)
		}
		posts = append(posts, one)
	}))
	defer server.Close()
	defer close(hang)
	bs := backends(t, 2, 0)
	port := freePort(t)
	a := newAgent(t, fmt.Sprintf("\n- {name: user, backends: [%s], listen: [%d], probe: {type: tcp, interval: 1s}}\n", join(addrs(bs)), port))
	a.extra = fmt.Sprintf("notify: {url: %q}\n", server.URL+"/secret")
	a.writeConfig()
	a.start()
	told := func(kind, backend, word string) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range posts {
			for _, e := range p.Events {
				if e.Kind == kind && e.Backend == backend && strings.Contains(e.Detail, word) {
					if p.Version != 1 || p.Node != "e2e" || p.Agent != testVersion || e.ID == 0 {
						t.Errorf("%+v", p)
					}
					return true
				}
			}
		}
		return false
	}
	poll(t, "the event of the start", func() bool { return told("agent", "", "ready") })
	bs[1].kill()
	poll(t, "the event of the backend", func() bool { return told("verdict", bs[1].addr, "down") })

	a.extra = fmt.Sprintf("notify: {url: %q}\n", server.URL+"/hangs")
	a.writeConfig()
	if out, stderr, code := a.cli("reload"); code != 0 {
		t.Fatal(out, stderr)
	}
	poll(t, "events that wait", func() bool { v, ok := a.metric("lbagent_notify_waiting_events"); return ok && v > 0 })
	newCaller(t, fmt.Sprintf("127.0.0.1:%d", port)).burst(50, 2)
	if v, ok := a.metric(`lbagent_proxy_requests_total{code="ok"`); ok && v != 50 {
		t.Errorf("%v of 50 calls", v)
	}
	_, status := a.get("/metrics")
	for where, text := range map[string]string{"status": a.words("status", "--json"), "metrics": status} {
		if strings.Contains(text, "/hangs") || strings.Contains(text, "/secret") {
			t.Errorf("%s shows the address", where)
		}
	}
	a.stop() // fails the test if it takes long
	if log := a.logTail(1000); strings.Contains(log, "/secret") || strings.Contains(log, "/hangs") {
		t.Errorf("the log shows the address:\n%s", log)
	}
}
