package admin

import "github.com/prometheus/client_golang/prometheus"

// descs is every metric that this package makes.
type descs struct {
	build, configOK, ready                                                                                                *prometheus.Desc
	backends, usable, panic, fallback, picks, listReady, listAge, badRecords, lostNames                                   *prometheus.Desc
	etcdConfigured, etcdConnected, etcdContact, reads, reconnects, spoolOK                                                *prometheus.Desc
	probes, probeFailures, probesSpared, probesPutOff, probesRunning, probesWaiting, ejections, wouldEject, ejectionsHeld *prometheus.Desc
	fleetItems, fleetAge                                                                                                  *prometheus.Desc
	mutes, muteFileOK, muteFollowing                                                                                      *prometheus.Desc
	registrations, announced, leaseLosses, registrarWrites, registrarFailures, registrarFileOK                            *prometheus.Desc
	orphans, audits, repairs, epochs                                                                                      *prometheus.Desc
	probeResults, probeLateness, watches, suspicion, suspicions, withheld                                                 *prometheus.Desc
	verdicts, events                                                                                                      *prometheus.Desc
	requests, latency, noBackend, retries, denied, bytes, connections, clients, refused, buffered, protections            *prometheus.Desc
	backendConns, backendOpened, backendClosed, backendFailed                                                             *prometheus.Desc
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
		fallback:   d("table_fallback", "1 while the fallback is used, since no backend of the service is usable.", "service"),
		picks:      d("table_picks_total", "Picks, by the API and by the proxy.", "service"),
		listReady:  d("discovery_list_ready", "1 if the service has a list.", "service"),
		listAge:    d("discovery_list_age_seconds", "Time since the source last confirmed the list.", "service"),
		badRecords: d("discovery_bad_records", "Records of the list that can't be read, or whose address is refused.", "service"),
		lostNames:  d("discovery_unresolved_names", "Host names of the list that can't be resolved; their last addresses stay.", "service"),

		etcdConfigured: d("discovery_etcd_configured", "1 if an etcd is configured."),
		etcdConnected:  d("discovery_etcd_connected", "1 if etcd answers."),
		etcdContact:    d("discovery_etcd_last_contact_timestamp_seconds", "When etcd last answered."),
		reads:          d("discovery_reads_total", "Whole reads of a prefix."),
		orphans:        d("discovery_orphans", "Backends that are kept although their keys are gone.", "service"),
		audits:         d("discovery_audits_total", "Lists that were compared with etcd's, as they are every 10 minutes or so."),
		repairs:        d("discovery_repairs_total", "Lists that had missed a change and were read again."),
		epochs:         d("discovery_etcd_epochs_total", "Times that etcd was replaced or restored from a backup."),
		reconnects:     d("discovery_reconnects_total", "Connections to etcd that had to be made anew."),
		spoolOK:        d("discovery_spool_ok", "0 if the last good lists can't be written to disk."),

		fleetItems: d("fleet_items", "Services that etcd keeps for all hosts, by what this host made of them; bad: an older form or nothing is in force, held: they vanished from etcd and stay.", "state"),
		fleetAge:   d("fleet_age_seconds", "Time since etcd last confirmed the services that it keeps for all hosts."),

		registrations:     d("registrar_registrations", "Services of this host that should be in etcd while they answer."),
		announced:         d("registrar_announced", "Services of this host that are in etcd."),
		leaseLosses:       d("registrar_lease_losses_total", "Times that etcd had ended the lease of this host's registrations."),
		registrarWrites:   d("registrar_writes_total", "Keys written and deleted in etcd."),
		registrarFailures: d("registrar_failures_total", "Times that etcd could not be brought to what it should hold."),
		registrarFileOK:   d("registrar_file_ok", "0 if registrations can't be written to disk, and would not survive a restart."),

		verdicts: d("health_verdicts_total", "Backends that came to a verdict, by what counts most of all that applies.", "service", "verdict"),
		events:   d("event_events_total", "Events, as lbagent events shows them."),

		probes:        d("health_probes_total", "Probes that were run."),
		probeFailures: d("health_probe_failures_total", "Probes that failed."),
		probesSpared:  d("health_probes_spared_total", "Probes that a good call stood for."),
		probesPutOff:  d("health_probes_put_off_total", "Probes that this host could not run, for want of descriptors or ports."),
		probesRunning: d("health_probes_running", "Probes that run now."),
		probesWaiting: d("health_probes_waiting", "Probes that are due but held back by the limit per second."),
		probeResults: d("health_probe_results_total", "Probes by how they ended: passed, answered (the backend says that it isn't well), unreachable (no connection), "+
			"silent (connected, no answer), put_off (this host could not run it).", "result"),
		probeLateness: d("health_probe_lateness_seconds", "How long probes waited between being due and their start."),
		watches:       d("health_watches", "Connections on which backends say how they are (Watch of gRPC's health service)."),
		suspicion:     d("health_self_suspicion", "1 while it seems to be this host that is ill, and not its backends."),
		suspicions:    d("health_self_suspicions_total", "Times that this host began to suspect itself."),
		withheld:      d("health_withheld_verdicts_total", "Verdicts that did not fall since this host suspected itself."),
		ejections:     d("health_ejections_total", "Backends ejected for failures, by what found them: streak, success_rate or few_calls.", "reason"),
		wouldEject:    d("health_would_eject_total", "Backends that would have been ejected, but for eject: observe.", "reason"),
		ejectionsHeld: d("health_ejections_held_back_total", "Ejections that did not happen: too many are out, or it was the last one usable."),

		mutes:         d("mute_mutes", "Backends that operators have taken out, on this host (here) and on all (fleet).", "scope"),
		muteFileOK:    d("mute_file_ok", "0 if mutes can't be written to disk."),
		muteFollowing: d("mute_following", "1 if etcd's word on fleet-wide mutes is up to date; without an etcd there is none."),

		requests:      d("proxy_requests_total", "Calls that ended: HTTP requests, gRPC calls, TCP connections.", "service", "protocol", "code"),
		latency:       d("proxy_request_seconds", "How long calls took, from arrival to end.", "service", "protocol"),
		noBackend:     d("proxy_no_backend_total", "Calls that found no usable backend.", "service"),
		retries:       d("proxy_retries_total", "Attempts after the first, by why there was one more.", "service", "reason"),
		denied:        d("proxy_retries_denied_total", "Retries that retry.on asked for and the budget had no room for.", "service"),
		bytes:         d("proxy_tcp_bytes_total", "Bytes of TCP connections that ended, from clients (in) and to them (out).", "service", "direction"),
		backendConns:  d("proxy_backend_connections", "Open HTTP/2 connections to backends.", "service"),
		backendOpened: d("proxy_backend_connections_opened_total", "HTTP/2 connections to backends that came up.", "service"),
		backendClosed: d("proxy_backend_connections_closed_total", "HTTP/2 connections to backends that were up and ended, by cause; hang: no byte came, not even the answer to a PING.", "service", "cause"),
		backendFailed: d("proxy_backend_connects_failed_total", "HTTP/2 connections to backends that did not come up.", "service"),

		protections: d("proxy_protections_total", "What peers did that was not put up with, such as floods; lbagent events says who.", "service", "kind"),
		connections: d("proxy_service_connections", "Open connections from clients, by what they speak.", "service", "protocol"),
		clients:     d("proxy_connections", "Open connections from clients, those that have not said anything yet included."),
		refused:     d("proxy_refused_connections_total", "Connections from clients over the limit."),
		buffered:    d("proxy_buffered_bytes", "Bytes parked for peers that take them slowly, HTTP/2; bounded by limits.buffered."),
	}}
}
