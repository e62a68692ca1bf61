package h2

import "encoding/binary"

// onHeaders: RFC 9113 6.2. A block that is whole is decoded where it lies.
func (c *Conn) onHeaders(flags byte, id uint32, p []byte) error {
	if id == 0 {
		return connError(ProtocolError, "HEADERS on stream 0")
	}
	p, err := unpad(flags, p)
	if err != nil {
		return err
	}
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return connError(FrameSizeError, "HEADERS too short for its priority")
		}
		p = p[5:]
	}
	end := flags&flagEndStream != 0
	if flags&flagEndHeaders != 0 {
		return c.onBlock(id, p, end)
	}
	c.blockID, c.blockEnd, c.blockParts = id, end, 1
	c.block = append(c.block[:0], p...)
	return nil
}

func (c *Conn) onContinuation(flags byte, id uint32, p []byte) error {
	if c.blockID == 0 {
		return connError(ProtocolError, "CONTINUATION without HEADERS") // which also covers stream 0
	}
	// No state is kept beyond the limit, so the connection can't go on: its compression table would be wrong (CVE-2024-27316).
	if c.blockParts++; c.blockParts > maxContinuations || len(c.block)+len(p) > c.cfg.HeaderBytes {
		return tooMuch(FaultHeaders, "header block too large")
	}
	c.block = append(c.block, p...)
	if err := c.spend(costAct, FaultFrames); err != nil {
		return err
	}
	if flags&flagEndHeaders == 0 {
		return nil
	}
	c.blockID = 0
	err := c.onBlock(id, c.block, c.blockEnd)
	c.block = nil // rare enough not to keep
	return err
}

// onBlock acts on a whole header block. It's decoded in any case, to keep the compression table in step.
func (c *Conn) onBlock(id uint32, block []byte, end bool) error {
	var err error
	c.fields, c.size, c.excess, err = c.dec.decode(c.fields[:0], block, c.cfg.HeaderBytes, c.cfg.HeaderFields)
	if err != nil {
		return connError(CompressionError, "header block: "+err.Error())
	}
	if c.excess { // it was decoded for nothing
		err = c.spend(len(block)/costPerByte, FaultHeaders)
	}
	if err == nil {
		err = c.onList(id, end)
	}
	c.forgetFields()
	return err
}

// forgetFields lets go of the strings of a header list: an idle connection keeps none.
func (c *Conn) forgetFields() {
	if clear(c.fields); cap(c.fields) > 64 {
		c.fields = nil
	}
}

// onList acts on a header list that was decoded.
func (c *Conn) onList(id uint32, end bool) error {
	s := c.streams.get(id)
	switch {
	case s != nil && s.recvEnd:
		return c.streamError(s, StreamClosed)
	case s != nil && c.excess:
		return c.streamError(s, EnhanceYourCalm)
	case s != nil && s.answered:
		return c.onTrailers(s, end)
	case s != nil:
		return c.onResponse(s, end)
	case c.cfg.Server && id > c.lastID && id&1 == 1:
		return c.onRequest(id, end)
	}
	return c.onClosed(frameHeaders, id)
}

func (c *Conn) onRequest(id uint32, end bool) error {
	c.history.open(c.lastID, id)
	c.lastID = id
	switch {
	case c.ignored(id):
		return nil
	case c.slots >= c.cfg.MaxStreams:
		return c.refuse(id, RefusedStream, FaultStreams) // RFC 9113 5.1.2
	case c.excess:
		return c.tooLarge(id, end)
	case c.held+c.size > c.cfg.HeldBytes:
		return c.refuse(id, RefusedStream, FaultHeaders)
	}
	length, ok := c.checkRequest()
	if !ok || end && length > 0 {
		return c.refuse(id, ProtocolError, FaultMalformed) // RFC 9113 8.1.1
	}
	c.held += c.size
	s := c.h.Open()
	c.openStream(s, id)
	s.answered, s.recvEnd, s.length = true, end, length
	c.h.Headers(s, c.fields, &c.head, end)
	return nil
}

// tooLarge hands on a request whose header list is over a limit, to be answered: a person can read that, unlike a reset. It costs the peer as much as one that
// is reset, and the answer isn't worth a served call.
func (c *Conn) tooLarge(id uint32, end bool) error {
	if err := c.spend(worthCall+costReset, FaultHeaders); err != nil {
		return err
	}
	c.checkRequest() // as far as it goes, for the way to answer
	c.head.Size, c.head.TooLarge = 0, true
	s := c.h.Open()
	c.openStream(s, id)
	s.answered, s.recvEnd, s.length = true, end, -1
	c.h.Headers(s, nil, &c.head, end)
	return nil
}

func (c *Conn) onResponse(s *Stream, end bool) error {
	length, ok := c.checkResponse()
	informational := c.head.Status < 200
	if !ok || informational && end {
		return c.streamError(s, ProtocolError)
	}
	if informational {
		if err := c.spend(costInform, FaultFrames); err != nil {
			return err
		}
	} else {
		s.answered = true
		if !s.noBody && c.head.Status != 304 {
			s.length = length
		}
		if end && s.length > 0 {
			return c.streamError(s, ProtocolError)
		}
	}
	if end {
		c.endRecv(s)
	}
	c.h.Headers(s, c.fields, &c.head, end)
	return nil
}

func (c *Conn) onTrailers(s *Stream, end bool) error {
	if !end || s.length > 0 || !c.checkTrailers() {
		return c.streamError(s, ProtocolError)
	}
	if c.cfg.Server {
		if c.held+c.size > c.cfg.HeldBytes {
			return c.streamError(s, EnhanceYourCalm)
		}
		c.held += c.size
	}
	c.endRecv(s)
	c.h.Trailers(s, c.fields, &c.head)
	return nil
}

// refuse resets a stream that the handler never saw.
func (c *Conn) refuse(id uint32, code Code, f Fault) error {
	c.h.Refused(f)
	return c.resetClosed(id, code)
}

// WriteHeaders sends a header list: a request, a response, or, with end, trailers. The fields must be valid, as those of an event are.
func (c *Conn) WriteHeaders(s *Stream, fields []Field, end bool) {
	start := c.begin(frameHeaders, 0, s.id)
	out := c.enc.begin(*c.out)
	for i := range fields {
		out = c.enc.encode(out, &fields[i])
	}
	*c.out = out
	s.replied = true
	c.finishBlock(start, end)
	if end {
		c.endSend(s)
	}
}

// finishBlock sets length and flags of the HEADERS frame at start, and cuts what is too long into CONTINUATION frames.
func (c *Conn) finishBlock(start int, end bool) {
	out := *c.out
	flags := byte(0)
	if end {
		flags = flagEndStream
	}
	block := out[start+headerLen:]
	if len(block) <= maxFrame {
		putHeader(out[start:], len(block), frameHeaders, flags|flagEndHeaders, binary.BigEndian.Uint32(out[start+5:]))
		return
	}
	id := binary.BigEndian.Uint32(out[start+5:])
	rest := append([]byte(nil), block[maxFrame:]...) // rare: a copy is fine
	putHeader(out[start:], maxFrame, frameHeaders, flags, id)
	out = out[:start+headerLen+maxFrame]
	for len(rest) > 0 {
		part := rest[:min(len(rest), maxFrame)]
		rest = rest[len(part):]
		flags = 0
		if len(rest) == 0 {
			flags = flagEndHeaders
		}
		out = appendHeader(out, len(part), frameContinuation, flags, id)
		out = append(out, part...)
	}
	*c.out = out
}
