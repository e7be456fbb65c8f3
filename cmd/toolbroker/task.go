package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"toolbroker/authz"
	"toolbroker/gateway"
)

func taskCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Start, delegate, show, list and end tasks, as an operator", RunE: group}
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

	// started posts what is wanted of a task and prints it with its token.
	started := func(cmd *cobra.Command, a *adminClient, path string, w *taskWish) error {
		if err := w.finish(); err != nil {
			return err
		}
		var reply struct {
			Task  gateway.Task `json:"task"`
			Token string       `json:"token"`
		}
		if err := a.do(cmd.Context(), "POST", path, w, &reply); err != nil {
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
	}
	var root, child taskWish
	start := &cobra.Command{
		Use:   "start --kind KIND --principal WORKLOAD --purpose TEXT",
		Short: "Start a task and print its token, once",
		Args:  exactly(),
		RunE: with(func(cmd *cobra.Command, a *adminClient, tenant string, _ []string) error {
			root.Tenant = tenant
			return started(cmd, a, "/api/v1/tasks", &root)
		}),
	}
	root.register(start)
	start.Flags().StringVar(&root.OnBehalfOf, "on-behalf-of", "", "the human it is for; they cannot approve its calls")

	delegate := &cobra.Command{
		Use:   "delegate PARENT --kind KIND --principal WORKLOAD --purpose TEXT",
		Short: "Start a task below another, never wider and never longer, and print its token, once",
		Args:  exactly("PARENT"),
		RunE: with(func(cmd *cobra.Command, a *adminClient, tenant string, args []string) error {
			return started(cmd, a, taskPath(tenant, args[0])+"/delegate", &child)
		}),
	}
	child.register(delegate)

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
				if err := a.do(cmd.Context(), method, taskPath(tenant, args[0])+suffix, nil, &t); err != nil {
					return err
				}
				if method == "POST" {
					if err := closing(cmd.Context(), a, taskPath(tenant, args[0]), &t); err != nil {
						return err
					}
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), t)
				}
				return printTask(cmd, t)
			}),
		}
	}
	cmd.AddCommand(start, delegate, list, one("show", "Show one task: what it may do, who says so, and what hangs above it", "GET", ""),
		one("end", "End a task: its calls, credentials, pending approvals and the tasks below it end with it", "POST", "/end"))
	return cmd
}

// closing waits, for about as long as that may take, until everything of an ended
// task is gone. One that is still ending then is shown so.
func closing(ctx context.Context, a *adminClient, path string, t *gateway.Task) error {
	for range 30 {
		if t.State != gateway.TaskEnding {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if err := a.do(ctx, "GET", path, nil, t); err != nil {
			return err
		}
	}
	return nil
}

func taskPath(tenant, id string) string {
	return "/api/v1/tasks/" + url.PathEscape(tenant) + "/" + url.PathEscape(id)
}

// A taskWish is what somebody wants a task to be, as the admin API takes it.
type taskWish struct {
	Tenant     string           `json:"tenant,omitempty"`
	Kind       string           `json:"kind"`
	Purpose    string           `json:"purpose"`
	Principal  string           `json:"principal"`
	Also       []string         `json:"principals,omitempty"`
	OnBehalfOf string           `json:"on_behalf_of,omitempty"`
	TTL        int64            `json:"ttl_seconds,omitempty"`
	Scope      []authz.ScopeRow `json:"scope,omitempty"`
	Reference  string           `json:"reference,omitempty"`
	Labels     []string         `json:"labels,omitempty"`
	Approvers  []string         `json:"approvers,omitempty"`
	Calls      int64            `json:"calls,omitempty"`

	ttl   time.Duration
	scope string // a file
}

func (w *taskWish) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&w.Kind, "kind", "", "what kind of task, as the config declares it")
	flags.StringVar(&w.Principal, "principal", "", "the workload that may act on it")
	flags.StringArrayVar(&w.Also, "also", nil, "a further workload that may, by a credential of its own; repeatable")
	flags.StringVar(&w.Purpose, "purpose", "", "what it is for, in a sentence")
	flags.DurationVar(&w.ttl, "ttl", 0, "how long it runs; default: as long as its kind may")
	flags.StringVar(&w.scope, "scope", "", "JSON file of rows {tool, action, when, verdict} that narrow it")
	flags.StringVar(&w.Reference, "reference", "", "the ticket or prompt behind it; kept as a keyed hash unless its kind says otherwise")
	flags.StringArrayVar(&w.Labels, "label", nil, "what it is about; may be given again")
	flags.StringArrayVar(&w.Approvers, "approver", nil, "who alone may approve its calls: an operator or group:NAME; may be given again")
	flags.Int64Var(&w.Calls, "calls", 0, "how many calls it may make; default: as many as its kind may")
	for _, name := range []string{"kind", "principal", "purpose"} {
		required(cmd, name)
	}
}

