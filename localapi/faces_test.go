package localapi

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Every route of DESIGN.md 6, on both sockets: what comes back, with which status, and one telling piece of it.
func TestJSON(t *testing.T) {
	r := newRig(t, nil)
	r.judge("user", 2, health.Part{Kind: health.Ejected, Soft: true, Cause: "5 failures in a row", Since: time.Now()})
	r.events.Add(event.Event{Time: time.Now(), Kind: event.Agent, Detail: "ready"})
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/services", "", 200, `"name":"user","listeners":["127.0.0.1:7001"],"backends":5,"usable":4,"origin":"configured"`},
		{"GET", "/v1/services/user/pick", "", 200, `"host":"","count":1,"metadata":{"v":"1"}}],"valid_for":"10s","provenance":{"epoch":"7","revision":"42"`},
		{"GET", "/v1/services/user/pick?count=8&exclude=10.0.0.1:80&exclude=10.0.0.3:80", "", 200, `"10.0.0.4:80"`},
		{"GET", "/v1/services/user/backends", "", 200, `"verdict":"ejected","cause":"ejected: 5 failures in a row`},
		{"GET", "/v1/services/user/explain", "", 200, `gets no calls; ejected for `},
		{"GET", "/v1/services/user/explain?address=10.0.0.1:80", "", 200, `gets calls, weight 100; up`},
		{"POST", "/v1/report", `{"outcomes":[{"service":"user","address":"10.0.0.1:80","result":"RESULT_FAILURE"},{"service":"x","address":"y","result":"RESULT_TIMEOUT"}]}`, 200, `{"unknown":1}`},
		{"GET", "/v1/status", "", 200, `"version":"v0"`},
		{"GET", "/v1/events?service=user", "", 200, `{"result":{"id":"1"`},
		{"GET", "/v1/services/usr/pick", "", 404, `{"error":{"code":5,"message":"no such service: \"usr\" is not configured`},
		{"GET", "/v1/services/usr/pick", "", 404, `"reason":"SERVICE_UNKNOWN"`},
		{"GET", "/v1/services/user/pick?count=10001", "", 400, `"reason":"INVALID"`},
		{"GET", "/v1/services/user/pick?cuont=1", "", 200, ``}, // a later client's parameter
		{"GET", "/v1/services/a%20b/pick", "", 400, `a name has 1 to 253 of`},
		{"POST", "/v1/report", `{"outcomes":[{}]}`, 400, `outcome 0: result is RESULT_UNSPECIFIED`},
		{"POST", "/v1/report", `{"outcomes":`, 400, `"code":3`},
		{"GET", "/v1/nothing", "", 404, `"code":5`},
		{"DELETE", "/v1/services", "", 501, `"code":12`},
	} {
		for _, socket := range []string{r.cfg.Socket, r.cfg.AdminSocket} {
			status, text := ask(t, socket, c.method, c.path, c.body)
			if status != c.status || !strings.Contains(text, c.want) {
				t.Errorf("%s %s on %s: %d %s\nwant %d with %s", c.method, c.path, socket, status, text, c.status, c.want)
			}
			if !strings.HasSuffix(text, "\n") || strings.Count(text, "\n") != max(1, strings.Count(text, `{"result"`)) {
				t.Errorf("%s %s: not one line per message: %q", c.method, c.path, text)
			}
		}
	}
}

