package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"toolbroker/authz"
)

func policyWhoCan() *cobra.Command {
	var f reachFlags
	cmd := &cobra.Command{
		Use:   "who-can SERVER/TOOL [ARGS]",
		Short: "List who may use a tool, under which conditions, and who must agree",
		Long: `List who may use a tool: each principal, with wildcards as the policy has them, the
rows that grant it and those that restrict it, with their conditions. With ARGS, a
JSON object, only whoever may make that call, and who must agree to it. Exits 1
when that is nobody.`,
		Example: `  toolbroker policy who-can k8s/pod.delete --tenant acme
  toolbroker policy who-can stripe/refund.create '{"amount": 600, "currency": "EUR"}'`,
		Args: oneAndArgs("SERVER/TOOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, authz.Wanted{Tool: args[0]}, args[1:], "nobody may: no row grants it, or a row denies it whatever the arguments")
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.action, "action", "call", "what is done to it")
	return cmd
}

func policyCan() *cobra.Command {
	var f reachFlags
	var tools string
	cmd := &cobra.Command{
		Use:   "can PRINCIPAL",
		Short: "List what a principal, or whoever holds a role, may do",
		Long: `List what a principal may do, or whoever holds a role (role:NAME): each tool, with
wildcards as the policy has them, the rows that grant it and those that restrict it,
with their conditions. Exits 1 when that is nothing.`,
		Example: `  toolbroker policy can spiffe://corp/agent/triage-7 --tenant acme --tools tools.json`,
		Args:    exactly("PRINCIPAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted := authz.Wanted{Principal: args[0]}
			if tools != "" {
				all, err := readTools(tools)
				if err != nil {
					return err
				}
				for _, t := range all {
					wanted.Tools = append(wanted.Tools, t.Name)
				}
			}
			return f.run(cmd, wanted, nil, "nothing: no row grants it anything, or rows deny it whatever the arguments")
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.action, "action", "", "what is done; default: anything")
	cmd.Flags().StringVar(&tools, "tools", "", "file of the tools there are, as for policy check; they are named instead of patterns")
	return cmd
}

// oneAndArgs wants an argument by that name and perhaps a JSON object after it.
func oneAndArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < 1 || len(args) > 2 {
			return usage("%s wants %s, and perhaps arguments as a JSON object", cmd.CommandPath(), name)
		}
		return nil
	}
}

type reachFlags struct {
	policy, tenant, task, action, at string
	asJSON                           bool
}

func (f *reachFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.policy, "policy", "policy.csv", "the policy file")
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "whose world; default: any")
	cmd.Flags().StringVar(&f.task, "task", "", "the kind of the task; default: any")
	cmd.Flags().StringVar(&f.at, "at", "", "when a call with ARGS is made; default: now")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
}

func (f *reachFlags) run(cmd *cobra.Command, w authz.Wanted, args []string, nothing string) error {
	policy, err := readPolicy(cmd, f.policy)
	if err != nil {
		return err
	}
	w.Tenant, w.Task, w.Action = f.tenant, f.task, authz.Action(f.action)
	if w.Time, err = timeOf(f.at); err != nil {
		return err
	}
	if len(args) > 0 {
		if w.Args, err = objectOf("ARGS", args[0]); err != nil {
			return err
		}
	}
	found, more := policy.Reach(w)
	if f.asJSON {
		err = printJSON(cmd.OutOrStdout(), map[string]any{"reaches": append([]authz.Reach{}, found...), "more": more})
	} else {
		err = printReaches(cmd.OutOrStdout(), found, more, nothing)
	}
	if err == nil && len(found) == 0 {
		err = errSilent
	}
	return err
}

func printReaches(w io.Writer, found []authz.Reach, more bool, nothing string) error {
	var b strings.Builder
	for _, r := range found {
		fmt.Fprintf(&b, "%s may %s %s", r.Who, r.Action, r.Tool)
		if r.Role != "" {
			fmt.Fprintf(&b, " as %s", r.Role)
		}
		fmt.Fprintf(&b, ", tenant %s, task %s", r.Tenant, r.Task)
		if r.Verdict == "approve" {
			var need []string
			for _, n := range r.Need {
				need = append(need, n.String())
			}
			fmt.Fprintf(&b, ", once %s agreed", strings.Join(need, " and "))
		}
		b.WriteString(":\n")
		for _, row := range r.Rows {
			fmt.Fprintf(&b, "  %s:%d: %s", row.File, row.Line, row.Verdict)
			if row.When != "" {
				fmt.Fprintf(&b, " where %s", row.When)
			}
			if row.Part != "" {
				fmt.Fprintf(&b, " (only %s)", row.Part)
			}
			b.WriteString("\n")
		}
	}
	switch {
	case len(found) == 0:
		b.WriteString(nothing + "\n")
	case more:
		b.WriteString("and more; ask of one --tenant, or one --task\n")
	}
	_, err := io.WriteString(w, paragraphs(b.String()))
	return err
}

// objectOf is a JSON object out of a command line.
func objectOf(name, text string) (json.RawMessage, error) {
	if !json.Valid([]byte(text)) || !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return nil, usage("%s is not a JSON object", name)
	}
	return json.RawMessage(text), nil
}

// timeOf is the time that --at says, or now.
func timeOf(at string) (time.Time, error) {
	if at == "" {
		return time.Now(), nil
	}
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return t, usage("--at: write a time such as 2026-11-23T09:00:00Z")
	}
	return t, nil
}
