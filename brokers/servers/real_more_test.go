package servers

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	mcpgoserver "github.com/mark3labs/mcp-go/server"
	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/gateway"
)

// goSDK is the official Go SDK's server with one of everything.
func goSDK() *gosdk.Server {
	server := gosdk.NewServer(&gosdk.Implementation{Name: "real", Version: "1"}, &gosdk.ServerOptions{
		CompletionHandler: func(_ context.Context, r *gosdk.CompleteRequest) (*gosdk.CompleteResult, error) {
			return &gosdk.CompleteResult{Completion: gosdk.CompletionResultDetails{Values: []string{r.Params.Ref.Name + r.Params.Ref.URI + "=" + r.Params.Argument.Value}}}, nil
		},
		SubscribeHandler:   func(context.Context, *gosdk.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *gosdk.UnsubscribeRequest) error { return nil },
	})
	read := func(_ context.Context, r *gosdk.ReadResourceRequest) (*gosdk.ReadResourceResult, error) {
		return &gosdk.ReadResourceResult{Contents: []*gosdk.ResourceContents{{URI: r.Params.URI, Text: "it is " + r.Params.URI}}}, nil
	}
	server.AddResource(&gosdk.Resource{Name: "one", URI: "test://one"}, read)
	server.AddResourceTemplate(&gosdk.ResourceTemplate{Name: "any", URITemplate: "test://any/{id}"}, read)
	server.AddPrompt(&gosdk.Prompt{Name: "hello", Arguments: []*gosdk.PromptArgument{{Name: "who"}}}, func(_ context.Context, r *gosdk.GetPromptRequest) (*gosdk.GetPromptResult, error) {
		return &gosdk.GetPromptResult{Messages: []*gosdk.PromptMessage{{Role: "user", Content: &gosdk.EmbeddedResource{Resource: &gosdk.ResourceContents{URI: "test://one", Text: "hello " + r.Params.Arguments["who"]}}}}}, nil
	})
	gosdk.AddTool(server, &gosdk.Tool{Name: "ask"}, func(ctx context.Context, r *gosdk.CallToolRequest, _ struct{}) (*gosdk.CallToolResult, any, error) {
		//lint:ignore SA1019 what is deprecated is still in use
		_ = r.Session.Log(ctx, &gosdk.LoggingMessageParams{Level: "info", Data: "asking"})
		got, err := r.Session.Elicit(ctx, &gosdk.ElicitParams{Message: "sure?"})
		if err != nil {
			return nil, nil, err
		}
		return &gosdk.CallToolResult{Content: []gosdk.Content{&gosdk.TextContent{Text: got.Action}}}, nil, nil
	})
	gosdk.AddTool(server, &gosdk.Tool{Name: "touch"}, func(ctx context.Context, _ *gosdk.CallToolRequest, _ struct{}) (*gosdk.CallToolResult, any, error) {
		return &gosdk.CallToolResult{Content: []gosdk.Content{&gosdk.TextContent{}}}, nil, server.ResourceUpdated(ctx, &gosdk.ResourceUpdatedNotificationParams{URI: "test://one"})
	})
	gosdk.AddTool(server, &gosdk.Tool{Name: "later"}, func(_ context.Context, r *gosdk.CallToolRequest, _ struct{}) (*gosdk.CallToolResult, any, error) {
		if r.Extra != nil && r.Extra.CloseSSEStream != nil {
			r.Extra.CloseSSEStream(gosdk.CloseSSEStreamArgs{RetryAfter: time.Millisecond})
		}
		return &gosdk.CallToolResult{Content: []gosdk.Content{&gosdk.TextContent{Text: "at last"}}}, nil, nil
	})
	return server
}

// send sends any method as agent p of tenant a.
func send(t *testing.T, s *Servers, method string, of gateway.Sort, alias, args string, out gateway.Stream, with ...func(*gateway.Forward)) (gateway.Result, error) {
	t.Helper()
	tool, ok := s.Resolve("a", of, alias)
	if !ok {
		t.Fatalf("no %s %s; there are %s", of, alias, offered(s, "a", of))
	}
	f := gateway.Forward{CallID: "call-1", Method: method, Tool: tool, Args: json.RawMessage(args), Session: "m1",
		Principal: gateway.Principal{ID: "p", Tenant: "a"}, Task: gateway.Task{ID: "t1", Tenant: "a"}}
	for _, w := range with {
		w(&f)
	}
	return s.Forward(t.Context(), f, out)
}

