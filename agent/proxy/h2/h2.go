// Package h2 is HTTP/2 (RFC 9113) without I/O: bytes in, bytes and events out. A Conn knows no socket, goroutine or clock, so it runs in a test or a
// fuzzer as it runs in production. It's made for a relay: frames are parsed in place, header lists are handed on as decoded, DATA is never copied, and
// credit goes back to a sender when the owner says so (HTTP2.md 2).
package h2

import "fmt"

// Field is a header field. It may be kept after the event that brought it: its strings are never overwritten.
type Field struct {
	Name, Value string
	Sensitive   bool // never enters a compression table (RFC 7541 7.1.3)

	code  uint8 // of Name, see nameCode
	bad   bool  // not valid
	blank bool  // Value has white space around it
}

// Preface is what a client sends first (RFC 9113 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Code is an error code (RFC 9113 7).
type Code uint32

// Every error code.
const (
	NoError            Code = 0x0
	ProtocolError      Code = 0x1
	InternalError      Code = 0x2
	FlowControlError   Code = 0x3
	SettingsTimeout    Code = 0x4
	StreamClosed       Code = 0x5
	FrameSizeError     Code = 0x6
	RefusedStream      Code = 0x7
	Cancel             Code = 0x8
	CompressionError   Code = 0x9
	ConnectError       Code = 0xa
	EnhanceYourCalm    Code = 0xb
	InadequateSecurity Code = 0xc
	HTTP11Required     Code = 0xd
)

// String is the name that RFC 9113 gives the code.
func (c Code) String() string {
	names := [...]string{
		"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
		"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("error code 0x%x", uint32(c))
}

// Error ends a connection: the peer broke the protocol, and GOAWAY with Code has been appended.
type Error struct {
	Code   Code
	Fault  Fault
	Reason string
}

// Fault is what a peer did that a Conn doesn't put up with.
type Fault uint8

// Every fault.
const (
	FaultMalformed Fault = iota // what the protocol forbids
	FaultResets                 // too many streams reset early, by the peer or because of what it sent
	FaultFrames                 // too many frames that carry nothing
	FaultHeaders                // a header list over a limit, or too many of them
	FaultStreams                // more streams than were offered
)

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Reason, e.Code) }

func connError(code Code, reason string) error { return &Error{code, FaultMalformed, reason} }

// tooMuch ends a connection that obeys the protocol and costs too much.
func tooMuch(f Fault, reason string) error { return &Error{EnhanceYourCalm, f, reason} }

type frameType byte

const (
	frameData         frameType = 0x0
	frameHeaders      frameType = 0x1
	framePriority     frameType = 0x2
	frameReset        frameType = 0x3
	frameSettings     frameType = 0x4
	framePushPromise  frameType = 0x5
	framePing         frameType = 0x6
	frameGoaway       frameType = 0x7
	frameWindowUpdate frameType = 0x8
	frameContinuation frameType = 0x9
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingTableSize      = 0x1
	settingPush           = 0x2
	settingMaxStreams     = 0x3
	settingInitialWindow  = 0x4
	settingMaxFrame       = 0x5
	settingMaxHeaderBytes = 0x6
)

const (
	headerLen     = 9
	maxFrame      = 16384 // SETTINGS_MAX_FRAME_SIZE that we leave at its default, and the largest frame that we send
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1
	tableSize     = 4096 // HPACK, both directions: the default, and as much as we keep per connection

	// framesPerFeed bounds what one Feed does: 64 KiB hold 6,500 frames of a byte, which take a millisecond that the others on the loop wait for. Fewer cost more
	// turns of the loop for small messages.
	framesPerFeed = 512
	// maxContinuations bounds the frames of one header block: 64 KiB come in 4 full frames, and nobody splits finer than 1 KiB (CVE-2024-27316).
	maxContinuations = 64
	// maxSettings is the most values in one SETTINGS frame: as many as nghttp2 allows; nobody sends more than ten (CVE-2020-11080).
	maxSettings = 32
	// maxControl bounds the answers to PING and SETTINGS, and resets, that wait for a peer that doesn't read (CVE-2019-9512, -9514, -9515).
	maxControl = 10000
)
