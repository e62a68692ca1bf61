package localapi

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
)

// RegisterRule lets a user, or the members of a group, register services of this host on the open socket.
type RegisterRule struct {
	ID       uint32
	Group    bool     // ID is a group's
	Services []string // names, in which * stands for any letters; empty = all
}

// SetRegisterRules replaces the rules. Groups of connections that are open already were looked at by the rules before.
func (s *Server) SetRegisterRules(rules []RegisterRule) { s.rights.register.Store(&rules) }

func (r rights) rules() []RegisterRule {
	if p := r.register.Load(); p != nil {
		return *p
	}
	return nil
}

// registerGroups are those of the caller's groups that a rule names. The kernel is asked only if there are such rules.
func (r rights) registerGroups(c *net.UnixConn) (string, error) {
	if !slices.ContainsFunc(r.rules(), func(rule RegisterRule) bool { return rule.Group }) {
		return "", nil
	}
	groups, err := peerGroups(c)
	if err != nil {
		return "", fmt.Errorf("groups of the caller: %w", err)
	}
	var named []string
	for _, rule := range r.rules() {
		if id := strconv.FormatUint(uint64(rule.ID), 10); rule.Group && slices.Contains(groups, rule.ID) && !slices.Contains(named, id) {
			named = append(named, id)
		}
	}
	return strings.Join(named, ","), nil
}

// mayRegister says why p may not register service; "" asks for any.
func (r rights) mayRegister(p Peer, service string) error {
	if p.Admin {
		return nil
	}
	known := false
	for _, rule := range r.rules() {
		is := rule.ID == p.UID
		if rule.Group {
			is = rule.ID == p.GID || slices.Contains(strings.Split(p.groups, ","), strconv.FormatUint(uint64(rule.ID), 10))
		}
		if !is {
			continue
		}
		known = true
		if service == "" || len(rule.Services) == 0 || slices.ContainsFunc(rule.Services, func(pattern string) bool {
			ok, err := path.Match(pattern, service)
			return ok && err == nil
		}) {
			return nil
		}
	}
	if known {
		return failure(codes.PermissionDenied, reasonForbidden, service, "register_allow names other services for uid %d, gid %d, not %q", p.UID, p.GID, service)
	}
	return failure(codes.PermissionDenied, reasonForbidden, service,
		"registering is for those who may use the admin socket (%s), and for users and groups that register_allow names; the caller has uid %d, gid %d", r.adminPath, p.UID, p.GID)
}
