// Package lbagentv1 is the local API: messages and services of lbagent.v1, generated from the .proto files beside it (`make generate`), and
// the routes of its JSON face (routes.yaml).
package lbagentv1
