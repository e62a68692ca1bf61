package admin

import (
	"fmt"
	"slices"
	"strings"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// problem is something that a person should read before anything else.
type problem struct {
	Level   level  `json:"level"`
	Service string `json:"service,omitempty"`
	Text    string `json:"text"`
	Try     string `json:"try,omitempty"` // a command that says or does more
}

// maxProblems bounds what is sent; the rest is a number.
const maxProblems = 40

// problems are what is wrong, the worst first; of the same level, what concerns the whole agent first.
func problems(s *lbagentv1.StatusResponse, rows []row) []problem {
	var out []problem
	if !s.Ready {
		out = append(out, problem{Level: bad, Text: "the agent is not ready", Try: "lbagent doctor"})
	}
	if !s.ConfigOk {
		text := "the configuration file is invalid; an older configuration is in force"
		if s.ConfigError != "" {
			text += ": " + s.ConfigError
		}
		out = append(out, problem{Level: warn, Text: text, Try: "lbagent check"})
	}
	for _, w := range s.Warnings {
		if ofOrphans(w, rows) {
			continue // the service's own words say it
		}
		out = append(out, problem{Level: warn, Text: w})
	}
	for _, r := range s.Registrations {
		if !r.Announced && !r.Draining {
			out = append(out, problem{Level: warn, Text: fmt.Sprintf("this host's %s at %s is not announced: %s", r.Service, r.Address, r.Why), Try: "lbagent status"})
		}
	}
	for i := range rows {
		if r := &rows[i]; r.Level != fine {
			p := problem{Level: r.Level, Service: r.Name, Text: r.Words}
			if r.Level != note {
				p.Try = "lbagent explain " + r.Name
			}
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b problem) int { return a.Level.rank() - b.Level.rank() })
	if more := len(out) - maxProblems; more > 0 {
		worst := out[maxProblems].Level
		out = append(out[:maxProblems], problem{Level: worst, Text: fmt.Sprintf("and %d more; the list of services has them all", more)})
	}
	return out
}

// ofOrphans reports whether warning is about the orphans of a service, whose row tells of them.
func ofOrphans(warning string, rows []row) bool {
	name, rest, ok := strings.Cut(warning, ": ")
	return ok && strings.Contains(rest, "orphans") && slices.ContainsFunc(rows, func(r row) bool { return r.Name == name })
}
