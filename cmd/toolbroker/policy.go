package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"toolbroker/authz"
	"toolbroker/gateway"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check a policy file, and ask what it says", RunE: group}
	cmd.AddCommand(policyCheck(), policyTest(), policyExplain(), policyWhoCan(), policyCan(), policyDiff())
	return cmd
}

func policyCheck() *cobra.Command {
	var file, tools, before string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong or doubtful in a policy file, line by line",
		Long: `Say what is wrong or doubtful in a policy file, as FILE:LINE: error|warning: what
[code]; docs/policy.md lists the codes. Exits 1 when there is an error, so that
serve would refuse the file; warnings alone exit 0.`,
		Example: `  toolbroker tools list --json > tools.json
  toolbroker policy check --policy policy.csv --tools tools.json --before policy.csv.old`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			beside := authz.Beside{Now: time.Now()}
			if tools != "" {
				if beside.Tools, err = readTools(tools); err != nil {
					return err
				}
			}
			if before != "" {
				if beside.Before, err = readPolicy(cmd, before); err != nil {
					return err
				}
			}
			policy, findings := authz.Parse(file, text)
			if policy != nil {
				findings = append(findings, policy.Lint(beside)...)
				slices.SortStableFunc(findings, func(a, b authz.Finding) int { return a.Line - b.Line })
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
	cmd.Flags().StringVar(&tools, "tools", "", "file of the tools there are: one server/tool a line, a JSON list of names or of {name, inputSchema}, or what \"tools list --json\" prints")
	cmd.Flags().StringVar(&before, "before", "", "the file that this one replaces; one that has lost half of its rows is an error")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// readPolicy reads a policy file that must be good, and says what it is not.
func readPolicy(cmd *cobra.Command, file string) (*authz.Policy, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	policy, findings := authz.Parse(file, text)
	if policy == nil {
		for _, f := range findings {
			fmt.Fprintln(cmd.ErrOrStderr(), visible(f.String()))
		}
		return nil, errSilent
	}
	return policy, nil
}

// readTools reads the tools there are: names, one a line or as a JSON list, or
// names with their schemas, in a list of our own or as `tools list --json` prints.
func readTools(file string) ([]authz.Tool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var tools []authz.Tool
	switch trimmed := strings.TrimSpace(string(text)); {
	case strings.HasPrefix(trimmed, "{"):
		var printed struct {
			Definitions []gateway.Definition `json:"definitions"`
		}
		if err := json.Unmarshal(text, &printed); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, d := range printed.Definitions {
			if d.Sort != gateway.SortTool {
				tools = append(tools, authz.Tool{Name: d.Server + "/" + d.Name})
				continue
			}
			accepted := d.Accepted
			if accepted == nil {
				accepted = d.Seen
			}
			var t authz.Tool
			if len(accepted) > 0 && json.Unmarshal(accepted, &t) != nil {
				t.Schema = nil
			}
			t.Name = d.Server + "/" + d.Name
			tools = append(tools, t)
		}
	case strings.HasPrefix(trimmed, "["):
		var list []json.RawMessage
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for i, item := range list {
			var t authz.Tool
			if json.Unmarshal(item, &t.Name) != nil {
				if err := json.Unmarshal(item, &t); err != nil || t.Name == "" {
					return nil, fmt.Errorf("%s: item %d is neither a name nor {\"name\", \"inputSchema\"}", file, i+1)
				}
			}
			tools = append(tools, t)
		}
	default:
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				tools = append(tools, authz.Tool{Name: line})
			}
		}
	}
	if len(tools) == 0 {
		return nil, fmt.Errorf("%s names no tool", file)
	}
	return tools, nil
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
			policy, err := readPolicy(cmd, file)
			if err != nil {
				return err
			}
			r := authz.Request{Subject: authz.Subject{Principal: as, Tenant: tenant}, Task: task, Tool: tool, Action: authz.Action(action)}
			if args != "" {
				if r.Args, err = objectOf("--args", args); err != nil {
					return err
				}
			}
			if r.Time, err = timeOf(at); err != nil {
				return err
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
