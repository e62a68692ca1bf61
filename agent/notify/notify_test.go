package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
)

// endpoint is a transport that answers as a test says; in a bubble there is no network.
type endpoint struct {
	answer func(n int) (status int, err error) // the n-th post, from 1; nil: 200
	hang   bool                                // until its context ends

	mu sync.Mutex

	posts []message
	at    []time.Time
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	var m message
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		return nil, fmt.Errorf("%s %v: %w", r.Method, r.Header, err)
	}
	e.mu.Lock()
	e.posts, e.at = append(e.posts, m), append(e.at, time.Now())
	n := len(e.posts)
	e.mu.Unlock()
	if e.hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	status := http.StatusOK
	if e.answer != nil {
		var err error
		if status, err = e.answer(n); err != nil {
			return nil, err
		}
	}
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Body: http.NoBody, Header: http.Header{}, Request: r}, nil
}

// ids are those of each post.
func (e *endpoint) ids() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []string
	for _, m := range e.posts {
		var one []string
		for _, v := range m.Events {
			one = append(one, fmt.Sprint(v.ID))
		}
		all = append(all, strings.Join(one, ","))
	}
	return strings.Join(all, " ")
}

func add(l *event.Log, n int) {
	for range n {
		l.Add(event.Event{Time: time.Now(), Kind: event.Verdict, Service: "user", Backend: "10.0.0.1:80", Detail: "up to down"})
	}
}

// start runs a Notifier that posts to e.
func start(t *testing.T, e *endpoint, size int) (*Notifier, *event.Log, context.CancelFunc) {
	l := event.NewLog(size)
	n := New(Config{Log: hclog.NewNullLogger(), Events: l, Node: "web-17", Version: "v1", Started: time.Now(), Client: &http.Client{Transport: e}})
	n.Set("https://ops.example/events")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); n.Run(ctx) }()
	synctest.Wait() // it waits for the first event
	return n, l, func() { cancel(); <-ended }
}

// advance lets time pass in a bubble.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		n, l, stop := start(t, e, 4096)
		defer stop()
		add(l, 1)
		advance(gather)
		add(l, 3) // within a second of the first
		advance(pace / 2)
		if got := e.ids(); got != "1" {
			t.Fatalf("posted %q", got)
		}
		advance(pace)
		if got := e.ids(); got != "1 2,3,4" {
			t.Fatalf("posted %q", got)
		}
		add(l, 2*most)
		advance(3 * pace)
		if len(e.posts) != 4 || len(e.posts[2].Events) != most || len(e.posts[3].Events) != most || e.at[3].Sub(e.at[2]) < pace {
			t.Fatalf("%d posts at %v", len(e.posts), e.at)
		}
		m := e.posts[0]
		v := m.Events[0]
		if m.Version != 1 || m.Node != "web-17" || m.Agent != "v1" || m.Dropped != 0 || v.Kind != "verdict" || v.Service != "user" || v.Backend != "10.0.0.1:80" || v.Detail != "up to down" || v.Time.IsZero() || m.Started.IsZero() {
			t.Errorf("%+v", m)
		}
		if s := n.Stats(); !s.On || !s.OK || s.Sent != 2*most+4 || s.Posts != 4 || s.Failures != 0 || s.Dropped != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Connections to backends are too many to be posted, and none of them counts as lost.
func TestConnectionsAreNotPosted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		n, l, stop := start(t, e, 8)
		defer stop()
		come := func() {
			for range 100 {
				l.Add(event.Event{Time: time.Now(), Kind: event.Connection})
			}
		}
		come()
		add(l, 1)
		come()
		add(l, 1)
		advance(2 * pace)
		come()
		advance(2 * pace)
		if s := n.Stats(); e.ids() != "101,202" || s.Sent != 2 || s.Dropped != 0 || s.Waiting != 0 {
			t.Errorf("posted %q, %+v", e.ids(), s)
		}
	})
}

