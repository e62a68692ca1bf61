package localapi

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Accept lets go of a service's orphans (1.10).
func (a adminService) Accept(_ context.Context, r *lbagentv1.AcceptRequest) (*lbagentv1.AcceptResponse, error) {
	s := a.s
	if s.cfg.Accept == nil {
		return nil, status.Error(codes.Unimplemented, "this agent keeps no orphans")
	}
	if s.cfg.Table.Lookup(r.Service) == nil {
		return nil, failure(codes.NotFound, reasonUnknown, r.Service, "service %q isn't followed; `lbagent services` names those that are", r.Service)
	}
	gone, err := s.cfg.Accept(r.Service)
	if err != nil {
		return nil, failure(codes.NotFound, reasonUnknown, r.Service, "%v", err)
	}
	resp := &lbagentv1.AcceptResponse{}
	for _, addr := range gone {
		resp.Addresses = append(resp.Addresses, addr.String())
	}
	return resp, nil
}
