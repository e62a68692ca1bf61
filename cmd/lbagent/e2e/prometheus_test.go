package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	rulesFile     = "../../../packaging/prometheus/lbagent.rules.yml"
	rulesTestFile = "../../../packaging/prometheus/lbagent.test.yml"
	rulesDayFile  = "../../../packaging/prometheus/lbagent.day.test.yml"
	dashboardFile = "../../../packaging/grafana/lbagent.json"
	metricsPage   = "../../../packaging/doc/metrics.md"
)

// prom is a Prometheus that scrapes an agent.
type prom struct {
	t   *testing.T
	url string
}

// startProm runs one on a folder of its own, with the packaged rules.
func startProm(t *testing.T, a *agent, args ...string) *prom {
	t.Helper()
	program := testneed.Program(t, "prometheus", "prometheus")
	rules, err := filepath.Abs(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf(`
global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s}
rule_files: [%q]
scrape_configs:
  - job_name: lbagent
    static_configs: [{targets: [%q]}]
`, rules, a.http)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prom{t: t, url: "http://127.0.0.1:" + strconv.Itoa(freePort(t))}
	var said strings.Builder
	cmd := exec.Command(program, append([]string{
		"--config.file=" + config, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + strings.TrimPrefix(p.url, "http://"), "--log.level=warn",
	}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("prometheus says:\n%s", said.String())
		}
	})
	pollFor(t, time.Minute, "prometheus has scraped the agent", func() bool {
		s, err := p.query(`up{job="lbagent"} == 1 and count_over_time(up{job="lbagent"}[1m]) >= 3`)
		return err == nil && len(s) == 1
	})
	return p
}

// sample is one of a query's answer.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

func (s sample) value() float64 {
	text, _ := s.Value[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return -1
	}
	return v
}

func (p *prom) get(path string, to any) error {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var out struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &out); err != nil || out.Status != "success" {
		return fmt.Errorf("%s: %s %w", resp.Status, out.Error, err)
	}
	return json.Unmarshal(out.Data, to)
}

func (p *prom) query(expr string) ([]sample, error) {
	var data struct{ Result []sample }
	err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	return data.Result, err
}

// one is the value of an expression that has one.
func (p *prom) one(expr string) float64 {
	p.t.Helper()
	var s []sample
	pollFor(p.t, 3*patience, expr, func() bool { // a scrape that took too long leaves nothing until the next one
		var err error
		s, err = p.query(expr)
		return err == nil && len(s) == 1
	})
	return s[0].value()
}

// documented are the metrics of the documentation.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(lbagent_[a-z0-9_]+)` \\| ([a-z]+)").FindAllStringSubmatch(string(page), -1) {
		all[m[1]] = true
		if m[2] == "histogram" {
			all[m[1]+"_bucket"] = true
		}
	}
	if len(all) < 50 {
		t.Fatalf("%d metrics are documented", len(all))
	}
	return all
}

// named wants every metric of an expression to exist.
func named(t *testing.T, exist map[string]bool, where, expr string) {
	t.Helper()
	for _, name := range regexp.MustCompile(`\b(lbagent|process|go)_[a-z0-9_]+`).FindAllString(expr, -1) {
		if strings.HasPrefix(name, "lbagent_") && !exist[name] {
			t.Errorf("%s: there is no metric %s", where, name)
		}
	}
}

// panels are the titles and expressions of the dashboard, as Grafana would ask them.
func panels(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID          int
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("$job", "lbagent", "$instance", ".*", "$service", ".*", "$__rate_interval", "30s")
	all, ids := map[string][]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || all[p.Title] != nil {
			t.Errorf("panel %d %q is there twice", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			all[p.Title] = append(all[p.Title], filled.Replace(q.Expr))
		}
	}
	if len(all) < 20 {
		t.Fatalf("%d panels", len(all))
	}
	return all
}

// TestPrometheusRules: promtool finds nothing wrong with the alerts, and each fires for what it is for.
func TestPrometheusRules(t *testing.T) {
	t.Parallel()
	promtool := testneed.Program(t, "promtool", "prometheus")
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"test", "rules", rulesTestFile, rulesDayFile}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(rulesTestFile)
	if err != nil {
		t.Fatal(err)
	}
	day, err := os.ReadFile(rulesDayFile)
	if err != nil {
		t.Fatal(err)
	}
	tests = append(tests, day...)
	exist := documented(t)
	named(t, exist, "the rules", string(rules))
	named(t, exist, "the tests of the rules", string(tests))
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !strings.Contains(string(tests), m[1]) {
			t.Errorf("no test of %s", m[1])
		}
	}
}

