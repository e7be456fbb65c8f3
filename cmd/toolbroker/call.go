package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"
)

func callCommand() *cobra.Command {
	var (
		address, tokenFile, task, ca, whole string
		pairs                               []string
		asJSON                              bool
		timeout                             time.Duration
	)
	cmd := &cobra.Command{
		Use:   "call [TOOL]",
		Short: "Call a tool as an agent would; without TOOL, list the tools",
		Long: `Call a tool as an agent would, and print what it answers. Without TOOL, list the
tools that the token's task may use. The token comes from --token-file or
TOOLBROKER_TOKEN, never from the command line, which others can read.

A refused or failed call says why on standard error and exits 1.`,
		Example: `  toolbroker call tracker__get_issue --arg id=7
  toolbroker call tracker__close_issue --args '{"id": 7, "reason": "done"}'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("one tool at a time; arguments are given as --arg name=value")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			base, err := endpoint(or(address, "TOOLBROKER_URL"), "--url", "TOOLBROKER_URL")
			if err != nil {
				return err
			}
			token, err := agentToken(tokenFile)
			if err != nil {
				return err
			}
			client, err := trusting(or(ca, "TOOLBROKER_CA"))
			if err != nil {
				return err
			}
			client.Transport = bearer{token, or(task, "TOOLBROKER_TASK"), client.Transport}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			session, err := mcp.NewClient(&mcp.Implementation{Name: "toolbroker-call", Version: version()}, &mcp.ClientOptions{
				Capabilities: &mcp.ClientCapabilities{},
				ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
					fmt.Fprintln(cmd.ErrOrStderr(), oneLine(r.Params.Message))
				},
			}).Connect(ctx, &mcp.StreamableClientTransport{
				Endpoint: base, HTTPClient: client, MaxRetries: -1, DisableStandaloneSSE: true,
			}, nil)
			if err != nil {
				return plain(err)
			}
			defer session.Close()
			tools, err := listTools(ctx, session)
			if err != nil {
				return plain(err)
			}
			if len(args) == 0 {
				return printTools(cmd.OutOrStdout(), tools, asJSON)
			}
			arguments, err := arguments(whole, pairs, schemaOf(tools, args[0]))
			if err != nil {
				return err
			}
			params := &mcp.CallToolParams{Name: args[0], Arguments: arguments}
			params.SetProgressToken("1")
			result, err := session.CallTool(ctx, params)
			if err != nil {
				return plain(err)
			}
			return printResult(cmd, result, asJSON)
		},
	}
	cmd.Flags().StringVar(&address, "url", "", "the gateway's /mcp address (or TOOLBROKER_URL)")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with a task token or API key (or TOOLBROKER_TOKEN holds it)")
	cmd.Flags().StringVar(&task, "task", "", "the task, where the token is an API key (or TOOLBROKER_TASK)")
	cmd.Flags().StringVar(&ca, "ca", "", "PEM file of whom to trust (or TOOLBROKER_CA); default: the system's")
	cmd.Flags().StringArrayVar(&pairs, "arg", nil, "an argument, name=value; JSON unless the tool wants a string")
	cmd.Flags().StringVar(&whole, "args", "", "all arguments, as a JSON object")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait")
	return cmd
}

// bearer sends the token, and the task where one is named, with every request.
type bearer struct {
	token, task string
	next        http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	if b.task != "" {
		r.Header.Set("Toolbroker-Task", b.task)
	}
	return b.next.RoundTrip(r)
}

func listTools(ctx context.Context, s *mcp.ClientSession) (all []*mcp.Tool, err error) {
	for t, err := range s.Tools(ctx, nil) {
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// schemaOf is what a tool's properties want to be; empty where the tool is not listed.
func schemaOf(tools []*mcp.Tool, name string) (schema struct {
	Properties map[string]struct{ Type any }
}) {
	for _, t := range tools {
		if t.Name == name {
			if text, err := json.Marshal(t.InputSchema); err == nil {
				_ = json.Unmarshal(text, &schema) // a schema we cannot read tells us nothing
			}
		}
	}
	return schema
}

// arguments puts them together: a value is JSON if it reads as JSON, unless the
// tool wants a string there.
func arguments(whole string, pairs []string, schema struct {
	Properties map[string]struct{ Type any }
}) (json.RawMessage, error) {
	if whole != "" {
		if len(pairs) > 0 {
			return nil, usage("give --arg or --args, not both")
		}
		if t := strings.TrimSpace(whole); !json.Valid([]byte(t)) || !strings.HasPrefix(t, "{") {
			return nil, usage("--args is not a JSON object")
		}
		return json.RawMessage(whole), nil
	}
	all := map[string]json.RawMessage{}
	for _, p := range pairs {
		name, value, ok := strings.Cut(p, "=")
		if !ok || name == "" {
			return nil, usage("--arg %q is not name=value", p)
		}
		if _, twice := all[name]; twice {
			return nil, usage("--arg %s is given twice", name)
		}
		if schema.Properties[name].Type != "string" && json.Valid([]byte(value)) {
			all[name] = json.RawMessage(value)
			continue
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		all[name] = text
	}
	return json.Marshal(all)
}

func printTools(w io.Writer, tools []*mcp.Tool, asJSON bool) error {
	if asJSON {
		return printJSON(w, map[string]any{"tools": append([]*mcp.Tool{}, tools...)})
	}
	if len(tools) == 0 {
		_, err := fmt.Fprintln(w, "This task may use no tool.")
		return err
	}
	var rows [][]string
	for _, t := range tools {
		rows = append(rows, []string{t.Name, strings.Join(strings.Fields(t.Description), " ")})
	}
	return table(w, rows...)
}

// printResult prints what came back; what the tool or the gateway calls an
// error goes to standard error.
func printResult(cmd *cobra.Command, r *mcp.CallToolResult, asJSON bool) error {
	w := cmd.OutOrStdout()
	if asJSON {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		if r.IsError {
			w = cmd.ErrOrStderr()
		}
		for _, c := range r.Content {
			if text, ok := c.(*mcp.TextContent); ok {
				fmt.Fprintln(w, paragraphs(text.Text))
				continue
			}
			if err := printJSON(w, c); err != nil {
				return err
			}
		}
		if len(r.Content) == 0 && r.StructuredContent != nil {
			if err := printJSON(w, r.StructuredContent); err != nil {
				return err
			}
		}
	}
	if r.IsError {
		return errSilent
	}
	return nil
}

// plain says what the gateway said, without the client library's frames around
// it; where nothing was said, what went wrong on the way.
func plain(err error) error {
	if rpc, ok := errors.AsType[*jsonrpc.Error](err); ok && rpc.Code != rejected {
		return errors.New(rpc.Message)
	}
	text := err.Error()
	if i := strings.LastIndex(text, frame); i >= 0 {
		text = text[i+len(frame):]
	}
	switch text {
	case "Unauthorized":
		text = "the gateway does not know this token"
	case "Not Found":
		text = "there is no MCP at this address; it ends in /mcp"
	}
	return errors.New(text)
}

const (
	rejected = -32005 // the library's own code, for a message that did not get through
	frame    = `": `  // ends each of the library's frames
)
