package admin

import "github.com/prometheus/client_golang/prometheus"

// kind is the type of a metric, in Prometheus's words.
type kind string

const (
	counter   kind = "counter"
	gauge     kind = "gauge"
	histogram kind = "histogram"
)

// desc is a metric that this package makes. Labels are bounded: services by the configuration and the limits of on_demand, everything else by words in the code. No metric
// names a backend: those of a fleet are too many; `lbagent explain` and `lbagent top` do.
type desc struct {
	*prometheus.Desc
	name   string
	kind   kind
	help   string
	labels []string
}

// descs is every metric that this package makes.
type descs struct {
	// The process and its configuration.
	build, ready, configOK, configGeneration, configReloads, configApplied, crashLoop, tookOver, predecessor *desc
	upgradesFailed, events, eventKinds                                                                       *desc

	// Lists, and what became of them.
	services, backends, usable, panic, fallback, picks, orphans, listReady, listAge, listSource, badRecords *desc
	lostNames, reads, audits, repairs, spoolOK                                                              *desc

	// Etcd, and what is kept in it.
	etcdConfigured, etcdConnected, etcdContact, epochs, reconnects, fleetItems, fleetAge, mutes, muteFileOK     *desc
	muteFollowing, muteBad, muteOver, registrations, announced, leaseLosses, registrarWrites, registrarFailures *desc
	registrarFileOK                                                                                             *desc

	// Health.
	verdicts, targets, probes, probeFailures, probeResults, probeDurations, probeLateness, probesSpared, probesPutOff *desc
	probesRunning, probesWaiting, watches, suspicion, suspicions, withheld, ejections, wouldEject, ejectionsHeld      *desc

	// The dial door.
	requests, latency, overhead, noBackend, retries, denied, bytes, protections, sniffed, silent, connections *desc
	clients, connectionsLimit, refused, buffered, bufferedLimit, backendConns, backendOpened, backendClosed   *desc
	backendFailed, loopBusy, loopWakeups, loopConns, loopsMissing                                             *desc

	// The ask door, and what leaves the host.
	apiConns, apiRefused, apiCalls, apiOpen, apiPicks, apiReports, accessOK, accessLines, accessDropped, notifyOK *desc
	notifyEvents, notifyPosts, notifyWaiting                                                                      *desc

	all []*desc // in the order of the documentation
}

func newDescs() *descs {
	d := &descs{}
	d.agentDescs()
	d.listsDescs()
	d.etcdDescs()
	d.healthDescs()
	d.proxyDescs()
	d.doorsDescs()
	return d
}

func (d *descs) add(k kind, name, help string, labels ...string) *desc {
	one := &desc{prometheus.NewDesc("lbagent_"+name, help, labels, nil), "lbagent_" + name, k, help, labels}
	d.all = append(d.all, one)
	return one
}

func (d *descs) gauge(name, help string, labels ...string) *desc {
	return d.add(gauge, name, help, labels...)
}

func (d *descs) counter(name, help string, labels ...string) *desc {
	return d.add(counter, name, help, labels...)
}

func (d *descs) histogram(name, help string, labels ...string) *desc {
	return d.add(histogram, name, help, labels...)
}

// agentDescs are those of the process and its configuration.
func (d *descs) agentDescs() {
	d.build = d.gauge("build_info", "1; the labels say what is running.", "version", "revision", "go_version")
	d.ready = d.gauge("ready", "1 if the agent is ready, 0 if not.")
	d.configOK = d.gauge("config_ok", "1 if the configuration file at hand is in force, 0 if it is invalid and an older one is.")
	d.configGeneration = d.gauge("config_generation", "Configurations that came into force since the start: 1 at first, one more for each reload, or change of the services that etcd keeps for all hosts, that changed something.")
	d.configReloads = d.counter("config_reloads_total", "Reloads that were asked for: ok, or refused, which leaves the old configuration in force.", "result")
	d.configApplied = d.gauge("config_applied_timestamp_seconds", "When the configuration in force came into force.")
	d.crashLoop = d.gauge("handoff_crash_loop_starts", "Starts in the minute before this process's, if they were so many that it was a crash loop; else 0.")
	d.tookOver = d.gauge("handoff_took_over", "1 if this process took the place of another one by lbagent upgrade.")
	d.predecessor = d.gauge("handoff_predecessor_running", "1 while the process before this one still has running calls.")
	d.upgradesFailed = d.counter("handoff_upgrades_failed_total", "Upgrades after which this process went on, as its successor did not come up.")
	d.events = d.counter("event_events_total", "Events, as lbagent events shows them.")
	d.eventKinds = d.counter("event_kind_events_total", "Events, by kind.", "kind")
}