// finish reads what the flags only name.
func (w *taskWish) finish() error {
	w.TTL = int64(w.ttl.Seconds())
	switch {
	case w.ttl < 0 || w.ttl > 0 && w.TTL == 0:
		return usage("--ttl: %v is no time to run; give 1s or more", w.ttl)
	case w.Calls < 0:
		return usage("--calls: %d is no number of calls", w.Calls)
	case w.scope == "":
		return nil
	}
	text, err := os.ReadFile(w.scope)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &w.Scope); err != nil {
		return fmt.Errorf("%s: %w", w.scope, err)
	}
	return nil
}

func printTask(cmd *cobra.Command, t gateway.Task) error {
	scope, err := json.Marshal(t.Scope)
	if err != nil {
		return err
	}
	rows := [][]string{
		{"task", t.ID}, {"state", string(t.State)}, {"tenant", t.Tenant}, {"kind", t.Kind}, {"purpose", claimed(t.Purpose, t.Claims.Purpose)},
		{"principal", strings.Join(append([]string{t.Principal}, t.Principals...), ", ")}, {"owner", claimed(t.Owner, t.Claims.Owner)}, {"for", claimed(t.OnBehalfOf, t.Claims.OnBehalfOf)}, {"started by", t.StartedBy},
		{"reference", claimed(t.Reference, t.Claims.Reference)}, {"labels", claimed(strings.Join(t.Labels, ", "), t.Claims.Labels)},
		{"approvers", claimed(strings.Join(t.Approvers, ", "), t.Claims.Approvers)},
	}
	for _, a := range t.Ancestors {
		rows = append(rows, []string{"below", a.ID + " (" + a.Kind + ") of " + a.Principal})
	}
	if t.Implicit {
		rows = append(rows, []string{"implicit", "nobody declared it; ended by hand, it stays stopped until that is lifted"})
	}
	if t.Budget.Calls > 0 {
		rows = append(rows, []string{"calls", fmt.Sprintf("at most %d", t.Budget.Calls)})
	}
	if t.Budget.PerDay > 0 {
		rows = append(rows, []string{"calls a day", fmt.Sprintf("at most %d", t.Budget.PerDay)})
	}
	if t.Limits.Depth > 0 {
		rows = append(rows, []string{"delegates", fmt.Sprintf("%d deep, %d at once", t.Limits.Depth, t.Limits.FanOut)})
	}
	if t.Bound != "" {
		rows = append(rows, []string{"token", "works only with the key " + t.Bound})
	}
	rows = append(rows, []string{"expires", stamp(t.Expires)}, []string{"scope", string(scope)})
	for _, w := range t.Widened {
		added, err := json.Marshal(w.Rows)
		if err != nil {
			return err
		}
		rows = append(rows, []string{"widened", fmt.Sprintf("until %s by %s (%s): %s", stamp(w.Until), orNone(strings.Join(w.By, ", ")), w.Approval, added)})
	}
	if !t.Ended.IsZero() {
		rows = append(rows, []string{"ended", stamp(t.Ended) + " by " + t.EndedBy})
	}
	if t.Why != "" {
		rows = append(rows, []string{"why", t.Why})
	}
	if !t.Closed.IsZero() {
		rows = append(rows, []string{"gone", stamp(t.Closed)})
	}
	return table(cmd.OutOrStdout(), rows...)
}

// claimed is what a task's starter claimed and what its word is worth; what is
// not recorded as proven is not.
func claimed(what string, worth gateway.Claim) string {
	switch {
	case what == "":
		return "none"
	case worth == gateway.Proven:
		return what + "  (proven)"
	}
	return what + "  (says its starter)"
}

// required marks a flag that has no default worth having.
func required(cmd *cobra.Command, name string) {
	if err := cmd.MarkFlagRequired(name); err != nil {
		panic(err) // the flag is not registered: a mistake in this file
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
