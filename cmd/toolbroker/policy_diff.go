package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"toolbroker/authz"
)

func policyDiff() *cobra.Command {
	var file, tools string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff NEW",
		Short: "List who could do what with another policy that they cannot do with this one",
		Long: `List who could do what if NEW took the place of the policy: first what it allows, or
asks fewer humans for, then what it denies, or asks more for; a line each, with the
rows of both files that have a say. What begins with "perhaps" may be no change.
Exits 0 when nothing is wider, 1 when something is or perhaps is, and 2 when a file
cannot be read or is refused.`,
		Example: `  toolbroker policy diff policy.csv.new --policy policy.csv --tools tools.json`,
		Args:    exactly("NEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var both [2]*authz.Policy
			for i, name := range []string{file, args[0]} {
				var err error
				if both[i], err = readPolicy(cmd, name); err == errSilent {
					return errUnusable
				} else if err != nil {
					return usageError{err}
				}
			}
			var names []string
			if tools != "" {
				all, err := readTools(tools)
				if err != nil {
					return usageError{err}
				}
				for _, t := range all {
					names = append(names, t.Name)
				}
			}
			diff := both[0].Diff(both[1], names)
			var err error
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), diff)
			} else {
				err = printDifference(cmd.OutOrStdout(), diff)
			}
			switch {
			case err != nil:
				return usageError{err}
			case diff.Wider > 0:
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "policy", "policy.csv", "the policy file that NEW is to replace")
	cmd.Flags().StringVar(&tools, "tools", "", "file of the tools there are, as for policy check; only these are looked at")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printDifference(w io.Writer, diff authz.Difference) error {
	var b strings.Builder
	left := map[bool]int{true: diff.Wider, false: diff.Narrower}
	sort := map[bool]string{true: "wider", false: "narrower"}
	for i, c := range diff.Changes {
		if c.Perhaps != "" {
			b.WriteString("perhaps ")
		}
		fmt.Fprintf(&b, "%s: %s may %s %s", sort[c.Wider], c.Who, done(c.Actions), about(c))
		if c.Role != "" {
			fmt.Fprintf(&b, " as %s", c.Role)
		}
		fmt.Fprintf(&b, ", tenant %s, task %s: %s -> %s", c.Tenant, c.Task, rowsOf(c.Before), rowsOf(c.After))
		if c.Example != nil {
			b.WriteString("; " + exampleOf(c.Example))
		}
		if c.Perhaps != "" {
			fmt.Fprintf(&b, " (%s)", c.Perhaps)
		}
		b.WriteString("\n")
		left[c.Wider]--
		if last := i+1 == len(diff.Changes) || diff.Changes[i+1].Wider != c.Wider; last && left[c.Wider] > 0 {
			fmt.Fprintf(&b, "and %d more that are %s\n", left[c.Wider], sort[c.Wider])
		}
	}
	if len(diff.Changes) == 0 {
		b.WriteString("nobody may do more, and nobody less\n")
	}
	_, err := io.WriteString(w, paragraphs(b.String()))
	return err
}

// done names actions; most of them are those that are not there.
func done(actions []authz.Action) string {
	const all = 12
	if len(actions) == all {
		return "do anything to"
	}
	words := make([]string, len(actions))
	for i, a := range actions {
		words[i] = string(a)
	}
	if len(words) > 1 {
		words = slices.DeleteFunc(words, func(word string) bool {
			return word == string(authz.List) && slices.Contains(words, string(authz.Call))
		})
	}
	return strings.Join(words, ", ")
}

func about(c authz.Change) string {
	const most = 8
	switch n := len(c.Tools); {
	case n == 0:
		return c.Tool.String()
	case n > most:
		return fmt.Sprintf("%s and %d more", strings.Join(c.Tools[:most], ", "), n-most)
	}
	return strings.Join(c.Tools, ", ")
}

// rowsOf says what rows do, shortly.
func rowsOf(rows []authz.ReachRow) string {
	const most = 8
	var all []string
	for _, r := range rows {
		text := fmt.Sprintf("%s:%d %s", r.File, r.Line, r.Verdict)
		if r.When != "" {
			text += " where " + r.When
		}
		all = append(all, text)
	}
	if n := len(all); n > most {
		all = append(all[:most], fmt.Sprintf("%d more", n-most))
	}
	if len(all) == 0 {
		return "no row"
	}
	return strings.Join(all, ", ")
}

func exampleOf(x *authz.DiffExample) string {
	said := func(v authz.Verdict, need []string) string {
		if len(need) > 0 {
			return fmt.Sprintf("%s (%s)", v, strings.Join(need, " and "))
		}
		return v.String()
	}
	text := fmt.Sprintf("%s, then %s", said(x.Before, x.NeedThen), said(x.After, x.NeedNow))
	if x.Args != nil {
		text += " for " + string(x.Args)
	}
	if x.Time != nil {
		text += " at " + x.Time.Format(time.RFC3339)
	}
	return text
}