// listsDescs are those of lists, and what became of them.
func (d *descs) listsDescs() {
	d.services = d.gauge("table_services", "Services that are followed, by why: config (the files), fleet (etcd keeps it for all hosts), on_demand (somebody asked).", "origin")
	d.backends = d.gauge("table_backends", "Backends by verdict.", "service", "verdict")
	d.usable = d.gauge("table_usable_backends", "Backends that new calls go to.", "service")
	d.panic = d.gauge("table_panic", "1 if too few backends are usable, so that soft verdicts are ignored.", "service")
	d.fallback = d.gauge("table_fallback", "1 while the fallback is used, since no backend of the service is usable.", "service")
	d.picks = d.counter("table_picks_total", "Picks, by the API and by the proxy.", "service")
	d.orphans = d.gauge("discovery_orphans", "Backends that are kept although their keys are gone.", "service")
	d.listReady = d.gauge("discovery_list_ready", "1 if the service has a list.", "service")
	d.listAge = d.gauge("discovery_list_age_seconds", "Time since the source last confirmed the list.", "service")
	d.listSource = d.gauge("discovery_list_source", "1 for where the list in use came from: etcd, spool (the disk: etcd has not been reached yet), static.", "service", "source")
	d.badRecords = d.gauge("discovery_bad_records", "Records of the list that can't be read, or whose address is refused.", "service")
	d.lostNames = d.gauge("discovery_unresolved_names", "Host names of the list that can't be resolved; their last addresses stay.", "service")
	d.reads = d.counter("discovery_reads_total", "Whole reads of a prefix.")
	d.audits = d.counter("discovery_audits_total", "Lists that were compared with etcd's, as they are every 10 minutes or so.")
	d.repairs = d.counter("discovery_repairs_total", "Lists that had missed a change and were read again.")
	d.spoolOK = d.gauge("discovery_spool_ok", "0 if the last good lists can't be written to disk.")
}

// etcdDescs are those of etcd, and what is kept in it.
func (d *descs) etcdDescs() {
	d.etcdConfigured = d.gauge("discovery_etcd_configured", "1 if an etcd is configured.")
	d.etcdConnected = d.gauge("discovery_etcd_connected", "1 if etcd answers.")
	d.etcdContact = d.gauge("discovery_etcd_last_contact_timestamp_seconds", "When etcd last answered.")
	d.epochs = d.counter("discovery_etcd_epochs_total", "Times that etcd was replaced or restored from a backup.")
	d.reconnects = d.counter("discovery_reconnects_total", "Connections to etcd that had to be made anew.")
	d.fleetItems = d.gauge("fleet_items", "Services that etcd keeps for all hosts, by what this host made of them; bad: an older form or nothing is in force, held: they vanished from etcd and stay.", "state")
	d.fleetAge = d.gauge("fleet_age_seconds", "Time since etcd last confirmed the services that it keeps for all hosts.")
	d.mutes = d.gauge("mute_mutes", "Backends that operators have taken out, on this host (here) and on all (fleet).", "scope")
	d.muteFileOK = d.gauge("mute_file_ok", "0 if mutes can't be written to disk.")
	d.muteFollowing = d.gauge("mute_following", "1 if etcd's word on fleet-wide mutes is up to date; without an etcd there is none.")
	d.muteBad = d.gauge("mute_bad_keys", "Keys below mute.prefix that can't be read as a mute.")
	d.muteOver = d.gauge("mute_over_limit", "1 if there are more fleet-wide mutes than are honoured.")
	d.registrations = d.gauge("registrar_registrations", "Services of this host that should be in etcd while they answer.")
	d.announced = d.gauge("registrar_announced", "Services of this host that are in etcd.")
	d.leaseLosses = d.counter("registrar_lease_losses_total", "Times that etcd had ended the lease of this host's registrations.")
	d.registrarWrites = d.counter("registrar_writes_total", "Keys written and deleted in etcd.")
	d.registrarFailures = d.counter("registrar_failures_total", "Times that etcd could not be brought to what it should hold.")
	d.registrarFileOK = d.gauge("registrar_file_ok", "0 if registrations can't be written to disk, and would not survive a restart.")
}

