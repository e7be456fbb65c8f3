// Triage is a small agent: it connects to toolbroker with the official Go SDK as
// to any MCP server, looks at its tools, and makes the three calls that `toolbroker
// dev` has samples of: one that is allowed, one that is denied, and one that
// waits for a human.
//
//	go run ./examples/agents/triage toolbroker-dev/dev.json
//
// Nothing in it knows toolbroker, but for one habit worth copying: a result that
// begins with PENDING_APPROVAL is not a failure; the same call, repeated with the
// same arguments, is served once a human has said yes.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: triage DEV.JSON")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "triage:", err)
		os.Exit(1)
	}
}

// A sample is a call to try, on one of the tasks.
type sample struct {
	Task, Tool string
	Args       json.RawMessage
}

func run(ctx context.Context, file string) error {
	var dev struct {
		URL     string `json:"mcp_url"`
		Console string `json:"console_url"`
		Tasks   map[string]struct{ Token string }
		Samples struct{ Allow, Deny, Approve sample }
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &dev); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	// The task token is all that an agent needs: it says who, and on which task.
	token := dev.Tasks[dev.Samples.Allow.Task].Token
	session, err := mcp.NewClient(&mcp.Implementation{Name: "triage", Version: "1"}, nil).Connect(ctx,
		&mcp.StreamableClientTransport{Endpoint: dev.URL, HTTPClient: &http.Client{Transport: bearer(token)}}, nil)
	if err != nil {
		return err
	}
	defer session.Close()

	for tool, err := range session.Tools(ctx, nil) {
		if err != nil {
			return err
		}
		fmt.Println("may use", tool.Name)
	}
	for _, s := range []sample{dev.Samples.Allow, dev.Samples.Deny, dev.Samples.Approve} {
		fmt.Printf("\n%s %s\n", s.Tool, s.Args)
		answer, err := call(ctx, session, s, func() {
			fmt.Println("  waiting for a human; approve it at", dev.Console)
		})
		if err != nil {
			return err
		}
		fmt.Println(" ", answer)
	}
	return nil
}

// call makes a call and, where a human must agree, makes it again until one has.
func call(ctx context.Context, session *mcp.ClientSession, s sample, waiting func()) (string, error) {
	for {
		result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: s.Tool, Arguments: s.Args})
		if err != nil {
			return "", err
		}
		var all []string
		for _, c := range result.Content {
			if t, ok := c.(*mcp.TextContent); ok {
				all = append(all, t.Text)
			}
		}
		text := strings.Join(all, " ")
		if !result.IsError || !strings.HasPrefix(text, "PENDING_APPROVAL") {
			return text, nil
		}
		waiting()
		time.Sleep(time.Second) // the gateway has held the call for a while already
	}
}

type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}
