package localapi

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lbagent/lbagent/agent/calls"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// tapRig is a rig whose calls are made by hand.
func tapRig(t *testing.T) (*rig, *calls.Taps, lbagentv1.AdminServiceClient) {
	t.Helper()
	taps := &calls.Taps{}
	r := newRig(t, func(c *Config) { c.Calls = taps })
	return r, taps, lbagentv1.NewAdminServiceClient(dial(t, r.cfg.AdminSocket))
}

// openTap returns once nothing is missed any more.
func openTap(t *testing.T, c lbagentv1.AdminServiceClient, req *lbagentv1.TapRequest) lbagentv1.AdminService_TapClient {
	t.Helper()
	stream, err := c.Tap(testContext(t), req)
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func recv(t *testing.T, stream lbagentv1.AdminService_TapClient) *lbagentv1.TapResponse {
	t.Helper()
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func record(status, grpc int, total time.Duration) *calls.Record {
	return &calls.Record{
		Time: time.Unix(1700000000, 0), Service: "user", Protocol: "h2", Client: "127.0.0.1:5", Method: "GET", Path: "/a", Host: "user", Backend: addr(1), Attempts: 2,
		Status: status, GRPC: grpc, Wait: time.Millisecond, FirstByte: 2 * time.Millisecond, Total: total, In: 3, Out: 4, By: calls.Client, Phase: calls.Answer, Cause: "gone",
	}
}

func TestTapSendsCalls(t *testing.T) {
	_, taps, c := tapRig(t)
	stream := openTap(t, c, &lbagentv1.TapRequest{Service: "user"})
	taps.Ended(record(200, -1, 5*time.Millisecond))
	taps.Ended(&calls.Record{Service: "user", GRPC: 5, Phase: calls.Done})
	got := recv(t, stream).GetCall()
	want := &lbagentv1.Call{
		Time: stamp(time.Unix(1700000000, 0)), Service: "user", Protocol: "h2", Client: "127.0.0.1:5", Method: "GET", Path: "/a", Host: "user", Address: "10.0.0.1:80", Attempts: 2,
		Status: 200, Wait: durationpb.New(time.Millisecond), FirstByte: durationpb.New(2 * time.Millisecond), Total: durationpb.New(5 * time.Millisecond), BytesIn: 3, BytesOut: 4,
		EndedBy: "client", Phase: "answer", Cause: "gone",
	}
	if got.String() != want.String() {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got = recv(t, stream).GetCall(); got.GrpcStatus == nil || *got.GrpcStatus != 5 || got.Wait != nil || got.FirstByte != nil || got.Address != "" || got.Phase != "done" {
		t.Errorf("got %v", got)
	}
}

// Nothing is looked at once the reader has gone.
func TestTapEnds(t *testing.T) {
	r, taps, c := tapRig(t)
	stream := openTap(t, c, &lbagentv1.TapRequest{})
	if !taps.Wants("user") {
		t.Fatal("an open tap wants no calls")
	}
	r.stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the agent's stop came as %v", err)
	}
	if taps.Wants("user") {
		t.Error("the tap is closed, and still wants calls")
	}
}

func TestTapIsBounded(t *testing.T) {
	_, taps, c := tapRig(t)
	var open []lbagentv1.AdminService_TapClient
	for range maxTaps {
		open = append(open, openTap(t, c, &lbagentv1.TapRequest{PerSecond: 3}))
	}
	stream, err := c.Tap(testContext(t), &lbagentv1.TapRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("one tap too many: %v", err)
	}
	for range 10 { // of one second
		taps.Ended(record(200, -1, time.Millisecond))
	}
	calls, left := 0, uint64(0)
	for calls+int(left) < 10 {
		m := recv(t, open[0])
		left += m.GetLeftOut()
		if m.Call != nil {
			calls++
		}
	}
	if calls != 3 || left != 7 {
		t.Errorf("%d calls came, %d were left out, want 3 and 7", calls, left)
	}
}

// A reader that takes nothing holds up nobody.
func TestTapOfSlowReader(t *testing.T) {
	tp := &callTap{callFilter: callFilter{any: true}, most: 1 << 40, found: make(chan calls.Record, 2)}
	for range 10 {
		tp.see(record(200, -1, 0))
	}
	if n := tp.left.Load(); n != 8 || len(tp.found) != 2 {
		t.Errorf("%d were left out, want 8", n)
	}
}

func TestCallFilter(t *testing.T) {
	ok, notFound, failed := record(200, -1, 50*time.Millisecond), record(404, -1, 0), record(503, -1, 0)
	grpcOK, grpcDown := record(200, 0, 0), record(200, 14, 0)
	for _, r := range []*calls.Record{ok, notFound, failed, grpcOK, grpcDown} {
		r.Phase = calls.Done
	}
	tcp := &calls.Record{Service: "user", Protocol: "tcp", GRPC: -1, Phase: calls.Done}
	broken := &calls.Record{Service: "user", Protocol: "tcp", GRPC: -1, Phase: calls.Wait}
	all := []*calls.Record{ok, notFound, failed, grpcOK, grpcDown, tcp, broken}
	names := []string{"ok", "404", "503", "grpc0", "grpc14", "tcp", "broken"}
	for _, c := range []struct {
		req  *lbagentv1.TapRequest
		want string
	}{
		{&lbagentv1.TapRequest{}, "ok 404 503 grpc0 grpc14 tcp broken"},
		{&lbagentv1.TapRequest{Statuses: []string{"503"}}, "503"},
		{&lbagentv1.TapRequest{Statuses: []string{"4XX", "5xx"}}, "404 503"},
		{&lbagentv1.TapRequest{Statuses: []string{"UNAVAILABLE"}}, "grpc14"},
		{&lbagentv1.TapRequest{Statuses: []string{"14", "ok"}}, "grpc0 grpc14"},
		{&lbagentv1.TapRequest{Statuses: []string{"error"}}, "503 grpc14 broken"},
		{&lbagentv1.TapRequest{Slow: durationpb.New(50 * time.Millisecond)}, "ok"},
		{&lbagentv1.TapRequest{Address: "10.0.0.1:80", Statuses: []string{"2xx"}}, "ok grpc0 grpc14"},
		{&lbagentv1.TapRequest{Address: "10.0.0.2:80"}, ""},
	} {
		f, err := newCallFilter(c.req)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, r := range all {
			if f.wants(r) {
				got = append(got, names[i])
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v finds %q, want %q", c.req, s, c.want)
		}
	}
	for _, req := range []*lbagentv1.TapRequest{
		{Statuses: []string{"loud"}}, {Statuses: []string{"6xx"}}, {Statuses: []string{"17"}}, {Statuses: []string{"-1"}}, {Statuses: []string{"xx"}}, {Statuses: []string{""}},
		{Address: "x"}, {PerSecond: 1001}, {Slow: durationpb.New(-1)},
	} {
		if _, err := newCallFilter(req); err == nil {
			t.Errorf("%v is taken", req)
		}
	}
}

func TestTapOfNoService(t *testing.T) {
	r, taps, c := tapRig(t)
	for name, want := range map[string]codes.Code{"nosuch": codes.NotFound, "user": codes.InvalidArgument} {
		stream, err := c.Tap(testContext(t), &lbagentv1.TapRequest{Service: name, PerSecond: map[bool]uint32{true: 5000}[name == "user"]})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if taps.Wants("user") || r.taps.Load() != 0 {
		t.Error("a tap that was refused is open")
	}
	// Not on the socket that everybody may use, by neither face.
	stream, err := lbagentv1.NewAdminServiceClient(dial(t, r.cfg.Socket)).Tap(testContext(t), &lbagentv1.TapRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("tap by the open socket: %v", err)
	}
	if code, text := ask(t, r.cfg.Socket, "GET", "/v1/admin/tap", ""); code != 403 {
		t.Errorf("tap by the open socket: %d %s", code, text)
	}
}

// BenchmarkSeen is what a call costs an event loop for one tap that takes it.
func BenchmarkSeen(b *testing.B) {
	tp := &callTap{callFilter: callFilter{any: true, backend: netip.AddrPort{}}, most: 1 << 40, found: make(chan calls.Record, 1)}
	r := record(200, -1, time.Millisecond)
	b.ReportAllocs()
	for b.Loop() {
		tp.see(r)
		select {
		case <-tp.found:
		default:
		}
	}
	if tp.left.Load() > 0 {
		b.Fatal(fmt.Sprint(tp.left.Load(), " were left out"))
	}
}
