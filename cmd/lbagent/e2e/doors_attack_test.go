package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// raw: what no HTTP library writes. Whatever a stranger's bytes are, nothing that is restricted is ever answered with success, and one connection is one caller.
func (d *doors) raw(t *testing.T) {
	const mute = `{"service":"user","address":"`
	body := mute + d.list("user").GetBackends()[0].GetAddress() + `"}`
	post := func(target string, headers ...string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n%s", target, len(body), strings.Join(append(headers, ""), "\r\n"), body)
	}
	const root = "0 0 1 true true - -"
	var requests []string
	for _, target := range []string{"/v1/admin/mute", "/v1/admin%2fmute", "/v1/admin%2Fmute", "/v1/%61dmin/mute", "/v1/services/../admin/mute", "/v1/services/user/../../admin/mute",
		"/v1/services/%2e%2e/admin/mute", "//v1/admin/mute", "/./v1/admin/mute", "/v1//admin/mute", "/v1/admin/mute/", "/v1/admin/mute;x=1", "/v1/admin/mute?x=%00", "/V1/ADMIN/MUTE",
		"/v1/admin/mute#x", "http://lbagent/v1/admin/mute", "http://other:80/v1/admin/mute", "/v1/admin/mute:mute", "/v1/services/user/watch/../../../admin/mute",
		"/lbagent.v1.AdminService/Mute", "*", "/v1/services/admin%2fmute/pick", "/debug/pprof/", "/debug/pprof/cmdline", "/v1/../debug/pprof/heap"} {
		requests = append(requests, post(target))
	}
	for _, name := range []string{"lbagent-peer", "Lbagent-Peer", "LBAGENT-PEER", "Grpc-Metadata-lbagent-peer", "grpc-metadata-lbagent-peer", "GRPC-METADATA-LBAGENT-PEER",
		"Grpc-Metadata-Lbagent-Peer-Bin", "Grpcgateway-Lbagent-Peer", "X-Forwarded-User", "X-Remote-User", "Authorization", "Forwarded", "Te"} {
		h := name + ": " + root
		requests = append(requests, post("/v1/admin/mute", h), post("/v1/admin/mute", h, h))
	}
	requests = append(requests,
		// Another method, by a header or a form.
		"GET /v1/admin/mute HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: POST\r\n\r\n",
		post("/v1/status", "X-HTTP-Method-Override: DELETE"),
		"POST /v1/admin/mute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nX-HTTP-Method-Override: GET\r\nContent-Length: 12\r\n\r\nservice=user",
		"POST /v1/registrations/user HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
		// An identity in a trailer, in a chunk's extension, in a folded line.
		"POST /v1/admin/mute HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: Lbagent-Peer\r\n\r\n2\r\n{}\r\n0\r\nLbagent-Peer: "+root+"\r\n\r\n",
		post("/v1/admin/mute", "X: y\r\n Lbagent-Peer: "+root),
		// One request inside another.
		"POST /v1/report HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+post("/v1/admin/mute"),
		"POST /v1/report HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n{}"+post("/v1/admin/mute"),
		"POST /v1/report HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"+post("/v1/admin/mute"),
		"GET /v1/services HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n"+post("/v1/admin/mute"),
		"GET /v1/services HTTP/1.1\nHost: localhost\n\n"+post("/v1/admin/mute"),
		// From one protocol to the other.
		"GET /v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"+post("/v1/admin/mute"),
		"GET /v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"+post("/v1/admin/mute"),
		"GET /v1/services HTTP/1.1\r\nHost: localhost\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"CONNECT /v1/admin/mute HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /lbagent.v1.AdminService/Mute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc\r\nTE: trailers\r\nContent-Length: 5\r\n\r\n\x00\x00\x00\x00\x00",
	)
	said := d.visit(people()["a stranger"], doorJob{Do: "raw", Raw: requests})
	if len(said) != 3*len(requests) {
		t.Errorf("%d answers, want %d", len(said), 3*len(requests))
	}
	for _, line := range said {
		at, codes, _ := strings.Cut(line, ": ")
		var door string
		var i int
		fmt.Sscanf(at, "%s %d", &door, &i)
		all := strings.Fields(codes)
		if len(all) == 0 {
			t.Errorf("%s: no answer to %q", door, requests[i])
			continue
		}
		// The last one, and those of the requests around that everybody may make, are the only ones that succeed.
		good := 0
		for _, code := range all {
			switch code {
			case "101":
				t.Errorf("%s: switches protocols after %q", door, requests[i])
			case "200":
				good++
			}
		}
		if most := strings.Count(requests[i], "/v1/services HTTP") + strings.Count(requests[i], "/v1/report HTTP") + 1; good > most {
			t.Errorf("%s: %s to %q", door, codes, requests[i])
		}
	}
}

