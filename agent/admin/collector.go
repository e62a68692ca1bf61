package admin

import (
	"net/http"
	"runtime"
	"runtime/debug"

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
	descs *descs
}

func newCollector(cfg Config) *collector { return &collector{cfg, newDescs()} }

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
	m, d := metrics{out}, c.descs
	m.put(d.build, 1, c.cfg.Version, vcsRevision(), runtime.Version())
	m.put(d.configOK, boolean(c.cfg.ConfigOK()))
	ready, _ := c.cfg.Ready()
	m.put(d.ready, boolean(ready))
	m.put(d.events, float64(c.cfg.Events.Last()))
	for kind, n := range c.cfg.Events.Counts() {
		m.put(d.eventKinds, float64(n), string(kind))
	}
	c.services(m)
	for _, one := range []struct {
		wired bool
		send  func(metrics)
	}{
		{c.cfg.Process != nil, c.process}, {c.cfg.Etcd != nil, c.etcd}, {c.cfg.Discovery != nil, c.discovery}, {c.cfg.Fleet != nil, c.fleet},
		{c.cfg.Health != nil, c.health}, {c.cfg.Registrar != nil, c.registrar}, {c.cfg.Proxy != nil, c.proxy}, {c.cfg.Mutes != nil, c.mutes},
		{c.cfg.Ask != nil, c.ask}, {c.cfg.AccessLog != nil, c.accessLog}, {c.cfg.Notify != nil, c.notify},
	} {
		if one.wired {
			one.send(m)
		}
	}
}

func (c *collector) process(m metrics) {
	d, p := c.descs, c.cfg.Process()
	m.put(d.configGeneration, float64(p.Generation))
	m.put(d.configReloads, float64(p.Reloads), "ok")
	m.put(d.configReloads, float64(p.Refused), "refused")
	m.put(d.configApplied, float64(p.Applied.UnixMilli())/1000)
	m.put(d.crashLoop, float64(p.CrashLoop))
	m.put(d.tookOver, boolean(p.TookOver))
	m.put(d.predecessor, boolean(p.Predecessor))
	m.put(d.upgradesFailed, float64(p.UpgradesFailed))
}

func (c *collector) services(m metrics) {
	origins := map[string]int{"config": 0, "fleet": 0, "on_demand": 0}
	for _, s := range c.cfg.Table.Services() {
		c.service(m, s)
		switch spec := s.Spec(); {
		case spec.OnDemand:
			origins["on_demand"]++
		case spec.Fleet:
			origins["fleet"]++
		default:
			origins["config"]++
		}
	}
	for origin, n := range origins {
		m.put(c.descs.services, float64(n), origin)
	}
}

func (c *collector) service(m metrics, s *table.Service) {
	d, view, name := c.descs, s.View(), s.Name()
	var verdicts [health.Kinds]int
	for _, b := range view.Backends() {
		if b.Fallback == view.Fallback {
			verdicts[b.Verdict.Kind]++
		}
	}
	for kind, n := range verdicts {
		m.put(d.backends, float64(n), name, health.Kind(kind).String())
	}
	for _, kind := range []health.Kind{health.Draining, health.Muted, health.Down, health.Unreachable, health.Ejected, health.Up} {
		m.put(d.verdicts, float64(s.Entered(kind)), name, kind.String())
	}
	m.put(d.usable, float64(view.Usable), name)
	m.put(d.fallback, boolean(view.Fallback), name)
	m.put(d.orphans, float64(view.Orphans()), name)
	m.put(d.panic, boolean(view.Panic), name)
	m.put(d.picks, float64(s.Picks()), name)
	m.put(d.listReady, boolean(view.Ready), name)
	m.put(d.badRecords, float64(view.List.BadCount), name)
	m.put(d.lostNames, float64(view.List.LostCount), name)
	if view.Ready {
		m.put(d.listAge, max(0, s.Age(c.cfg.Now()).Seconds()), name)
		m.put(d.listSource, 1, name, string(view.Source()))
	}
}

