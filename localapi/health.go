package localapi

import (
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// healthService is grpc's own, but that keeps every name that was ever watched, and any local user may watch any name.
type healthService struct{ *health.Server }

// Watch doesn't pass on names that are none of this server's, which will not get any more.
func (h healthService) Watch(r *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	if _, err := h.Check(stream.Context(), r); err == nil {
		return h.Server.Watch(r, stream)
	}
	if err := stream.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVICE_UNKNOWN}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}
