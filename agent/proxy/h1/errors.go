package h1

// Error is why a message is refused.
type Error uint8

// Every reason; Error says what each is.
const (
	ErrBareLF Error = iota + 1
	ErrFolded
	ErrName
	ErrValue
	ErrLine
	ErrTarget
	ErrHost
	ErrNoHost
	ErrTwoHosts
	ErrLength
	ErrTwo
	ErrBoth
	ErrCoding
	ErrOldCoded
	ErrOption
	ErrConnect
	ErrExpect
	ErrVersion
	ErrLineTooLong
	ErrTooLong
	ErrFields
	ErrStatus
	ErrInterim
	ErrChunk
	ErrChunkSize
	ErrChunkLine
	ErrTrailer
)

func (e Error) Error() string { _, reason := e.words(); return reason }

// Status is what a client that sent it is told. (A backend's mistake is a 502 for whoever asked.)
func (e Error) Status() int { status, _ := e.words(); return status }

func (e Error) words() (status int, reason string) {
	switch e {
	case ErrBareLF:
		return 400, "a line ends in LF without CR"
	case ErrFolded:
		return 400, "a folded field line"
	case ErrName:
		return 400, "a field name that is no token"
	case ErrValue:
		return 400, "a control character in a field value"
	case ErrLine:
		return 400, "a malformed request line"
	case ErrTarget:
		return 400, "a malformed request target"
	case ErrHost:
		return 400, "a malformed host"
	case ErrNoHost:
		return 400, "no Host field"
	case ErrTwoHosts:
		return 400, "more than one Host field"
	case ErrLength:
		return 400, "a malformed Content-Length"
	case ErrTwo:
		return 400, "more than one Content-Length or Transfer-Encoding"
	case ErrBoth:
		return 400, "both Content-Length and Transfer-Encoding"
	case ErrCoding:
		return 501, "a transfer coding other than chunked"
	case ErrOldCoded:
		return 400, "a transfer coding in HTTP/1.0"
	case ErrOption:
		return 400, "a malformed Connection field"
	case ErrConnect:
		return 501, "CONNECT is not for a reverse proxy"
	case ErrExpect:
		return 417, "an expectation other than 100-continue"
	case ErrVersion:
		return 505, "an HTTP version other than 1.0 and 1.1"
	case ErrLineTooLong:
		return 414, "the request line is too long"
	case ErrTooLong:
		return 431, "the head is too long"
	case ErrFields:
		return 431, "too many header fields"
	case ErrStatus:
		return 400, "a malformed status line"
	case ErrInterim:
		return 400, "an interim response with a body"
	case ErrChunk:
		return 400, "a malformed chunk"
	case ErrChunkSize:
		return 400, "a malformed chunk size"
	case ErrChunkLine:
		return 400, "a chunk's line is too long"
	case ErrTrailer:
		return 400, "a field that may not be in trailers"
	}
	return 400, "malformed"
}