// TestPrometheus: a real Prometheus, with native histograms and without, scrapes the agent; it can evaluate every alert and every panel, what has to have a value has one, the
// numbers are those of the calls that were made, and an alert begins when there is a reason.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	testneed.Program(t, "prometheus", "prometheus")
	posts := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer posts.Close()
	bs := backends(t, 3, 2*time.Millisecond)
	register(t, etcdClient(t, etcd.Endpoints()...), "user", addrs(bs)...)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer web.Close()
	user, page := freePort(t), freePort(t)
	a := newAgent(t, fmt.Sprintf("\n- {name: user, prefix: services/user/, listen: [%d], probe: {type: grpc, interval: 1s}}\n- {name: web, backends: [%q], listen: [%d]}\n",
		user, strings.TrimPrefix(web.URL, "http://"), page), etcd.Endpoints()...)
	a.extra = fmt.Sprintf("notify: {url: %q}\naccess_log: {path: %s}\nregister: [{name: mine, address: %q}]\n", posts.URL, filepath.Join(a.dir, "access.log"), "192.0.2.9:80")
	a.writeConfig()
	a.start()
	began := time.Now()
	const calls, pages, picks = 300, 20, 7
	newCaller(t, fmt.Sprintf("127.0.0.1:%d", user)).burst(calls, 4)
	for range pages {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", page))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	for range picks {
		if _, err := a.lookup().Pick(t.Context(), &lbagentv1.PickRequest{Service: "user"}); err != nil {
			t.Fatal(err)
		}
	}
	native, classic := startProm(t, a, "--enable-feature=native-histograms"), startProm(t, a)
	for _, p := range []*prom{native, classic} {
		for expr, want := range map[string]float64{
			`lbagent_proxy_requests_total{service="user", protocol="grpc", code="ok"}`:                  calls,
			`lbagent_proxy_requests_total{service="web", protocol="http1", code="2xx"}`:                 pages,
			`lbagent_api_calls_total{method="lbagent.v1.LookupService/Pick", code="OK"}`:                picks,
			`lbagent_table_usable_backends{service="user"}`:                                             3,
			`lbagent_discovery_list_source{service="user", source="etcd"}`:                              1,
			`sum(lbagent_accesslog_lines_total)`:                                                        calls + pages,
			`lbagent_config_generation`:                                                                 1,
			`sum(lbagent_event_kind_events_total) == bool on () sum(lbagent_event_events_total)`:        1,
			`count(lbagent_build_info{version="` + testVersion + `"})`:                                  1,
			`lbagent_registrar_registrations - lbagent_registrar_announced`:                             1, // nobody answers there
			`lbagent_proxy_connections_limit >= bool 1`:                                                 1,
			`sum(lbagent_health_probe_results_total{result="passed"}) > bool 0`:                         1,
			`sum(lbagent_proxy_loop_busy_seconds_total) > bool 0`:                                       1,
			`sum(lbagent_notify_events_total{result="sent"}) > bool 0`:                                  1,
			`sum by (job) (rate(lbagent_proxy_sniffed_connections_total{service="web"}[1m])) > bool -1`: 1,
		} {
			pollFor(t, time.Minute, expr, func() bool { s, err := p.query(expr); return err == nil && len(s) == 1 && s[0].value() == want })
		}
	}
	for _, name := range []string{"lbagent_proxy_request_seconds", "lbagent_proxy_overhead_seconds"} {
		if n := native.one(fmt.Sprintf(`histogram_count(%s{service="user"})`, name)); n != calls {
			t.Errorf("%s: a native histogram of %v calls, want %d", name, n, calls)
		}
		if n := classic.one(fmt.Sprintf(`%s_count{service="user"}`, name)); n != calls {
			t.Errorf("%s: classic buckets of %v calls, want %d", name, n, calls)
		}
		sum, same := native.one(fmt.Sprintf(`histogram_sum(%s{service="user"})`, name)), classic.one(fmt.Sprintf(`%s_sum{service="user"}`, name))
		if sum != same || sum <= 0 {
			t.Errorf("%s: sums %v and %v", name, sum, same)
		}
	}
	// The backend works for 2 ms: no call can have taken less.
	fine := native.one(`histogram_quantile(0.5, lbagent_proxy_request_seconds{service="user"})`)
	coarse := classic.one(`histogram_quantile(0.5, lbagent_proxy_request_seconds_bucket{service="user"})`)
	if fine < 0.0019 || coarse < 0.001 || fine > 2*coarse || coarse > 2.1*fine {
		t.Errorf("half of the calls took %v s by native buckets, %v s by classic ones", fine, coarse)
	}

	exist := documented(t)
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	named(t, exist, "the dashboard", string(text))
	stop := newCaller(t, fmt.Sprintf("127.0.0.1:%d", user)).keepCalling(1) // so that rates have something to say
	defer stop()
	for _, p := range []*prom{native, classic} {
		for title, exprs := range panels(t) {
			for _, expr := range exprs {
				// What compares (> 0) shows what should not be.
				silent := regexp.MustCompile(`(> 0|== 0\))$`).MatchString(expr)
				pollFor(t, 3*patience, "panel "+title+": "+expr, func() bool {
					s, err := p.query(expr)
					if err != nil {
						t.Fatalf("panel %s: %s: %v", title, expr, err)
					}
					return silent || len(s) > 0
				})
			}
		}
		p.rules()
	}
	due := "LbagentNotRegistered"
	if machine.undecided(began, time.Now()) { // scrapes and calls may have been too slow for Prometheus
		due += "|LbagentDown|LbagentSlow"
	}
	if s, err := native.query(`ALERTS{alertname!~"` + due + `"}`); err != nil || len(s) > 0 {
		t.Errorf("alerts of an agent that is well: %v %v", s, err)
	}
	stop()
	for _, b := range bs {
		b.kill()
	}
	for _, p := range []*prom{native, classic} {
		pollFor(t, time.Minute, "the alert that a service has no backend", func() bool {
			s, err := p.query(`ALERTS{alertname="LbagentNoBackend", service="user"}`)
			return err == nil && len(s) == 1
		})
	}
}

// rules wants every alert to have been evaluated without an error.
func (p *prom) rules() {
	p.t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError, Query string }
		}
	}
	n := 0
	pollFor(p.t, time.Minute, "all rules are evaluated", func() bool {
		if err := p.get("/api/v1/rules", &data); err != nil {
			p.t.Fatal(err)
		}
		n = 0
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				if n++; r.Health == "err" {
					p.t.Fatalf("%s: %s: %s", r.Name, r.Query, r.LastError)
				}
				if r.Health != "ok" {
					return false
				}
			}
		}
		return n > 0
	})
	if n < 25 {
		p.t.Errorf("%d rules", n)
	}
}
