package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"toolbroker/brokers/identity"
	"toolbroker/brokers/operators"
	"toolbroker/gateway"
)

func keyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Make API keys", RunE: group}
	var asJSON bool
	make := &cobra.Command{
		Use:     "new ID",
		Short:   "Make an API key; print it, once, and the hash that goes into the config",
		Example: "  toolbroker key new triage-1",
		Args:    exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, hash, err := identity.NewKey(args[0])
			if err != nil {
				return usageError{err}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"id": args[0], "key": key.Reveal(), "hash": hash})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "key:  %s\nhash: %s\n", key.Reveal(), hash)
			return err
		},
	}
	make.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(make)
	return cmd
}

func operatorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "operator", Short: "Prepare operators' logins", RunE: group}
	cmd.AddCommand(&cobra.Command{
		Use:   "hash-password",
		Short: "Hash a password for the config; it is read from the terminal or a pipe",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			password, err := newPassword()
			if err != nil {
				return err
			}
			hash, err := operators.HashPassword(gateway.NewSecret(password))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), hash)
			return err
		},
	})
	return cmd
}

// newPassword asks twice on a terminal, and reads one line from a pipe.
func newPassword() (string, error) {
	const least = 12
	stdin := int(os.Stdin.Fd())
	var password string
	if term.IsTerminal(stdin) {
		fmt.Fprint(os.Stderr, "Password: ")
		first, err := term.ReadPassword(stdin)
		if err != nil {
			return "", err
		}
		fmt.Fprint(os.Stderr, "\nOnce more: ")
		second, err := term.ReadPassword(stdin)
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return "", err
		}
		if string(first) != string(second) {
			return "", usage("the two are not the same")
		}
		password = string(first)
	} else {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if line == "" {
			return "", usage("no password on standard input: %v", err)
		}
		password = strings.TrimRight(line, "\r\n")
	}
	if len(password) < least {
		return "", usage("at least %d characters, please", least)
	}
	return password, nil
}
