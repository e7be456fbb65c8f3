package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"toolbroker/gateway"
	"toolbroker/gateway/console"
)

func toolsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tools", Short: "See what servers define, what changed, and accept it, as an admin", RunE: group,
		Long: `See what the tenant's servers define beside what was accepted of it. What nobody has
accepted is withheld: agents neither see nor reach it. An admin accepts it with pin.

A thing is named SERVER/NAME, as in the policy; --sort tells a prompt from a tool.`,
	}
	var (
		admin              adminFlags
		tenant, sort, hash string
		asJSON, held       bool
	)
	admin.register(cmd)
	cmd.PersistentFlags().StringVar(&tenant, "tenant", "", "whose world; default: your only one")

	with := func(do func(cmd *cobra.Command, a *adminClient, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			a, err := admin.login(cmd.Context())
			if err != nil {
				return err
			}
			defer a.close()
			if tenant, err = a.tenant(tenant); err != nil {
				return err
			}
			return do(cmd, a, args)
		}
	}

	list := &cobra.Command{
		Use: "list", Short: "List what servers define, and what of it is withheld, and why", Args: exactly(),
		RunE: with(func(cmd *cobra.Command, a *adminClient, _ []string) error {
			all, err := a.definitions(cmd.Context(), tenant, func(d gateway.Definition) bool { return !held || d.Held != "" })
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"definitions": all})
			}
			rows := [][]string{{"NAME", "SORT", "HASH", "ACCEPTED BY", "WITHHELD"}}
			for _, d := range all {
				rows = append(rows, []string{d.Server + "/" + d.Name, string(d.Sort), orNone(d.Hash), orNone(d.By), orNone(d.Held)})
			}
			return table(cmd.OutOrStdout(), rows...)
		}),
	}
	list.Flags().BoolVar(&held, "withheld", false, "only what is withheld")

	diff := &cobra.Command{
		Use: "diff [SERVER/NAME]", Short: "Show what is withheld beside what was accepted; exits 1 if there is something",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("%s wants one SERVER/NAME, or none for all that is withheld", cmd.CommandPath())
			}
			return nil
		},
		RunE: with(func(cmd *cobra.Command, a *adminClient, args []string) error {
			which := func(d gateway.Definition) bool { return d.Held != "" && (d.Hash != "" || d.Unfit) }
			if len(args) == 1 {
				one, err := a.definition(cmd.Context(), tenant, sort, args[0])
				if err != nil {
					return err
				}
				which = func(d gateway.Definition) bool {
					return d.Server == one.Server && d.Name == one.Name && d.Sort == one.Sort
				}
			}
			all, err := a.definitions(cmd.Context(), tenant, which)
			if err != nil {
				return err
			}
			differ := false
			for _, d := range all {
				differ = differ || d.Held != ""
				if !asJSON {
					printDiff(cmd.OutOrStdout(), d)
				}
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), map[string]any{"definitions": all}); err != nil {
					return err
				}
			}
			if differ {
				return errSilent
			}
			return nil
		}),
	}

	pin := &cobra.Command{
		Use: "pin SERVER/NAME", Short: "Accept what a server says now, exactly; agents see it from then on", Args: exactly("SERVER/NAME"),
		RunE: with(func(cmd *cobra.Command, a *adminClient, args []string) error {
			d, err := a.definition(cmd.Context(), tenant, sort, args[0])
			if err != nil {
				return err
			}
			if err := accepts(cmd, d, hash); err != nil {
				return err
			}
			wish := map[string]any{"tenant": tenant, "server": d.Server, "sort": d.Sort, "name": d.Name, "hash": d.Hash}
			if err := a.do(cmd.Context(), "POST", "/api/v1/definitions/accept", wish, &d); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s/%s is accepted as %s\n", visible(d.Server), visible(d.Name), visible(d.Pinned))
			return err
		}),
	}
	pin.Flags().StringVar(&hash, "hash", "", "the hash, as tools diff printed it; without it the change is shown and you are asked")
	for _, c := range []*cobra.Command{diff, pin} {
		c.Flags().StringVar(&sort, "sort", "tool", "tool, prompt, resource, template or instructions")
	}
	for _, c := range []*cobra.Command{list, diff, pin} {
		c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	}
	cmd.AddCommand(list, diff, pin)
	return cmd
}

