package localapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Peer is who called, as the kernel says: the process that connected. It is fixed for the life of a connection.
type Peer struct {
	UID, GID uint32
	PID      int32
	Admin    bool       // came by the admin socket and may change things; groups were looked at when the connection was accepted
	Socket   bool       // came by the admin socket
	Addr     netip.Addr // came by TCP, from there; whose process it is is unknown, so UID and GID are RemoteUID, and PID is 0

	groups string // of its groups, those that register_allow names, as "5,1000"; a text, so that Peers compare
}

// RemoteUID stands for all callers by TCP where one user's word counts once: as reporter, and as who asked for a service. No user has it: it is -1, which
// setuid(2) refuses.
const RemoteUID = math.MaxUint32

// caller is who a limit counts: a user of this host, or where callers by TCP are.
type caller struct {
	uid  uint32
	addr netip.Addr // a network of 64 bits for IPv6: one host may have all of it
}

// door is where it came by.
func (p Peer) door() kind {
	switch {
	case p.Addr.IsValid():
		return doorTCP
	case p.Socket:
		return doorAdmin
	}
	return doorOpen
}

func (p Peer) caller() caller {
	if p.Addr.Is6() {
		net, _ := p.Addr.Prefix(64) // of an address without a zone it is no error
		return caller{p.UID, net.Addr()}
	}
	return caller{p.UID, p.Addr}
}

// String begins a sentence.
func (c caller) String() string {
	switch {
	case c.addr.Is6():
		return fmt.Sprintf("network %v/64", c.addr)
	case c.addr.IsValid():
		return fmt.Sprintf("address %v", c.addr)
	}
	return fmt.Sprintf("uid %d", c.uid)
}

// AuthType makes Peer a credentials.AuthInfo.
func (Peer) AuthType() string { return "peercred" }

// peerCred asks the kernel who is at the other end.
func peerCred(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// peerGroups returns the supplementary groups that the process at the other end had when it connected.
func peerGroups(c *net.UnixConn) ([]uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	groups := make([]uint32, 64)
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		for {
			size := uint32(len(groups) * 4)
			_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
			if errno == unix.ERANGE && int(size/4) > len(groups) { // the kernel says how many there are, at most NGROUPS_MAX
				groups = make([]uint32, size/4)
				continue
			}
			groups = groups[:min(int(size/4), len(groups))]
			return
		}
	}); err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, errno
	}
	return groups, nil
}

// peerCredentials hands the identity of an accepted connection to grpc. It trusts the types of this package only, which nothing from outside can make.
type peerCredentials struct{}

// viaGateway is the AuthInfo of the in-memory connection: who called is in the metadata that the gateway set, request by request.
type viaGateway struct{}

func (viaGateway) AuthType() string { return "gateway" }

// ServerHandshake reads the identity; nothing goes over the wire.
func (peerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	switch c := raw.(type) {
	case *conn:
		return c, c.peer, nil
	case gatewayConn:
		return c, viaGateway{}, nil
	}
	return nil, nil, fmt.Errorf("connection of unknown origin %T", raw)
}

// ClientHandshake is not for this side.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

// Info names the protocol.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone returns the same: it holds nothing.
func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

// OverrideServerName means nothing here.
func (peerCredentials) OverrideServerName(string) error { return nil }

// peerKey is the metadata key by which the gateway passes on who called. It is read from the in-memory connection only; the same key on a
// socket's connection means nothing, and the gateway forwards no header of its callers.
const peerKey = "lbagent-peer"

var errNoPeer = errors.New("the caller is unknown")

// peerOf returns who called.
func peerOf(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, errNoPeer
	}
	switch a := p.AuthInfo.(type) {
	case Peer:
		return a, nil
	case viaGateway:
		v := metadata.ValueFromIncomingContext(ctx, peerKey)
		if len(v) != 1 {
			return Peer{}, errNoPeer
		}
		return parsePeer(v[0])
	}
	return Peer{}, errNoPeer
}

// String is the form in which the gateway passes a Peer on.
func (p Peer) String() string {
	addr := "-"
	if p.Addr.IsValid() {
		addr = p.Addr.String()
	}
	return fmt.Sprintf("%d %d %d %t %t %s %s", p.UID, p.GID, p.PID, p.Socket, p.Admin, cmp.Or(p.groups, "-"), addr)
}

func parsePeer(s string) (Peer, error) {
	f := strings.Split(s, " ")
	if len(f) != 7 {
		return Peer{}, errNoPeer
	}
	uid, err1 := strconv.ParseUint(f[0], 10, 32)
	gid, err2 := strconv.ParseUint(f[1], 10, 32)
	pid, err3 := strconv.ParseInt(f[2], 10, 32)
	socket, err4 := strconv.ParseBool(f[3])
	admin, err5 := strconv.ParseBool(f[4])
	var addr netip.Addr
	var err6 error
	if f[6] != "-" {
		addr, err6 = netip.ParseAddr(f[6])
	}
	if errors.Join(err1, err2, err3, err4, err5, err6) != nil || f[5] != "-" && strings.Trim(f[5], "0123456789,") != "" {
		return Peer{}, errNoPeer
	}
	return Peer{UID: uint32(uid), GID: uint32(gid), PID: int32(pid), Socket: socket, Admin: admin, groups: strings.TrimPrefix(f[5], "-"), Addr: addr}, nil
}
