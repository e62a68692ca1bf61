package localapi

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// method is what was counted of one.
func (r *rig) method(name string) Method {
	for _, m := range r.Stats().Methods {
		if m.Name == name {
			return m
		}
	}
	r.t.Fatalf("%s is not counted", name)
	return Method{}
}

// TestMethodsAreCounted: by method and code, whichever face they came by, and streams while they are open.
func TestMethodsAreCounted(t *testing.T) {
	r := newRig(t, nil)
	r.set("user", 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 3 {
		if _, err := r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "nosuch"}); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, "GET", "http://lbagent/v1/services/user/pick", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := httpClient(t, r.cfg.Socket).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	pick := func() Method { return r.method("lbagent.v1.LookupService/Pick") }
	for deadline := time.Now().Add(time.Minute); pick().Ended["OK"] != 4 && time.Now().Before(deadline); { // an answer goes out before it is counted
		<-time.After(time.Millisecond)
	}
	if m := pick(); m.Ended["OK"] != 4 || m.Ended["NotFound"] != 1 || len(m.Ended) != 2 || m.Open != 0 {
		t.Errorf("%+v", m)
	}

	watching, stop := context.WithCancel(ctx)
	w, err := r.lookup().Watch(watching, &lbagentv1.WatchRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	watch := func() Method { return r.method("lbagent.v1.LookupService/Watch") }
	if m := watch(); m.Open != 1 || len(m.Ended) != 0 {
		t.Errorf("a watch that is open: %+v", m)
	}
	stop()
	for deadline := time.Now().Add(time.Minute); watch().Open != 0 && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	if m := watch(); m.Open != 0 || m.Ended["Canceled"] != 1 {
		t.Errorf("a watch that has ended: %+v", m)
	}
}