func agrees(context.Context, string, json.RawMessage) (gateway.Result, error) {
	return gateway.Result{Raw: json.RawMessage(`{"action":"accept","content":{}}`)}, nil
}

// Every method, over every way there is to a server of the official SDK.
func TestEverythingOverEveryWay(t *testing.T) {
	for name, serve := range map[string]func(*gosdk.Server) http.Handler{
		"modern": func(s *gosdk.Server) http.Handler {
			return gosdk.NewStreamableHTTPHandler(func(*http.Request) *gosdk.Server { return s }, &gosdk.StreamableHTTPOptions{Stateless: true})
		},
		"legacy": func(s *gosdk.Server) http.Handler {
			return gosdk.NewStreamableHTTPHandler(func(*http.Request) *gosdk.Server { return s }, &gosdk.StreamableHTTPOptions{EventStore: gosdk.NewMemoryEventStore(nil)})
		},
		"sse": func(s *gosdk.Server) http.Handler {
			return gosdk.NewSSEHandler(func(*http.Request) *gosdk.Server { return s }, nil)
		},
		"stdio":         nil,
		"stdio, legacy": nil,
	} {
		t.Run(name, func(t *testing.T) {
			server := goSDK()
			srv := self("real", "go-sdk")
			if serve != nil {
				srv = Server{Name: "real", URL: serveReal(t, serve(server))}
			} else if name == "stdio, legacy" {
				srv.Protocol = Legacy
			}
			s, d := start(t, Config{Servers: []Server{srv}})
			d.await(t, "tool.definition.seen", "real", 1)
			if got, want := era(s.servers["real"].era.Load()), map[string]era{"modern": modernEra, "stdio": modernEra, "sse": sseEra}[name]; got != cmp.Or(want, legacyEra) {
				t.Fatalf("it was taken to speak era %d", got)
			}
			for _, c := range []struct {
				method      string
				of          gateway.Sort
				alias, args string
				want        string
			}{
				{gateway.MethodRead, gateway.SortResource, "real+test://one", "", `"uri":"real+test://one"`},
				{gateway.MethodRead, gateway.SortResource, "real+test://any/7", "", `it is test://any/7`},
				{gateway.MethodGet, gateway.SortPrompt, "real__hello", `{"who":"you"}`, `"text":"hello you"`},
				{gateway.MethodGet, gateway.SortPrompt, "real__hello", `{}`, `"uri":"real+test://one"`},
				{gateway.MethodComplete, gateway.SortPrompt, "real__hello", `{"argument":{"name":"who","value":"x"}}`, `"hello=x"`},
				{gateway.MethodComplete, gateway.SortTemplate, "real+test://any/{id}", `{"argument":{"name":"id","value":"x"}}`, `"test://any/{id}=x"`},
			} {
				r, err := send(t, s, c.method, c.of, c.alias, c.args, nil)
				if err != nil || !strings.Contains(string(r.Raw), c.want) {
					t.Errorf("%s %s: %v %s %s", c.method, c.alias, err, r.Raw, r.Error)
				}
			}
			if r, err := send(t, s, gateway.MethodRead, gateway.SortResource, "real+test://none", "", nil); err != nil || r.Error == nil {
				t.Errorf("what is not there: %v %s", err, r.Raw)
			}
			if name != "modern" && name != "stdio" {
				e := &ear{asked: agrees}
				r, err := forwardTo(t, s, "real__ask", `{}`, e, able(allCaps), func(f *gateway.Forward) { f.LogLevel, f.Session = "info", "m2" })
				if got := said(t, r, err); got != "accept" || len(e.heard) != 2 || !slices.ContainsFunc(e.heard, func(h string) bool { return strings.Contains(h, `"asking"`) }) {
					t.Errorf("it read %q; the agent heard %q", got, e.heard)
				}
				if r, err := forward(t, s, "real__ask", `{}`); err != nil || !r.Failed() {
					t.Errorf("an agent who cannot be asked: %v %s", err, r.Raw)
				}
			}
			if r, err := forward(t, s, "real__later", `{}`); said(t, r, err) != "at last" {
				t.Errorf("it said %s", r.Raw)
			}
			f := follow(t, s, "real+test://one")
			for heard := false; !heard; { // until the server has heard of it
				r, err := forward(t, s, "real__touch", `{}`)
				said(t, r, err)
				select {
				case <-f.heard:
					heard = true
				case err := <-f.ended:
					t.Fatal(err)
				case <-time.After(20 * time.Millisecond):
				}
			}
			f.stop()
			<-f.ended
			if serve == nil {
				return
			}
			// A change of any list is heard of.
			server.AddPrompt(&gosdk.Prompt{Name: "second"}, nil)
			if c := d.await(t, "tool.definition.changed", "real", 1); c.Tool.Name != "second" || c.Tool.Sort != gateway.SortPrompt {
				t.Errorf("on record is %+v", c)
			}
		})
	}
}

