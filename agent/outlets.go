package agent

import "github.com/lbagent/lbagent/agent/config"

// outlets has events told as c says.
func (a *Agent) outlets(c *config.Config) { a.notify.Set(c.NotifyURL) }
