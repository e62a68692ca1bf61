package h2

import "encoding/binary"

func appendHeader(b []byte, length int, t frameType, flags byte, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(t), flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func putHeader(b []byte, length int, t frameType, flags byte, id uint32) {
	_ = b[8]
	b[0], b[1], b[2], b[3], b[4] = byte(length>>16), byte(length>>8), byte(length), byte(t), flags
	binary.BigEndian.PutUint32(b[5:], id)
}

// begin appends the header of a frame whose payload follows; finish sets its length.
func (c *Conn) begin(t frameType, flags byte, id uint32) (start int) {
	start = len(*c.out)
	*c.out = appendHeader(*c.out, 0, t, flags, id)
	return start
}

func (c *Conn) finish(start int) {
	b := (*c.out)[start:]
	n := len(b) - headerLen
	b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n)
}

func (c *Conn) windowUpdate(id uint32, n int64) {
	*c.out = appendHeader(*c.out, 4, frameWindowUpdate, 0, id)
	*c.out = binary.BigEndian.AppendUint32(*c.out, uint32(n))
}

func (c *Conn) appendReset(id uint32, code Code) {
	*c.out = appendHeader(*c.out, 4, frameReset, 0, id)
	*c.out = binary.BigEndian.AppendUint32(*c.out, uint32(code))
}

func (c *Conn) appendGoaway(last uint32, code Code, debug string) {
	start := c.begin(frameGoaway, 0, 0)
	*c.out = binary.BigEndian.AppendUint32(*c.out, last)
	*c.out = binary.BigEndian.AppendUint32(*c.out, uint32(code))
	*c.out = append(*c.out, debug[:min(len(debug), 256)]...)
	c.finish(start)
}

// OpenStream opens s with the next number (client). Free must be above 0. noBody says that the answer has no body (HEAD).
func (c *Conn) OpenStream(s *Stream, noBody bool) {
	id := uint32(1)
	if c.lastID != 0 {
		id = c.lastID + 2
	}
	c.lastID = id
	c.openStream(s, id)
	s.noBody = noBody
}

func (c *Conn) openStream(s *Stream, id uint32) {
	*s = Stream{
		Owner: s.Owner, conn: c, id: id, next: c.open, opened: c.clock,
		sendWindow: c.initialWindow, recvWindow: int64(c.cfg.StreamWindow), length: -1,
	}
	if c.open != nil {
		c.open.prev = s
	}
	c.open = s
	c.streams.put(s)
	c.slots++
}

// closeStream takes s out; a client's slot is free from then on.
func (c *Conn) closeStream(s *Stream) {
	c.streams.remove(s)
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		c.open = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	if s.queued {
		c.blocked.remove(s)
	}
	s.conn, s.next, s.prev, s.waiting = nil, nil, nil, false
	if !c.cfg.Server {
		c.slots--
	}
}

func (c *Conn) endRecv(s *Stream) {
	s.recvEnd = true
	if !c.cfg.Server {
		c.earn(worthCall)
	}
	if s.sendEnd {
		c.closeStream(s)
	}
}

func (c *Conn) endSend(s *Stream) {
	s.sendEnd = true
	if c.cfg.Server {
		c.earn(worthCall)
	}
	if s.recvEnd {
		c.closeStream(s)
	}
}

// streamError resets s because of what the peer sent.
func (c *Conn) streamError(s *Stream, code Code) error {
	c.history.markReset(s.id)
	c.appendReset(s.id, code)
	c.closeStream(s)
	c.h.Reset(s, code, true)
	if err := c.spend(costReset, FaultResets); err != nil { // CVE-2025-8671
		return err
	}
	return c.checkControl()
}

// Reset resets s, which is closed from then on; no event follows. Nothing if it is closed already.
func (c *Conn) Reset(s *Stream, code Code) {
	if s.conn != c {
		return
	}
	c.history.markReset(s.id)
	c.appendReset(s.id, code)
	c.closeStream(s)
	if !c.cfg.Server {
		c.earn(worthLate)
	}
}

// Forget closes s without a frame: the connection is gone, or its peer said that it never saw the stream.
func (c *Conn) Forget(s *Stream) {
	if s.conn == c {
		c.closeStream(s)
	}
}

