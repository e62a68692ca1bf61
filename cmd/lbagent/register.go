package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// holdAgain is how long a holder waits until it opens its stream again to an agent that stopped; the next one keeps the registration for 10 s.
const holdAgain = 500 * time.Millisecond

// registering connects to the admin socket if this user may, else to the open one, where register_allow decides.
func (a *app) registering(ctx context.Context, f func(context.Context, *agentConn) error) error {
	const write = 2 // access(2); connecting to a socket needs it
	if syscall.Access(a.adminSocket, write) != nil {
		return a.ask(ctx, f)
	}
	return a.change(ctx, f)
}

func (a *app) registerVerb() *cobra.Command {
	var asJSON, hold bool
	var wait time.Duration
	var metadata []string
	reg := &lbagentv1.Registration{Probe: &lbagentv1.RegistrationProbe{}}
	cmd := &cobra.Command{
		Use:   "register SERVICE ADDRESS",
		Short: "keep a service of this host in etcd while it answers",
		Long: `Keeps a service of this host in etcd for as long as its probe passes, until "lbagent deregister", also
over restarts. With --hold it lasts as long as this command runs. ADDRESS is host:port, or :port for
the address by which this host reaches etcd.

What stands in register: of the configuration can't be changed here. Users who may not use the admin
socket may register what register_allow: names.`,
		Example: `  lbagent register user :8080 --probe grpc
  lbagent register user :8080 --hold --metadata version=1.2 &`,
		GroupID: groupHost,
		Args:    exactly("SERVICE", "ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			reg.Service, reg.Address = args[0], args[1]
			for _, m := range metadata {
				name, value, ok := strings.Cut(m, "=")
				if !ok {
					return &codedError{exitUsage, fmt.Errorf("--metadata %q: write NAME=VALUE", m)}
				}
				if reg.Metadata == nil {
					reg.Metadata = make(map[string]string)
				}
				reg.Metadata[name] = value
			}
			if hold {
				return a.hold(cmd.Context(), reg, asJSON)
			}
			return a.registering(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, wait+a.patience)
				defer cancel()
				r, err := lbagentv1.NewRegistryServiceClient(c).Register(ctx, &lbagentv1.RegisterRequest{Registration: reg, Wait: durationpb.New(wait)})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				a.printRegistration(r.GetStatus())
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&hold, "hold", false, "register for as long as this command runs")
	f.DurationVar(&wait, "wait", 5*time.Second, "wait so long until it is in etcd; at most 1m")
	f.StringVar(&reg.Format, "format", "", "`FORMAT`: grpc-naming, gozero, kratos, kitex or plain (default: as the service is read here)")
	f.Uint32Var(&reg.Weight, "weight", 0, "its static weight (default: the format's)")
	f.StringVar(&reg.Zone, "zone", "", "its `ZONE`")
	f.StringVar(&reg.Region, "region", "", "its `REGION`")
	f.StringArrayVar(&metadata, "metadata", nil, "`NAME=VALUE`, as often as needed")
	f.StringVar(&reg.Probe.Type, "probe", "tcp", "`TYPE`: tcp, http, grpc or none")
	f.StringVar(&reg.Probe.Path, "probe-path", "", "the `PATH` of an http probe (default /)")
	f.StringVar(&reg.Probe.Service, "probe-service", "", "the `NAME` that a grpc probe asks for")
	f.Uint32Var(&reg.Probe.Port, "probe-port", 0, "the `PORT` to probe (default: that of ADDRESS)")
	f.BoolVar(&reg.HostLoad, "host-load", false, "tell the load of this host")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// hold holds a registration until ctx ends; when the agent stops, it comes back to the next one.
func (a *app) hold(ctx context.Context, reg *lbagentv1.Registration, asJSON bool) error {
	began := false
	for {
		err := a.registering(ctx, func(ctx context.Context, c *agentConn) error {
			stream, err := lbagentv1.NewRegistryServiceClient(c).Hold(ctx, &lbagentv1.HoldRequest{Registration: reg})
			for err == nil {
				var r *lbagentv1.HoldResponse
				if r, err = stream.Recv(); err != nil {
					break
				}
				began = true
				if asJSON {
					err = printJSON(a.stdout, r, true)
				} else {
					a.printRegistration(r.GetStatus())
					err = a.stdout.err
				}
			}
			if code := status.Code(err); ctx.Err() == nil && (errors.Is(err, io.EOF) || code == codes.Unavailable) {
				return &againError{err}
			}
			return err
		})
		_, absent := errors.AsType[*advised](err)
		_, again := errors.AsType[*againError](err)
		switch {
		case ctx.Err() != nil:
			return nil // stopped by whoever began it
		case again, began && absent:
		default:
			return err
		}
		select {
		case <-time.After(holdAgain):
		case <-ctx.Done():
			return nil
		}
	}
}

// againError is the end of a stream that a holder opens again.
type againError struct{ error }

func (a *app) deregisterVerb() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "deregister SERVICE [ADDRESS]",
		Short: "end what register began",
		Long: `Ends what "lbagent register" began, for one address or for all of the service.

"lbagent deregister --all" takes every registration of this host out of etcd, those of the configuration
included, until the agent starts again: for the moment before the host shuts down. The package's
lbagent-deregister.service does that.`,
		GroupID: groupHost,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return exactly()(cmd, args)
			}
			return exactly("SERVICE", "[ADDRESS]")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &lbagentv1.DeregisterRequest{All: all}
			for i, to := range []*string{&req.Service, &req.Address} {
				if i < len(args) {
					*to = args[i]
				}
			}
			return a.registering(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewRegistryServiceClient(c).Deregister(ctx, req)
				if err != nil || asJSON {
					return cmp.Or(orJSON(a.stdout, r, err), pending(r.GetPending()))
				}
				for _, s := range r.GetGone() {
					fmt.Fprintln(a.stdout, clean(s.GetService()+" at "+s.GetAddress()+": deregistered"))
				}
				if len(r.GetGone()) == 0 {
					fmt.Fprintln(a.stdout, "nothing of this host was in etcd")
				}
				return pending(r.GetPending())
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "everything, until the agent starts again")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// pending is an error if etcd has not been told yet.
func pending(why string) error {
	if why == "" {
		return nil
	}
	return errors.New(why)
}

func (a *app) drainVerb() *cobra.Command {
	var asJSON, remove bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "drain SERVICE",
		Short: "take this host's instances of a service out of service",
		Long: `Marks this host's registrations of a service as out of service, so that callers everywhere send their new
calls elsewhere, until "lbagent undrain", also over restarts. In formats that have no mark the keys are
deleted; with --remove they always are, for readers that don't know the mark (such as gRPC's own
resolver for etcd).

With --wait it returns when running calls have had that time to end: stop the service then.`,
		Example:           `  lbagent drain user --wait 30s && systemctl restart user`,
		GroupID:           groupHost,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Drain(ctx, &lbagentv1.DrainRequest{Service: args[0], Remove: remove})
				if err != nil || asJSON {
					return cmp.Or(orJSON(a.stdout, r, err), pending(r.GetPending()))
				}
				words := "is drained on this host"
				if r.GetPending() != "" {
					words += ", but callers don't know it yet"
				}
				fmt.Fprintf(a.stdout, "%s %s\n", clean(args[0]), words)
				return pending(r.GetPending())
			})
			if err != nil || wait <= 0 {
				return err
			}
			select {
			case <-time.After(wait):
				return nil
			case <-cmd.Context().Done():
				return context.Cause(cmd.Context())
			}
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "return so long after callers were told")
	cmd.Flags().BoolVar(&remove, "remove", false, "delete the keys instead of marking them")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) undrainVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "undrain SERVICE",
		Short:             "end drain",
		GroupID:           groupHost,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Undrain(ctx, &lbagentv1.UndrainRequest{Service: args[0]})
				if err != nil || asJSON {
					return cmp.Or(orJSON(a.stdout, r, err), pending(r.GetPending()))
				}
				words := "is in service again"
				if !r.GetWasDrained() {
					words = "was not drained"
				}
				fmt.Fprintf(a.stdout, "%s %s on this host\n", clean(args[0]), words)
				return pending(r.GetPending())
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// registrationWords is how a registration stands, for a person.
func registrationWords(s *lbagentv1.RegistrationStatus) string {
	switch {
	case s.GetAnnounced() && s.GetDraining():
		return "announced as draining: " + s.GetKey()
	case s.GetAnnounced():
		return "announced: " + s.GetKey()
	}
	words := "NOT ANNOUNCED: " + s.GetWhy()
	if s.GetUnclaimed() {
		words += "; its holder has not come back yet"
	}
	return words
}

func (a *app) printRegistration(s *lbagentv1.RegistrationStatus) {
	hanging(a.stdout, clean(s.GetService()+" at "+s.GetAddress())+"  ", registrationWords(s))
}

// printRegistrations writes the part of status about services of this host; nothing if there are none.
func (a *app) printRegistrations(all []*lbagentv1.RegistrationStatus) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(a.stdout)
	t := table{head: []string{"REGISTERED", "ADDRESS", "BY", "SINCE", "STATE", "KEY, OR CAUSE"}}
	for _, s := range all {
		address := s.GetResolvedAddress()
		if address == "" {
			address = s.GetAddress()
		}
		by := s.GetOrigin()
		if by != "configuration" {
			by = fmt.Sprintf("%s, uid %d", by, s.GetUid())
		}
		state, more, _ := strings.Cut(registrationWords(s), ": ")
		t.add(s.GetService(), address, by, ago(a.now(), s.GetSince()), state, more)
	}
	t.print(a.stdout)
}
