package main

import (
	"context"
	"flag"
	"fmt"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
)

// runEtcd is the child process `lbdemo etcd`: a real, single etcd on the data of --dir. It prints "ready" once it serves.
func runEtcd(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	dir := fs.String("dir", "", "data folder")
	addr := fs.String("addr", "", "host:port for clients")
	if err := fs.Parse(args); err != nil {
		return err
	}
	e, err := etcdtest.Run(etcdtest.Config{Dir: *dir, Addr: *addr, LogLevel: "error"})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	<-ctx.Done()
	e.Close()
	return nil
}
