package config

import "time"

// defaults is the configuration of an empty file.
func (o Options) defaults() *Config {
	return &Config{
		Node: Node{Name: o.Hostname},
		API: API{
			Socket:      "/run/lbagent/lbagent.sock",
			AdminSocket: "/run/lbagent-admin/admin.sock",
		},
		AdminListen: "127.0.0.1:9901",
		StateDir:    DefaultStateDir,
		Loops:       loops(0, o.Cores),
		Limits:      defaultLimits(),
		Log:         Log{Level: "info", Format: "auto"},
		Defaults:    defaultService(),

		RegistrationTTL: time.Minute,
		DrainTimeout:    5 * time.Minute,
	}
}

// DefaultStateDir is where the packaged daemon keeps what outlives it.
const DefaultStateDir = "/var/lib/lbagent"

// loops is how many event loops proxy.loops asks for; 0 = by cores.
func loops(written, cores int) int {
	if written > 0 {
		return written
	}
	// A loop relays tens of thousands of calls per second; the cores belong to the applications of the host.
	return min(max(1, cores/4), 4)
}

// defaultOnDemand applies when etcd is configured (1.15).
func defaultOnDemand() OnDemand {
	return OnDemand{Prefix: "services/{service}/", Format: "grpc-naming", Idle: time.Hour}
}

// defaultMutePrefix is where fleet-wide mutes are, when etcd is configured.
const defaultMutePrefix = "lbagent/mutes/"

// defaultService is a service that says nothing but its name.
func defaultService() Service {
	return Service{
		Format:    "grpc-naming",
		Protocol:  "auto",
		Authority: "keep",
		Policy:    "p2c",
		Probe: Probe{
			Type:      "tcp",
			Interval:  5 * time.Second,
			Timeout:   time.Second,
			Rise:      2,
			Fall:      3,
			Path:      "/",
			StatusMin: 200,
			StatusMax: 399,
		},
		Eject:        Eject{On: true, Consecutive: 5, SuccessRate: 50, Base: time.Second, Max: time.Minute, MaxPercent: 50},
		PanicPercent: 50,

		DynamicWeight: true,
		PreferZone:    true,
		SlowStart:     15 * time.Second,
		Subset:        32,

		Retry:     Retry{Max: 2, BudgetPercent: 20},
		Reconnect: Reconnect{Base: 100 * time.Millisecond, Max: 10 * time.Second},
		Timeout:   Timeout{Connect: time.Second, Idle: 5 * time.Minute},
		GuardHold: 10 * time.Minute,
		Drain:     30 * time.Second,
	}
}
