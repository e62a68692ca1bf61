package loop

import "golang.org/x/sys/unix"

// Unread is the number of bytes that the kernel has received and Readable was not given yet.
func (c *Conn) Unread() int { return c.kernelQueue(unix.SIOCINQ) }

// Arrived is the number of bytes, of all that were queued since the connection began, that the peer's kernel has acknowledged. Not for connections with
// a source of a splice.
func (c *Conn) Arrived() uint64 { return c.sent - min(c.sent, uint64(c.kernelQueue(unix.SIOCOUTQ))) }

// kernelQueue asks for the length of one of the socket's queues; 0 if there is no telling.
func (c *Conn) kernelQueue(request uint) int {
	if c.gone || c.connecting {
		return 0
	}
	n, err := unix.IoctlGetInt(c.fd, request)
	if err != nil {
		return 0
	}
	return max(0, n)
}
