package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"toolbroker/authz"
	"toolbroker/gateway"
)

func taskCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Start, show, list and end tasks, as an operator", RunE: group}
	var (
		admin  adminFlags
		tenant string
		asJSON bool
	)
	admin.register(cmd)
	cmd.PersistentFlags().StringVar(&tenant, "tenant", "", "whose world; default: your only one")
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")

	// with logs in and finds the tenant before do.
	with := func(do func(cmd *cobra.Command, a *adminClient, tenant string, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			a, err := admin.login(cmd.Context())
			if err != nil {
				return err
			}
			defer a.close()
			t, err := a.tenant(tenant)
			if err != nil {
				return err
			}
			return do(cmd, a, t, args)
		}
	}

	var spec struct {
		Tenant     string           `json:"tenant"`
		Kind       string           `json:"kind"`
		Purpose    string           `json:"purpose"`
		Principal  string           `json:"principal"`
		OnBehalfOf string           `json:"on_behalf_of,omitempty"`
		TTL        int64            `json:"ttl_seconds,omitempty"`
		Scope      []authz.ScopeRow `json:"scope,omitempty"`
	}
	var ttl time.Duration
	var scope string
	start := &cobra.Command{
		Use:   "start --kind KIND --principal WORKLOAD --purpose TEXT",
		Short: "Start a task and print its token, once",
		Args:  exactly(),
		RunE: with(func(cmd *cobra.Command, a *adminClient, tenant string, _ []string) error {
			spec.Tenant, spec.TTL = tenant, int64(ttl.Seconds())
			if scope != "" {
				text, err := os.ReadFile(scope)
				if err != nil {
					return err
				}
				if err := json.Unmarshal(text, &spec.Scope); err != nil {
					return fmt.Errorf("%s: %w", scope, err)
				}
			}
			var reply struct {
				Task  gateway.Task `json:"task"`
				Token string       `json:"token"`
			}
			if err := a.do(cmd.Context(), "POST", "/api/v1/tasks", spec, &reply); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), reply)
			}
			if err := printTask(cmd, reply.Task); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "token      "+reply.Token)
			return err
		}),
	}
	start.Flags().StringVar(&spec.Kind, "kind", "", "what kind of task, as the config declares it")
	start.Flags().StringVar(&spec.Principal, "principal", "", "the workload that may act on it")
	start.Flags().StringVar(&spec.Purpose, "purpose", "", "what it is for, in a sentence")
	start.Flags().StringVar(&spec.OnBehalfOf, "on-behalf-of", "", "the human it is for; they cannot approve its calls")
	start.Flags().DurationVar(&ttl, "ttl", 0, "how long it runs; default: as long as its kind may")
	start.Flags().StringVar(&scope, "scope", "", "JSON file of rows {tool, action, when, verdict} that narrow it")
	for _, name := range []string{"kind", "principal", "purpose"} {
		required(start, name)
	}

	list := &cobra.Command{
		Use: "list", Short: "List running tasks and those that ended lately", Args: exactly(),
		RunE: with(func(cmd *cobra.Command, a *adminClient, tenant string, _ []string) error {
			var reply struct {
				Tasks []gateway.Task `json:"tasks"`
			}
			if err := a.do(cmd.Context(), "GET", "/api/v1/tasks?tenant="+url.QueryEscape(tenant), nil, &reply); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), reply)
			}
			rows := [][]string{{"ID", "STATE", "KIND", "PRINCIPAL", "OWNER", "EXPIRES", "PURPOSE"}}
			for _, t := range reply.Tasks {
				rows = append(rows, []string{t.ID, string(t.State), t.Kind, t.Principal, t.Owner, stamp(t.Expires), t.Purpose})
			}
			return table(cmd.OutOrStdout(), rows...)
		}),
	}
	one := func(use, short, method, suffix string) *cobra.Command {
		return &cobra.Command{
			Use: use + " ID", Short: short, Args: exactly("ID"),
			RunE: with(func(cmd *cobra.Command, a *adminClient, tenant string, args []string) error {
				var t gateway.Task
				path := "/api/v1/tasks/" + url.PathEscape(tenant) + "/" + url.PathEscape(args[0]) + suffix
				if err := a.do(cmd.Context(), method, path, nil, &t); err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), t)
				}
				return printTask(cmd, t)
			}),
		}
	}
	cmd.AddCommand(start, list, one("show", "Show one task", "GET", ""),
		one("end", "End a task: its calls, credentials and pending approvals end with it", "POST", "/end"))
	return cmd
}

func printTask(cmd *cobra.Command, t gateway.Task) error {
	scope, err := json.Marshal(t.Scope)
	if err != nil {
		return err
	}
	rows := [][]string{
		{"task", t.ID}, {"state", string(t.State)}, {"tenant", t.Tenant}, {"kind", t.Kind}, {"purpose", t.Purpose},
		{"principal", t.Principal}, {"owner", t.Owner}, {"for", orNone(t.OnBehalfOf)}, {"started by", t.StartedBy},
		{"expires", stamp(t.Expires)}, {"scope", string(scope)},
	}
	if !t.Ended.IsZero() {
		rows = append(rows, []string{"ended", stamp(t.Ended) + " by " + t.EndedBy})
	}
	return table(cmd.OutOrStdout(), rows...)
}

// required marks a flag that has no default worth having.
func required(cmd *cobra.Command, name string) {
	if err := cmd.MarkFlagRequired(name); err != nil {
		panic(err) // the flag is not registered: a mistake in this file
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