// healthDescs are those of health.
func (d *descs) healthDescs() {
	d.verdicts = d.counter("health_verdicts_total", "Backends that came to a verdict, by what counts most of all that applies.", "service", "verdict")
	d.targets = d.gauge("health_targets", "Backends that are watched.")
	d.probes = d.counter("health_probes_total", "Probes that were run.")
	d.probeFailures = d.counter("health_probe_failures_total", "Probes that failed.")
	d.probeResults = d.counter("health_probe_results_total", "Probes by how they ended: passed, answered (the backend says that it isn't well), unreachable (no connection), "+
		"silent (connected, no answer), put_off (this host could not run it).", "result")
	d.probeDurations = d.histogram("health_probe_seconds", "How long probes took until their end was seen, which for tcp probes is up to 50 ms later.")
	d.probeLateness = d.histogram("health_probe_lateness_seconds", "How long probes waited between being due and their start.")
	d.probesSpared = d.counter("health_probes_spared_total", "Probes that a good call stood for.")
	d.probesPutOff = d.counter("health_probes_put_off_total", "Probes that this host could not run, for want of descriptors or ports.")
	d.probesRunning = d.gauge("health_probes_running", "Probes that run now.")
	d.probesWaiting = d.gauge("health_probes_waiting", "Probes that are due but held back by the limit per second.")
	d.watches = d.gauge("health_watches", "Connections on which backends say how they are (Watch of gRPC's health service).")
	d.suspicion = d.gauge("health_self_suspicion", "1 while it seems to be this host that is ill, and not its backends.")
	d.suspicions = d.counter("health_self_suspicions_total", "Times that this host began to suspect itself.")
	d.withheld = d.counter("health_withheld_verdicts_total", "Verdicts that did not fall since this host suspected itself.")
	d.ejections = d.counter("health_ejections_total", "Backends ejected for failures, by what found them: streak, success_rate or few_calls.", "reason")
	d.wouldEject = d.counter("health_would_eject_total", "Backends that would have been ejected, but for eject: observe.", "reason")
	d.ejectionsHeld = d.counter("health_ejections_held_back_total", "Ejections that did not happen: too many are out, or it was the last one usable.")
}