// TestBackOff: an endpoint that fails is asked ever less often, gets all of it once it is well, and what the log has lost meanwhile is counted.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ill atomic.Bool
		ill.Store(true)
		e := &endpoint{answer: func(n int) (int, error) {
			switch {
			case !ill.Load():
				return 204, nil
			case n%2 == 0:
				return 500, nil
			}
			return 0, errors.New("connection refused")
		}}
		n, l, stop := start(t, e, 10)
		defer stop()
		add(l, 4)
		advance(10 * time.Minute)
		tries := len(e.posts)
		if tries < 12 || tries > 30 { // 1, 2, 4, ... 60 s, of which half is chance
			t.Errorf("%d tries in 10 min", tries)
		}
		for i := 8; i < tries; i++ {
			if gap := e.at[i].Sub(e.at[i-1]); gap < longestPause/2 || gap > longestPause {
				t.Errorf("try %d came after %v", i, gap)
			}
		}
		if s := n.Stats(); s.OK || s.Failures != uint64(tries) || s.Sent != 0 || s.Dropped != 0 || s.Waiting != 4 {
			t.Errorf("while it is ill: %+v", s)
		}
		add(l, 9) // the log keeps 10 of 13
		ill.Store(false)
		advance(longestPause)
		if last := e.posts[len(e.posts)-1]; len(last.Events) != 10 || last.Events[0].ID != 4 || last.Dropped != 3 {
			t.Errorf("the last post: %+v", last)
		}
		if s := n.Stats(); !s.OK || s.Sent != 10 || s.Dropped != 3 || s.Posts != 1 || s.Waiting != 0 {
			t.Errorf("once it is well: %+v", s)
		}
	})
}

// TestRefused: what the endpoint can't read isn't sent for ever; what is a matter of rights or addresses waits.
func TestRefused(t *testing.T) {
	for status, waits := range map[int]bool{400: false, 413: false, 415: false, 422: false, 301: true, 307: true, 401: true, 403: true, 404: true, 408: true, 429: true, 503: true} {
		synctest.Test(t, func(t *testing.T) {
			e := &endpoint{answer: func(n int) (int, error) { return map[bool]int{true: status, false: 200}[n == 1], nil }}
			n, l, stop := start(t, e, 100)
			defer stop()
			add(l, 2)
			advance(gather)
			add(l, 1)
			advance(time.Minute)
			want := map[bool]string{true: "1,2 1,2,3", false: "1,2 3"}[waits]
			if got := e.ids(); got != want {
				t.Errorf("status %d: posted %q, want %q", status, got, want)
			}
			if s := n.Stats(); s.Failures != 1 || s.Posts != 1 || s.Sent+s.Dropped != 3 || (s.Dropped == 0) != waits {
				t.Errorf("status %d: %+v", status, s)
			}
		})
	}
}

// TestHanging: an endpoint that hangs holds up nobody; a post is given up after a while, and a stop takes a second.
func TestHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{hang: true}
		n, l, stop := start(t, e, 100)
		began := time.Now()
		add(l, 5000)
		if took := time.Since(began); took != 0 {
			t.Errorf("5000 events took %v", took)
		}
		advance(patience + time.Minute)
		if s := n.Stats(); s.OK || s.Failures < 2 || s.Dropped == 0 || s.Waiting == 0 {
			t.Errorf("%+v", s)
		}
		began = time.Now()
		stop()
		if took := time.Since(began); took > lastWords {
			t.Errorf("the stop took %v", took)
		}
	})
}

// TestLastWords: what happened just before the stop is posted, in one go.
func TestLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		_, l, stop := start(t, e, 4096)
		add(l, 1)
		advance(gather)
		add(l, most+2)
		stop()
		if len(e.posts) != 3 || len(e.posts[1].Events) != most || len(e.posts[2].Events) != 2 {
			t.Errorf("posted %q", e.ids())
		}
	})
}

