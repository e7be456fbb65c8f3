package main

import (
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"toolbroker/gateway/audit"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read and verify a log, from its directory alone", RunE: group}
	cmd.AddCommand(auditVerify(), auditTail(), auditTask())
	return cmd
}

func auditVerify() *cobra.Command {
	var key, checkpoint string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Is the log whole? If not: which event is the first bad one, and why",
		Long: `Check every line of a log against the lines before it, the tree over them and the
signed checkpoints. Exits 0 when the log is whole and 1 when it is not.

With the directory's own key this finds accidents and clumsy edits. Against someone
who can write there, give --key, and --checkpoint with one that somebody else holds.`,
		Args: exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := audit.VerifyOptions{VKey: key}
			if text, err := os.ReadFile(key); key != "" && err == nil {
				opts.VKey = string(text)
			}
			if checkpoint != "" {
				text, err := os.ReadFile(checkpoint)
				if err != nil {
					return err
				}
				opts.Checkpoint = text
			}
			report, err := audit.Verify(args[0], opts)
			if err != nil {
				return err
			}
			if err := printReport(cmd.OutOrStdout(), report, asJSON); err != nil {
				return err
			}
			if report.Bad != nil {
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the verifier key you were handed, or a file with it; default: the one in DIR")
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "file with a checkpoint that somebody else held")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printReport(w io.Writer, r audit.Report, asJSON bool) error {
	if asJSON {
		out := map[string]any{
			"whole": r.Bad == nil, "origin": r.Origin, "events": r.Events, "size": r.Size, "root": r.Root.String(),
			"uncovered": r.Uncovered, "notes": append([]string{}, r.Notes...),
		}
		if r.Bad != nil {
			out["bad"] = map[string]any{"index": r.Bad.Index, "code": r.Bad.Code, "what": r.Bad.What}
		}
		return printJSON(w, out)
	}
	if r.Bad != nil {
		fmt.Fprintf(w, "broken: %s\n", oneLine(r.Bad.Error()))
		fmt.Fprintf(w, "  the %d events before it are as they were written\n", r.Events)
	} else {
		fmt.Fprintf(w, "whole: %d events of %s\n", r.Events, visible(r.Origin))
		fmt.Fprintf(w, "  checkpoint: %d events, root %s; %d after it\n", r.Size, r.Root, r.Uncovered)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  note: %s\n", oneLine(n))
	}
	return nil
}

func auditTail() *cobra.Command {
	var last int
	var follow, asJSON bool
	var f audit.Filter
	var types []string
	cmd := &cobra.Command{
		Use:     "tail DIR",
		Short:   "Show the newest events",
		Example: `  toolbroker audit tail DIR -f --type 'approval.*'`,
		Args:    exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, t := range types {
				f.Types = append(f.Types, audit.Type(t))
			}
			// The newest ones are known only at the end, so keep that many.
			keep := []audit.Line{}
			from := int64(0)
			for line, err := range audit.Find(args[0], 0, f) {
				if err != nil {
					return err
				}
				from = line.Index + 1
				if keep = append(keep, line); len(keep) > last {
					keep = keep[1:]
				}
			}
			for _, line := range keep {
				if err := printLine(cmd.OutOrStdout(), line, asJSON); err != nil {
					return err
				}
			}
			if !follow {
				return nil
			}
			return printLines(cmd.OutOrStdout(), audit.Follow(cmd.Context(), args[0], from, f), asJSON)
		},
	}
	cmd.Flags().IntVarP(&last, "lines", "n", 20, "how many")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as events are written")
	cmd.Flags().StringSliceVar(&types, "type", nil, "only these types; approval.* stands for all that begin so")
	cmd.Flags().StringVar(&f.Tenant, "tenant", "", "only this tenant's")
	cmd.Flags().StringVar(&f.Call, "call", "", "only this call's, by its id")
	cmd.Flags().StringVar(&f.FirstClass, "class", "", "only denial, escalation or override")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the lines as they stand in the log")
	return cmd
}

func auditTask() *cobra.Command {
	var tenant string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "task DIR ID", Short: "Show all that happened on one task", Args: exactly("DIR", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			found := false
			for line, err := range audit.ReadTask(args[0], tenant, args[1]) {
				if err != nil {
					return err
				}
				found = true
				if err := printLine(cmd.OutOrStdout(), line, asJSON); err != nil {
					return err
				}
			}
			if !found {
				return fmt.Errorf("no event of task %s in this log", args[1])
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "whose task; default: any tenant's")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the lines as they stand in the log")
	return cmd
}

func printLines(w io.Writer, lines iter.Seq2[audit.Line, error], asJSON bool) error {
	for line, err := range lines {
		if err != nil {
			return err
		}
		if err := printLine(w, line, asJSON); err != nil {
			return err
		}
	}
	return nil
}

// printLine shows an event in a line: when, what, who on which task, and how it went.
func printLine(w io.Writer, l audit.Line, asJSON bool) error {
	if asJSON {
		_, err := fmt.Fprintln(w, escapeJSON(string(l.Raw)))
		return err
	}
	e := l.Event
	parts := []string{fmt.Sprintf("%6d", l.Index), e.Time, e.Code, string(e.Type)}
	add := func(name, value string) {
		if value != "" && value != audit.Unknown {
			parts = append(parts, name+"="+visible(value))
		}
	}
	add("tenant", e.Tenant)
	if e.Workload != nil {
		add("who", e.Workload.ID)
		if e.Workload.OnBehalfOf != "none" {
			add("for", e.Workload.OnBehalfOf)
		}
	}
	if e.Operator != nil {
		add("operator", e.Operator.Name)
	}
	if e.Task != nil {
		add("task", e.Task.ID)
		if e.Task.Parent != "none" {
			add("parent", e.Task.Parent)
		}
	}
	if e.Stop != nil {
		add("stop", e.Stop.Kind+":"+e.Stop.Name)
		add("reason", e.Stop.Reason)
	}
	if c := e.Closing; c != nil {
		add("closed", fmt.Sprintf("%d calls, %d approvals, %d leases, %d links, %d sessions, %d children in %d ms",
			c.Calls, c.Approvals, c.Leases, c.Links, c.Sessions, c.Children, c.TookMS))
		add("of", strings.Join(slices.Concat(c.Names.Approvals, c.Names.Leases, c.Names.Links, c.Names.Children), ", "))
		add("unproven", strings.Join(c.Unproven, ", "))
	}
	if e.Tool != nil {
		add("tool", e.Tool.Server+"/"+e.Tool.Name)
	}
	if e.Call != nil {
		add("call", e.Call.ID)
	}
	if e.Approval != nil {
		add("approval", e.Approval.ID)
		add("state", e.Approval.State)
	}
	if e.Secret != nil {
		add("lease", e.Secret.ID)
		add("class", e.Secret.Class)
		add("end", e.Secret.EndKind)
	}
	if e.Decision != nil {
		add("verdict", e.Decision.Effect)
		add("code", e.Decision.ReasonCode)
		if e.Phase == "decision" {
			add("rules", strings.Join(strings.Fields(strings.Join(e.Decision.Rules, " | ")), " "))
		}
	}
	if e.Outcome != nil {
		add("outcome", e.Outcome.Status)
	}
	if e.Policy != nil {
		add("policy", e.Policy.File)
		add("revision", e.Policy.Revision)
	}
	if e.Count > 0 {
		add("count", fmt.Sprint(e.Count))
	}
	add("detail", e.Detail)
	_, err := fmt.Fprintln(w, strings.Join(parts, "  "))
	return err
}
