package localapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

// refuse tells the caller why in its own protocol, and closes. It takes a second at most, and ends with ctx.
func refuse(ctx context.Context, c rawConn, why string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	ahead, isH2, err := sniff(c)
	if err != nil {
		return
	}
	if isH2 {
		refuseGRPC(c, ahead, why)
	} else {
		_, _ = c.Write(httpRefusal(why))
	}
	_ = c.CloseWrite()
	// A caller that is still writing when the connection closes would see only that.
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}

func httpRefusal(why string) []byte {
	type body struct {
		Code    uint32 `json:"code"`
		Message string `json:"message"`
	}
	text, _ := json.Marshal(map[string]body{"error": {uint32(codes.ResourceExhausted), why}})
	return fmt.Appendf(nil, "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		len(text)+1, text)
}

// preface is what a client of HTTP/2 says first (RFC 9113 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// The frames of HTTP/2 that a refusal and a meter need (RFC 9113 6).
const (
	frameData     = 0
	frameHeaders  = 1
	frameReset    = 3
	frameSettings = 4
	frameGoAway   = 7

	flagEndStream  = 1
	flagEndHeaders = 4

	errCalm = 0xb // ENHANCE_YOUR_CALM
)

// refuseGRPC answers the first call with RESOURCE_EXHAUSTED and says GOAWAY; a GOAWAY alone would reach the caller as "the connection is draining". It
// looks at nothing in the call but its stream's number.
func refuseGRPC(c io.ReadWriter, ahead []byte, why string) {
	if _, err := c.Write(frame(nil, frameSettings, 0, 0, nil)); err != nil {
		return
	}
	stream, err := firstCall(io.MultiReader(strings.NewReader(string(ahead)), c))
	var out []byte
	if err == nil {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, f := range []hpack.HeaderField{
			{Name: ":status", Value: "200"},
			{Name: "content-type", Value: "application/grpc"},
			{Name: "grpc-status", Value: strconv.Itoa(int(codes.ResourceExhausted))},
			{Name: "grpc-message", Value: strings.ReplaceAll(why, "%", "%25")},
		} {
			_ = enc.WriteField(f) // to memory
		}
		out = frame(out, frameHeaders, flagEndStream|flagEndHeaders, stream, block.Bytes())
	}
	bye := binary.BigEndian.AppendUint32(nil, stream)
	bye = binary.BigEndian.AppendUint32(bye, errCalm)
	_, _ = c.Write(frame(out, frameGoAway, 0, 0, append(bye, why...)))
}

// firstCall reads frames up to the first HEADERS and returns its stream.
func firstCall(r io.Reader) (stream uint32, err error) {
	br := bufio.NewReader(io.LimitReader(r, 64<<10))
	if _, err := br.Discard(len(preface)); err != nil {
		return 0, err
	}
	for {
		var h [9]byte
		if _, err := io.ReadFull(br, h[:]); err != nil {
			return 0, err
		}
		if h[3] == frameHeaders {
			return binary.BigEndian.Uint32(h[5:]) &^ (1 << 31), nil
		}
		if _, err := br.Discard(int(h[0])<<16 | int(h[1])<<8 | int(h[2])); err != nil {
			return 0, err
		}
	}
}

func frame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}
