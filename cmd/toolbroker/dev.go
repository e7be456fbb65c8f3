package main

import (
	"os"

	"github.com/spf13/cobra"

	"toolbroker/cmd/toolbroker/internal/dev"
	"toolbroker/examples/servers/notes"
)

func devCommand() *cobra.Command {
	o := dev.Options{Version: version()}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Try it out: everything in one process, on this machine only",
		Long: `Run a gateway with everything it needs in one process, for trying out: an embedded
Redis, Vault (VAULT_ADDR and VAULT_TOKEN, else a vault or bao on PATH in dev mode, else a
stand-in, named as such), two sample tool servers, a sample policy, two operators and two
running tasks. It prints what to do next, and writes DIR/dev.json for scripts once ready.

It listens on loopback only. What it keeps is in DIR; starting again there works.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return dev.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Dir, "dir", "toolbroker-dev", "where to keep everything")
	cmd.Flags().StringVar(&o.Listen, "listen", "", "the agents' address; default: 127.0.0.1:8080, or any port")
	cmd.Flags().StringVar(&o.Console, "console", "", "the console's address; default: 127.0.0.1:8081, or any port")
	cmd.AddCommand(notesServer())
	return cmd
}

// notesServer is the sample notes server, which dev runs as a child per task.
func notesServer() *cobra.Command {
	c := notes.Config{RequireKey: true, Version: version()}
	cmd := &cobra.Command{
		Use: "notes-server", Hidden: true, Short: "The sample notes server, on standard input and output", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Key = os.Getenv("NOTES_KEY")
			return notes.Run(cmd.Context(), os.Stdin, os.Stdout, c)
		},
	}
	cmd.Flags().StringVar(&c.Dir, "dir", "", "folder with the notes")
	cmd.Flags().StringVar(&c.KeyHash, "key-sha256", "", "SHA-256 of the key in NOTES_KEY, in hex")
	return cmd
}
