package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"toolbroker/authz"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check a policy file, and ask what it says", RunE: group}
	cmd.AddCommand(policyCheck(), policyExplain())
	return cmd
}

func policyCheck() *cobra.Command {
	var file, tools string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong or doubtful in a policy file, line by line",
		Long: `Say what is wrong or doubtful in a policy file, as FILE:LINE: error|warning: what.
Exits 1 when there is an error, so that serve would refuse the file; warnings
alone exit 0.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			policy, findings := authz.Parse(file, text)
			if policy != nil && tools != "" {
				names, err := toolNames(tools)
				if err != nil {
					return err
				}
				findings = append(findings, policy.Lint(names)...)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), map[string]any{"findings": append([]authz.Finding{}, findings...)})
			} else {
				for _, f := range findings {
					fmt.Fprintln(cmd.OutOrStdout(), visible(f.String()))
				}
			}
			if err != nil {
				return err
			}
			if authz.HasErrors(findings) {
				return errSilent
			}
			if len(findings) == 0 && !asJSON {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: good, %d rows\n", visible(file), policy.Rows())
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "policy", "policy.csv", "the policy file")
	cmd.Flags().StringVar(&tools, "tools", "", "file of the tools there are, one server/tool a line or a JSON list; rows that match none are found")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// toolNames reads "server/tool" names, one a line or as a JSON list.
func toolNames(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var names []string
	if strings.HasPrefix(strings.TrimSpace(string(text)), "[") {
		if err := json.Unmarshal(text, &names); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return names, nil
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			names = append(names, line)
		}
	}
	return names, nil
}

func policyExplain() *cobra.Command {
	var file, as, tenant, task, tool, action, args, at, scope string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain --as WHO --tenant T --task KIND --tool SERVER/TOOL --args JSON",
		Short: "Say what the policy answers, by which rows, and which came near",
		Example: `  toolbroker policy explain --policy policy.csv --as agent:triage --tenant acme \
      --task triage --tool tracker/close_issue --args '{"number": 7}'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			policy, findings := authz.Parse(file, text)
			if policy == nil {
				for _, f := range findings {
					fmt.Fprintln(cmd.ErrOrStderr(), visible(f.String()))
				}
				return errSilent
			}
			r := authz.Request{Subject: authz.Subject{Principal: as, Tenant: tenant}, Task: task, Tool: tool, Action: authz.Action(action), Time: time.Now()}
			if args != "" {
				if trimmed := strings.TrimSpace(args); !json.Valid([]byte(args)) || !strings.HasPrefix(trimmed, "{") {
					return usage("--args is not a JSON object")
				}
				r.Args = json.RawMessage(args)
			}
			if at != "" {
				if r.Time, err = time.Parse(time.RFC3339, at); err != nil {
					return usage("--at: write a time such as 2026-11-23T09:00:00Z")
				}
			}
			if scope != "" {
				text, err := os.ReadFile(scope)
				if err != nil {
					return err
				}
				var s authz.Scope
				if err := json.Unmarshal(text, &s); err != nil {
					return fmt.Errorf("%s: %w", scope, err)
				}
				r.Scopes = []*authz.Scope{&s}
			}
			x := policy.Explain(r)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), x)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), paragraphs(strings.TrimRight(x.String(), "\n")))
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "policy", "policy.csv", "the policy file")
	flags.StringVar(&as, "as", "", "who asks: a principal")
	flags.StringVar(&tenant, "tenant", "", "whose world")
	flags.StringVar(&task, "task", "", "the kind of the task")
	flags.StringVar(&tool, "tool", "", "server/tool; task:KIND for the action start")
	flags.StringVar(&action, "action", "call", "what is done to it")
	flags.StringVar(&args, "args", "", "the call's arguments, a JSON object")
	flags.StringVar(&at, "at", "", "when; default: now")
	flags.StringVar(&scope, "scope", "", "JSON file of the task's scope rows; default: as wide as the policy")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	for _, name := range []string{"as", "tenant", "task", "tool"} {
		required(cmd, name)
	}
	return cmd
}
