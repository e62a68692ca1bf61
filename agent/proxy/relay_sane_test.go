package proxy

import (
	"sync"
	"testing"

	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// Messages of a byte, both ways as fast as they go, on one connection, are no attack.
func TestTinyMessagesAreNoFlood(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	const messages = 10_000 // if each of them cost what a reset does, the budget would be spent many times over
	one := &testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}, {Size: 1}}}
	var calls sync.WaitGroup
	for range 4 {
		s, err := client.FullDuplexCall(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		calls.Go(func() {
			for range messages {
				if err := s.Send(one); err != nil {
					t.Error(err)
					return
				}
			}
			s.CloseSend()
		})
		calls.Go(func() {
			for i := range 2 * messages {
				if _, err := s.Recv(); err != nil {
					t.Errorf("message %d: %v", i, err)
					return
				}
			}
			if _, err := s.Recv(); err == nil {
				t.Error("the stream did not end")
			}
		})
	}
	calls.Wait()
	r.quiet()
	r.onLoop(func(k *relay) {
		for name, s := range k.w.stats {
			for i := range s.guards {
				if n := s.guards[i].count; n != 0 {
					t.Errorf("%s: protected %d times from %v", name, n, protection(i))
				}
			}
		}
	})
}
