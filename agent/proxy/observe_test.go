package proxy

import (
	"encoding/binary"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// observer follows arbitrary bytes that were sent to the relay as far as they are frames, so that the validator of what comes back knows what was said. What
// is more than that, the relay has to refuse.
type observer struct {
	v             *validator
	have          []byte
	dec           *hpack.Decoder
	head          bool // the block says HEAD
	block         []byte
	id            uint32
	flags         http2.Flags
	last          uint32
	frames, heads int
	bytes         int
}

// observe gives e arbitrary bytes to send, from its first one on.
func (e *peerEnd) observe() *observer {
	e.w.out = e.w.out[:0]
	o := &observer{v: e.v, dec: hpack.NewDecoder(4096, nil)}
	o.dec.SetEmitFunc(func(f hpack.HeaderField) { o.head = o.head || f.Name == ":method" && f.Value == "HEAD" })
	if e.v.requests {
		return o
	}
	o.have = make([]byte, 0, 100)
	return o
}

// sent takes what was written to the relay.
func (o *observer) sent(b []byte) {
	o.bytes += len(b)
	o.have = append(o.have, b...)
	b = o.have
	if !o.v.requests && o.bytes >= len(http2.ClientPreface) && o.frames == 0 && len(b) >= len(http2.ClientPreface) && string(b[:len(http2.ClientPreface)]) == http2.ClientPreface {
		b = b[len(http2.ClientPreface):]
	} else if !o.v.requests && o.frames == 0 {
		return
	}
	for len(b) >= 9 {
		n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		if n > 16384 || len(b) < 9+n {
			break
		}
		o.frames++
		o.frame(http2.FrameType(b[3]), http2.Flags(b[4]), binary.BigEndian.Uint32(b[5:])&(1<<31-1), b[9:9+n])
		b = b[9+n:]
	}
	if o.frames > 0 {
		o.have = o.have[:copy(o.have, b)]
	}
}

func (o *observer) frame(t http2.FrameType, flags http2.Flags, id uint32, p []byte) {
	v := o.v
	s := v.streams[id]
	switch t {
	case http2.FrameSettings:
		if flags&http2.FlagSettingsAck == 0 {
			o.settings(p)
		}
	case http2.FramePing:
		if flags&http2.FlagPingAck == 0 && len(p) == 8 {
			v.pings = append(v.pings, [8]byte(p))
		}
	case http2.FrameWindowUpdate:
		if len(p) != 4 {
			return
		}
		n := int64(binary.BigEndian.Uint32(p) & (1<<31 - 1))
		if id == 0 {
			v.window += n
		} else if s != nil {
			s.window += n
		}
	case http2.FrameRSTStream:
		if s != nil {
			v.close(s, func() { s.weReset = true })
		}
	case http2.FrameData:
		v.theirWindow -= int64(len(p))
		if s != nil {
			s.theirs -= int64(len(p))
		}
		o.end(s, flags)
	case http2.FrameHeaders:
		if flags&http2.FlagHeadersPadded != 0 && len(p) > 0 {
			pad := int(p[0])
			if pad >= len(p) {
				return
			}
			p = p[1 : len(p)-pad]
		}
		if flags&http2.FlagHeadersPriority != 0 && len(p) >= 5 {
			p = p[5:]
		}
		o.id, o.flags, o.block = id, flags, append(o.block[:0], p...)
		o.headers(flags)
	case http2.FrameContinuation:
		if id == o.id {
			o.block = append(o.block, p...)
			o.headers(flags)
		}
	}
}

func (o *observer) settings(p []byte) {
	say := saidSettings{-1, -1, -1, -1}
	for ; len(p) >= 6; p = p[6:] {
		value := int64(binary.BigEndian.Uint32(p[2:]))
		switch http2.SettingID(binary.BigEndian.Uint16(p)) {
		case http2.SettingInitialWindowSize:
			say.initial = value
		case http2.SettingMaxConcurrentStreams:
			say.maxStreams = value
		case http2.SettingHeaderTableSize:
			say.tableSize = value
			if say.lowest < 0 || value < say.lowest {
				say.lowest = value
			}
		}
	}
	o.v.said = append(o.v.said, say)
}

func (o *observer) end(s *seenStream, flags http2.Flags) {
	if s != nil && flags&http2.FlagDataEndStream != 0 {
		o.v.close(s, func() { s.weEnded = true })
	}
}

// headers acts on a whole block. A server's open nothing.
func (o *observer) headers(flags http2.Flags) {
	if flags&http2.FlagHeadersEndHeaders == 0 {
		return
	}
	o.heads++
	o.head = false
	_, _ = o.dec.Write(o.block)
	_ = o.dec.Close()
	v := o.v
	if !v.requests && v.streams[o.id] == nil && o.id%2 == 1 && o.id > o.last {
		o.last = o.id
		v.opened(o.id).noBody = o.head
	}
	o.end(v.streams[o.id], o.flags)
}
