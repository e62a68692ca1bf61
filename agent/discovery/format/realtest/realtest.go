// Package realtest holds only tests, in a module of their own so that the libraries of other makers stay out of lbagent's go.mod: lists are written by the
// libraries that define the formats, into a real etcd, and read by package format; and what format writes is read by their readers.
package realtest
