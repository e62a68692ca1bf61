package localapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// unended is a caller by raw frames: it begins calls of Report and doesn't end them.
type unended struct {
	t      testing.TB
	conn   net.Conn
	framer *http2.Framer
	next   uint32
}

// newUnended connects; what comes back is read and thrown away until the end, which is told on the channel.
func newUnended(t testing.TB, socket string) (*unended, <-chan error) {
	c, _ := raw(t, socket)
	u := &unended{t: t, conn: c, framer: http2.NewFramer(c, nil), next: 1}
	if _, err := io.WriteString(c, preface); err != nil {
		t.Fatal(err)
	}
	if err := u.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}()
	return u, ended
}

// begin sends a head and n bytes of a message of 60,000; it returns the stream.
func (u *unended) begin(n int) (stream uint32, err error) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/lbagent.v1.LookupService/Report"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	stream = u.next
	u.next += 2
	if err := u.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		return stream, err
	}
	data := make([]byte, n)
	copy(data, []byte{0, 0, 0, 60_000 >> 8, 60_000 & 0xff})
	for chunk := range slices.Chunk(data, 16<<10) {
		if err := u.framer.WriteData(stream, false, chunk); err != nil {
			return stream, err
		}
	}
	return stream, nil
}

func (r *rig) unfinished() int { return r.quotas[doorOpen].unfinished.held() }

// What is begun and not ended is counted, and given back however it ends; what ends is never counted.
func TestUnfinishedIsCounted(t *testing.T) {
	r := newRig(t, nil)
	holds := func(what string, least, most int) {
		t.Helper()
		eventually(t, func() string {
			if n := r.unfinished(); n < least || n > most {
				return fmt.Sprintf("%s: %d bytes are counted, want %d to %d", what, n, least, most)
			}
			return ""
		})
	}
	const heads = 1000 // bytes of the headers of two calls, which count, too
	u, ended := newUnended(t, r.cfg.Socket)
	first, err := u.begin(50_000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.begin(20_000); err != nil {
		t.Fatal(err)
	}
	holds("two calls", 70_000, 70_000+heads)
	if _, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user"}); err != nil {
		t.Error(err)
	}
	holds("and one that ended", 70_000, 70_000+heads)
	if err := u.framer.WriteRSTStream(first, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	holds("the first was reset", 20_000, 20_000+heads)
	third, err := u.begin(50_000)
	if err != nil {
		t.Fatal(err)
	}
	holds("a third", 70_000, 70_000+heads)
	if err := u.framer.WriteData(third, true, make([]byte, 10_005)); err != nil { // zeros are no report: it ends with an error
		t.Fatal(err)
	}
	holds("the third has ended", 20_000, 20_000+heads)
	_ = u.conn.Close()
	<-ended
	holds("the connection has gone", 0, 0)

	// A call that the agent ends holds nothing, whether or not its caller has ended it.
	u, ended = newUnended(t, r.cfg.Socket)
	if _, err := u.begin(4000); err != nil {
		t.Fatal(err)
	}
	holds("a call", 4000, 4000+heads)
	if err := u.framer.WriteData(1, false, slices.Concat(make([]byte, 56_005), []byte{0, 0, 1, 0, 0})); err == nil {
		holds("the agent has ended it", 0, 0)
	}
	_ = u.conn.Close()
	<-ended
}

// What was read of a connection just before it is closed, and is looked at just after, stays uncounted: nobody would give it back.
func TestMeterAfterClose(t *testing.T) {
	who, q := caller{uid: 7}, newQuota(1<<20, 1<<20, 0)
	m := newMeter(who, q)
	var b bytes.Buffer
	b.WriteString(preface)
	fr := http2.NewFramer(&b, nil)
	if err := errors.Join(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}), fr.WriteData(1, false, make([]byte, 1000))); err != nil {
		t.Fatal(err)
	}
	head := b.Len()
	if err := errors.Join(fr.WriteData(1, false, make([]byte, 1000)),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndHeaders: true}), fr.WriteData(3, false, make([]byte, 1000))); err != nil {
		t.Fatal(err)
	}
	if err := m.read(b.Bytes()[:head]); err != nil || q.held() != 1000 {
		t.Fatalf("%d bytes are counted, want 1000 (%v)", q.held(), err)
	}
	m.close()
	if err := m.read(b.Bytes()[head:]); err != nil || q.held() != 0 {
		t.Errorf("%d bytes are counted after the connection's end, want none (%v)", q.held(), err)
	}
}

