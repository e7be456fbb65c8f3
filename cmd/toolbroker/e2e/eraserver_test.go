//lint:file-ignore SA1019 roots, sampling and logging are deprecated, and relayed all the same.

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	goserver "github.com/mark3labs/mcp-go/server"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// An eraServer has one of each thing that a server can offer, in one era only: by the
// Go SDK, which asks the client by results in 2026-07-28 and by requests before.
type eraServer struct {
	url     string
	stopped chan struct{} // one for each call of "hang" that the server heard to be cancelled
	state   sync.Map      // of each of its sessions: what it was told to keep, and the last of its client's roots
	over    chan struct{} // closed at its end
}

// newEraServer is one of 2026-07-28, or one of before that can be talked down.
func newEraServer(t *testing.T, modern bool) *eraServer {
	t.Helper()
	if modern {
		return eraServerOf(t, "2026-07-28")
	}
	return eraServerOf(t, "2025-11-25", "2025-06-18", "2025-03-26")
}

// The revision of each feature that was not there from the beginning; what a server's
// revision has not, it has not.
var since = map[string]string{
	"structured output": "2025-06-18", "elicitation, by form": "2025-06-18",
	"elicitation, by URL": "2025-11-25", "a page first, by the server's error (-32042)": "2025-11-25",
}

func lacks(feature, server string) bool { return server < since[feature] }

// eraServerOf serves over HTTP, the revision of HTTP+SSE by that.
func eraServerOf(t *testing.T, versions ...string) *eraServer {
	t.Helper()
	e := &eraServer{stopped: make(chan struct{}, 16), over: make(chan struct{})}
	s, over := e.server(versions...), e.over
	var serve http.Handler = sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: versions[0] >= "2026"})
	if versions[0] == sseRevision {
		serve = sdk.NewSSEHandler(func(*http.Request) *sdk.Server { return s }, nil)
	}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// In 2026-07-28 a request is cancelled by hanging up, which the SDK's tools are
		// not told of: so it is heard here.
		if r.Header.Get("Mcp-Name") == "hang" {
			defer context.AfterFunc(r.Context(), func() {
				select {
				case <-over:
				default:
					e.stopped <- struct{}{}
				}
			})()
		}
		serve.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { close(over); h.CloseClientConnections(); h.Close() })
	e.url = h.URL
	return e
}

const (
	sseRevision = "2024-11-05"
	asEraServer = "TOOLBROKER_E2E_AS_ERA_SERVER" // its revision
)

// TestAsEraServer is one over stdio.
func TestAsEraServer(t *testing.T) {
	version := os.Getenv(asEraServer)
	if version == "" {
		t.Skip("it is a gateway that runs this")
	}
	e := &eraServer{stopped: make(chan struct{}, 16), over: make(chan struct{})}
	if err := e.server(version).Run(t.Context(), &sdk.StdioTransport{}); err != nil {
		t.Log(err)
	}
}

