package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"toolbroker/brokers/secrets"
	"toolbroker/cmd/toolbroker/internal/importer"
	"toolbroker/gateway"
)

func importCommand() *cobra.Command {
	var o importer.Options
	var write, asJSON bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make a config's servers of an MCP client's configuration",
		Long: `Make a config's servers of the file in which Claude Desktop, Claude Code, Cursor
or VS Code keeps its own, and print them. A secret in the file becomes a Vault
binding: it is never printed, only the command that puts it into Vault, with a
placeholder. --write-vault puts it there instead, through VAULT_ADDR, VAULT_TOKEN,
VAULT_CACERT and VAULT_NAMESPACE, and writes over nothing.

What a human must still settle stands on standard error, by file, line and place.
Exits 1 when there is such a thing.`,
		Example: `  toolbroker import ~/.cursor/mcp.json --tenant acme > servers.yaml`,
		Args:    exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.File = args[0]
			if err := importNames(o); err != nil {
				return err
			}
			var vault secrets.Keeping
			if write {
				vault = secrets.Keeping{
					Address: os.Getenv("VAULT_ADDR"), Token: gateway.NewSecret(os.Getenv("VAULT_TOKEN")),
					CAFile: os.Getenv("VAULT_CACERT"), Namespace: os.Getenv("VAULT_NAMESPACE"),
				}
				if vault.Address == "" || vault.Token.Reveal() == "" {
					return usage("--write-vault wants VAULT_ADDR and VAULT_TOKEN in the environment")
				}
			}
			text, err := os.ReadFile(o.File)
			if err != nil {
				return err
			}
			r, err := importer.Read(text, o)
			if err != nil {
				return fmt.Errorf("%s: %w", o.File, err)
			}
			if write {
				r.Keep(o.File, func(mount, path string, fields map[string]gateway.Secret) error {
					return vault.Keep(cmd.Context(), mount, path, fields)
				})
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				err = printImport(cmd.OutOrStdout(), cmd.ErrOrStderr(), o.File, r)
			}
			if err == nil && len(r.Findings) > 0 {
				err = errSilent
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.Tenants, "tenant", []string{"default"}, "whose the servers are; may be repeated")
	flags.StringVar(&o.Mount, "mount", "secret", "where Vault's KV engine, version 2, is mounted")
	flags.StringVar(&o.Prefix, "path", "mcp", "below which path the secrets are kept there, one per server")
	flags.BoolVar(&write, "write-vault", false, "put the secrets into Vault")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

var (
	tenantName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	vaultPath  = regexp.MustCompile(`^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$`)
)

func importNames(o importer.Options) error {
	if len(o.Tenants) == 0 {
		return usage("--tenant names nobody")
	}
	for _, t := range o.Tenants {
		if !tenantName.MatchString(t) {
			return usage("--tenant: lower-case letters, digits and -, at most 64")
		}
	}
	if !vaultPath.MatchString(o.Mount) || !vaultPath.MatchString(o.Prefix) {
		return usage("--mount and --path: letters, digits, _ and -, with / between")
	}
	return nil
}

// printImport prints a fragment that can be pasted as it is, and beside it what a
// human has to know.
func printImport(out, said io.Writer, file string, r *importer.Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Imported from %s by toolbroker import: servers for a config. See docs/import.md.\n", oneLine(file))
	var commands, paths []string
	held := 0
	for _, p := range r.Vault {
		if p.Command != "" {
			commands = append(commands, p.Command)
		}
		paths = append(paths, fmt.Sprintf("path %q { capabilities = [\"read\"] }", p.Mount+"/data/"+p.Path))
		for _, f := range p.Fields {
			if f.Inline {
				held++
			}
		}
	}
	block := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "# %s\n#   %s\n", title, strings.Join(lines, "\n#   "))
		}
	}
	block("Put the secrets into Vault, in place of what stands in <>:", commands)
	block("What the tools' policy in Vault must say (docs/vault.md):", paths)
	text, err := yaml.Dump(r)
	if err != nil {
		return err
	}
	b.Write(text)
	if _, err := io.WriteString(out, paragraphs(b.String())); err != nil {
		return err
	}
	for _, f := range r.Findings {
		fmt.Fprintln(said, visible(f.String("debt")))
	}
	for _, f := range r.Notes {
		fmt.Fprintln(said, visible(f.String("note")))
	}
	if held > 0 {
		fmt.Fprintf(said, "%s still holds secrets that are bound now: %d. Take them out of it, and change those that others could read.\n", oneLine(file), held)
	}
	return nil
}
