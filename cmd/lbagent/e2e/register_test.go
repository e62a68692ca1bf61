package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/testneed"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// hostIP is an address of this host that others could use: registrations on loopback are refused (5.5).
func hostIP(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	testneed.Unmet(t, "no interface but loopback has an IPv4 address")
	return ""
}

// fleet is two hosts: one runs a service and registers it, the other calls it.
type fleet struct {
	t       *testing.T
	etcd    *clientv3.Client
	deleted *atomic.Int64 // keys under the service that went
	service *backend
	host    *agent // that runs it
	caller  *agent
}

const regService = "shop"

// newFleet starts both.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	etcd := etcdtest.Start(t, etcdtest.Config{})
	f := &fleet{t: t, etcd: etcdClient(t, etcd.Endpoints()...), deleted: new(atomic.Int64), service: newBackend(t, "s", hostIP(t), 0)}
	f.host = newAgent(t, "", etcd.Endpoints()...)
	f.host.extra = "registration_ttl: 10s\n"
	f.host.writeConfig()
	f.host.start()
	f.caller = startAgent(t, "- {name: "+regService+", prefix: services/"+regService+"/, probe: none}", etcd.Endpoints()...)
	watch := f.etcd.Watch(t.Context(), f.prefix(), clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	go func() {
		for r := range watch {
			for _, e := range r.Events {
				if e.Type == clientv3.EventTypeDelete {
					f.deleted.Add(1)
				}
			}
		}
	}()
	return f
}

func (f *fleet) prefix() string { return namespace(f.t) + "services/" + regService + "/" }

// usable says whether the other host would call the service.
func (f *fleet) usable() bool {
	for _, b := range f.caller.list(regService).GetBackends() {
		if b.GetAddress() == f.service.addr && b.GetUsable() {
			return true
		}
	}
	return false
}

func (f *fleet) keys() int {
	r, err := f.etcd.Get(f.t.Context(), f.prefix(), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		f.t.Fatal(err)
	}
	return int(r.Count)
}

// state is the host's only registration; nil if there is none.
func (f *fleet) state() *lbagentv1.RegistrationStatus {
	s, err := f.host.status().Status(f.t.Context(), &lbagentv1.StatusRequest{})
	if err != nil || len(s.GetRegistrations()) != 1 {
		return nil
	}
	return s.GetRegistrations()[0]
}

// verb runs a verb on the host, which has to succeed.
func (f *fleet) verb(args ...string) string {
	f.t.Helper()
	out, errs, code := f.host.cli(args...)
	if code != 0 {
		f.t.Fatalf("%q: %d %s%s", args, code, out, errs)
	}
	return out
}