// server is what it serves.
func (e *eraServer) server(versions ...string) *sdk.Server {
	version, over := versions[0], e.over
	modern := version >= "2026"
	s := sdk.NewServer(&sdk.Implementation{Name: "eras", Version: "1"}, &sdk.ServerOptions{
		SupportedProtocolVersions: versions,
		CompletionHandler: func(_ context.Context, r *sdk.CompleteRequest) (*sdk.CompleteResult, error) {
			return &sdk.CompleteResult{Completion: sdk.CompletionResultDetails{Values: []string{r.Params.Argument.Value + "x"}, Total: 1}}, nil
		},
		RootsListChangedHandler: func(_ context.Context, r *sdk.RootsListChangedRequest) {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if out, err := r.Session.ListRoots(ctx, nil); err == nil && len(out.Roots) > 0 {
					e.state.Store(r.Session.ID()+" root", out.Roots[len(out.Roots)-1].URI)
				}
			}()
		},
		SubscribeHandler:   func(context.Context, *sdk.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *sdk.UnsubscribeRequest) error { return nil },
	})
	say := func(format string, a ...any) *sdk.CallToolResult {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: fmt.Sprintf(format, a...)}}}
	}
	tool := func(name string, f func(context.Context, *sdk.CallToolRequest) (*sdk.CallToolResult, error)) {
		s.AddTool(&sdk.Tool{Name: name, InputSchema: json.RawMessage(`{"type":"object"}`)}, f)
	}
	tool("echo", func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		return say("%s", r.Params.Arguments), nil
	})
	s.AddTool(&sdk.Tool{Name: "guarded", InputSchema: json.RawMessage(`{"type":"object","properties":{"for":{"type":"string"}}}`)},
		func(context.Context, *sdk.CallToolRequest) (*sdk.CallToolResult, error) { return say("done"), nil })
	if !lacks("structured output", version) {
		s.AddTool(&sdk.Tool{Name: "count", InputSchema: json.RawMessage(`{"type":"object"}`), OutputSchema: json.RawMessage(`{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}`)},
			func(context.Context, *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
				return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: `{"n":3}`}}, StructuredContent: json.RawMessage(`{"n":3}`)}, nil
			})
	}
	tool("progress", func(ctx context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		for i := range 3 {
			r.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: r.Params.GetProgressToken(), Progress: float64(i + 1), Total: 3})
		}
		return say("done"), nil
	})
	tool("log", func(ctx context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		return say("done"), r.Session.Log(ctx, &sdk.LoggingMessageParams{Level: "warning", Data: "heard"})
	})
	tool("log_later", func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		time.AfterFunc(300*time.Millisecond, func() {
			r.Session.Log(context.Background(), &sdk.LoggingMessageParams{Level: "warning", Data: "heard later"})
		})
		return say("done"), nil
	})
	tool("keep", func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		e.state.Store(r.Session.ID()+" kept", "kept")
		return say("done"), nil
	})
	for _, what := range []string{"kept", "root", "stopped"} {
		tool(what, func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			v, _ := e.state.Load(r.Session.ID() + " " + what)
			return say("%v", v), nil
		})
	}
	tool("hang", func(ctx context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		select {
		case <-ctx.Done():
			e.state.Store(r.Session.ID()+" stopped", "stopped")
			e.stopped <- struct{}{}
			return nil, ctx.Err()
		case <-over:
			return say("over"), nil
		}
	})
	tool("touch", func(ctx context.Context, _ *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		return say("done"), s.ResourceUpdated(ctx, &sdk.ResourceUpdatedNotificationParams{URI: "eras://one"})
	})
	read := func(_ context.Context, r *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
		return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{{URI: r.Params.URI, Text: "text of " + r.Params.URI}}}, nil
	}
	s.AddResource(&sdk.Resource{Name: "one", URI: "eras://one"}, read)
	s.AddResourceTemplate(&sdk.ResourceTemplate{Name: "many", URITemplate: "eras://many/{id}"}, read)
	s.AddPrompt(&sdk.Prompt{Name: "greet", Arguments: []*sdk.PromptArgument{{Name: "who"}}}, func(_ context.Context, r *sdk.GetPromptRequest) (*sdk.GetPromptResult, error) {
		return &sdk.GetPromptResult{Messages: []*sdk.PromptMessage{{Role: "user", Content: &sdk.TextContent{Text: "hello " + r.Params.Arguments["who"]}}}}, nil
	})

	form := &sdk.ElicitParams{Mode: "form", Message: "Who?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}}}}
	open := &sdk.ElicitParams{Mode: "url", Message: "Open it.", URL: "https://example.com/open", ElicitationID: "e1"}
	if modern {
		open.ElicitationID = ""
	}
	sample := &sdk.CreateMessageParams{MaxTokens: 10, Messages: []*sdk.SamplingMessage{{Role: "user", Content: &sdk.TextContent{Text: "say something"}}}}
	for name, ask := range map[string]struct {
		of  sdk.InputRequest
		now func(context.Context, *sdk.ServerSession) (string, error)
		got func(any) string
	}{
		"ask_form": {form, func(ctx context.Context, s *sdk.ServerSession) (string, error) {
			out, err := s.Elicit(ctx, form)
			if err != nil {
				return "", err
			}
			return fmt.Sprint(out.Action, " ", out.Content["name"]), nil
		}, func(in any) string {
			out, _ := in.(*sdk.ElicitResult)
			return fmt.Sprint(out.Action, " ", out.Content["name"])
		}},
		"ask_url": {open, func(ctx context.Context, s *sdk.ServerSession) (string, error) {
			out, err := s.Elicit(ctx, open)
			if err != nil {
				return "", err
			}
			return out.Action, nil
		}, func(in any) string {
			out, _ := in.(*sdk.ElicitResult)
			return out.Action
		}},
		"ask_sample": {sample, func(ctx context.Context, s *sdk.ServerSession) (string, error) {
			out, err := s.CreateMessage(ctx, sample)
			if err != nil {
				return "", err
			}
			return out.Content.(*sdk.TextContent).Text, nil
		}, func(in any) string {
			out, _ := in.(*sdk.CreateMessageWithToolsResult)
			return out.Content[0].(*sdk.TextContent).Text
		}},
		"ask_roots": {&sdk.ListRootsParams{}, func(ctx context.Context, s *sdk.ServerSession) (string, error) {
			out, err := s.ListRoots(ctx, nil)
			if err != nil {
				return "", err
			}
			return out.Roots[0].URI, nil
		}, func(in any) string {
			out, _ := in.(*sdk.ListRootsResult)
			return out.Roots[0].URI
		}},
	} {
		tool(name, func(ctx context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			if !modern {
				got, err := ask.now(ctx, r.Session)
				if err != nil {
					out := say("%v", err)
					out.IsError = true
					return out, nil
				}
				return say("%s", got), nil
			}
			if in, ok := r.Params.InputResponses["a"]; ok {
				return say("%s", ask.got(in)), nil
			}
			if !declared(name, r.ClientCapabilities()) {
				out := say("the client does not declare it")
				out.IsError = true
				return out, nil
			}
			return &sdk.CallToolResult{InputRequests: sdk.InputRequestMap{"a": ask.of}, RequestState: "one"}, nil
		})
	}
	// Before 2026-07-28 a server could also say by an error that a page has to be opened
	// first, here once for equal arguments.
	if !modern && version >= "2025-11-25" {
		var opened sync.Map
		tool("page", func(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			if _, done := opened.LoadOrStore(string(r.Params.Arguments), true); !done {
				return nil, sdk.URLElicitationRequiredError([]*sdk.ElicitParams{open})
			}
			return say("done"), nil
		})
	}
	// Two rounds before a prompt, the second one knowing of the first.
	s.AddPrompt(&sdk.Prompt{Name: "rounds"}, func(_ context.Context, r *sdk.GetPromptRequest) (*sdk.GetPromptResult, error) {
		if !modern {
			return nil, fmt.Errorf("this revision has no rounds")
		}
		switch {
		case r.Params.RequestState == "":
			return &sdk.GetPromptResult{InputRequests: sdk.InputRequestMap{"first": form}, RequestState: "one"}, nil
		case r.Params.RequestState == "one":
			return &sdk.GetPromptResult{InputRequests: sdk.InputRequestMap{"second": form}, RequestState: "two " + answered(r.Params.InputResponses["first"])}, nil
		}
		return &sdk.GetPromptResult{Messages: []*sdk.PromptMessage{{Role: "user", Content: &sdk.TextContent{Text: r.Params.RequestState + " " + answered(r.Params.InputResponses["second"])}}}}, nil
	})
	return s
}

