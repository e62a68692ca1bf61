package h2

import "encoding/binary"

// onData: RFC 9113 6.1. The connection's credit goes back here, the stream's by Grant.
func (c *Conn) onData(flags byte, id uint32, p []byte) error {
	if id == 0 {
		return connError(ProtocolError, "DATA on stream 0")
	}
	size := int64(len(p)) // padding counts, RFC 9113 6.9.1
	p, err := unpad(flags, p)
	if err != nil {
		return err
	}
	if c.recvWindow -= size; c.recvWindow < 0 {
		return connError(FlowControlError, "connection window exceeded")
	}
	if c.owed += size; c.owed >= int64(c.cfg.ConnWindow)/2 {
		c.windowUpdate(0, c.owed)
		c.recvWindow += c.owed
		c.owed = 0
	}
	s := c.streams.get(id)
	if s == nil {
		if err := c.spend(int(size)/closedBytes, FaultFrames); err != nil {
			return err
		}
		return c.onClosed(frameData, id)
	}
	if s.recvEnd {
		return c.streamError(s, StreamClosed)
	}
	if s.recvWindow -= size; s.recvWindow < 0 {
		return c.streamError(s, FlowControlError)
	}
	end := flags&flagEndStream != 0
	if !s.answered || s.noBody && len(p) > 0 || !s.countBody(len(p), end) {
		return c.streamError(s, ProtocolError) // RFC 9113 8.1.1
	}
	switch {
	case len(p) >= someData:
		c.earn(worthData)
	case len(p) == 0 && !end: // CVE-2019-9518; a byte is as good as many, or tunnels and gRPC's smallest messages would be a flood
		if err := c.spend(costAct, FaultFrames); err != nil {
			return err
		}
	}
	if end {
		c.endRecv(s)
	} else if pad := size - int64(len(p)); pad > 0 {
		c.giveBackPadding(s, pad)
	}
	c.h.Data(s, p, end)
	return nil
}

// countBody compares the body with content-length.
func (s *Stream) countBody(n int, end bool) bool {
	if s.length < 0 {
		return true
	}
	s.length -= int64(n)
	return s.length >= 0 && (!end || s.length == 0)
}

// giveBackPadding: nobody else knows of it. Small amounts wait for more.
func (c *Conn) giveBackPadding(s *Stream, pad int64) {
	if s.owed += pad; s.owed >= int64(c.cfg.StreamWindow)/4 {
		c.Grant(s, 0)
	}
}

// onClosed answers a frame for a stream that isn't open.
func (c *Conn) onClosed(t frameType, id uint32) error {
	if c.idle(id) {
		return connError(ProtocolError, "frame on an idle stream") // RFC 9113 5.1
	}
	if !c.cfg.Server || c.ignored(id) || c.history.forgiven(c.lastID, id) {
		if t == frameHeaders {
			return c.spend(costInform, FaultFrames)
		}
		return c.spend(costLook, FaultFrames)
	}
	switch {
	case t == frameHeaders && c.history.wasOpen(c.lastID, id):
		return connError(StreamClosed, "HEADERS on a closed stream")
	case t == frameHeaders:
		return connError(ProtocolError, "stream number below an earlier one") // RFC 9113 5.1.1
	}
	return c.resetClosed(id, StreamClosed)
}

// resetClosed resets a stream that isn't open, because of what the peer sent.
func (c *Conn) resetClosed(id uint32, code Code) error {
	c.history.markReset(id)
	c.appendReset(id, code)
	if err := c.spend(costReset, FaultResets); err != nil {
		return err
	}
	return c.checkControl()
}

// idle reports whether id was not opened yet, or can't be.
func (c *Conn) idle(id uint32) bool { return id&1 == 0 || id > c.lastID }

// ignored reports whether id came after our final GOAWAY.
func (c *Conn) ignored(id uint32) bool { return c.shutdown == drained && id > c.goneAt }

// unpad cuts the padding of DATA and HEADERS.
func unpad(flags byte, p []byte) ([]byte, error) {
	if flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError(FrameSizeError, "padded frame without length")
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, connError(ProtocolError, "padding longer than the frame")
	}
	return p[1 : len(p)-pad], nil
}

// onPriority: deprecated, checked and ignored (RFC 9113 6.3).
func (c *Conn) onPriority(id uint32, p []byte) error {
	if id == 0 {
		return connError(ProtocolError, "PRIORITY on stream 0")
	}
	if len(p) == 5 {
		return c.spend(costLook, FaultFrames)
	}
	if s := c.streams.get(id); s != nil {
		return c.streamError(s, FrameSizeError)
	}
	return connError(FrameSizeError, "PRIORITY of wrong size")
}

func (c *Conn) onReset(id uint32, p []byte) error {
	switch {
	case len(p) != 4:
		return connError(FrameSizeError, "RST_STREAM of wrong size")
	case id == 0:
		return connError(ProtocolError, "RST_STREAM on stream 0")
	case c.idle(id):
		return connError(ProtocolError, "RST_STREAM on an idle stream")
	}
	s := c.streams.get(id)
	if s == nil {
		return c.spend(costLook, FaultFrames)
	}
	early := c.cfg.Server && !s.replied && c.clock-s.opened < earlyReset
	c.closeStream(s)
	c.h.Reset(s, Code(binary.BigEndian.Uint32(p)), false)
	if early {
		return c.spend(costReset, FaultResets) // CVE-2023-44487
	}
	return nil
}

