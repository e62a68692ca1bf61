package localapi

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// quota bounds the connections of one socket, all and per uid.
type quota struct {
	most, mostPerUID int

	mu sync.Mutex

	all    int
	perUID map[uint32]int
}

func newQuota(l Limits) *quota {
	return &quota{most: l.Connections, mostPerUID: l.ConnectionsPerUID, perUID: map[uint32]int{}}
}

// take takes a place; "" if there was one, else a sentence that says which limit was reached.
func (q *quota) take(uid uint32) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.perUID[uid] >= q.mostPerUID {
		return fmt.Sprintf("uid %d has %d connections to the agent's socket, which is the most; close some, or share one", uid, q.mostPerUID)
	}
	if q.all >= q.most {
		return fmt.Sprintf("the agent's socket has %d connections, which is the most", q.most)
	}
	q.all++
	q.perUID[uid]++
	return ""
}

func (q *quota) give(uid uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.perUID[uid]--; q.perUID[uid] <= 0 {
		delete(q.perUID, uid)
	}
}

func (q *quota) open() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}

// refuse tells the caller why in its own protocol, and closes. It takes a second at most.
func refuse(c *net.UnixConn, why string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, isH2, err := sniff(c)
	if err != nil {
		return
	}
	if isH2 {
		_, _ = c.Write(goAway(why))
		return
	}
	_, _ = c.Write(httpRefusal(why))
}

// goAway is what an HTTP/2 server says to be left alone: SETTINGS, then GOAWAY with ENHANCE_YOUR_CALM and the reason (RFC 9113 6.8, 7).
func goAway(why string) []byte {
	b := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0} // SETTINGS, empty
	n := 8 + len(why)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), 7, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 0)   // no stream was looked at
	b = binary.BigEndian.AppendUint32(b, 0xb) // ENHANCE_YOUR_CALM
	return append(b, why...)
}

func httpRefusal(why string) []byte {
	type body struct {
		Code    uint32 `json:"code"`
		Message string `json:"message"`
	}
	text, _ := json.Marshal(map[string]body{"error": {uint32(codes.ResourceExhausted), why}})
	text = append(text, '\n')
	return append([]byte("HTTP/1.1 "+strconv.Itoa(http.StatusTooManyRequests)+" Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: "+
		strconv.Itoa(len(text))+"\r\nConnection: close\r\n\r\n"), text...)
}
