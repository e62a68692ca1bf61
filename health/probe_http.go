package health

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
)

// answerMost bounds how much of an answer is read: a probe needs none of the body, but a server should get rid of a short one.
const answerMost = 64 << 10

// httpProbe asks for o.Path by HTTP/1.1 and passes if the status of the answer is in o.Status. Redirects are not followed: 3xx is the answer.
func httpProbe(conn net.Conn, addr netip.AddrPort, o Options) error {
	path := o.Path
	if path == "" {
		path = "/"
	}
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nAccept: */*\r\nConnection: close\r\n\r\n", path, addr, userAgent)
	if _, err := io.WriteString(conn, request); err != nil {
		return ended(err)
	}
	status, err := readStatus(conn)
	if err != nil {
		return err
	}
	if status < o.Status[0] || status > o.Status[1] {
		return errAnswer{fmt.Sprintf("HTTP %d", status)}
	}
	return nil
}

const userAgent = "lbagent-probe"

// readStatus reads an HTTP/1 answer, 1xx before it and its body behind it, and returns its status.
func readStatus(r io.Reader) (int, error) {
	limited := &io.LimitedReader{R: r, N: answerMost}
	b := bufio.NewReader(limited)
	for {
		response, err := http.ReadResponse(b, nil)
		if err != nil {
			return 0, readError(err, limited.N <= 0, "not an HTTP answer")
		}
		if response.StatusCode < 100 {
			return 0, errAnswer{"not an HTTP answer"}
		}
		if response.StatusCode/100 == 1 && response.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		_, _ = io.Copy(io.Discard, response.Body) // an answer cut short is an answer
		_ = response.Body.Close()
		return response.StatusCode, nil
	}
}
