package health

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of probes on sockets that never block, raw: Go's scheduler isn't told of them. Told, it wakes its watchdog, which looks around 50 times at intervals of 20 µs before it
// lets up, and gives what runs on a processor that stays in one call for longer than that to another thread: with 200 connects a second that cost as much as these.
// 0 is success. None of them waits, so that none is interrupted.

// inetFamily is the kind of socket that reaches addr.
func inetFamily(addr netip.Addr) int {
	if addr.Is4() || addr.Is4In6() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// openSocket makes one for TCP.
func openSocket(family int) (int, syscall.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return int(fd), errno
}

// connectSocket begins a connect to addr, which has no zone.
func connectSocket(fd int, addr netip.AddrPort) (errno syscall.Errno) {
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], addr.Port())
	if ip := addr.Addr(); inetFamily(ip) == unix.AF_INET {
		to := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: binary.NativeEndian.Uint16(port[:]), Addr: ip.Unmap().As4()}
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
	} else {
		to := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: binary.NativeEndian.Uint16(port[:]), Addr: ip.As16()}
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
	}
	return errno
}

// closeSocket closes it.
func closeSocket(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// setSocket sets an option that is an int. One that the kernel refuses costs nothing else.
func setSocket(fd, level, option, value int) {
	v := int32(value)
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
}

// resetOnClose has the end of a connection be a reset.
func resetOnClose(fd int) {
	v := unix.Linger{Onoff: 1}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
}

// socketError takes the error that a socket has.
func socketError(fd int) syscall.Errno {
	var v int32
	size := uint32(unsafe.Sizeof(v))
	if _, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return errno
	}
	return syscall.Errno(v)
}

// pollSockets asks what the sockets are ready for now.
func pollSockets(all []unix.PollFd) syscall.Errno {
	var none unix.Timespec
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(all))), uintptr(len(all)), uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	return errno
}

// readSocket reads into b.
func readSocket(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// writeSocket writes b as far as the kernel takes it.
func writeSocket(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}