func (a *adminClient) definitions(ctx context.Context, tenant string, which func(gateway.Definition) bool) ([]gateway.Definition, error) {
	var reply struct {
		Definitions []gateway.Definition `json:"definitions"`
	}
	if err := a.do(ctx, "GET", "/api/v1/definitions?tenant="+url.QueryEscape(tenant), nil, &reply); err != nil {
		return nil, err
	}
	all := []gateway.Definition{}
	for _, d := range reply.Definitions {
		if which(d) {
			all = append(all, d)
		}
	}
	return all, nil
}

// definition finds the one of a name; a name that stands for none is a usage
// error only where it cannot be one.
func (a *adminClient) definition(ctx context.Context, tenant, sort, name string) (gateway.Definition, error) {
	server, own, ok := strings.Cut(name, "/")
	if !ok || server == "" || own == "" {
		return gateway.Definition{}, usage("%q is no SERVER/NAME", name)
	}
	all, err := a.definitions(ctx, tenant, func(d gateway.Definition) bool {
		return d.Server == server && d.Name == own && string(d.Sort) == sort
	})
	if err != nil {
		return gateway.Definition{}, err
	}
	if len(all) == 0 {
		return gateway.Definition{}, fmt.Errorf("no %s %s that you may see; `tools list` has them all", sort, name)
	}
	if i := slices.IndexFunc(all, func(d gateway.Definition) bool { return !d.Unfit }); i >= 0 {
		return all[i], nil
	}
	return all[0], nil
}

// accepts makes sure that what is accepted is what the admin saw.
func accepts(cmd *cobra.Command, d gateway.Definition, hash string) error {
	switch {
	case d.Unfit:
		return fmt.Errorf("%s/%s cannot be accepted: %s", visible(d.Server), visible(d.Name), visible(d.Held))
	case d.Hash == "":
		return fmt.Errorf("the server offers no %s %s now, so there is nothing to accept", d.Sort, d.Name)
	case d.Hash == d.Pinned:
		return fmt.Errorf("%s/%s is accepted as it is", d.Server, d.Name)
	case hash == d.Hash:
		return nil
	case hash != "":
		return fmt.Errorf("that is not what the server says now: look again with `tools diff %s/%s`", d.Server, d.Name)
	case !term.IsTerminal(int(os.Stdin.Fd())):
		return usage("no terminal to show the change on; give --hash as `tools diff` prints it")
	}
	printDiff(cmd.OutOrStdout(), d)
	fmt.Fprint(os.Stderr, "Accept exactly this? Type yes: ")
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return fmt.Errorf("not accepted; it is withheld as before")
	}
	return nil
}

// maxDiff is how many values are shown of one definition.
const maxDiff = 10_000

// printDiff writes what a server says beside what was accepted, value by value.
func printDiff(w io.Writer, d gateway.Definition) {
	fmt.Fprintf(w, "%s %s/%s\n", visible(string(d.Sort)), visible(d.Server), visible(d.Name))
	rows := [][]string{{"  withheld", orNone(d.Held)}, {"  hash", orNone(d.Hash)}, {"  accepted", orNone(d.Pinned)}}
	if d.Pinned != "" {
		rows = append(rows, []string{"  by", d.By + " at " + stamp(d.At)})
	}
	for _, f := range d.Flags {
		rows = append(rows, []string{"  flagged", f})
	}
	_ = table(w, rows...)
	changes, more := console.Diff(d.Accepted, d.Seen, maxDiff)
	for _, c := range changes {
		fmt.Fprintf(w, "  %s\n", visible(c.Path))
		was, now := "", ""
		gone, fresh := false, false
		for _, r := range c.Runs {
			if r.Kind != console.Fresh {
				was += r.Text
				gone = true
			}
			if r.Kind != console.Gone {
				now += r.Text
				fresh = true
			}
		}
		if gone {
			marked(w, "-", was)
		}
		if fresh {
			marked(w, "+", now)
		}
	}
	if more > 0 {
		fmt.Fprintf(w, "  and %d more values that differ\n", more)
	}
	fmt.Fprintln(w)
}

// marked writes each line of a text behind a sign.
func marked(w io.Writer, sign, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintf(w, "    %s %s\n", sign, visible(line))
	}
}