func (c *collector) discovery(m metrics) {
	d, s := c.descs, c.cfg.Discovery()
	m.put(d.spoolOK, boolean(s.SpoolError == ""))
	m.put(d.reads, float64(s.Reads))
	m.put(d.audits, float64(s.Audits))
	m.put(d.repairs, float64(s.Repairs))
}

func (c *collector) fleet(m metrics) {
	s := c.cfg.Fleet()
	states := make(map[string]int)
	for i := range s.Items {
		states[s.Items[i].State()]++
	}
	for _, state := range fleet.States() {
		m.put(c.descs.fleetItems, float64(states[state]), state)
	}
	if !s.Confirmed.IsZero() {
		m.put(c.descs.fleetAge, max(0, c.cfg.Now().Sub(s.Confirmed).Seconds()))
	}
}

func (c *collector) mutes(m metrics) {
	d, s := c.descs, c.cfg.Mutes()
	m.put(d.mutes, float64(s.Here), "here")
	m.put(d.mutes, float64(s.Fleet), "fleet")
	m.put(d.muteFileOK, boolean(s.FileError == ""))
	m.put(d.muteBad, float64(s.Bad))
	m.put(d.muteOver, boolean(s.Over))
	if s.Followed {
		m.put(d.muteFollowing, boolean(s.Following))
	}
}

func (c *collector) etcd(m metrics) {
	d, s := c.descs, c.cfg.Etcd()
	m.put(d.etcdConfigured, boolean(s.Configured))
	m.put(d.reconnects, float64(s.Reconnects))
	m.put(d.epochs, float64(s.Epochs))
	if !s.Configured {
		return // an etcd that isn't there is neither connected nor lost
	}
	m.put(d.etcdConnected, boolean(s.Connected))
	if !s.LastContact.IsZero() {
		m.put(d.etcdContact, float64(s.LastContact.UnixMilli())/1000)
	}
}

func (c *collector) health(m metrics) {
	d, s := c.descs, c.cfg.Health()
	m.put(d.targets, float64(s.Targets))
	m.put(d.probes, float64(s.Probes))
	m.put(d.probeFailures, float64(s.ProbeFailures))
	m.put(d.probesSpared, float64(s.ProbesSpared))
	m.put(d.probesPutOff, float64(s.ProbesPutOff))
	for _, r := range []struct {
		result string
		n      uint64
	}{
		{"passed", s.Results.Passed}, {"answered", s.Results.Answered}, {"unreachable", s.Results.Unreachable}, {"silent", s.Results.Silent},
		{"put_off", s.Results.PutOff},
	} {
		m.put(d.probeResults, float64(r.n), r.result)
	}
	m.histogram(d.probeLateness, health.LatenessBounds(), Histogram{Buckets: s.Lateness.Buckets[:], Sum: s.Lateness.Sum})
	m.histogram(d.probeDurations, health.DurationBounds(), Histogram{Buckets: s.Durations.Buckets[:], Sum: s.Durations.Sum})
	m.put(d.watches, float64(s.Watches))
	m.put(d.suspicion, boolean(s.Suspicion.On))
	m.put(d.suspicions, float64(s.Suspicions))
	m.put(d.withheld, float64(s.Withheld))
	m.put(d.probesRunning, float64(s.ProbesRunning))
	m.put(d.probesWaiting, float64(s.ProbesWaiting))
	for reason := range health.Reason(health.Reasons) {
		m.put(d.ejections, float64(s.Ejections[reason]), reason.String())
		m.put(d.wouldEject, float64(s.WouldEject[reason]), reason.String())
	}
	m.put(d.ejectionsHeld, float64(s.EjectionsHeldBack))
}

func (c *collector) registrar(m metrics) {
	d, s := c.descs, c.cfg.Registrar()
	m.put(d.registrations, float64(s.Wanted))
	m.put(d.announced, float64(s.Announced))
	m.put(d.leaseLosses, float64(s.LeaseLosses))
	m.put(d.registrarWrites, float64(s.Writes))
	m.put(d.registrarFailures, float64(s.Failures))
	m.put(d.registrarFileOK, boolean(s.FileError == ""))
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
