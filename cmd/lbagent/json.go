package main

import (
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// jsonFlag adds --json, which every verb that reads has.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON for programs")
}

// orJSON returns err, or prints m.
func orJSON(w io.Writer, m proto.Message, err error) error {
	if err != nil {
		return err
	}
	return printJSON(w, m, false)
}

// orJSONLine returns err, or prints m on one line.
func orJSONLine(w io.Writer, m proto.Message, err error) error {
	if err != nil {
		return err
	}
	return printJSON(w, m, true)
}