// newTaskServer is one of 2025-11-25, by mcp-go, with a tool that it runs as a task
// only.
func newTaskServer(t *testing.T) string {
	t.Helper()
	s := goserver.NewMCPServer("tasks", "1", goserver.WithTaskCapabilities(true, true, true))
	s.AddTool(mcp.NewTool("research", mcp.WithTaskSupport(mcp.TaskSupportRequired)), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultText("found"), nil
	})
	h := httptest.NewServer(goserver.NewStreamableHTTPServer(s))
	t.Cleanup(func() { h.CloseClientConnections(); h.Close() })
	return h.URL + "/mcp"
}

// answered is what the human said to a form.
func answered(in any) string {
	out, ok := in.(*sdk.ElicitResult)
	if !ok {
		return "nothing"
	}
	return fmt.Sprint(out.Content["name"])
}

// declared reports whether a client says that it can be asked by a tool of this name.
func declared(tool string, c *sdk.ClientCapabilities) bool {
	if c == nil {
		return false
	}
	switch strings.TrimPrefix(tool, "ask_") {
	case "form":
		return c.Elicitation != nil && (c.Elicitation.Form != nil || c.Elicitation.URL == nil)
	case "url":
		return c.Elicitation != nil && c.Elicitation.URL != nil
	case "sample":
		return c.Sampling != nil
	default:
		return c.RootsV2 != nil
	}
}
