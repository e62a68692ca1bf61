// Package discovery keeps etcd's service lists: it reads, watches and confirms them, and keeps the last good ones in the spool (SEMANTICS 1).
package discovery

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// Follow is one service to keep.
type Follow struct {
	Name   string
	Prefix string // whole, namespace included; ends in /. Empty: Static is the list
	Format string
	Static []service.Backend
}

// Etcd is how to reach it; nil = none.
type Etcd struct {
	Endpoints    []string
	Username     string
	PasswordFile string // read again for each new client (1.4)
	CAFile       string
	CertFile     string
	KeyFile      string
	ServerName   string
}

// Config wires a Discovery.
type Config struct {
	Log      hclog.Logger
	Events   *event.Log
	SpoolDir string // "" = no spool
	Etcd     *Etcd
	// OnList is called with each new list, one call at a time per service.
	OnList func(now time.Time, l *service.List)
	// OnConfirm is called when the source said that name's list is still so (1.3).
	OnConfirm func(name string, at time.Time)
}

// Discovery follows services. Safe for concurrent use.
type Discovery struct{}

// New returns a Discovery; Run starts it. It opens no connection.
func New(cfg Config) (*Discovery, error) { panic("unwritten") }

// LoadSpool calls OnList with every spooled list among follows, and with static ones; before Run, so that the first answer needs no etcd (1.8).
func (d *Discovery) LoadSpool(now time.Time) {}

// Run keeps lists until ctx ends; the last dirty lists are spooled before it returns.
func (d *Discovery) Run(ctx context.Context) error { return nil }

// SetEtcd changes how etcd is reached; lists stay (6.1). Nothing happens if nothing changed.
func (d *Discovery) SetEtcd(e *Etcd) {}

// Set follows f, or changes how; nothing happens if nothing changed. Remove stops following.
func (d *Discovery) Set(f Follow)       {}
func (d *Discovery) Remove(name string) {}

// Status is what discovery knows of etcd and the spool.
type Status struct {
	Configured  bool
	Connected   bool
	Endpoints   []string
	LastError   string
	LastContact time.Time
	SpoolError  string // empty if the spool is well
	Reads       uint64 // whole reads of a prefix
	Reconnects  uint64
}

// Status returns it.
func (d *Discovery) Status() Status { return Status{} }