// crowd: one caller takes all the watches and connections that it can get, and everybody else is served as before; when it goes, all is given back.
func (d *doors) crowd(t *testing.T) {
	for _, door := range []string{"open", "tcp"} {
		said := d.besiege(t, doorJob{Do: "crowd", Door: door, Count: manyCalls()}, 2)
		var watches int
		fmt.Sscanf(said[0], "%d watches", &watches)
		if watches != min(manyCalls(), mostStreams) || watches == mostStreams && !strings.Contains(said[0], "4096 calls open") || !strings.Contains(said[1], " connections") {
			t.Errorf("%s: it has %q", door, said)
		}
	}
}

// flood: the same with calls whose messages never end.
func (d *doors) flood(t *testing.T) {
	for _, door := range []string{"open", "tcp"} {
		said := d.besiege(t, doorJob{Do: "flood", Door: door, Count: manyCalls()}, 1)
		var sent, ended int
		if fmt.Sscanf(said[0], "%d calls sent, %d ended", &sent, &ended); sent == 0 || sent-ended > mostStreams {
			t.Errorf("%s: it has %q", door, said)
		}
	}
}

// many: several users flood at once. What they hold together is bounded, too, and a user who is none of them is served.
func (d *doors) many(t *testing.T) {
	var crowd []*syscall.Credential
	for uid := range uint32(8) {
		crowd = append(crowd, &syscall.Credential{Uid: 64220 + uid, Gid: 64220 + uid})
	}
	for _, line := range d.besiege(t, doorJob{Do: "flood", Door: "open", Count: 1000}, 1, crowd...) { // 480 MB, were it not bounded
		if strings.HasPrefix(line, "0 ") {
			t.Errorf("a stranger had %q", line)
		}
	}
}

// mostStreams is how many calls one user may have open (localapi.Limits).
const mostStreams = 4096

// manyCalls are more than that; fewer with the race detector, which takes ten times as much time and memory for each.
func manyCalls() int {
	if raced {
		return 1500
	}
	return 5000
}

// besiege lets strangers (one, if none are named) do a job that stays, and looks whether others are served meanwhile and what it costs; it returns the lines that the strangers said.
func (d *doors) besiege(t *testing.T, job doorJob, lines int, strangers ...*syscall.Credential) (said []string) {
	t.Helper()
	before := d.memory()
	if strangers == nil {
		strangers = append(strangers, people()["a stranger"])
	}
	var sieges []*siege
	for _, who := range strangers {
		s := &siege{cmd: d.visitor(who, job)}
		s.begin(t)
		sieges = append(sieges, s)
		defer s.end()
	}
	for _, s := range sieges {
		said = append(said, s.says(t, lines)...)
	}
	for _, other := range []string{"register_allow user", "root"} {
		all := d.visit(people()[other], doorJob{Do: "try", Tries: d.tries(lookups, everybody)})
		for _, line := range all {
			var method, door, face string
			if n, _ := fmt.Sscan(line, &method, &door, &face); n != 3 {
				t.Fatalf("%s, meanwhile: %q", other, all)
			}
			if door == "tcp" && job.Door == door {
				continue // by TCP all of this host are one caller
			}
			if !strings.HasSuffix(line, face+" "+may(other, d.rows[method].right, door, d.open)) {
				t.Errorf("%s, meanwhile: %s", other, line)
			}
		}
	}
	held := d.memory() - before
	t.Logf("%s %s: %q; it holds %d MiB of the agent's memory", job.Do, job.Door, said, held>>20)
	if held > mostMemory && !raced {
		t.Errorf("%s holds %d MiB of the agent's memory", job.Do, held>>20)
	}
	for _, s := range sieges {
		s.end()
	}
	poll(t, "all is given back", func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.pid()))
		return err == nil && len(fds) < 100
	})
	return said
}

// mostMemory is what sieges may make the agent take: 8,192 watches of some 18 KiB are the worst, and 64 MiB of requests that don't end, which the collector lets be twice as much.
const mostMemory = 200 << 20

// siege is a stranger at work.
type siege struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
	once  sync.Once
}

func (s *siege) begin(t *testing.T) {
	t.Helper()
	stdin, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stdin, s.out = stdin, bufio.NewReader(stdout)
}

func (s *siege) says(t *testing.T, lines int) (said []string) {
	t.Helper()
	for range lines {
		line, err := s.out.ReadString('\n')
		if err != nil {
			t.Fatalf("it said %q, and %q: %v", said, line, err)
		}
		said = append(said, strings.TrimSpace(line))
	}
	return said
}

// end has it leave, and waits until it has.
func (s *siege) end() {
	s.once.Do(func() {
		s.stdin.Close()
		_, _ = io.Copy(io.Discard, s.out)
		_ = s.cmd.Wait()
	})
}

// memory is the agent's resident memory in bytes.
func (a *agent) memory() int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", a.pid()))
	if err != nil {
		a.t.Fatal(err)
	}
	var size, resident int
	fmt.Sscan(string(b), &size, &resident)
	return resident * os.Getpagesize()
}