// mcp-go's server asks, over what it has for that in each transport.
func TestMCPGoAsks(t *testing.T) {
	for _, p := range []Protocol{Legacy, SSE} {
		t.Run(string(p), func(t *testing.T) {
			server := mcpgoserver.NewMCPServer("real", "1", mcpgoserver.WithElicitation(), mcpgoserver.WithResourceCapabilities(true, true))
			server.AddResource(mcpgo.NewResource("test://one", "one"), func(_ context.Context, r mcpgo.ReadResourceRequest) ([]mcpgo.ResourceContents, error) {
				return []mcpgo.ResourceContents{mcpgo.TextResourceContents{URI: r.Params.URI, Text: "hello"}}, nil
			})
			server.AddTool(mcpgo.NewTool("ask"), func(ctx context.Context, _ mcpgo.CallToolRequest) (*mcpgo.CallToolResult, error) {
				got, err := server.RequestElicitation(ctx, mcpgo.ElicitationRequest{Params: mcpgo.ElicitationParams{Message: "sure?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{}}}})
				if err != nil {
					return nil, err
				}
				return mcpgo.NewToolResultText(string(got.Action)), nil
			})
			url := ""
			if p == SSE {
				url = serveReal(t, mcpgoserver.NewSSEServer(server, mcpgoserver.WithUseFullURLForMessageEndpoint(false))) + "/sse"
			} else {
				url = serveReal(t, mcpgoserver.NewStreamableHTTPServer(server, mcpgoserver.WithStateful(true)))
			}
			s, _ := start(t, Config{Servers: []Server{{Name: "real", URL: url, Protocol: p}}})
			if r, err := send(t, s, gateway.MethodRead, gateway.SortResource, "real+test://one", "", nil); err != nil || !strings.Contains(string(r.Raw), `"uri":"real+test://one"`) {
				t.Errorf("%v %s", err, r.Raw)
			}
			if p == SSE {
				return // there it cannot ask
			}
			e := &ear{asked: agrees}
			r, err := forwardTo(t, s, "real__ask", `{}`, e, able(allCaps))
			if got := said(t, r, err); got != "accept" || len(e.heard) != 1 {
				t.Errorf("it read %q; the agent heard %q", got, e.heard)
			}
		})
	}
}

// go-sdk's everything-server asks, tells and continues as its fixtures do.
func TestEverythingServerAsks(t *testing.T) {
	bin, err := everything()
	if err != nil {
		missing(t, "go-sdk's everything-server: "+err.Error())
	}
	for _, mode := range []string{"stateless", "stateful", "stdio"} {
		t.Run(mode, func(t *testing.T) {
			srv := everythingAt(t, bin, mode)
			if mode == "stdio" {
				srv.Protocol = Legacy
			}
			s, d := start(t, Config{Servers: []Server{srv}})
			d.await(t, "tool.definition.seen", "real", 1)
			for _, c := range []struct {
				method            string
				of                gateway.Sort
				alias, args, want string
			}{
				{gateway.MethodRead, gateway.SortResource, "test://static-text", "", `"uri":"test://static-text"`},
				{gateway.MethodRead, gateway.SortResource, "test://template/7/data", "", `"uri":"test://template/7/data"`},
				{gateway.MethodGet, gateway.SortPrompt, "test_simple_prompt", "", `"messages"`},
				{gateway.MethodGet, gateway.SortPrompt, "test_prompt_with_arguments", `{"arg1":"x","arg2":"y"}`, `x`},
				{gateway.MethodComplete, gateway.SortPrompt, "test_prompt_with_arguments", `{"argument":{"name":"arg1","value":"x"}}`, `"completion"`},
			} {
				r, err := send(t, s, c.method, c.of, c.alias, c.args, nil)
				if err != nil || !strings.Contains(string(r.Raw), c.want) {
					t.Errorf("%s %s: %v %s %s", c.method, c.alias, err, r.Raw, r.Error)
				}
			}
			e := &ear{}
			r, err := forwardTo(t, s, "test_tool_with_logging", `{}`, e, func(f *gateway.Forward) { f.LogLevel = "info" })
			if err != nil || len(e.heard) != 3 {
				t.Errorf("%v %s; heard %q", err, r.Raw, e.heard)
			}
			if mode == "stateless" {
				const ask = "test_input_required_result_elicitation"
				r, err := forward(t, s, ask, `{}`, able(`{"elicitation":{"form":{}}}`))
				var body struct {
					InputRequests map[string]any
					RequestState  string
				}
				if json.Unmarshal(r.Raw, &body); err != nil || r.Type != gateway.ResultInput || len(body.InputRequests) != 1 {
					t.Fatalf("%v %s %s", err, r.Type, r.Raw)
				}
				for key := range body.InputRequests {
					answers := json.RawMessage(fmt.Sprintf(`{%q:{"action":"accept","content":{"name":"Alice"}}}`, key))
					r, err = forward(t, s, ask, `{}`, able(`{"elicitation":{"form":{}}}`), func(f *gateway.Forward) { f.Answers, f.State = answers, body.RequestState })
				}
				if got := said(t, r, err); !strings.Contains(got, "Alice") {
					t.Errorf("it said %q", got)
				}
				return
			}
			for tool, args := range map[string]string{"test_elicitation": `{"message":"sure?"}`, "test_sampling": `{"prompt":"say"}`} {
				e := &ear{asked: func(_ context.Context, method string, _ json.RawMessage) (gateway.Result, error) {
					if method == gateway.MethodSample {
						return gateway.Result{Raw: json.RawMessage(`{"role":"assistant","model":"m","content":{"type":"text","text":"said"}}`)}, nil
					}
					return gateway.Result{Raw: json.RawMessage(`{"action":"accept","content":{"username":"u","email":"u@example.com"}}`)}, nil
				}}
				r, err := forwardTo(t, s, tool, args, e, able(`{"elicitation":{"form":{}},"sampling":{}}`), func(f *gateway.Forward) { f.Session = "m2" })
				if err != nil || r.Failed() || len(e.heard) != 1 {
					t.Errorf("%s: %v %s %s; the agent heard %q", tool, err, r.Raw, r.Error, e.heard)
				}
			}
		})
	}
}

// @modelcontextprotocol/server-everything over stdio.
func TestServerEverything(t *testing.T) {
	packages := os.Getenv("TOOLBROKER_NPM")
	main := filepath.Join(packages, "@modelcontextprotocol", "server-everything", "dist", "index.js")
	node, err := exec.LookPath("node")
	if _, serr := os.Stat(main); err != nil || serr != nil {
		missing(t, "node, or @modelcontextprotocol/server-everything in TOOLBROKER_NPM")
	}
	s, d := start(t, Config{Servers: []Server{{Name: "every", Command: []string{node, main, "stdio"}, Timeout: 20 * time.Second}}})
	seen := d.await(t, "tool.definition.seen", "every", 1)
	if strings.Contains(seen.Detail, "withheld") {
		t.Errorf("on record is %s", seen.Detail)
	}
	for _, of := range []gateway.Sort{gateway.SortTool, gateway.SortResource, gateway.SortTemplate, gateway.SortPrompt} {
		if len(s.Offered("a", of)) == 0 {
			t.Errorf("no %s is offered", of)
		}
	}
	// Those for clients that can be asked, too; two more want a client that runs tasks.
	if got := aliases(s, "a"); len(strings.Fields(got)) != 17 || !strings.Contains(got, "get-roots-list") || !strings.Contains(got, "trigger-url-elicitation") || !strings.Contains(got, "trigger-sampling-request") {
		t.Errorf("offered are %s", got)
	}
	r, err := forward(t, s, "every__echo", `{"message":"hello"}`)
	if got := said(t, r, err); !strings.Contains(got, "hello") {
		t.Errorf("said %q", got)
	}
	one := s.Offered("a", gateway.SortResource)[0]
	r, err = send(t, s, gateway.MethodRead, gateway.SortResource, one.Alias, "", nil)
	if err != nil || !strings.Contains(string(r.Raw), fmt.Sprintf("%q", one.Alias)) {
		t.Errorf("%v %.300s %s", err, r.Raw, r.Error)
	}
	for _, p := range s.Offered("a", gateway.SortPrompt) {
		r, err := send(t, s, gateway.MethodGet, gateway.SortPrompt, p.Alias, `{"city":"x","state":"y","temperature":"1","style":"z","department":"Engineering","name":"Alice","resourceType":"Text","resourceId":"1"}`, nil)
		if err != nil || !strings.Contains(string(r.Raw), `"messages"`) && r.Error == nil {
			t.Errorf("%s: %v %.200s", p.Alias, err, r.Raw)
		}
	}
}
