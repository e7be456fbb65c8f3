package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"toolbroker/gateway"
)

// A request is an approval request as the admin API shows it.
type request struct {
	gateway.ApprovalRequest
	Args    string `json:"args,omitempty"` // the agent's own bytes
	MayVote string `json:"may_vote"`       // empty, or why this operator may not
}

func approvalCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "approval", Short: "See and answer approval requests, as an operator", RunE: group}
	var (
		admin                  adminFlags
		tenant, reason, digest string
		asJSON                 bool
	)
	admin.register(cmd)
	cmd.PersistentFlags().StringVar(&tenant, "tenant", "", "whose request; default: found by its id")
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")

	with := func(do func(cmd *cobra.Command, a *adminClient, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			a, err := admin.login(cmd.Context())
			if err != nil {
				return err
			}
			defer a.close()
			return do(cmd, a, args)
		}
	}
	print := func(cmd *cobra.Command, r request) error {
		if asJSON {
			return printJSON(cmd.OutOrStdout(), r)
		}
		return printRequest(cmd, r)
	}

	list := &cobra.Command{
		Use: "list", Short: "List open requests and those that ended lately", Args: exactly(),
		RunE: with(func(cmd *cobra.Command, a *adminClient, _ []string) error {
			all, err := a.requests(cmd.Context(), tenant)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"approvals": all})
			}
			rows := [][]string{{"ID", "STATE", "TENANT", "PRINCIPAL", "TOOL", "EXPIRES", "PURPOSE"}}
			for _, r := range all {
				rows = append(rows, []string{r.ID, string(r.State), r.Tenant, r.Principal, r.what(), stamp(r.Expires), r.Purpose})
			}
			return table(cmd.OutOrStdout(), rows...)
		}),
	}
	show := &cobra.Command{
		Use: "show ID", Short: "Show one request whole; that you looked goes on record", Args: exactly("ID"),
		RunE: with(func(cmd *cobra.Command, a *adminClient, args []string) error {
			r, err := a.request(cmd.Context(), tenant, args[0])
			if err != nil {
				return err
			}
			return print(cmd, r)
		}),
	}
	vote := func(use, short string, approve bool) *cobra.Command {
		c := &cobra.Command{
			Use: use + " ID", Short: short, Args: exactly("ID"),
			RunE: with(func(cmd *cobra.Command, a *adminClient, args []string) error {
				r, err := a.request(cmd.Context(), tenant, args[0])
				if err != nil {
					return err
				}
				if r.MayVote != "" {
					return fmt.Errorf("you may not answer this: %s", r.MayVote)
				}
				if approve {
					if err := agree(cmd, r, digest); err != nil {
						return err
					}
				}
				answer := map[string]any{"approve": approve, "digest": r.Digest, "reason": reason}
				if err := a.do(cmd.Context(), "POST", r.path()+"/vote", answer, &r); err != nil {
					return err
				}
				return print(cmd, r)
			}),
		}
		c.Flags().StringVar(&reason, "reason", "", "why, for the record")
		if approve {
			c.Flags().StringVar(&digest, "digest", "", "the digest that `approval show` printed; without it the request is shown and you are asked")
		}
		return c
	}
	cmd.AddCommand(list, show,
		vote("approve", "Approve exactly what is shown, once", true), vote("deny", "Deny a request", false))
	return cmd
}

func (r request) path() string {
	return "/api/v1/approvals/" + url.PathEscape(r.Tenant) + "/" + url.PathEscape(r.ID)
}

// what is asked for, in short.
func (r request) what() string {
	if r.escalates() {
		return "more scope on " + r.TaskKind
	}
	return r.Server + "/" + r.Tool
}

func (r request) asks() string {
	if r.escalates() {
		return "more scope on its task, as often as it likes until that lapses; this is no single call"
	}
	return "one call"
}

// escalates tells a request for more scope from one for a call.
func (r request) escalates() bool { return r.Kind == "escalation" }

// agree makes sure that what is approved is what the operator saw.
func agree(cmd *cobra.Command, r request, digest string) error {
	switch {
	case digest == r.Digest:
		return nil
	case digest != "":
		return fmt.Errorf("that is not the digest of request %s: look again with `approval show %s`", r.ID, r.ID)
	case !term.IsTerminal(int(os.Stdin.Fd())):
		return usage("no terminal to show the request on; give --digest as `approval show` prints it")
	}
	if err := printRequest(cmd, r); err != nil {
		return err
	}
	question := "Approve exactly this, once?"
	if r.escalates() {
		question = "Grant this task exactly this much more, until it lapses?"
	}
	fmt.Fprint(os.Stderr, question+" Type yes: ")
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return fmt.Errorf("not approved; the request is as it was")
	}
	return nil
}

