package h2

// The code of a field's name: its first index in the static table (RFC 7541 A), or, above lastStatic, one of the names that a relay looks at.
// A field brings it from where it was decoded, so that nobody compares the name again.
const (
	codeUnknown          = 0 // not looked up
	codeAuthority        = 1
	codeMethod           = 2
	codePath             = 4
	codeScheme           = 6
	codeStatus           = 8
	codeContentLength    = 28
	codeContentType      = 31
	codeHost             = 38
	codeTransferEncoding = 57

	codeAcceptEncoding = 16

	lastStatic          = 61
	codeTe              = 62
	codeConnection      = 63
	codeProxyConnection = 64
	codeKeepAlive       = 65
	codeUpgrade         = 66
	codeGrpcTimeout     = 67
	codeGrpcStatus      = 68
	codeGrpcMessage     = 69
	codeLast            = codeGrpcMessage
	codeOther           = 255 // none of these
)

// nameCode looks a name up.
func nameCode(name string) uint8 {
	switch name {
	case ":authority":
		return 1
	case ":method":
		return 2
	case ":path":
		return 4
	case ":scheme":
		return 6
	case ":status":
		return 8
	case "accept-charset":
		return 15
	case "accept-encoding":
		return 16
	case "accept-language":
		return 17
	case "accept-ranges":
		return 18
	case "accept":
		return 19
	case "access-control-allow-origin":
		return 20
	case "age":
		return 21
	case "allow":
		return 22
	case "authorization":
		return 23
	case "cache-control":
		return 24
	case "content-disposition":
		return 25
	case "content-encoding":
		return 26
	case "content-language":
		return 27
	case "content-length":
		return 28
	case "content-location":
		return 29
	case "content-range":
		return 30
	case "content-type":
		return 31
	case "cookie":
		return 32
	case "date":
		return 33
	case "etag":
		return 34
	case "expect":
		return 35
	case "expires":
		return 36
	case "from":
		return 37
	case "host":
		return 38
	case "if-match":
		return 39
	case "if-modified-since":
		return 40
	case "if-none-match":
		return 41
	case "if-range":
		return 42
	case "if-unmodified-since":
		return 43
	case "last-modified":
		return 44
	case "link":
		return 45
	case "location":
		return 46
	case "max-forwards":
		return 47
	case "proxy-authenticate":
		return 48
	case "proxy-authorization":
		return 49
	case "range":
		return 50
	case "referer":
		return 51
	case "refresh":
		return 52
	case "retry-after":
		return 53
	case "server":
		return 54
	case "set-cookie":
		return 55
	case "strict-transport-security":
		return 56
	case "transfer-encoding":
		return 57
	case "user-agent":
		return 58
	case "vary":
		return 59
	case "via":
		return 60
	case "www-authenticate":
		return 61
	case "te":
		return 62
	case "connection":
		return 63
	case "proxy-connection":
		return 64
	case "keep-alive":
		return 65
	case "upgrade":
		return 66
	case "grpc-timeout":
		return 67
	case "grpc-status":
		return 68
	case "grpc-message":
		return 69
	}
	return codeOther
}

// staticTable is RFC 7541 A; index 0 is not used.
var staticTable = [lastStatic + 1]Field{
	1:  {Name: ":authority", Value: "", code: 1},
	2:  {Name: ":method", Value: "GET", code: 2},
	3:  {Name: ":method", Value: "POST", code: 2},
	4:  {Name: ":path", Value: "/", code: 4},
	5:  {Name: ":path", Value: "/index.html", code: 4},
	6:  {Name: ":scheme", Value: "http", code: 6},
	7:  {Name: ":scheme", Value: "https", code: 6},
	8:  {Name: ":status", Value: "200", code: 8},
	9:  {Name: ":status", Value: "204", code: 8},
	10: {Name: ":status", Value: "206", code: 8},
	11: {Name: ":status", Value: "304", code: 8},
	12: {Name: ":status", Value: "400", code: 8},
	13: {Name: ":status", Value: "404", code: 8},
	14: {Name: ":status", Value: "500", code: 8},
	15: {Name: "accept-charset", Value: "", code: 15},
	16: {Name: "accept-encoding", Value: "gzip, deflate", code: 16},
	17: {Name: "accept-language", Value: "", code: 17},
	18: {Name: "accept-ranges", Value: "", code: 18},
	19: {Name: "accept", Value: "", code: 19},
	20: {Name: "access-control-allow-origin", Value: "", code: 20},
	21: {Name: "age", Value: "", code: 21},
	22: {Name: "allow", Value: "", code: 22},
	23: {Name: "authorization", Value: "", code: 23},
	24: {Name: "cache-control", Value: "", code: 24},
	25: {Name: "content-disposition", Value: "", code: 25},
	26: {Name: "content-encoding", Value: "", code: 26},
	27: {Name: "content-language", Value: "", code: 27},
	28: {Name: "content-length", Value: "", code: 28},
	29: {Name: "content-location", Value: "", code: 29},
	30: {Name: "content-range", Value: "", code: 30},
	31: {Name: "content-type", Value: "", code: 31},
	32: {Name: "cookie", Value: "", code: 32},
	33: {Name: "date", Value: "", code: 33},
	34: {Name: "etag", Value: "", code: 34},
	35: {Name: "expect", Value: "", code: 35},
	36: {Name: "expires", Value: "", code: 36},
	37: {Name: "from", Value: "", code: 37},
	38: {Name: "host", Value: "", code: 38},
	39: {Name: "if-match", Value: "", code: 39},
	40: {Name: "if-modified-since", Value: "", code: 40},
	41: {Name: "if-none-match", Value: "", code: 41},
	42: {Name: "if-range", Value: "", code: 42},
	43: {Name: "if-unmodified-since", Value: "", code: 43},
	44: {Name: "last-modified", Value: "", code: 44},
	45: {Name: "link", Value: "", code: 45},
	46: {Name: "location", Value: "", code: 46},
	47: {Name: "max-forwards", Value: "", code: 47},
	48: {Name: "proxy-authenticate", Value: "", code: 48},
	49: {Name: "proxy-authorization", Value: "", code: 49},
	50: {Name: "range", Value: "", code: 50},
	51: {Name: "referer", Value: "", code: 51},
	52: {Name: "refresh", Value: "", code: 52},
	53: {Name: "retry-after", Value: "", code: 53},
	54: {Name: "server", Value: "", code: 54},
	55: {Name: "set-cookie", Value: "", code: 55},
	56: {Name: "strict-transport-security", Value: "", code: 56},
	57: {Name: "transfer-encoding", Value: "", code: 57},
	58: {Name: "user-agent", Value: "", code: 58},
	59: {Name: "vary", Value: "", code: 59},
	60: {Name: "via", Value: "", code: 60},
	61: {Name: "www-authenticate", Value: "", code: 61},
}
