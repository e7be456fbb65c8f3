// Command toolbroker is one MCP server in front of every tool an organisation's
// agents use. This package reads flags, files and the environment and prints;
// what happens is the business of the packages it calls.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes: 0 is good, 1 a finding, a refusal or a failure, 2 a wrong command line.
const (
	exitFinding = 1
	exitUsage   = 2
)

// A usageError is a command line that cannot be meant.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errSilent ends a command that has already said why.
var errSilent = errors.New("")

// errUnusable ends one that has already said why it cannot do what it was asked,
// where 1 would mean something else.
var errUnusable error = usageError{errSilent}

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the first signal asks, the second one kills
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if err != errSilent && err != errUnusable {
		fmt.Fprintln(os.Stderr, "toolbroker:", oneLine(err.Error()))
	}
	_, wrong := errors.AsType[usageError](err)
	for _, cobras := range []string{"unknown command", "required flag"} {
		wrong = wrong || strings.HasPrefix(err.Error(), cobras)
	}
	if wrong {
		return exitUsage
	}
	return exitFinding
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "toolbroker",
		Short:         "One MCP server in front of every tool: decided, approved, on record.",
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          group,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), devCommand(), taskCommand(), stopCommand(), approvalCommand(), toolsCommand(), policyCommand(), auditCommand(), callCommand(), keyCommand(), operatorCommand(), importCommand())
	return root
}

// group is what a command of subcommands does by itself: it helps.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%q is no command of %s; `%s --help` lists them", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return cmd.Help()
}

// exactly wants n arguments and says which.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usage("%s wants %s", cmd.CommandPath(), orNothing(strings.Join(names, " ")))
		}
		return nil
	}
}

func orNothing(s string) string {
	if s == "" {
		return "no argument"
	}
	return s
}

// version is what `go install` or the build stamped into the binary.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