// WriteData sends as much of p as the windows and SetFull allow, and END_STREAM behind its last byte if end. It returns how many bytes went; if
// that is less than all, Handler.Writable says when to go on.
func (c *Conn) WriteData(s *Stream, p []byte, end bool) (sent int) {
	for {
		n := int64(len(p) - sent)
		if n > 0 {
			n = c.allowed(s, n)
			if n == 0 {
				return sent
			}
		}
		last := sent+int(n) == len(p)
		if n >= someData || last && n > 0 { // not what a window cut small
			c.earn(worthData)
		}
		flags := byte(0)
		if last && end {
			flags = flagEndStream
		}
		if n > 0 || flags != 0 {
			*c.out = appendHeader(*c.out, int(n), frameData, flags, s.id)
			*c.out = append(*c.out, p[sent:sent+int(n)]...)
		}
		s.sendWindow -= n
		c.sendWindow -= n
		sent += int(n)
		if last {
			if end {
				c.endSend(s)
			}
			return sent
		}
	}
}

// allowed is how much of n may go in one frame now; if nothing, s waits.
func (c *Conn) allowed(s *Stream, n int64) int64 {
	if s.sendWindow <= 0 {
		s.waiting = true
		return 0
	}
	if c.full || c.sendWindow <= 0 {
		s.waiting = true
		c.queue(s)
		return 0
	}
	return min(n, maxFrame, s.sendWindow, c.sendWindow)
}

// queue lets s wait for the connection, behind the streams that wait already.
func (c *Conn) queue(s *Stream) {
	if !s.queued {
		c.blocked.push(s)
	}
}

// wake lets s go on, if it waits and may.
func (c *Conn) wake(s *Stream) {
	switch {
	case !s.waiting || s.queued || s.sendWindow <= 0:
	case c.full || c.sendWindow <= 0:
		c.queue(s)
	default:
		s.waiting = false
		c.h.Writable(s)
	}
}

// wakeBlocked gives each stream that waits for the connection one turn, in the order in which they came, while there is room.
func (c *Conn) wakeBlocked() {
	for turns := c.blocked.n; turns > 0 && c.blocked.n > 0 && !c.full && c.sendWindow > 0 && !c.dead; turns-- {
		s := c.blocked.first
		c.blocked.remove(s)
		c.wake(s)
	}
}

// wakeAll lets every waiting stream go on whose own window allows it.
func (c *Conn) wakeAll() {
	for s := c.open; s != nil; s = s.next {
		if s.waiting && s.sendWindow > 0 {
			c.queue(s)
		}
	}
	c.wakeBlocked()
}

// SetFull stops DATA (not other frames) while the socket doesn't keep up, so that it waits where a reset can drop it.
func (c *Conn) SetFull(full bool) {
	if c.full == full {
		return
	}
	if c.full = full; !full {
		c.wakeBlocked()
	}
}

// Grant lets the peer send n bytes more on s: the other side has taken as many.
func (c *Conn) Grant(s *Stream, n int) {
	if s.conn != c || s.recvEnd {
		return
	}
	if total := int64(n) + s.owed; total > 0 {
		c.windowUpdate(s.id, total)
		s.recvWindow += total
		s.owed = 0
	}
}

// drainPing is the payload of the PING whose answer ends the first phase of Shutdown.
const drainPing = 0x6c6261672d627965

// Shutdown begins a graceful end (server): GOAWAY that names no stream, and a PING. When its answer shows that the client knows, or the owner
// calls Drain, GOAWAY with the real last stream follows, and Handler.Drained (RFC 9113 6.8).
func (c *Conn) Shutdown() {
	if c.dead || c.shutdown != serving {
		return
	}
	c.shutdown = announced
	c.appendGoaway(maxStreamID, NoError, "")
	c.Ping(drainPing)
	c.pinging = true
}

// Ping sends a PING. Handler.Pong says when its answer comes.
func (c *Conn) Ping(n uint64) {
	if c.dead {
		return
	}
	*c.out = appendHeader(*c.out, 8, framePing, 0, 0)
	*c.out = binary.BigEndian.AppendUint64(*c.out, n)
}

// Drain ends the first phase of Shutdown.
func (c *Conn) Drain() {
	if c.dead || c.shutdown != announced {
		return
	}
	c.shutdown, c.goneAt = drained, c.lastID
	c.appendGoaway(c.lastID, NoError, "")
	c.h.Drained()
}

// Goaway sends a last GOAWAY without error: the owner closes (client, or server with no stream open).
func (c *Conn) Goaway() {
	if !c.dead {
		c.goaway(NoError, "")
	}
}