func (a *adminClient) requests(ctx context.Context, tenant string) ([]request, error) {
	var reply struct {
		Approvals []request `json:"approvals"`
	}
	if err := a.do(ctx, "GET", "/api/v1/approvals", nil, &reply); err != nil {
		return nil, err
	}
	all := []request{}
	for _, r := range reply.Approvals {
		if tenant == "" || r.Tenant == tenant {
			all = append(all, r)
		}
	}
	return all, nil
}

func (a *adminClient) request(ctx context.Context, tenant, id string) (r request, err error) {
	r.Tenant, r.ID = tenant, id
	if tenant == "" {
		all, err := a.requests(ctx, "")
		if err != nil {
			return r, err
		}
		for _, known := range all {
			if known.ID == id {
				r.Tenant = known.Tenant
			}
		}
		if r.Tenant == "" {
			return r, fmt.Errorf("no approval request %s that you may see", id)
		}
	}
	return r, a.do(ctx, "GET", r.path(), nil, &r)
}

func printRequest(cmd *cobra.Command, r request) error {
	rows := [][]string{
		{"request", r.ID}, {"asks for", r.asks()}, {"state", string(r.State)}, {"tenant", r.Tenant},
		{"principal", r.Principal}, {"acts for", orNone(r.OnBehalfOf)}, {"delegated by", orNone(strings.Join(r.Chain, " > "))},
		{"task", r.TaskID + " (" + r.TaskKind + ")"}, {"task's owner", r.TaskOwner}, {"task is for", orNone(r.TaskFor)},
		{"purpose", r.Purpose + "  (untrusted)"}, {"tool", r.Server + "/" + r.Tool}, {"definition", r.Definition},
		{"credential", orNone(r.Class)}, {"expires", stamp(r.Expires)}, {"started by", r.StartedBy},
	}
	if len(r.TaskChain) > 0 {
		rows = append(rows, []string{"below tasks", strings.Join(r.TaskChain, " > ")})
	}
	if r.Implicit {
		rows = append(rows, []string{"implicit", "nobody declared this task"})
	}
	if len(r.Asserted) > 0 {
		rows = append(rows, []string{"unproven", "only the task's starter says its " + strings.Join(r.Asserted, ", ")})
	}
	if len(r.Approvers) > 0 {
		rows = append(rows, []string{"approvers", "the task lets only " + strings.Join(r.Approvers, ", ") + " answer"})
	}
	if !r.FourEyes {
		rows = append(rows, []string{"four eyes", "unproven: not every human behind this is known here"})
	}
	for _, rule := range r.Rules {
		rows = append(rows, []string{"rule", fmt.Sprintf("%s:%d: %s", rule.File, rule.Line, rule.Text)})
	}
	for _, n := range r.Need {
		rows = append(rows, []string{"needs", fmt.Sprintf("%d of %s", n.N, orAny(n.Group))})
	}
	for _, v := range r.Votes {
		word := "denied"
		if v.Approve {
			word = "approved"
		}
		rows = append(rows, []string{word, v.By + " at " + stamp(v.At) + ": " + v.Reason})
	}
	if len(r.Meta) > 0 {
		rows = append(rows, []string{"_meta", string(r.Meta)})
	}
	if r.Answers != "" {
		rows = append(rows, []string{"answers", "the server asked for more in between: inputRequests is its question (untrusted; null: too long to keep), inputResponses what the agent answers"})
	}
	if r.Args != "" {
		rows = append(rows, []string{"arguments", spread(r.Args)})
	}
	rows = append(rows, []string{"digest", r.Digest})
	if r.MayVote != "" {
		rows = append(rows, []string{"you", "may not answer: " + r.MayVote})
	}
	return table(cmd.OutOrStdout(), rows...)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func orAny(group string) string {
	if group == "" {
		return "any operator"
	}
	return "group:" + group
}

// spread leaves the bytes as they are: what is shown is what is hashed and sent.
func spread(args string) string {
	if !json.Valid([]byte(args)) {
		return args + "  (not JSON)"
	}
	return args
}
