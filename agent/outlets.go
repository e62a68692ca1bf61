package agent

import (
	"github.com/lbagent/lbagent/agent/accesslog"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/event"
)

// outlets has events and calls told as c says. The access log is opened anew also if nothing changed: that is what SIGHUP means to logrotate.
func (a *Agent) outlets(c *config.Config) {
	a.notify.Set(c.NotifyURL)
	a.accessLog.Set(accesslog.Options{Path: c.AccessLog.Path, Sample: c.AccessLog.Sample, Errors: c.AccessLog.Errors})
}

// accessLogFailed makes an event of an access log that can't be written, or can again.
func (a *Agent) accessLogFailed(err error) {
	detail := "the access log is written again"
	if err != nil {
		detail = "the access log can't be written; calls go on, their lines are lost: " + err.Error()
	}
	a.log.Info("access log", "state", detail)
	a.events.Add(event.Event{Time: a.now(), Kind: event.Agent, Detail: detail})
}
