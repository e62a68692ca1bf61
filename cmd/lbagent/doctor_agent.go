package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	forgotten = 24 * time.Hour   // a mute that is older was likely meant to be shorter
	clockSlip = 10 * time.Second // what comes from the future by more was written by another clock
)

// checkAgent looks at the running agent as a whole.
func (d *doctor) checkAgent() {
	const check = "agent"
	in := d.agent
	if in == nil {
		return // said by ask
	}
	before := len(d.findings)
	if !in.GetReady() {
		d.bad(check, "it is not ready", "journalctl -u lbagent says what it waits for")
	}
	if missing := in.GetMissing(); len(missing) > 0 {
		d.warn(check, "no list yet of "+strings.Join(missing, ", "), "lbagent explain SERVICE says why")
	}
	if v := thisBuild().Version; in.GetVersion() != v {
		d.warn(check, fmt.Sprintf("it is %s, this program %s", in.GetVersion(), v), "systemctl restart lbagent, if the newer one is meant to run")
	}
	d.well(before, check, "%s on %s, pid %d, ready", in.GetVersion(), in.GetNode(), in.GetPid())
}

// checkServices passes on what the agent knows to be wrong.
func (d *doctor) checkServices() {
	const check = "services"
	in := d.agent
	if in == nil {
		return
	}
	before := len(d.findings)
	for _, w := range in.GetWarnings() {
		d.warn(check, w, "")
	}
	for _, s := range in.GetServices() {
		explain := "lbagent explain " + s.GetName()
		if e := d.unread[s.GetName()]; e != nil {
			first := e.GetBadRecords()[0]
			d.warn(check, fmt.Sprintf("%s: %s can't be read; the first is %s: %s", s.GetName(), plural(e.GetBadRecordCount(), "record"), first.GetKey(), first.GetReason()), explain)
		}
		switch {
		case s.GetReady() && s.GetBackends() > 0 && s.GetUsable() == 0:
			d.bad(check, fmt.Sprintf("%s: none of %s is usable", s.GetName(), plural(s.GetBackends(), "backend")), explain)
		case s.GetReady() && s.GetBackends() == 0 && s.GetOrigin() != "on-demand":
			d.warn(check, s.GetName()+": its list is empty", "nothing is registered there; lbagent scan lists what etcd holds")
		case s.GetProvenance().GetPanic():
			d.warn(check, fmt.Sprintf("%s: only %d of %d backends are usable, so doubtful ones get calls, too (panic)", s.GetName(), s.GetUsable(), s.GetBackends()), explain)
		}
	}
	for _, r := range in.GetRegistrations() {
		if !r.GetAnnounced() && !r.GetDraining() {
			d.warn(check, fmt.Sprintf("%s at %s, of this host, is not announced: %s", r.GetService(), r.GetAddress(), r.GetWhy()), "")
		}
	}
	d.checkMutes()
	d.well(before, check, "%s, nothing against them", plural(len(in.GetServices()), "service"))
}

// checkMutes finds those that were forgotten, and by those that come from the future hosts whose clock is another one: mutes are the only thing in etcd that
// carries the time of another host.
func (d *doctor) checkMutes() {
	clocks := map[string]bool{}
	for _, m := range d.agent.GetMutes() {
		age := d.now.Sub(m.GetSince().AsTime())
		switch {
		case age > forgotten:
			fleet := ""
			if m.GetFleet() {
				fleet = " --fleet"
			}
			d.warn("mutes", fmt.Sprintf("%s %s has been muted by %s for %s, and is until %s: forgotten?", m.GetService(), m.GetAddress(), m.GetAuthor(), short(age),
				m.GetUntil().AsTime().In(d.now.Location()).Format(time.DateTime)), fmt.Sprintf("lbagent unmute %s %s%s", m.GetService(), m.GetAddress(), fleet))
		case m.GetFleet() && age < -clockSlip && !clocks[m.GetHost()]:
			clocks[m.GetHost()] = true
			d.warn("clock", fmt.Sprintf("a mute made on %s is from %s in the future: one of the two clocks is wrong, and mutes end by them", m.GetHost(), short(-age)), "timedatectl, on both")
		}
	}
}

// checkUnit looks at how systemd runs the agent, where systemd is.
func (d *doctor) checkUnit(ctx context.Context) {
	const check = "unit"
	if _, err := os.Stat(d.unitsRun); err != nil {
		return
	}
	out, err := d.systemctl(ctx, "show", "lbagent.service", "--no-pager",
		"--property=LoadState,ActiveState,SubState,UnitFileState,NRestarts,NeedDaemonReload,DropInPaths,NoNewPrivileges,ProtectSystem,User,MainPID,StatusText")
	if err != nil {
		d.warn(check, oneLine(err.Error()), "")
		return
	}
	is := assignments(string(out))
	before := len(d.findings)
	switch is["LoadState"] {
	case "not-found":
		return // installed by hand
	case "masked":
		d.bad(check, "lbagent.service is masked: nothing can start it", "systemctl unmask lbagent")
		return
	case "loaded", "":
	default:
		d.bad(check, "lbagent.service can't be loaded: "+is["LoadState"], "systemd-analyze verify lbagent.service")
		return
	}
	if is["NeedDaemonReload"] == "yes" {
		d.warn(check, "its files have changed since systemd read them", "systemctl daemon-reload")
	}
	if is["UnitFileState"] == "disabled" {
		d.warn(check, "it will not start at boot", "systemctl enable lbagent")
	}
	switch is["ActiveState"] {
	case "failed", "inactive":
		d.bad(check, "lbagent.service is "+is["ActiveState"], "systemctl start lbagent; journalctl -u lbagent says why it ended")
	}
	if text := is["StatusText"]; is["ActiveState"] == "activating" && text != "" {
		d.bad(check, "lbagent.service does not run yet: "+text, "journalctl -u lbagent says why it ended; systemctl restart lbagent begins at once when that is mended")
	}
	if n, err := strconv.Atoi(is["NRestarts"]); err == nil && n >= 5 {
		d.warn(check, fmt.Sprintf("systemd has started it again %d times", n), "journalctl -u lbagent says why it ended")
	}
	d.checkHardening(is)
	if drops := is["DropInPaths"]; drops != "" {
		d.ok(check, "overrides: %s", drops)
		before++
	}
	d.well(before, check, "lbagent.service is %s (%s), as user %s", is["ActiveState"], is["SubState"], is["User"])
}

// checkHardening finds overrides that take away what confines the agent.
func (d *doctor) checkHardening(is map[string]string) {
	const check, mend = "unit", "systemctl cat lbagent shows what overrides it; systemctl revert lbagent takes that back"
	var gone []string
	if is["NoNewPrivileges"] == "no" {
		gone = append(gone, "NoNewPrivileges=no")
	}
	if is["ProtectSystem"] == "no" {
		gone = append(gone, "ProtectSystem=no")
	}
	if user, known := is["User"]; known && (user == "" || user == "root") {
		gone = append(gone, "User=root")
	}
	if len(gone) > 0 {
		d.warn(check, "it runs with less confinement than the package has: "+strings.Join(gone, ", "), mend)
	}
}
