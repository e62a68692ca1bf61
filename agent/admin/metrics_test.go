package admin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protodelim"
)

// families asks for the metrics as a Prometheus does that knows native histograms.
func (f *fixture) families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+f.Addrs()[1].String()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.Status, err)
	}
	out := map[string]*dto.MetricFamily{}
	for r := bytes.NewReader(body); ; {
		one := new(dto.MetricFamily)
		if err := protodelim.UnmarshalFrom(r, one); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out[one.GetName()] = one
	}
}

// TestNativeHistograms: who asks for them gets the same numbers as the text has, in finer buckets, and the classic ones beside them.
func TestNativeHistograms(t *testing.T) {
	f := serve(t, nil)
	native := make([]uint64, 160)
	for key, n := range map[int]uint64{-41: 1, -40: 1, -10: 2, 4: 1} {
		native[79+key] = n
	}
	f.proxy = Proxy{
		LatencyBounds: []time.Duration{time.Millisecond, time.Second},
		Services: []Calls{{Service: "user", Latencies: []Latency{{"h2", Histogram{
			Buckets: []uint64{3, 2, 1}, Native: native, None: 1, Sum: 2500 * time.Millisecond,
		}}}}},
	}
	all := f.families(t)
	h := all["lbagent_proxy_request_seconds"].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 6 || h.GetSampleSum() != 2.5 || h.GetSchema() != 2 || h.GetZeroCount() != 1 || h.GetZeroThreshold() != 1.0/(1<<20) {
		t.Errorf("%v", h)
	}
	if b := h.GetBucket(); len(b) != 2 || b[0].GetCumulativeCount() != 3 || b[1].GetUpperBound() != 1 || b[1].GetCumulativeCount() != 5 {
		t.Errorf("classic buckets %v", b)
	}
	key, i, n := int32(0), 0, int64(0)
	got := map[int32]int64{}
	for _, span := range h.GetPositiveSpan() {
		key += span.GetOffset()
		for range span.GetLength() {
			n += h.GetPositiveDelta()[i]
			if n != 0 {
				got[key] = n
			}
			key++
			i++
		}
	}
	if s := fmt.Sprint(got); s != "map[-41:1 -40:1 -10:2 4:1]" {
		t.Errorf("native buckets %s", s)
	}
	if h := all["lbagent_health_probe_seconds"].GetMetric()[0].GetHistogram(); len(h.GetBucket()) != 4 || h.Schema != nil || h.ZeroThreshold != nil {
		t.Errorf("a histogram without native buckets: %v", h)
	}
}

const metricsPage = "../../packaging/doc/metrics.md"

// TestMetricsPage: the documentation names every metric that this package makes, as it is.
func TestMetricsPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("# The metrics of lbagent\n\n" +
		"At `http://127.0.0.1:9901/metrics`, and for other hosts where `metrics.listen` says. Made from the code by `go test ./agent/admin -update`; beside them are\n" +
		"`go_*` and `process_*` of the Go runtime and the process.\n\n" +
		"Labels are bounded: `service` by the configuration and, for services that are asked for, by 256; everything else by words in the code. No metric names a\n" +
		"backend: `lbagent explain SERVICE` and `lbagent top` do. Durations of calls are native histograms (four buckets per doubling) for a Prometheus that asks for\n" +
		"them, and classic ones, whose buckets double, for the others.\n\n" +
		"| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, d := range newDescs().all {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.name, d.kind, strings.Join(d.labels, ", "), strings.ReplaceAll(d.help, "|", "\\|"))
	}
	if *update {
		if err := os.WriteFile(metricsPage, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(metricsPage)
	if err != nil || string(page) != b.String() {
		t.Errorf("%s is not what the code says (%v): go test ./agent/admin -update", metricsPage, err)
	}
}

// TestNames: the prefix of a stage, the unit at the end, and nothing twice.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range newDescs().all {
		if seen[d.name] || !strings.HasPrefix(d.name, "lbagent_") || strings.HasSuffix(d.name, "_total") != (d.kind == counter) || d.help == "" || !strings.HasSuffix(d.help, ".") {
			t.Errorf("%s, a %s: %q", d.name, d.kind, d.help)
		}
		if d.kind == histogram && !strings.HasSuffix(d.name, "_seconds") {
			t.Errorf("%s has no unit", d.name)
		}
		for _, l := range d.labels {
			if l == "backend" || l == "client" || l == "path" {
				t.Errorf("%s has the label %s, which nothing bounds", d.name, l)
			}
		}
		seen[d.name] = true
	}
}
