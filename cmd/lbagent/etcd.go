package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/etcd"
)

// etcdConnects bounds the wait for a connection, and for a login.
const etcdConnects = 5 * time.Second

// etcdFlags are how a verb that needs no agent reaches etcd: as the configuration says, or by flags.
type etcdFlags struct {
	config string
	url    string
	etcd   etcd.Config
}

func (f *etcdFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", config.DefaultPath, "read etcd: of this `FILE`")
	flags.StringVar(&f.url, "etcd", "", "instead, ask the etcd at `URL`,URL...; with the next flags as it needs them")
	flags.StringVar(&f.etcd.Username, "user", "", "`NAME` of a user of etcd")
	flags.StringVar(&f.etcd.PasswordFile, "password-file", "", "`FILE` with the user's password")
	flags.StringVar(&f.etcd.CAFile, "ca-file", "", "`FILE` of etcd's authority")
	flags.StringVar(&f.etcd.CertFile, "cert-file", "", "`FILE` of the client's certificate")
	flags.StringVar(&f.etcd.KeyFile, "key-file", "", "`FILE` of its key")
}

// resolve says how to reach etcd, and below which namespace the configuration's prefixes lie.
func (f *etcdFlags) resolve() (e etcd.Config, namespace string, err error) {
	if f.url != "" {
		e = f.etcd
		e.Endpoints = strings.Split(f.url, ",")
		if (e.Username == "") != (e.PasswordFile == "") || (e.CertFile == "") != (e.KeyFile == "") {
			return e, "", &codedError{exitUsage, errors.New("--user goes with --password-file, and --cert-file with --key-file")}
		}
		return e, "", nil
	}
	if f.etcd.Username != "" || f.etcd.PasswordFile != "" || f.etcd.CAFile != "" || f.etcd.CertFile != "" || f.etcd.KeyFile != "" {
		return e, "", &codedError{exitUsage, errors.New("--user and the files go with --etcd; without it the configuration says all")}
	}
	c, err := config.Load(f.config)
	switch {
	case err != nil:
		return e, "", fmt.Errorf("%w\nor name an etcd: --etcd http://127.0.0.1:2379", err)
	case c.Etcd == nil:
		return e, "", fmt.Errorf("%s has no etcd: section; name an etcd: --etcd http://127.0.0.1:2379", f.config)
	}
	return etcd.Config{
		Endpoints: c.Etcd.Endpoints, Username: c.Etcd.Username, PasswordFile: c.Etcd.PasswordFile,
		CAFile: c.Etcd.TLS.CAFile, CertFile: c.Etcd.TLS.CertFile, KeyFile: c.Etcd.TLS.KeyFile, ServerName: c.Etcd.TLS.ServerName,
	}, c.Etcd.Namespace, nil
}

// dialEtcd returns a client that is connected and logged in; the caller closes it.
func dialEtcd(ctx context.Context, e etcd.Config) (etcd.Client, error) {
	var last error // why an endpoint could not be reached; grpc's own error says less
	failed := make(chan error, 1)
	c, err := connectEtcd(ctx, e, failed)
	select {
	case last = <-failed:
	default:
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && last != nil && !etcd.IsAuth(err): // a login that was refused says more
		return nil, fmt.Errorf("no connection to etcd at %s: %w", strings.Join(e.Endpoints, ", "), etcd.Plain(last))
	case err != nil:
		return nil, fmt.Errorf("no connection to etcd at %s: %w", strings.Join(e.Endpoints, ", "), etcd.Plain(err))
	}
	return c, nil
}

func connectEtcd(ctx context.Context, e etcd.Config, failed chan<- error) (etcd.Client, error) {
	connecting, cancel := context.WithTimeout(ctx, etcdConnects)
	defer cancel()
	// The client lives as long as ctx; only the first connection is bounded.
	type dialed struct {
		c   etcd.Client
		err error
	}
	done := make(chan dialed, 1)
	living, end := context.WithCancel(ctx)
	go func() {
		c, err := etcd.Dial(living, e, func(err error) {
			select {
			case failed <- err:
			default:
			}
		})
		done <- dialed{c, err}
	}()
	var d dialed
	select {
	case d = <-done:
	case <-connecting.Done():
		end()
		d = <-done // it ends with its context
		if d.err == nil {
			d.c.Close()
			d.err = connecting.Err()
		}
		return nil, d.err
	}
	if d.err == nil {
		if d.err = d.c.Ready(connecting); d.err != nil {
			d.c.Close()
		}
	}
	if d.err != nil {
		end()
		return nil, d.err
	}
	context.AfterFunc(ctx, end)
	return d.c, nil
}
