package packaging

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
)

// The world is what is around an agent: its etcd, backends, and the callers. It is this test's binary as a process of its own in the machine's network, so that
// the callers call what callers of that host would, and outlive whatever happens to the agent.
const (
	worldAs  = "LBAGENT_LOAD_WORLD" // in its environment: process 1 of the machine, as seen from outside
	hostAddr = "10.77.0.1"          // the machine's: what lies on loopback isn't registered (5.5)
	holdKey  = "x-hold"             // how long a backend waits before it answers
)

// worldConfig is the agent's configuration in that world.
const worldConfig = `node: {name: web-1}
etcd: {endpoints: ["http://` + hostAddr + `:2379"]}
fleet: {prefix: lbagent/config/}
services:
  - {name: grpc, prefix: services/grpc/, listen: [7001]}
  - {name: web, prefix: services/web/, listen: [7002, "unix:/run/lbagent/web.sock"]}
  - {name: tcp, prefix: services/tcp/, listen: [7003]}
  - {name: sick, prefix: services/sick/, listen: [7005]}
register:
  - {name: own, address: "` + hostAddr + `:9001", prefix: services/own/}
`

// backendsOf says where a service's backends listen.
func backendsOf(service string) []string {
	first := map[string]int{"grpc": 9001, "web": 9011, "tcp": 9021}[service]
	var out []string
	for i := range 3 {
		out = append(out, fmt.Sprintf("%s:%d", hostAddr, first+i))
	}
	return out
}

func TestMain(m *testing.M) {
	if leader := os.Getenv(worldAs); leader != "" {
		if err := world(leader, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// world serves and calls until its input ends. Each line of that is a question, each line of the output the answer to one:
//
//	begin 60s   a phase begins, with a stream and a transfer of 60 s
//	end         the phase ends; its ending, when the last call that began in it has ended
//	registry    what etcd has of what this host registers
func world(leader string, questions io.Reader, answers io.Writer) error {
	etcd, err := etcdtest.Run(etcdtest.Config{Addr: hostAddr + ":2379"})
	if err != nil {
		return err
	}
	defer etcd.Close()
	client, err := etcd.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	for service, serve := range map[string]func(net.Listener){"grpc": serveGRPC, "web": serveWeb, "tcp": serveTCP} {
		for _, addr := range backendsOf(service) {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			go serve(l)
		}
	}
	for key, value := range lists() {
		if _, err := client.Put(context.Background(), key, value); err != nil {
			return err
		}
	}
	gone := witness(client)
	calls, err := newCallers("/proc/" + leader + "/root/run/lbagent/")
	if err != nil {
		return err
	}
	var before lost
	out := json.NewEncoder(answers)
	if err := out.Encode("ready"); err != nil {
		return err
	}
	for lines := bufio.NewScanner(questions); lines.Scan(); {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		var answer any
		switch verb {
		case "begin":
			long, err := time.ParseDuration(arg)
			if err != nil {
				return err
			}
			if before, err = lostSoFar(); err != nil {
				return err
			}
			calls.begin(long)
		case "end":
			seen := ending{Calls: calls.end()}
			now, err := lostSoFar()
			if err != nil {
				return err
			}
			seen.Lost = now.since(before)
			answer = seen
		case "registry":
			if answer, err = readRegistry(client, gone); err != nil {
				return err
			}
		default:
			return fmt.Errorf("what is %q?", lines.Text())
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

// serveGRPC answers each message of any call with itself.
func serveGRPC(l net.Listener) {
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error {
		if md, ok := metadata.FromIncomingContext(st.Context()); ok && len(md.Get(holdKey)) == 1 {
			if err := hold(st.Context(), md.Get(holdKey)[0]); err != nil {
				return err
			}
		}
		for {
			m := new(wrapperspb.BytesValue)
			if err := st.RecvMsg(m); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			if err := st.SendMsg(m); err != nil {
				return err
			}
		}
	}))
	_ = s.Serve(l)
}

// serveWeb answers with the request's path.
func serveWeb(l net.Listener) {
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hold(r.Context(), r.Header.Get(holdKey)) == nil {
			_, _ = io.WriteString(w, r.URL.Path)
		}
	}))
}

// serveTCP sends back what comes.
func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// hold waits for as long as a caller asked for; empty is not at all.
func hold(ctx context.Context, text string) error {
	d, err := time.ParseDuration(text)
	if text == "" || err != nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