// proxyDescs are those of the dial door.
func (d *descs) proxyDescs() {
	d.requests = d.counter("proxy_requests_total", "Calls that ended: HTTP requests, gRPC calls, TCP connections.", "service", "protocol", "code")
	d.latency = d.histogram("proxy_request_seconds", "How long calls took, from arrival to end.", "service", "protocol")
	d.overhead = d.histogram("proxy_overhead_seconds", "What this agent added to calls of HTTP: from their arrival until they were written to the backend that answered, waits for a connection and earlier attempts included, and from the arrival of the response's head until that was written.", "service", "protocol")
	d.noBackend = d.counter("proxy_no_backend_total", "Calls that found no usable backend.", "service")
	d.retries = d.counter("proxy_retries_total", "Attempts after the first, by why there was one more.", "service", "reason")
	d.denied = d.counter("proxy_retries_denied_total", "Retries that retry.on asked for and the budget had no room for.", "service")
	d.bytes = d.counter("proxy_tcp_bytes_total", "Bytes of TCP connections that ended, from clients (in) and to them (out).", "service", "direction")
	d.protections = d.counter("proxy_protections_total", "What peers did that was not put up with, such as floods; lbagent events says who.", "service", "kind")
	d.sniffed = d.counter("proxy_sniffed_connections_total", "Connections told apart by their first bytes.", "service", "protocol")
	d.silent = d.counter("proxy_silent_connections_total", "Of those told apart, the ones that said nothing for 200 ms and were taken for tcp.", "service")
	d.connections = d.gauge("proxy_service_connections", "Open connections from clients, by what they speak.", "service", "protocol")
	d.clients = d.gauge("proxy_connections", "Open connections from clients, those that have not said anything yet included.")
	d.connectionsLimit = d.gauge("proxy_connections_limit", "The most that proxy_connections may be (limits.connections).")
	d.refused = d.counter("proxy_refused_connections_total", "Connections from clients over the limit.")
	d.buffered = d.gauge("proxy_buffered_bytes", "Bytes parked for peers that take them slowly, HTTP/2; bounded by limits.buffered.")
	d.bufferedLimit = d.gauge("proxy_buffered_limit_bytes", "The most that proxy_buffered_bytes may be (limits.buffered); none if there is no limit.")
	d.backendConns = d.gauge("proxy_backend_connections", "Open HTTP/2 connections to backends.", "service")
	d.backendOpened = d.counter("proxy_backend_connections_opened_total", "HTTP/2 connections to backends that came up.", "service")
	d.backendClosed = d.counter("proxy_backend_connections_closed_total", "HTTP/2 connections to backends that were up and ended, by cause; hang: no byte came, not even the answer to a PING.", "service", "cause")
	d.backendFailed = d.counter("proxy_backend_connects_failed_total", "HTTP/2 connections to backends that did not come up.", "service")
	d.loopBusy = d.counter("proxy_loop_busy_seconds_total", "Time that an event loop worked; 1 s in a second is all it can.", "loop")
	d.loopWakeups = d.counter("proxy_loop_wakeups_total", "Turns of an event loop.", "loop")
	d.loopConns = d.gauge("proxy_loop_connections", "Open connections of an event loop, to clients and backends.", "loop")
	d.loopsMissing = d.gauge("proxy_loops_missing", "Event loops that did not answer this scrape within a second. The counters of services are left out then.")
}

// doorsDescs are those of the ask door, and what leaves the host.
func (d *descs) doorsDescs() {
	d.apiConns = d.gauge("api_connections", "Open connections to the sockets of the API.")
	d.apiRefused = d.counter("api_refused_connections_total", "Connections to the API over a limit.")
	d.apiCalls = d.counter("api_calls_total", "Calls of the API that ended, by either face.", "method", "code")
	d.apiOpen = d.gauge("api_open_calls", "Calls of the API that run now: streams such as Watch, mostly.", "method")
	d.apiPicks = d.counter("api_picks_total", "Picks given by the API, each of a batch counted.")
	d.apiReports = d.counter("api_reports_total", "Outcomes that callers reported.")
	d.accessOK = d.gauge("accesslog_ok", "0 if the access log can't be written; none if it is off.")
	d.accessLines = d.counter("accesslog_lines_total", "Lines written to the access log.")
	d.accessDropped = d.counter("accesslog_dropped_total", "Lines that the access log's disk did not take.")
	d.notifyOK = d.gauge("notify_ok", "0 if the last post of events to notify.url failed; none if it is off.")
	d.notifyEvents = d.counter("notify_events_total", "Events for notify.url: sent, or dropped, as it did not take them in time.", "result")
	d.notifyPosts = d.counter("notify_posts_total", "Posts to notify.url: ok, or failed; each try counts.", "result")
	d.notifyWaiting = d.gauge("notify_waiting_events", "Events that are not posted yet; none if it is off.")
}
