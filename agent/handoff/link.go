package handoff

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	version    = 1 // of the messages; unknown fields are ignored, so that a release reads those of the one before and of the one after it
	mostFDsMsg = 200
	mostBytes  = 64 << 20 // of a message
	headBytes  = 4
)

// The steps of a handoff, in order. Between Serving and Main two processes accept; before, only the old one does, and after only the new one.
const (
	stepListeners = "listeners" // old: descriptors, as many messages as it takes
	stepOffer     = "offer"     // old: what it knows; the end of what the new one needs to get ready
	stepReady     = "ready"     // new: it has every list that the old one has
	stepGo        = "go"        // old: it writes nothing any more
	stepServing   = "serving"   // new: it accepts at every listener
	stepMain      = "main"      // old: it accepts nothing any more, and has told the service manager who comes after it
	stepFailed    = "failed"    // new: why it ends
)

// message is what goes over the link: its length, then JSON.
type message struct {
	Version int             `json:"version"`
	Step    string          `json:"step"`
	Release string          `json:"release,omitempty"` // of the sender
	Names   []string        `json:"names,omitempty"`   // of the descriptors that come with it
	Offer   json.RawMessage `json:"offer,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// link joins two processes, of which one follows the other.
type link struct{ conn *net.UnixConn }

func newLink(f *os.File) (*link, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open the handoff: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("open the handoff: not a unix socket")
	}
	return &link{u}, nil
}

func (l *link) send(m message, fds ...int) error {
	m.Version = version
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if _, _, err := l.conn.WriteMsgUnix(head, rights, nil); err != nil { // four bytes into an empty or moving queue: never a part of them
		return fmt.Errorf("send %q: %w", m.Step, err)
	}
	if _, err := l.conn.Write(body); err != nil {
		return fmt.Errorf("send %q: %w", m.Step, err)
	}
	return nil
}

// receive returns the next message; io.EOF if the other process has ended.
func (l *link) receive() (m message, fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	head, oob := make([]byte, headBytes), make([]byte, unix.CmsgSpace(4*mostFDsMsg))
	n, oobn, _, _, err := l.conn.ReadMsgUnix(head, oob)
	if cmsgs, parseErr := unix.ParseSocketControlMessage(oob[:oobn]); parseErr == nil {
		for i := range cmsgs {
			got, _ := unix.ParseUnixRights(&cmsgs[i])
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && n < len(head) {
		_, err = io.ReadFull(l.conn, head[n:])
	}
	if err != nil {
		return m, fds, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > mostBytes {
		return m, fds, fmt.Errorf("a message of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(l.conn, body); err != nil {
		return m, fds, err
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, fds, fmt.Errorf("read a message: %w", err)
	}
	if len(m.Names) != len(fds) {
		return m, fds, fmt.Errorf("%d descriptors came with %d names", len(fds), len(m.Names))
	}
	return m, fds, nil
}

// want receives the message of one step.
func (l *link) want(step string) (message, error) {
	m, fds, err := l.receive()
	for _, fd := range fds {
		unix.Close(fd)
	}
	switch {
	case err != nil:
		return m, err
	case m.Step == stepFailed:
		return m, errors.New(m.Error)
	case m.Step != step:
		return m, fmt.Errorf("it said %q, not %q", m.Step, step)
	}
	return m, nil
}

func (l *link) deadline(at time.Time) { _ = l.conn.SetDeadline(at) }

func (l *link) close() { _ = l.conn.Close() }