func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var well atomic.Bool
		well.Store(true)
		e := &endpoint{answer: func(int) (int, error) { return map[bool]int{true: 200, false: 500}[well.Load()], nil }}
		n, l, stop := start(t, e, 100)
		defer stop()
		add(l, 1)
		advance(gather)
		n.Set("")
		advance(0)
		add(l, 2)
		advance(time.Minute)
		if s := n.Stats(); s.On || s.Waiting != 0 || len(e.posts) != 1 {
			t.Errorf("off: %+v, %d posts", s, len(e.posts))
		}
		n.Set("https://other.example/")
		advance(0)
		add(l, 1)
		advance(gather)
		if got := e.ids(); got != "1 4" {
			t.Errorf("posted %q: what happened while it was off is nobody's", got)
		}
		// An address that replaces one that fails is tried at once.
		well.Store(false)
		add(l, 1)
		advance(5 * time.Minute)
		tries := len(e.posts)
		n.Set("https://third.example/")
		advance(0)
		if len(e.posts) != tries+1 {
			t.Errorf("%d more tries", len(e.posts)-tries)
		}
	})
}

// TestRealEndpoint: over a real connection a redirect isn't followed, and neither a log nor an error has the address's path.
func TestRealEndpoint(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	got := make(chan message, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m message
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}
		got <- m
	}))
	defer server.Close()
	var said lockedBuffer
	l := event.NewLog(10)
	n := New(Config{Log: hclog.New(&hclog.LoggerOptions{Output: &said}), Events: l, Node: "web-17"})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, to := range []string{server.URL + "/moved?secret", "http://" + closed.Addr().String() + "/secret"} {
		add(l, 1)
		batch, _ := n.next()
		if err := n.try(t.Context(), to, batch); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", to, err)
		}
	}
	if m := <-got; len(m.Events) != 1 {
		t.Errorf("%+v", m)
	}
	batch, _ := n.next()
	if err := n.try(t.Context(), server.URL+"/secret", batch); err != nil {
		t.Error(err)
	}
	if m := <-got; len(m.Events) != 2 || m.Node != "web-17" {
		t.Errorf("%+v", m)
	}
	add(l, 2)
	n.Set(server.URL + "/secret")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); n.Run(ctx) }()
	if m := <-got; len(m.Events) != 2 || m.Node != "web-17" {
		t.Errorf("%+v", m)
	}
	cancel()
	<-ended
	if s := said.String(); strings.Contains(s, "secret") || !strings.Contains(s, "can't be posted") || !strings.Contains(s, "posted again") {
		t.Errorf("the log says:\n%s", s)
	}
}

// lockedBuffer is a log that two goroutines write.
type lockedBuffer struct {
	mu sync.Mutex

	b strings.Builder
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestRealServers: one that fails once, one that is slow, and one that never answers, which a stop doesn't wait for.
func TestRealServers(t *testing.T) {
	for name, handler := range map[string]func(n int, w http.ResponseWriter, r *http.Request){
		"500 once": func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				w.WriteHeader(http.StatusInternalServerError)
			}
		},
		"closes once": func(n int, _ http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				panic(http.ErrAbortHandler)
			}
		},
		"slow, and talks much": func(_ int, w http.ResponseWriter, _ *http.Request) {
			<-time.After(200 * time.Millisecond)
			w.Write(make([]byte, 1<<20))
		},
		"hangs": func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			n, entered := 0, make(chan struct{}, 100)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body) // else the server doesn't notice that the client goes
				mu.Lock()
				n++
				mine := n
				mu.Unlock()
				entered <- struct{}{}
				handler(mine, w, r)
			}))
			defer server.Close()
			l := event.NewLog(10)
			one := New(Config{Log: hclog.NewNullLogger(), Events: l})
			one.Set(server.URL)
			add(l, 3)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan struct{})
			go func() { defer close(ended); one.Run(ctx) }()
			<-entered
			if name != "hangs" {
				for deadline := time.Now().Add(time.Minute); one.Stats().Sent != 3; {
					if time.Now().After(deadline) {
						t.Fatalf("%+v", one.Stats())
					}
					<-time.After(10 * time.Millisecond)
				}
			}
			cancel()
			<-ended // or the test's time is over
			if s := one.Stats(); s.Dropped != 0 || (s.Sent == 0) != (name == "hangs") {
				t.Errorf("%+v", s)
			}
		})
	}
}
