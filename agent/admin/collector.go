package admin

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds the scrapes that are answered at once.
const maxScrapes = 4

// Proxy is what went through the proxy since the start. Counts only rise.
type Proxy struct {
	Services      []Calls         // at most one per service
	LatencyBounds []time.Duration // upper bounds of every Latency's buckets but the last, rising
	Clients       int             // client connections now
	Refused       uint64          // client connections over the limit
	// Missing is the number of loops that did not answer in time. Their counts are not in Services, which are left out of the scrape then: a counter that
	// falls looks like a restart.
	Missing int
}

// Calls are the calls of one service: HTTP requests, gRPC calls, TCP connections.
type Calls struct {
	Service   string
	Codes     []Code // at most one per protocol and class
	Latencies []Latency
	Active    map[string]int // client connections now, by protocol
	NoBackend uint64         // calls without a usable backend (4.5)
	Retried   uint64         // attempts after the first, whatever the reason (4.1, 4.2)
	In, Out   uint64         // TCP: bytes from clients, and to them
}

// Code counts the calls that ended with one class of code. Protocols and classes are few: "http1" and "h2" with "2xx" to "5xx", "grpc" with "ok",
// "client_error", "server_error", "unavailable", "tcp" with "ok" and "failed".
type Code struct {
	Protocol, Class string
	Count           uint64
}

// Latency is a histogram of how long calls of one protocol took, from arrival to end.
type Latency struct {
	Protocol string
	Buckets  []uint64 // one per bound, not cumulative, and one more for what is above
	Sum      time.Duration
}

// collector turns what the stages know into metrics, at each scrape: nothing is counted twice and nothing costs while nobody looks.
type collector struct {
	cfg   Config
	seen  seen
	descs descs
}

// descs is every metric that this package makes.
type descs struct {
	build, configOK, ready                                                      *prometheus.Desc
	backends, usable, panic, picks, listReady, listAge, badRecords              *prometheus.Desc
	etcdConfigured, etcdConnected, etcdContact, reads, reconnects, spoolOK      *prometheus.Desc
	verdicts, events                                                            *prometheus.Desc
	requests, latency, noBackend, retries, bytes, connections, clients, refused *prometheus.Desc
}

func newCollector(cfg Config) *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lbagent_"+name, help, labels, nil)
	}
	return &collector{cfg: cfg, descs: descs{
		build:    d("build_info", "1; the labels say what is running.", "version", "revision", "go_version"),
		configOK: d("config_ok", "1 if the configuration file at hand is in force, 0 if it is invalid and an older one is."),
		ready:    d("ready", "1 if the agent is ready, 0 if not."),

		backends:   d("table_backends", "Backends by verdict.", "service", "verdict"),
		usable:     d("table_usable_backends", "Backends that new calls go to.", "service"),
		panic:      d("table_panic", "1 if too few backends are usable, so that soft verdicts are ignored.", "service"),
		picks:      d("table_picks_total", "Picks, by the API and by the proxy.", "service"),
		listReady:  d("discovery_list_ready", "1 if the service has a list.", "service"),
		listAge:    d("discovery_list_age_seconds", "Time since the source last confirmed the list.", "service"),
		badRecords: d("discovery_bad_records", "Records of the list that can't be read.", "service"),

		etcdConfigured: d("discovery_etcd_configured", "1 if an etcd is configured."),
		etcdConnected:  d("discovery_etcd_connected", "1 if etcd answers."),
		etcdContact:    d("discovery_etcd_last_contact_timestamp_seconds", "When etcd last answered."),
		reads:          d("discovery_reads_total", "Whole reads of a prefix."),
		reconnects:     d("discovery_reconnects_total", "Connections to etcd that had to be made anew."),
		spoolOK:        d("discovery_spool_ok", "0 if the last good lists can't be written to disk."),

		verdicts: d("health_verdicts_total", "Backends that came to a verdict; ejections are those with verdict=\"ejected\".", "service", "verdict"),
		events:   d("event_events_total", "Events, as lbagent events shows them."),

		requests:    d("proxy_requests_total", "Calls that ended: HTTP requests, gRPC calls, TCP connections.", "service", "protocol", "code"),
		latency:     d("proxy_request_seconds", "How long calls took, from arrival to end.", "service", "protocol"),
		noBackend:   d("proxy_no_backend_total", "Calls that found no usable backend.", "service"),
		retries:     d("proxy_retries_total", "Attempts after the first.", "service"),
		bytes:       d("proxy_tcp_bytes_total", "Bytes of TCP connections that ended, from clients (in) and to them (out).", "service", "direction"),
		connections: d("proxy_service_connections", "Open connections from clients, by what they speak.", "service", "protocol"),
		clients:     d("proxy_connections", "Open connections from clients, those that have not said anything yet included."),
		refused:     d("proxy_refused_connections_total", "Connections from clients over the limit."),
	}}
}

