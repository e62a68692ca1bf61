package localapi

import (
	"context"
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// once is a stream whose caller goes after the first message.
type once struct {
	grpc.ServerStream
	ctx  context.Context
	gone context.CancelFunc
	sent []*healthpb.HealthCheckResponse
}

func (o *once) Context() context.Context { return o.ctx }

func (o *once) Send(r *healthpb.HealthCheckResponse) error {
	o.sent = append(o.sent, r)
	o.gone()
	return nil
}

// A user who watches one made-up name after another costs nothing that stays.
func TestHealthWatchKeepsNoNames(t *testing.T) {
	r := newRig(t, nil)
	h := healthService{r.health}
	for i := range 100 {
		s := &once{}
		s.ctx, s.gone = context.WithCancel(t.Context())
		err := h.Watch(&healthpb.HealthCheckRequest{Service: fmt.Sprintf("no-such-%d", i)}, s)
		if err == nil || len(s.sent) != 1 || s.sent[0].Status != healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
			t.Fatal(err, s.sent)
		}
	}
	if n := reflect.ValueOf(r.health).Elem().FieldByName("updates").Len(); n != 0 {
		t.Errorf("%d names are kept", n)
	}
	s := &once{}
	s.ctx, s.gone = context.WithCancel(t.Context())
	_ = h.Watch(&healthpb.HealthCheckRequest{Service: "lbagent.v1.LookupService"}, s)
	if len(s.sent) != 1 || s.sent[0].Status != healthpb.HealthCheckResponse_SERVING {
		t.Error(s.sent)
	}
}
