package admin

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/fleet"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds the scrapes that are answered at once.
const maxScrapes = 4

// collector turns what the stages know into metrics, at each scrape: nothing is counted twice and nothing costs while nobody looks.
type collector struct {
	cfg   Config
	seen  seen
	descs descs
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
	if c.cfg.Etcd != nil {
		c.etcd(m)
	}
	if c.cfg.Discovery != nil {
		c.discovery(m)
	}
	if c.cfg.Fleet != nil {
		c.fleet(m)
	}
	if c.cfg.Health != nil {
		c.health(m)
	}
	if c.cfg.Registrar != nil {
		c.registrar(m)
	}
	if c.cfg.Proxy != nil {
		c.proxy(m)
	}
	if c.cfg.Mutes != nil {
		c.mutes(m)
	}
}

func (c *collector) service(m metrics, s *table.Service) {
	d, view, name := &c.descs, s.View(), s.Name()
	var verdicts [health.Kinds]int
	for i := range view.Backends {
		if b := &view.Backends[i]; b.Backend.Fallback == view.Fallback {
			verdicts[b.Verdict.Kind]++
		}
	}
	for kind, n := range verdicts {
		m.gauge(d.backends, float64(n), name, health.Kind(kind).String())
	}
	for _, kind := range []health.Kind{health.Draining, health.Muted, health.Down, health.Unreachable, health.Ejected, health.Up} {
		m.counter(d.verdicts, float64(s.Entered(kind)), name, kind.String())
	}
	m.gauge(d.usable, float64(view.Usable), name)
	m.gauge(d.fallback, boolean(view.Fallback), name)
	m.gauge(d.orphans, float64(view.Orphans()), name)
	m.gauge(d.panic, boolean(view.Panic), name)
	m.counter(d.picks, float64(s.Picks()), name)
	m.gauge(d.listReady, boolean(view.Ready), name)
	m.gauge(d.badRecords, float64(view.List.BadCount), name)
	m.gauge(d.lostNames, float64(view.List.LostCount), name)
	if view.Ready {
		m.gauge(d.listAge, max(0, s.Age(c.cfg.Now()).Seconds()), name)
	}
}

func (c *collector) discovery(m metrics) {
	d, s := &c.descs, c.cfg.Discovery()
	m.gauge(d.spoolOK, boolean(s.SpoolError == ""))
	m.counter(d.reads, float64(s.Reads))
	m.counter(d.audits, float64(s.Audits))
	m.counter(d.repairs, float64(s.Repairs))
}

func (c *collector) fleet(m metrics) {
	s := c.cfg.Fleet()
	states := make(map[string]int)
	for i := range s.Items {
		states[s.Items[i].State()]++
	}
	for _, state := range fleet.States() {
		m.gauge(c.descs.fleetItems, float64(states[state]), state)
	}
	if !s.Confirmed.IsZero() {
		m.gauge(c.descs.fleetAge, max(0, c.cfg.Now().Sub(s.Confirmed).Seconds()))
	}
}

func (c *collector) mutes(m metrics) {
	d, s := &c.descs, c.cfg.Mutes()
	m.gauge(d.mutes, float64(s.Here), "here")
	m.gauge(d.mutes, float64(s.Fleet), "fleet")
	m.gauge(d.muteFileOK, boolean(s.FileError == ""))
	if s.Followed {
		m.gauge(d.muteFollowing, boolean(s.Following))
	}
}

func (c *collector) etcd(m metrics) {
	d, s := &c.descs, c.cfg.Etcd()
	m.gauge(d.etcdConfigured, boolean(s.Configured))
	m.counter(d.reconnects, float64(s.Reconnects))
	m.counter(d.epochs, float64(s.Epochs))
	if !s.Configured {
		return // an etcd that isn't there is neither connected nor lost
	}
	m.gauge(d.etcdConnected, boolean(s.Connected))
	if !s.LastContact.IsZero() {
		m.gauge(d.etcdContact, float64(s.LastContact.UnixMilli())/1000)
	}
}

func (c *collector) health(m metrics) {
	d, s := &c.descs, c.cfg.Health()
	m.counter(d.probes, float64(s.Probes))
	m.counter(d.probeFailures, float64(s.ProbeFailures))
	m.counter(d.probesSpared, float64(s.ProbesSpared))
	m.counter(d.probesPutOff, float64(s.ProbesPutOff))
	for _, r := range []struct {
		result string
		n      uint64
	}{
		{"passed", s.Results.Passed}, {"answered", s.Results.Answered}, {"unreachable", s.Results.Unreachable}, {"silent", s.Results.Silent},
		{"put_off", s.Results.PutOff},
	} {
		m.counter(d.probeResults, float64(r.n), r.result)
	}
	m.histogram(d.probeLateness, health.LatenessBounds(), Latency{Buckets: s.Lateness.Buckets[:], Sum: s.Lateness.Sum})
	m.gauge(d.watches, float64(s.Watches))
	m.gauge(d.suspicion, boolean(s.Suspicion.On))
	m.counter(d.suspicions, float64(s.Suspicions))
	m.counter(d.withheld, float64(s.Withheld))
	m.gauge(d.probesRunning, float64(s.ProbesRunning))
	m.gauge(d.probesWaiting, float64(s.ProbesWaiting))
	for reason := range health.Reason(health.Reasons) {
		m.counter(d.ejections, float64(s.Ejections[reason]), reason.String())
		m.counter(d.wouldEject, float64(s.WouldEject[reason]), reason.String())
	}
	m.counter(d.ejectionsHeld, float64(s.EjectionsHeldBack))
}

func (c *collector) registrar(m metrics) {
	d, s := &c.descs, c.cfg.Registrar()
	m.gauge(d.registrations, float64(s.Wanted))
	m.gauge(d.announced, float64(s.Announced))
	m.counter(d.leaseLosses, float64(s.LeaseLosses))
	m.counter(d.registrarWrites, float64(s.Writes))
	m.counter(d.registrarFailures, float64(s.Failures))
	m.gauge(d.registrarFileOK, boolean(s.FileError == ""))
}

func (c *collector) proxy(m metrics) {
	d, p := &c.descs, c.cfg.Proxy()
	m.gauge(d.clients, float64(p.Clients))
	m.counter(d.refused, float64(p.Refused))
	m.gauge(d.buffered, float64(p.Buffered))
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
		for kind, n := range s.Protections {
			m.counter(d.protections, float64(n), s.Service, kind)
		}
		m.gauge(d.backendConns, float64(s.Backends.Open), s.Service)
		m.counter(d.backendOpened, float64(s.Backends.Opened), s.Service)
		m.counter(d.backendFailed, float64(s.Backends.Failed), s.Service)
		for cause, n := range s.Backends.Closed {
			m.counter(d.backendClosed, float64(n), s.Service, cause)
		}
		m.counter(d.noBackend, float64(s.NoBackend), s.Service)
		for reason, n := range s.Retried {
			m.counter(d.retries, float64(n), s.Service, reason)
		}
		m.counter(d.denied, float64(s.Denied), s.Service)
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
