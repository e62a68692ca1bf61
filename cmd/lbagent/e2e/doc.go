// Package e2e holds the end-to-end tests: the built lbagent as a process, a real etcd, real backends and real clients, seen only from outside: its
// configuration file, its sockets and ports, its verbs, its signals.
package e2e