func (c *Conn) onPing(flags byte, id uint32, p []byte) error {
	switch {
	case len(p) != 8:
		return connError(FrameSizeError, "PING of wrong size")
	case id != 0:
		return connError(ProtocolError, "PING on a stream")
	case flags&flagAck == 0:
		start := c.begin(framePing, flagAck, 0)
		*c.out = append(*c.out, p...)
		c.finish(start)
		if err := c.spend(costAct, FaultFrames); err != nil {
			return err
		}
		return c.checkControl()
	}
	n := binary.BigEndian.Uint64(p)
	if c.pinging && n == drainPing {
		c.pinging = false
		c.Drain()
		return nil
	}
	c.h.Pong(n)
	return c.spend(costLook, FaultFrames)
}

func (c *Conn) onGoaway(id uint32, p []byte) error {
	switch {
	case len(p) < 8:
		return connError(FrameSizeError, "GOAWAY of wrong size")
	case id != 0:
		return connError(ProtocolError, "GOAWAY on a stream")
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	if c.peerGone && last > c.peerLast {
		return connError(ProtocolError, "GOAWAY raised its last stream") // RFC 9113 6.8
	}
	c.peerGone, c.peerLast = true, last
	walk := costAct + c.streams.n/costPerStream // all streams may be looked at
	c.h.Goaway(last, Code(binary.BigEndian.Uint32(p[4:])), p[8:])
	return c.spend(walk, FaultFrames)
}

func (c *Conn) onWindowUpdate(id uint32, p []byte) error {
	if len(p) != 4 {
		return connError(FrameSizeError, "WINDOW_UPDATE of wrong size")
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if id == 0 {
		return c.openWindow(n)
	}
	s := c.streams.get(id)
	switch {
	case s == nil && c.idle(id):
		return connError(ProtocolError, "WINDOW_UPDATE on an idle stream")
	case s == nil:
		return c.spend(costLook, FaultFrames)
	case n == 0:
		return c.streamError(s, ProtocolError)
	case s.sendWindow+n > maxWindow:
		return c.streamError(s, FlowControlError)
	}
	s.sendWindow += n
	c.wake(s)
	return c.spend(costAct, FaultFrames)
}

func (c *Conn) openWindow(n int64) error {
	if n == 0 {
		return connError(ProtocolError, "WINDOW_UPDATE of 0")
	}
	if c.sendWindow += n; c.sendWindow > maxWindow {
		return connError(FlowControlError, "connection window above 2^31-1")
	}
	c.wakeBlocked()
	return c.spend(costAct, FaultFrames)
}

// onSettings: RFC 9113 6.5.
func (c *Conn) onSettings(flags byte, id uint32, p []byte) error {
	switch {
	case id != 0:
		return connError(ProtocolError, "SETTINGS on a stream")
	case flags&flagAck != 0 && len(p) != 0, len(p)%6 != 0:
		return connError(FrameSizeError, "SETTINGS of wrong size")
	case flags&flagAck != 0:
		c.acked = true
		return c.spend(costLook, FaultFrames)
	case len(p) > 6*maxSettings:
		return tooMuch(FaultFrames, "too many values in SETTINGS")
	}
	if err := c.spend(costAct+c.streams.n/costPerStream, FaultFrames); err != nil {
		return err
	}
	c.settings = true
	window := c.initialWindow
	for ; len(p) > 0; p = p[6:] {
		id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])
		if err := c.apply(id, v); err != nil {
			return err
		}
		if id == settingInitialWindow {
			window = int64(v)
		}
	}
	if err := c.moveWindows(window); err != nil { // once: only the last one counts
		return err
	}
	c.finish(c.begin(frameSettings, flagAck, 0))
	if err := c.checkControl(); err != nil {
		return err
	}
	c.wakeAll() // a larger initial window may have opened streams
	c.h.Settings()
	return nil
}

func (c *Conn) apply(id uint16, v uint32) error {
	switch id {
	case settingTableSize:
		c.enc.resize(v)
	case settingPush:
		if v > 1 || v == 1 && !c.cfg.Server {
			return connError(ProtocolError, "SETTINGS_ENABLE_PUSH out of range")
		}
	case settingMaxStreams:
		c.maxStreams = int(min(v, maxStreamID))
	case settingInitialWindow:
		if v > maxWindow {
			return connError(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
		}
	case settingMaxHeaderBytes:
		c.maxHeader = int(v)
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return connError(ProtocolError, "SETTINGS_MAX_FRAME_SIZE out of range")
		}
	}
	return nil // RFC 9113 6.5.2: unknown settings are ignored
}

// moveWindows changes what every open stream may send (RFC 9113 6.9.2).
func (c *Conn) moveWindows(v int64) error {
	delta := v - c.initialWindow
	if delta == 0 {
		return nil
	}
	c.initialWindow = v
	for s := c.open; s != nil; s = s.next {
		if s.sendWindow += delta; s.sendWindow > maxWindow {
			return connError(FlowControlError, "stream window above 2^31-1")
		}
	}
	return nil
}

// checkControl counts an answer that the peer provoked.
func (c *Conn) checkControl() error {
	if c.control++; c.control > maxControl {
		return tooMuch(FaultFrames, "too many control frames unread")
	}
	return nil
}