// handler serves the metrics of c, of the Go runtime and of the process, from a registry of its own.
func (c *collector) handler(log hclog.Logger) (http.Handler, error) {
	registry := prometheus.NewPedanticRegistry()
	for _, one := range []prometheus.Collector{c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := registry.Register(one); err != nil {
			return nil, err
		}
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// One bad metric must not hide the others.
		ErrorHandling:       promhttp.ContinueOnError,
		ErrorLog:            log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn}),
		MaxRequestsInFlight: maxScrapes,
	}), nil
}

// Describe implements prometheus.Collector. It says nothing: Collect asks stages that are not wired yet when the collector is registered, and a metric
// without a value is not sent.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	m := metrics{out}
	m.gauge(c.descs.build, 1, c.cfg.Version, vcsRevision(), runtime.Version())
	m.gauge(c.descs.configOK, boolean(c.cfg.ConfigOK()))
	ready, _ := c.cfg.Ready()
	m.gauge(c.descs.ready, boolean(ready))
	m.counter(c.descs.events, float64(c.seen.total(c.cfg.Events)))

	for _, s := range c.cfg.Table.Services() {
		c.service(m, s)
	}
	if c.cfg.Discovery != nil {
		c.discovery(m)
	}
	if c.cfg.Proxy != nil {
		c.proxy(m)
	}
}

func (c *collector) service(m metrics, s *table.Service) {
	d, view, name := &c.descs, s.View(), s.Name()
	var verdicts [health.Kinds]int
	for i := range view.Backends {
		verdicts[view.Backends[i].Verdict.Kind]++
	}
	for kind, n := range verdicts {
		m.gauge(d.backends, float64(n), name, health.Kind(kind).String())
	}
	for _, kind := range []health.Kind{health.Draining, health.Down, health.Unreachable, health.Ejected, health.Up} {
		m.counter(d.verdicts, float64(s.Entered(kind)), name, kind.String())
	}
	m.gauge(d.usable, float64(view.Usable), name)
	m.gauge(d.panic, boolean(view.Panic), name)
	m.counter(d.picks, float64(s.Picks()), name)
	m.gauge(d.listReady, boolean(view.Ready), name)
	m.gauge(d.badRecords, float64(view.List.BadCount), name)
	if view.Ready {
		m.gauge(d.listAge, max(0, s.Age(c.cfg.Now()).Seconds()), name)
	}
}

func (c *collector) discovery(m metrics) {
	d, s := &c.descs, c.cfg.Discovery()
	m.gauge(d.etcdConfigured, boolean(s.Configured))
	m.gauge(d.spoolOK, boolean(s.SpoolError == ""))
	m.counter(d.reads, float64(s.Reads))
	m.counter(d.reconnects, float64(s.Reconnects))
	if !s.Configured {
		return // an etcd that isn't there is neither connected nor lost
	}
	m.gauge(d.etcdConnected, boolean(s.Connected))
	if !s.LastContact.IsZero() {
		m.gauge(d.etcdContact, float64(s.LastContact.UnixMilli())/1000)
	}
}

func (c *collector) proxy(m metrics) {
	d, p := &c.descs, c.cfg.Proxy()
	m.gauge(d.clients, float64(p.Clients))
	m.counter(d.refused, float64(p.Refused))
	if p.Missing > 0 {
		return
	}
	for _, s := range p.Services {
		for _, code := range s.Codes {
			m.counter(d.requests, float64(code.Count), s.Service, code.Protocol, code.Class)
		}
		for _, l := range s.Latencies {
			m.histogram(d.latency, p.LatencyBounds, l, s.Service, l.Protocol)
		}
		for protocol, n := range s.Active {
			m.gauge(d.connections, float64(n), s.Service, protocol)
		}
		m.counter(d.noBackend, float64(s.NoBackend), s.Service)
		m.counter(d.retries, float64(s.Retried), s.Service)
		m.counter(d.bytes, float64(s.In), s.Service, "in")
		m.counter(d.bytes, float64(s.Out), s.Service, "out")
	}
}

// metrics sends metrics to a scrape.
type metrics struct{ out chan<- prometheus.Metric }

func (m metrics) gauge(d *prometheus.Desc, v float64, labels ...string) {
	m.send(d, prometheus.GaugeValue, v, labels)
}

func (m metrics) counter(d *prometheus.Desc, v float64, labels ...string) {
	m.send(d, prometheus.CounterValue, v, labels)
}

func (m metrics) send(d *prometheus.Desc, t prometheus.ValueType, v float64, labels []string) {
	metric, err := prometheus.NewConstMetric(d, t, v, labels...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(d, err)
	}
	m.out <- metric
}

func (m metrics) histogram(d *prometheus.Desc, bounds []time.Duration, l Latency, labels ...string) {
	var count uint64
	buckets := make(map[float64]uint64, len(bounds))
	for i, n := range l.Buckets {
		count += n
		if i < len(bounds) {
			buckets[bounds[i].Seconds()] = count
		}
	}
	metric, err := prometheus.NewConstHistogram(d, count, l.Sum.Seconds(), buckets, labels...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(d, err)
	}
	m.out <- metric
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// vcsRevision is the commit that the program was built from, "" if the build did not note it.
func vcsRevision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
