package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"toolbroker/authz"
	"toolbroker/cmd/toolbroker/internal/cases"
)

func policyTest() *cobra.Command {
	var file, questions string
	var cover, asJSON bool
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Ask the policy the questions of a file of cases, and compare the answers",
		Long: `Ask the policy the questions of a file of cases, and compare the answers. The file
is YAML beside the policy, policy_test.yaml for policy.csv; docs/policy.md has one.
Exits 1 when an answer is not the one that was expected.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			policy, err := readPolicy(cmd, file)
			if err != nil {
				return err
			}
			if questions == "" {
				questions = cases.Beside(file)
			}
			asked, wrong, err := cases.Read(questions)
			if err != nil {
				return err
			}
			for _, w := range wrong {
				fmt.Fprintln(cmd.ErrOrStderr(), visible(w))
			}
			if len(wrong) > 0 {
				return errSilent
			}
			results := policy.Test(asked)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), results)
			} else {
				err = printResults(cmd.OutOrStdout(), file, questions, results, cover)
			}
			if err == nil && results.Failed > 0 {
				err = errSilent
			}
			return err
		},
	}
	cmd.Flags().StringVar(&file, "policy", "policy.csv", "the policy file")
	cmd.Flags().StringVar(&questions, "cases", "", "the cases; default: beside the policy, POLICY_test.yaml")
	cmd.Flags().BoolVar(&cover, "cover", false, "list the rows that no case made match")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printResults(w io.Writer, policy, file string, results authz.Results, cover bool) error {
	var b strings.Builder
	for _, c := range results.Cases {
		if len(c.Wrong) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s:%d: %s\n", file, c.Line, c.Name)
		for _, wrong := range c.Wrong {
			fmt.Fprintf(&b, "  %s\n", wrong)
		}
		_, rest, _ := strings.Cut(strings.TrimRight(c.Said.String(), "\n"), "\n")
		for line := range strings.Lines(rest) {
			fmt.Fprintf(&b, "    %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	if cover {
		for _, r := range results.Uncovered {
			fmt.Fprintf(&b, "%s:%d: no case: %s\n", r.File, r.Line, r.Text)
		}
	}
	n := len(results.Cases)
	fmt.Fprintf(&b, "%s: %d of %d cases as expected; %d of %d rows of %s matched in some case\n",
		file, n-results.Failed, n, results.Rows-len(results.Uncovered), results.Rows, policy)
	_, err := io.WriteString(w, paragraphs(b.String()))
	return err
}
