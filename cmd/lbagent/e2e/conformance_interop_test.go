package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// interopCase is a case of gRPC's interop client.
type interopCase struct {
	on   []string // names of services in interopSuite
	why  string   // on is empty: why it is run nowhere
	args []string
}

// interopCases are those of the pinned interop client.
func interopCases() map[string]interopCase {
	cases := make(map[string]interopCase)
	for _, name := range []string{"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
		"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message",
		"custom_metadata", "unimplemented_method", "unimplemented_service"} {
		cases[name] = interopCase{on: []string{"grpc-go", "others", "tls"}}
	}
	// The soaks aren't on the client's list, but it knows them. Each iteration is 272 KB there and 314 KB back.
	for name, iterations := range map[string]int{"rpc_soak": 200, "channel_soak": 100} {
		cases[name] = interopCase{on: []string{"grpc-go", "others", "tls"}, args: []string{fmt.Sprintf("-soak_iterations=%d", iterations), "-soak_num_threads=4",
			"-soak_per_iteration_max_acceptable_latency_ms=10000", "-soak_overall_timeout_seconds=60"}}
	}
	// Only grpc-go's server reports load. The out-of-band report has to come from the server that had the call, and pick_first_unary wants one server for
	// all calls; a relay spreads calls, so these two have a service of one backend each, the second one on a server that tells its name.
	reports := []string{`-service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`}
	cases["orca_per_rpc"] = interopCase{on: []string{"grpc-go", "tls"}, args: reports}
	cases["orca_oob"] = interopCase{on: []string{"one grpc-go"}, args: reports}
	cases["pick_first_unary"] = interopCase{on: []string{"one grpc-core"}}
	for _, name := range []string{"compute_engine_creds", "service_account_creds", "jwt_token_creds", "per_rpc_creds", "oauth2_auth_token",
		"google_default_credentials", "compute_engine_channel_credentials"} {
		cases[name] = interopCase{why: "asks Google for credentials; the calls are those of large_unary"}
	}
	return cases
}

// interopSuite runs gRPC's interop client, on grpc-go, against gRPC's interop servers and against servers on the C core and in JavaScript.
func interopSuite(t *testing.T, p *peers, s *suite) {
	client := tool(t, interopClient)
	one, core := p.goServer(t), p.coreServer(t)
	ports := make(map[string]int)
	var services strings.Builder
	for name, backends := range map[string][]string{
		"grpc-go":       {one, p.goServer(t)},
		"others":        {core, p.nodeServer(t)},
		"tls":           {p.goServer(t, "-use_tls"), p.goServer(t, "-use_tls")}, // TLS passes through (4.9)
		"one grpc-go":   {one},
		"one grpc-core": {core},
	} {
		ports[name] = freePort(t)
		fmt.Fprintf(&services, "- {name: %s, backends: [%s], listen: [%d], policy: round_robin}\n", strings.ReplaceAll(name, " ", "-"), join(backends), ports[name])
	}
	startAgent(t, services.String())

	cases := interopCases()
	for _, name := range interopList(t, client) {
		if _, known := cases[name]; !known {
			s.add(t, failed, "", name, "the client lists a case that is not in interopCases", 0)
		}
	}
	// A case that the client knows no more fails by itself: an unknown name is an error.
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c := cases[name]
		if len(c.on) == 0 {
			s.add(t, notHere, "", name, c.why, 0)
		}
		for _, service := range c.on {
			args := append([]string{client, "-server_host=127.0.0.1", fmt.Sprintf("-server_port=%d", ports[service]), "-test_case=" + name}, c.args...)
			if service == "tls" {
				args = append(args, "-use_tls", "-use_test_ca", "-server_host_override=x.test.youtube.com")
			}
			s.try(t, "grpc-go to "+service, name, func() error {
				_, err := attempt(t, 90*time.Second, p.environment(), args...)
				return err
			})
		}
	}
}

// interopList are the cases that the client's help lists.
func interopList(t *testing.T, client string) []string {
	t.Helper()
	_, err := attempt(t, patience, nil, client, "-no_such_flag") // prints all flags on stderr, and fails
	if err == nil {
		t.Fatal("the interop client takes any flag")
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^\s+([a-z][a-z0-9_]+) ?: `).FindAllStringSubmatch(err.Error(), -1) {
		names = append(names, m[1])
	}
	if len(names) < 20 {
		t.Fatalf("the interop client lists %q", names)
	}
	return names
}
