package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manualVerb prints the manual pages of the verbs, for packages: as cobra knows them, so that a page can't say otherwise than --help.
func manualVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "manual [VERB...]",
		Short:  "the manual page of a verb, in mdoc; without VERB, the names of all pages, each with its verb behind it",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				for verb := range manuals(cmd.Root()) {
					fmt.Fprintln(cmd.OutOrStdout(), pageName(verb), strings.TrimPrefix(verb.CommandPath(), cmd.Root().Name()+" "))
				}
				return nil
			}
			verb, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 || verb == cmd.Root() {
				return unknownVerb(cmd.Root(), strings.Join(args, " "))
			}
			writeManual(cmd.OutOrStdout(), verb)
			return nil
		},
	}
}

// manuals yields every verb that has a page of its own: all but the root, whose page is written by hand.
func manuals(parent *cobra.Command) func(yield func(*cobra.Command) bool) {
	return func(yield func(*cobra.Command) bool) {
		for _, verb := range parent.Commands() {
			if !verb.IsAvailableCommand() {
				continue
			}
			if !yield(verb) {
				return
			}
			for below := range manuals(verb) {
				if !yield(below) {
					return
				}
			}
		}
	}
}

// pageName is the page's name, without its section: lbagent-config-put.
func pageName(verb *cobra.Command) string { return strings.ReplaceAll(verb.CommandPath(), " ", "-") }

// writeManual writes the page of a verb.
func writeManual(w io.Writer, verb *cobra.Command) {
	verb.InitDefaultHelpFlag()
	name := pageName(verb)
	fmt.Fprintf(w, ".Dd January 1, 2026\n.Dt %s 8\n.Os\n.Sh NAME\n.Nm %s\n.Nd %s\n", strings.ToUpper(name), name, roff(verb.Short))
	fmt.Fprintf(w, ".Sh SYNOPSIS\n.Nm %s\n%s\n.Sh DESCRIPTION\n", verb.CommandPath(), roff(strings.TrimSpace(strings.TrimPrefix(verb.UseLine(), verb.CommandPath()))))
	text := verb.Long
	if text == "" {
		text = upperFirst(verb.Short) + "."
	}
	writeParagraphs(w, text)
	if verb.HasAvailableSubCommands() {
		fmt.Fprintf(w, ".Sh VERBS\n.Bl -tag -width Ds\n")
		for _, below := range verb.Commands() {
			if below.IsAvailableCommand() {
				fmt.Fprintf(w, ".It Xr %s 8\n%s\n", pageName(below), roff(below.Short))
			}
		}
		fmt.Fprintf(w, ".El\n")
	}
	writeFlags(w, verb)
	if verb.HasExample() {
		fmt.Fprintf(w, ".Sh EXAMPLES\n.Bd -literal\n%s\n.Ed\n", roff(verb.Example))
	}
	fmt.Fprintf(w, ".Sh EXIT STATUS\n0 done, 1 failed, 2 wrong command line, 3 no such service or no usable backend, 4 there is no agent, and what was printed is what the last one left on disk.\n")
	fmt.Fprintf(w, ".Sh SEE ALSO\n")
	if parent := verb.Parent(); parent != verb.Root() {
		fmt.Fprintf(w, ".Xr %s 8 ,\n", pageName(parent))
	}
	fmt.Fprintf(w, ".Xr lbagent 8 ,\n.Xr lbagent.yaml 5\n")
}

// writeFlags lists the verb's own flags, then those that all verbs have.
func writeFlags(w io.Writer, verb *cobra.Command) {
	fmt.Fprintf(w, ".Sh OPTIONS\n.Bl -tag -width Ds\n")
	item := func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(w, ".It Fl -%s", f.Name)
		if f.Shorthand != "" {
			fmt.Fprintf(w, " , %s", f.Shorthand)
		}
		if value != "" {
			fmt.Fprintf(w, " Ar %s", roff(value))
		}
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" && d != "[]" {
			usage += " (default " + d + ")"
		}
		fmt.Fprintf(w, "\n%s\n", roff(usage))
	}
	verb.LocalFlags().VisitAll(item)
	verb.InheritedFlags().VisitAll(item)
	fmt.Fprintf(w, ".El\n")
}

// writeParagraphs sets text of a help: a paragraph that is indented is an example, and stays as it is.
func writeParagraphs(w io.Writer, text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		switch {
		case strings.HasPrefix(paragraph, " "):
			fmt.Fprintf(w, ".Bd -literal\n%s\n.Ed\n", roff(paragraph))
		case i > 0:
			fmt.Fprintf(w, ".Pp\n%s\n", roff(paragraph))
		default:
			fmt.Fprintf(w, "%s\n", roff(paragraph))
		}
	}
}

// roff keeps text from being taken for requests and escapes.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\t", "    ").Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
