package proxy

import (
	"fmt"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
)

// traceContext is what callers send, well or not: the relay is no part of a trace, so nothing of it is read, mended or added (W3C Trace Context, B3, Baggage).
func traceContext() map[string][]string {
	return map[string][]string{
		"traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		"tracestate":  {"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "other=1"},
		"baggage":     {"userId=alice,serverNode=DF%2028,isProduction=false"},
		"b3":          {"80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"},
	}
}

// TestTraceContextPassesHTTP1 also with what isn't a trace at all.
func TestTraceContextPassesHTTP1(t *testing.T) {
	got := make(chan http.Header, 1)
	r := newRig(t, asHTTP1)
	r.backends(web(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Traceresponse", r.Header.Get("Traceparent"))
		got <- r.Header
	}))
	for _, parent := range append(traceContext()["traceparent"], "", "cc-00000000000000000000000000000000-0000000000000000-ff-more", "not a trace") {
		req, err := http.NewRequestWithContext(timeout(t), "GET", "http://"+r.addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range traceContext() {
			req.Header[http.CanonicalHeaderKey(k)] = v
		}
		want := []string{parent}
		if req.Header["Traceparent"] = want; parent == "" {
			want = nil
			delete(req.Header, "Traceparent")
		}
		resp, err := browser(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if back := resp.Header.Get("Traceresponse"); back != parent {
			t.Errorf("%q came back as %q", parent, back)
		}
		header := <-got
		for k, v := range traceContext() {
			if k == "traceparent" {
				v = want
			}
			if has := header[http.CanonicalHeaderKey(k)]; fmt.Sprint(has) != fmt.Sprint(v) {
				t.Errorf("%s: the backend got %q, want %q", k, has, v)
			}
		}
	}
}

func TestTraceContextPassesHTTP2(t *testing.T) {
	r := newRig(t, nil)
	s := newGRPC(t)
	r.backends(s.addr)
	c := r.dial()
	for _, with := range []bool{true, false} {
		ctx := timeout(t)
		if with {
			for k, all := range traceContext() {
				for _, v := range all {
					ctx = metadata.AppendToOutgoingContext(ctx, k, v)
				}
			}
		}
		if _, err := c.UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		md := s.metadata()
		for k, want := range traceContext() {
			if !with {
				want = nil
			}
			if got := md[k]; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: the backend got %q, want %q", k, got, want)
			}
		}
	}
}
