package format

import (
	"encoding/json"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// patroniRecord is the cluster that a key is about: `/service/<scope>/members/<name>`, `/service/<scope>/leader` and `/service/<scope>/config`.
func patroniRecord(key string) string {
	before, last := cutLast(key)
	switch last {
	case "leader", "config":
		return before
	}
	if scope, folder := cutLast(before); folder == "members" && last != "" {
		return scope
	}
	return ""
}

// joinPatroni gives each member of a cluster its backend. Metadata `role` is primary, replica, standby_leader, ...: what the leader's key says, as it changes first
// in a failover, and without that key (because it is not under the prefix, or there is no leader) what the member says of itself; master is primary.
//
// Tags become metadata, too. Without a tag weight all weigh 100. A member whose state says that it isn't running is draining, and so is a replica with the tag noloadbalance.
func joinPatroni(parts []Part) {
	leader, standby := "", false
	for i := range parts {
		switch _, last := cutLast(parts[i].Key); {
		case patroniMember(parts[i].Key) != "":
		case last == "leader":
			leader = strings.TrimSpace(parts[i].value)
		case last == "config":
			if o, err := parse([]byte(parts[i].value)); err == nil {
				standby = !isNull(o["standby_cluster"])
			}
		}
	}
	for i := range parts {
		name := patroniMember(parts[i].Key)
		if name == "" || blank([]byte(parts[i].value)) {
			continue
		}
		b := service.Backend{Weight: service.DefaultWeight}
		if parts[i].Err = readMember(&b, parts[i].value, name, leader, standby); parts[i].Err == nil && b.Addr.Port() != 0 {
			parts[i].Backends = []service.Backend{b}
		}
	}
}

// patroniMember is the name of the member that a key is about, empty if of none.
func patroniMember(key string) string {
	before, last := cutLast(key)
	if _, folder := cutLast(before); folder == "members" {
		return last
	}
	return ""
}

// readMember reads a member's JSON. One that has no address yet gives none.
func readMember(b *service.Backend, value, name, leader string, standby bool) error {
	if strings.HasPrefix(value, "postgres") { // as Governor wrote it, which Patroni still reads
		quoted, err := json.Marshal(value)
		if err != nil {
			return jsonError(err)
		}
		value = `{"conn_url":` + string(quoted) + `}`
	}
	o, err := parse([]byte(value))
	if err != nil {
		return err
	}
	address, role, state := o.text("conn_url"), o.text("role"), o.text("state")
	if address == "" {
		return nil
	}
	u, err := parseURL(address)
	if err != nil {
		return err
	}
	if err := setURL(b, u); err != nil {
		return err
	}
	tags := o.object("tags")
	role = patroniRole(role, name, leader, standby)
	b.Draining = tags.text("noloadbalance") == "true" && role != "primary" || patroniDown(state)
	if err := setMetadata(b, tags); err != nil {
		return err
	}
	for _, volatile := range []string{"api_url", "xlog_location", "receive_lsn", "replay_lsn", "timeline", "replication_state", "pending_restart", "pending_restart_reason"} {
		delete(o, volatile) // written anew every few seconds, or of no use for a choice
	}
	b.Metadata = withFields(b.Metadata, o)
	for k, v := range map[string]string{"name": name, "role": role, "state": state} {
		if v != "" {
			b.Metadata = with(b.Metadata, k, v)
		}
	}
	return nil
}

// patroniRole is the role of a member called name, of which its own record says role.
func patroniRole(role, name, leader string, standby bool) string {
	leads := role == "primary" || role == "master" || role == "promoted" || role == "standby_leader"
	switch {
	case name == leader && (standby || role == "standby_leader"):
		return "standby_leader"
	case name == leader, leader == "" && role == "master":
		return "primary"
	case leader != "" && leads:
		return "replica" // it lost the lead, and has not written so yet
	}
	return role
}

// patroniDown reports whether a state says that PostgreSQL doesn't run; one that is not known doesn't.
func patroniDown(state string) bool {
	switch state {
	case "stopping", "stopped", "stop failed", "crashed", "starting", "start failed", "restarting", "restart failed", "creating replica",
		"initializing new cluster", "initdb failed", "running custom bootstrap script", "custom bootstrap failed":
		return true
	}
	return false
}
