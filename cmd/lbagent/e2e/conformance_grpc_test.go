package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// scriptCases are what the clients in other languages do; testdata/conformance/client.js and client.py have them.
func scriptCases() []string {
	return []string{"empty_unary", "large_unary", "three_megabytes", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
		"custom_metadata", "much_metadata", "status_code_and_message", "every_status_code", "special_status_message",
		"unimplemented_method", "unimplemented_service", "deadline", "cancel_after_begin", "cancel_after_first_response",
		"keepalive", "parallel_unary", "parallel_streams"}
}

// javascriptSuite is @grpc/grpc-js, which shares no code with the others.
func javascriptSuite(t *testing.T, p *peers, s *suite) {
	p.scripts(t, s, "grpc-js", []string{p.node, foreign + "client.js"}, "gzip", "spread")
}

// pythonSuite is gRPC's C core, as C++, Ruby, PHP and C# users of it have it too.
func pythonSuite(t *testing.T, p *peers, s *suite) {
	p.scripts(t, s, "C core", []string{python, foreign + "client.py"}, "gzip", "deflate", "spread")
}

// scripts runs a client against two of gRPC's interop servers, and against a server of each other kind, which do more: grpc-go's interop server has no
// compression and doesn't tell its name.
func (p *peers) scripts(t *testing.T, s *suite, client string, argv []string, more ...string) {
	go1, go2, core, js := p.goServer(t), p.goServer(t), p.coreServer(t), p.nodeServer(t)
	port, others := freePort(t), freePort(t)
	startAgent(t, fmt.Sprintf(`
- {name: grpc-go, backends: [%q, %q], listen: [%d], policy: round_robin}
- {name: others, backends: [%q, %q], listen: [%d], policy: round_robin, protocol: h2}
`, go1, go2, port, core, js, others))
	at := func(port int) []string {
		return slices.Concat(argv, []string{p.protoset, fmt.Sprintf("127.0.0.1:%d", port)})
	}
	p.cases(t, s, client+" to grpc-go", at(port), scriptCases())
	p.cases(t, s, client+" to others", at(others), append(scriptCases(), more...))
}

// nodeSuite is node's own HTTP/2 at both ends.
func nodeSuite(t *testing.T, p *peers, s *suite) {
	port := freePort(t)
	startAgent(t, fmt.Sprintf("- {name: node, backends: [%q, %q], listen: [%d], policy: round_robin}", p.http2Server(t), p.http2Server(t), port))
	p.cases(t, s, "node to node", []string{p.node, foreign + "http2.js", fmt.Sprintf("127.0.0.1:%d", port)}, []string{"small_padded_frames",
		"extension_frames", "reset_with_code", "fields", "settings_amid_a_stream", "backend_goes_away", "client_goes_away", "ping"})
}

// cases runs a script, which writes "ok CASE" or "not ok CASE: why" for each of them in turn.
func (p *peers) cases(t *testing.T, s *suite, group string, argv, cases []string) {
	lines, err := p.lines(t, slices.Concat(argv, cases))
	for _, name := range cases {
		l, ok := <-lines
		switch {
		case !ok:
			s.add(t, failed, group, name, "the client said nothing of it", 0)
		case l.text == "ok "+name:
			s.add(t, passed, group, name, "", l.took)
		default:
			s.add(t, failed, group, name, strings.TrimPrefix(l.text, "not ok "+name+": "), l.took)
		}
	}
	for l := range lines {
		s.add(t, failed, group, "", "the client says "+l.text, l.took)
	}
	if err := err(); err != nil && !t.Failed() {
		s.add(t, failed, group, "", err.Error(), 0)
	}
}

// line is what a program wrote, and the time since the line before.
type line struct {
	text string
	took time.Duration
}