// A client that writes HTTP/1.1 by hand, in pieces, gets the same.
func TestRawHTTP(t *testing.T) {
	r := newRig(t, nil)
	for _, request := range []string{
		"GET /v1/services HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/services HTTP/1.0\r\n\r\n",
		"POST /v1/report HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"PUT /v1/services HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", // begins as the HTTP/2 preface does
	} {
		c, br := raw(t, r.cfg.Socket)
		for i := range len(request) {
			if _, err := c.Write([]byte(request[i : i+1])); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		text, _ := io.ReadAll(resp.Body)
		if resp.Header.Get("Content-Type") != "application/json" || !bytes.HasSuffix(text, []byte("\n")) {
			t.Errorf("%q: %v %q", request, resp.Header, text)
		}
	}
}

// The JSON watch is a line per change.
func TestJSONWatch(t *testing.T) {
	// The time for a request to arrive, and for an answer to be read, is none of a stream's.
	r := newRig(t, func(c *Config) { c.Limits.Body, c.Limits.Answer = 50*time.Millisecond, 50*time.Millisecond })
	c, br := raw(t, r.cfg.Socket)
	if _, err := c.Write([]byte("GET /v1/services/user/watch HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		buf := make([]byte, 64<<10)
		for {
			n, err := resp.Body.Read(buf)
			if n > 0 {
				lines <- string(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	if text := <-lines; strings.Count(text, `"usable":true`) != 5 {
		t.Fatal(text)
	}
	<-time.After(3 * r.limits.Body)
	r.set("user", 1, 2)
	if text := <-lines; strings.Count(text, `"usable":true`) != 2 {
		t.Fatal(text)
	}
	r.table.Remove(time.Now(), "user")
	if text := <-lines; !strings.Contains(text, `{"error":{"code":5,"message":"service \"user\" was removed"`) {
		t.Fatal(text)
	}
}

// So are the counters: the time for an answer to be read is none of theirs.
func TestJSONStats(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Answer = 300 * time.Millisecond })
	c, br := raw(t, r.cfg.Socket)
	if _, err := c.Write([]byte("GET /v1/stats?interval=0.2s HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	lines := bufio.NewReader(resp.Body)
	for i := range 5 {
		if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, `"name":"user"`) {
			t.Fatalf("line %d: %s %v", i, line, err)
		}
	}
}

func TestGRPC(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	c := r.lookup()
	r.table.SetSpec(time.Now().Add(-time.Hour), specOf("old"))
	r.set("old", 1)
	one, err := c.Pick(ctx, &lbagentv1.PickRequest{Service: "user"})
	if err != nil || len(one.Picks) != 1 || one.Picks[0].Count != 1 || one.Picks[0].Metadata["v"] != "1" {
		t.Fatal(one, err)
	}
	if p := one.Provenance; p.Epoch != 7 || p.Revision != 42 || p.Source != "etcd" || p.Panic || p.Age == nil {
		t.Error(p)
	}
	if _, err := c.Pick(ctx, &lbagentv1.PickRequest{Service: "old"}); err != nil {
		t.Fatal(err)
	}
	if d := r.table.Lookup("old").Unasked(time.Now()); d > 50*time.Minute {
		t.Errorf("asked %v ago, after a pick (2.3)", d)
	}
	r.table.Remove(time.Now(), "old")
	many, err := c.Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 100, Exclude: []string{"10.0.0.5:80"}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for i, p := range many.Picks {
		got[p.Address] += int(p.Count)
		if i > 0 && p.Address == many.Picks[i-1].Address {
			t.Errorf("entries %d and %d are both %s", i-1, i, p.Address)
		}
	}
	if len(got) != 4 || got["10.0.0.1:80"] != 25 || got["10.0.0.4:80"] != 25 {
		t.Error(got)
	}
	list, err := c.List(ctx, &lbagentv1.ListRequest{Service: "user"})
	if err != nil || len(list.Backends) != 5 || list.Backends[0].Verdict != "up" || list.Backends[0].Cause != "" || !list.Backends[0].Usable {
		t.Error(list, err)
	}
	all, err := c.Services(ctx, &lbagentv1.ServicesRequest{})
	if err != nil || len(all.Services) != 1 || all.Services[0].Policy != "p2c" || !all.Services[0].Ready {
		t.Error(all, err)
	}
	if n := r.table.Lookup("user").View().Backend(0).State.Outstanding(); n != 0 {
		t.Errorf("%d outstanding after picks by API (3.5)", n)
	}
	if got := r.Stats(); got.Picks != 102 || got.Connections == 0 {
		t.Errorf("%+v", got)
	}
}

// What grpcurl needs: reflection lists the services, and describes them; health says SERVING.
func TestReflectionAndHealth(t *testing.T) {
	r := newRig(t, nil)
	for _, socket := range []string{r.cfg.Socket, r.cfg.AdminSocket} {
		cc := dial(t, socket)
		s, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		say := func(q *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
			t.Helper()
			if err := s.Send(q); err != nil {
				t.Fatal(err)
			}
			a, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		var names []string
		for _, n := range say(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
			names = append(names, n.Name)
		}
		for _, want := range []string{"lbagent.v1.LookupService", "lbagent.v1.StatusService", "lbagent.v1.AdminService", "grpc.health.v1.Health"} {
			if !slices.Contains(names, want) {
				t.Errorf("no %s in %v", want, names)
			}
		}
		fds := say(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: "lbagent.v1.LookupService"}}).GetFileDescriptorResponse().GetFileDescriptorProto()
		if len(fds) == 0 {
			t.Error("no descriptor")
		}
		h, err := healthpb.NewHealthClient(cc).Check(testContext(t), &healthpb.HealthCheckRequest{Service: "lbagent.v1.LookupService"})
		if err != nil || h.Status != healthpb.HealthCheckResponse_SERVING {
			t.Error(h, err)
		}
	}
}

// reasonOf is the ErrorInfo's reason, with the code.
func reasonOf(err error) (codes.Code, string) {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == "lbagent" {
			return st.Code(), info.Reason
		}
	}
	return st.Code(), ""
}

// A watch that ends because the agent stops says so; the socket's file is gone, and a new agent may bind.
func TestStop(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Goodbye = 10 * time.Second }) // for those who don't hear of it
	w, err := r.lookup().Watch(testContext(t), &lbagentv1.WatchRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	e, err := r.status().Events(testContext(t), &lbagentv1.EventsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Recv(); err != nil { // the list's event
		t.Fatal(err)
	}
	begin := time.Now()
	r.stop()
	if d := time.Since(begin); d > r.limits.Goodbye {
		t.Errorf("stopping took %v", d)
	}
	_, err = w.Recv()
	if code, reason := reasonOf(err); code != codes.Unavailable || reason != reasonStopping {
		t.Errorf("watch ended with %v", err)
	}
	for err == nil || errors.Is(err, io.EOF) || status.Code(err) == codes.OK {
		_, err = e.Recv()
	}
	if code, reason := reasonOf(err); code != codes.Unavailable || reason != reasonStopping {
		t.Errorf("events ended with %v", err)
	}
	again, err := openSocket(r.cfg.Socket, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	again.close()
}