// Who begins too much is cut off, and nobody else is: not another user, nor one with little when all of them together have too much.
func TestUnfinishedIsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.UnfinishedBytes, c.Limits.UnfinishedBytesPerUID = 600_000, 300_000 })
	u, ended := newUnended(t, r.cfg.Socket)
	sent := 0
	for sent < 3_000_000 {
		if _, err := u.begin(50_000); err != nil {
			break
		}
		sent += 50_000
	}
	if err := <-ended; err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if sent >= 3_000_000 {
		t.Error("3 MB were taken")
	}
	if n := r.Stats().Refused; n != 1 {
		t.Errorf("%d connections were refused, want 1", n)
	}
	eventually(t, func() string {
		if n := r.unfinished(); n != 0 {
			return fmt.Sprintf("%d bytes are counted, and it has gone", n)
		}
		return ""
	})
	// Others have taken all that there is for all.
	for uid := range uint32(2) {
		if r.quotas[doorOpen].unfinished.take(caller{uid: 1<<31 + uid}, 300_000) != within {
			t.Fatal("they can't")
		}
	}
	u, ended = newUnended(t, r.cfg.Socket)
	if _, err := u.begin(50_000); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if n := r.unfinished(); n < 650_000 {
			return fmt.Sprintf("%d bytes are counted", n)
		}
		return ""
	})
	if _, err := r.lookup().Pick(testContext(t), &lbagentv1.PickRequest{Service: "user"}); err != nil {
		t.Error("one that ends what it begins:", err)
	}
	for range 10 {
		if _, err := u.begin(50_000); err != nil {
			break
		}
	}
	<-ended
}

// Bodies of the JSON face count while they come.
func TestUnfinishedBodies(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.UnfinishedBytes, c.Limits.UnfinishedBytesPerUID = 100_000, 50_000 })
	c, br := raw(t, r.cfg.Socket)
	fmt.Fprintf(c, "POST /v1/report HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{%40000s", "")
	eventually(t, func() string {
		if n := r.unfinished(); n < 40_000 || n > 41_000 {
			return fmt.Sprintf("%d bytes are counted", n)
		}
		return ""
	})
	if code, text := ask(t, r.cfg.Socket, "POST", "/v1/report", fmt.Sprintf(`{"outcomes":[%30000s]}`, "")); code < 400 || !strings.Contains(text, "too many bytes") {
		t.Error(code, text)
	}
	fmt.Fprintf(c, "%19998s}", "")
	if line, err := br.ReadString('\n'); err != nil || !strings.Contains(line, "400") && !strings.Contains(line, "200") {
		t.Error(line, err)
	}
	eventually(t, func() string {
		if n := r.unfinished(); n >= 50_000 {
			return fmt.Sprintf("%d bytes are counted", n)
		}
		return ""
	})
	_ = c.Close()
	eventually(t, func() string {
		if n := r.unfinished(); n != 0 {
			return fmt.Sprintf("%d bytes are counted", n)
		}
		return ""
	})
}

// The heads of frames are found wherever the bytes are cut.
func FuzzFrames(f *testing.F) {
	var some bytes.Buffer
	fr := http2.NewFramer(&some, nil)
	_ = errors.Join(fr.WriteSettings(), fr.WriteData(1, true, []byte("abc")), fr.WriteRSTStream(3, 0), fr.WriteData(1<<31-1, false, nil))
	f.Add(some.Bytes(), uint8(1))
	f.Add(some.Bytes(), uint8(7))
	f.Fuzz(func(t *testing.T, p []byte, step uint8) {
		var whole, cut []frameHead
		var a, b frames
		a.feed(p, func(h frameHead) { whole = append(whole, h) })
		for chunk := range slices.Chunk(p, max(1, int(step))) {
			b.feed(chunk, func(h frameHead) { cut = append(cut, h) })
		}
		if !slices.Equal(whole, cut) {
			t.Fatalf("%v in one, %v in steps of %d", whole, cut, step)
		}
		want := 0
		for rest := p; len(rest) >= 9; want++ {
			rest = rest[min(len(rest), 9+int(rest[0])<<16+int(rest[1])<<8+int(rest[2])):]
		}
		if len(whole) != want {
			t.Fatalf("%d heads, want %d", len(whole), want)
		}
	})
}
