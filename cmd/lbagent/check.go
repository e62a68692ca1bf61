package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/config"
)

// checked is what check says of a configuration.
type checked struct {
	OK       bool     `json:"ok"`
	Files    []string `json:"files"`
	Services int      `json:"services"`
	Errors   []string `json:"errors"`
	Warnings []string `json:"warnings"`
}

func (a *app) checkVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "whether a configuration is valid; it needs no agent",
		Long: `Reads a configuration with its drop-ins and names every mistake with file, line, key and what is
allowed. Without FILE it reads ` + config.DefaultPath + `.`,
		GroupID: groupProcess,
		Args:    exactly("[FILE]"),
		RunE: func(_ *cobra.Command, args []string) error {
			path := config.DefaultPath
			if len(args) > 0 {
				path = args[0]
			}
			c, err := config.Load(path)
			if !asJSON && err != nil {
				return mistakes(err)
			}
			if !asJSON {
				hanging(a.stdout, "ok: ", summary(c))
				for _, w := range c.Warnings() {
					hanging(a.stdout, "warning: ", w)
				}
				return nil
			}
			said := checked{OK: err == nil, Files: []string{}, Errors: []string{}, Warnings: []string{}}
			if err != nil {
				said.Errors = strings.Split(err.Error(), "\n")
			} else {
				said.Files, said.Services = c.Files, len(c.Services)
				said.Warnings = append(said.Warnings, c.Warnings()...)
			}
			raw, jsonErr := json.Marshal(said)
			if jsonErr != nil {
				return fmt.Errorf("write JSON: %w", jsonErr)
			}
			if jsonErr := writeJSON(a.stdout, raw, false); jsonErr != nil || err == nil {
				return jsonErr
			}
			return &codedError{exitFailure, errors.New("")} // said on stdout
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// mistakes counts what err names, a line each, so that a long list ends with what matters: how much is left to mend.
func mistakes(err error) error {
	n := strings.Count(err.Error(), "\n") + 1
	return fmt.Errorf("the configuration is invalid:\n%w\n%s to mend", err, plural(n, "mistake"))
}

// summary says what a valid configuration makes the agent do.
func summary(c *config.Config) string {
	listening := 0
	for _, s := range c.Services {
		if len(s.Listen) > 0 {
			listening++
		}
	}
	etcd := "no etcd"
	if c.Etcd != nil {
		etcd = "etcd at " + strings.Join(c.Etcd.Endpoints, ", ")
	}
	return fmt.Sprintf("%s, %d with listeners; %s; from %s", plural(len(c.Services), "service"), listening, etcd, strings.Join(c.Files, ", "))
}