// A service's life: registered by the configuration, seen by another host, drained and back, dead and back; and the host's agent killed on the way.
func TestRegistration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.host.extra += fmt.Sprintf("register: [{name: %s, address: %q, probe: {type: grpc}}]\n", regService, f.service.addr)
	f.host.writeConfig()
	f.verb("reload")
	poll(t, "the other host sees it", f.usable)
	poll(t, "so does its own", func() bool { return f.state().GetAnnounced() })
	if out := f.verb("status"); !strings.Contains(out, f.prefix()+f.service.addr) || !strings.Contains(out, "announced") || strings.Contains(out, "NOT") {
		t.Errorf("status:\n%s", out)
	}

	// kill -9 within the lease's life: nobody sees it.
	f.deleted.Store(0)
	f.host.signal(syscall.SIGKILL)
	f.host.wait(-1)
	f.host.start()
	poll(t, "it is known to be announced after kill -9", func() bool { return f.state().GetAnnounced() })
	if n := f.deleted.Load(); n != 0 || !f.usable() {
		t.Errorf("%d keys went when the agent was killed", n)
	}

	if out := f.verb("drain", regService, "--wait", "10ms"); !strings.Contains(out, "is drained on this host") {
		t.Errorf("drain: %s", out)
	}
	poll(t, "the other host calls it no more", func() bool { return !f.usable() })
	if f.keys() != 1 || f.deleted.Load() != 0 {
		t.Errorf("drained by deletion; want a mark")
	}
	f.host.stop()
	f.host.start()
	poll(t, "still drained after a restart", func() bool { return f.state().GetAnnounced() && f.state().GetDraining() })
	if out := f.verb("status"); !strings.Contains(out, "announced as draining") {
		t.Errorf("status:\n%s", out)
	}
	if out := f.verb("undrain", regService); !strings.Contains(out, "in service again") {
		t.Errorf("undrain: %s", out)
	}
	poll(t, "the other host calls it again", f.usable)
	if _, errs, code := f.host.cli("drain", "nosuch"); code != 3 || !strings.Contains(errs, "not registered on this host") {
		t.Errorf("drain nosuch: %d %s", code, errs)
	}

	// The service dies (5.2): its key goes within seconds, not with the lease.
	f.service.kill()
	poll(t, "its key goes", func() bool { return f.keys() == 0 && f.state() != nil && !f.state().GetAnnounced() })
	if out := f.verb("status"); !strings.Contains(out, "NOT ANNOUNCED") || !strings.Contains(out, "probe fails: connection refused") {
		t.Errorf("status:\n%s", out)
	}
	if out := f.verb("events", regService); !strings.Contains(strings.Join(strings.Fields(out), " "), "not announced any more: probe fails: connection refused") {
		t.Errorf("events:\n%s", out)
	}
	f.service.start()
	poll(t, "it is back", f.usable)

	poll(t, "the metric says so", func() bool {
		v, ok := f.host.metric("lbagent_registrar_announced")
		return ok && v == 1
	})
	// Before the host goes down everything goes.
	f.verb("deregister", "--all")
	if n := f.keys(); n != 0 {
		t.Errorf("%d keys after deregister --all", n)
	}
}

// The API (5.4): register lasts over restarts; a held one goes with its process, however that ends, and is claimed after a restart of the agent.
func TestRegisterByAPI(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	if out := f.verb("register", regService, f.service.addr, "--weight", "7", "--metadata", "v=1", "--wait", "15s"); !strings.Contains(out, "announced: ") {
		t.Fatalf("register: %s", out)
	}
	f.host.stop()
	f.host.start()
	if f.keys() != 1 {
		t.Error("gone with a restart")
	}
	if out := f.verb("deregister", regService); !strings.Contains(out, "deregistered") || f.keys() != 0 {
		t.Errorf("deregister: %s, %d keys", out, f.keys())
	}
	if _, errs, code := f.host.cli("deregister", regService); code != 3 || !strings.Contains(errs, "not registered") {
		t.Errorf("deregister again: %d %s", code, errs)
	}
	if _, errs, code := f.host.cli("register", regService, "127.0.0.1:80"); code != 2 || !strings.Contains(errs, "loopback") {
		t.Errorf("register on loopback: %d %s", code, errs)
	}

	// Held by a process.
	holder := exec.Command(binary, "register", regService, f.service.addr, "--hold")
	holder.Env = append(os.Environ(), raceOptions, "LBAGENT_SOCKET="+f.host.socket, "LBAGENT_ADMIN_SOCKET="+f.host.admin)
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	poll(t, "a held one is announced", f.usable)
	f.deleted.Store(0)
	f.host.signal(syscall.SIGKILL)
	f.host.wait(-1)
	f.host.start()
	poll(t, "its holder is back after the agent was killed", func() bool { return f.state().GetAnnounced() && !f.state().GetUnclaimed() })
	if n := f.deleted.Load(); n != 0 {
		t.Errorf("%d keys went when the agent was killed", n)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	poll(t, "the key goes with its holder", func() bool { return f.keys() == 0 })

	// The JSON face.
	body := fmt.Sprintf(`{"registration": {"service": %q, "address": %q}, "wait": "15s"}`, regService, f.service.addr)
	code, text := f.host.json(f.host.admin, http.MethodPost, "/v1/registrations", body)
	var got struct{ Status struct{ Announced bool } }
	if err := json.Unmarshal([]byte(text), &got); err != nil || code != 200 || !got.Status.Announced {
		t.Errorf("POST: %d %s", code, text)
	}
	if code, text := f.host.json(f.host.admin, http.MethodPatch, "/v1/registrations/"+regService, `{"load": 40}`); code != 200 {
		t.Errorf("PATCH: %d %s", code, text)
	}
	poll(t, "the load is written", func() bool {
		r, err := f.etcd.Get(t.Context(), f.prefix(), clientv3.WithPrefix())
		return err == nil && len(r.Kvs) == 1 && strings.Contains(string(r.Kvs[0].Value), `"load":"40"`)
	})
	if code, text := f.host.json(f.host.admin, http.MethodDelete, "/v1/registrations/"+regService, ""); code != 200 || f.keys() != 0 {
		t.Errorf("DELETE: %d %s", code, text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.host.jsonContext(ctx, f.host.admin, http.MethodPost, "/v1/registrations/hold",
			fmt.Sprintf(`{"registration": {"service": %q, "address": %q}}`, regService, f.service.addr))
	}()
	poll(t, "one held by curl is announced", f.usable)
	cancel()
	<-ended
	poll(t, "it goes with curl", func() bool { return f.keys() == 0 })
}

// json is one request over a unix socket.
func (a *agent) json(socket, method, path, body string) (int, string) {
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	return a.jsonContext(ctx, socket, method, path, body)
}

func (a *agent) jsonContext(ctx context.Context, socket, method, path, body string) (int, string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://lbagent"+path, strings.NewReader(body))
	if err != nil {
		a.t.Error(err)
		return 0, ""
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	_, _ = text.ReadFrom(resp.Body)
	return resp.StatusCode, text.String()
}

// Who may register (DESIGN 6): those who may use the admin socket, and on the open one those that register_allow names, what it names, and only their own.
func TestRegisterRights(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	f := newFleet(t)
	register := func(service, port string) (string, int) {
		return f.host.asNobody(nil, binary, "register", service, f.service.addr[:strings.LastIndexByte(f.service.addr, ':')+1]+port, "--probe", "none", "--wait", "15s")
	}
	if out, code := register("shop", "1"); code != 1 || !strings.Contains(out, "register_allow") {
		t.Errorf("without a rule: %d %s", code, out)
	}
	f.host.extra += fmt.Sprintf("register_allow: [{user: %d, services: [\"sh*\"]}]\n", nobody)
	f.host.writeConfig()
	f.verb("reload")
	if out, code := register("shop", "1"); code != 0 || !strings.Contains(out, "announced: ") {
		t.Errorf("by a rule: %d %s", code, out)
	}
	if out, code := register("other", "1"); code != 1 || !strings.Contains(out, "names other services") {
		t.Errorf("a service that the rule doesn't name: %d %s", code, out)
	}
	// Root's are not theirs.
	f.verb("register", "shop", hostIP(t)+":2", "--probe", "none")
	if out, code := register("shop", "2"); code != 1 || !strings.Contains(out, "registered by uid 0") {
		t.Errorf("over root's: %d %s", code, out)
	}
	if out, code := f.host.asNobody(nil, binary, "deregister", "shop", hostIP(t)+":2"); code != 1 || !strings.Contains(out, "registered by uid 0") {
		t.Errorf("deregister root's: %d %s", code, out)
	}
	for _, args := range [][]string{{"deregister", "--all"}, {"drain", "shop"}, {"undrain", "shop"}} {
		if out, code := f.host.asNobody(nil, append([]string{binary}, args...)...); code != 1 || f.keys() != 2 {
			t.Errorf("%q: %d %s", args, code, out)
		}
	}
	// A bound per uid: a user who goes wild hurts nobody else.
	refused := false
	for i := 10; i < 90 && !refused; i++ {
		_, text := f.host.json(f.host.admin, http.MethodPost, "/v1/registrations",
			fmt.Sprintf(`{"registration": {"service": "shop", "address": "%s:%d", "probe": {"type": "none"}}}`, hostIP(t), i))
		refused = strings.Contains(text, "which is the most")
	}
	if !refused {
		t.Error("80 registrations of one uid were taken")
	}
	// By group, looked at when the connection is made.
	f.host.extra = strings.Replace(f.host.extra, fmt.Sprintf("{user: %d, services: [\"sh*\"]}", nobody), fmt.Sprintf("{group: %d}", nobody), 1)
	f.host.writeConfig()
	f.verb("reload")
	if out, code := register("other", "3"); code != 0 || !strings.Contains(out, "announced: ") {
		t.Errorf("by group: %d %s", code, out)
	}
}
