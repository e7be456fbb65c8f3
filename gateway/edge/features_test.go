//lint:file-ignore SA1019 what clients of earlier eras do

package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	goclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/gateway"
)

// A user is a client not written by us that can be asked anything; each of its
// methods does one thing and says in words what came of it.
type user struct {
	templates, read, prompt, completion func() (string, error)
	call                                func(name, args string) (string, error)
	follow                              func(uri string) error // and hear of it
	level                               func(string) error
	updates, logs                       chan string
	close                               func()
}

func users(t *testing.T, each func(t *testing.T, d *door, u *user, era string)) {
	for _, over := range []string{"http", "stdio"} {
		for _, era := range []string{mcp.ProtocolVersion20251125, modern} {
			for lib, connect := range map[string]func(*testing.T, *door, string, string) *user{"mcp-go": mcpGoUser, "go-sdk": sdkUser} {
				t.Run(lib+"/"+era+"/"+over, func(t *testing.T) {
					d := open(t).canAsk()
					d.house.tools = append(d.house.tools, tool("need", `{"type":"object"}`),
						gateway.Tool{Sort: gateway.SortTemplate, Alias: "s+a:{x}", Definition: []byte(`{"uriTemplate":"s+a:{x}","name":"x"}`)})
					u := connect(t, d, era, over)
					each(t, d, u, era)
					u.close()
				})
			}
		}
	}
}

func sdkUser(t *testing.T, d *door, era, over string) *user {
	var tr sdk.Transport = &sdk.StreamableClientTransport{Endpoint: d.url + "/mcp", HTTPClient: &http.Client{Transport: bearer{"alice"}}}
	if over == "stdio" {
		r, w := pipes(t, d)
		tr = &sdk.IOTransport{Reader: r, Writer: w}
	}
	u := &user{updates: make(chan string, 16), logs: make(chan string, 16)}
	c := sdk.NewClient(&sdk.Implementation{Name: "t", Version: "1"}, &sdk.ClientOptions{
		ElicitationHandler: func(_ context.Context, r *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			return &sdk.ElicitResult{Action: "accept", Content: map[string]any{"name": "ada"}}, nil
		},
		CreateMessageHandler: func(context.Context, *sdk.CreateMessageRequest) (*sdk.CreateMessageResult, error) {
			return &sdk.CreateMessageResult{Model: "m", Role: "assistant", Content: &sdk.TextContent{Text: "sampled"}}, nil
		},
		ResourceUpdatedHandler: func(_ context.Context, r *sdk.ResourceUpdatedNotificationRequest) { u.updates <- r.Params.URI },
		LoggingMessageHandler:  func(_ context.Context, r *sdk.LoggingMessageRequest) { u.logs <- string(r.Params.Level) },
	})
	c.AddRoots(&sdk.Root{URI: "file:///r", Name: "r"})
	s, err := c.Connect(t.Context(), tr, &sdk.ClientSessionOptions{ProtocolVersion: era})
	if err != nil {
		t.Fatal(err)
	}
	u.close = func() { s.Close() }
	ctx := t.Context()
	u.templates = func() (string, error) {
		out, err := s.ListResourceTemplates(ctx, nil)
		if err != nil {
			return "", err
		}
		return out.ResourceTemplates[0].URITemplate, nil
	}
	u.read = func() (string, error) {
		out, err := s.ReadResource(ctx, &sdk.ReadResourceParams{URI: "s+a:b"})
		if err != nil {
			return "", err
		}
		return out.Contents[0].URI + " " + out.Contents[0].Text, nil
	}
	u.prompt = func() (string, error) {
		out, err := s.GetPrompt(ctx, &sdk.GetPromptParams{Name: "p", Arguments: map[string]string{"a": "b"}})
		if err != nil {
			return "", err
		}
		return out.Messages[0].Content.(*sdk.TextContent).Text, nil
	}
	u.completion = func() (string, error) {
		out, err := s.Complete(ctx, &sdk.CompleteParams{Ref: &sdk.CompleteReference{Type: "ref/prompt", Name: "p"}, Argument: sdk.CompleteParamsArgument{Name: "a", Value: "b"}})
		if err != nil {
			return "", err
		}
		return strings.Join(out.Completion.Values, " "), nil
	}
	level := "" // which this SDK sends the old way in every era
	u.call = func(name, args string) (string, error) {
		in := &sdk.CallToolParams{Name: name, Arguments: raw(args)}
		if level != "" {
			in.Meta = sdk.Meta{mcp.MetaKeyLogLevel: level}
		}
		out, err := s.CallTool(ctx, in)
		if err != nil {
			return "", err
		}
		return out.Content[0].(*sdk.TextContent).Text, nil
	}
	u.follow = func(uri string) error { return s.Subscribe(ctx, &sdk.SubscribeParams{URI: uri}) }
	u.level = func(l string) error {
		if era == modern {
			level = l
			return nil
		}
		return s.SetLoggingLevel(ctx, &sdk.SetLoggingLevelParams{Level: sdk.LoggingLevel(l)})
	}
	return u
}

// raw is JSON as it stands.
type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

type answerAll struct{}

func (answerAll) Elicit(context.Context, mcp.ElicitationRequest) (*mcp.ElicitationResult, error) {
	return &mcp.ElicitationResult{ElicitationResponse: mcp.ElicitationResponse{Action: "accept", Content: map[string]any{"name": "ada"}}}, nil
}

func (answerAll) CreateMessage(context.Context, mcp.CreateMessageRequest) (*mcp.CreateMessageResult, error) {
	return &mcp.CreateMessageResult{Model: "m", SamplingMessage: mcp.SamplingMessage{Role: "assistant", Content: mcp.NewTextContent("sampled")}}, nil
}

func (answerAll) ListRoots(context.Context, mcp.ListRootsRequest) (*mcp.ListRootsResult, error) {
	return &mcp.ListRootsResult{Roots: []mcp.Root{{URI: "file:///r", Name: "r"}}}, nil
}

func mcpGoUser(t *testing.T, d *door, era, over string) *user {
	var tr transport.Interface
	var err error
	if over == "stdio" {
		r, w := pipes(t, d)
		tr = transport.NewIO(r, w, io.NopCloser(strings.NewReader("")))
	} else {
		opts := []transport.StreamableHTTPCOption{transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer alice"})}
		if era != modern {

			opts = append(opts, transport.WithContinuousListening())
		}
		if tr, err = transport.NewStreamableHTTP(d.url+"/mcp", opts...); err != nil {
			t.Fatal(err)
		}
	}
	c := goclient.NewClient(tr, goclient.WithProtocolVersion(era), goclient.WithElicitationHandler(answerAll{}),
		goclient.WithSamplingHandler(answerAll{}), goclient.WithRootsHandler(answerAll{}))
	u := &user{updates: make(chan string, 16), logs: make(chan string, 16), close: func() { c.Close() }}
	c.OnNotification(func(n mcp.JSONRPCNotification) {
		switch n.Method {
		case mcp.MethodNotificationResourceUpdated:
			u.updates <- fmt.Sprint(n.Params.AdditionalFields["uri"])
		case "notifications/message":
			u.logs <- fmt.Sprint(n.Params.AdditionalFields["level"])
		}
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var in mcp.InitializeRequest
	in.Params.ProtocolVersion, in.Params.ClientInfo = era, mcp.Implementation{Name: "t", Version: "1"}
	if _, err := c.Initialize(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	u.templates = func() (string, error) {
		out, err := c.ListResourceTemplates(ctx, mcp.ListResourceTemplatesRequest{})
		if err != nil {
			return "", err
		}
		return out.ResourceTemplates[0].URITemplate.Raw(), nil
	}
	u.read = func() (string, error) {
		var in mcp.ReadResourceRequest
		in.Params.URI = "s+a:b"
		out, err := c.ReadResource(ctx, in)
		if err != nil {
			return "", err
		}
		text := out.Contents[0].(mcp.TextResourceContents)
		return text.URI + " " + text.Text, nil
	}
	u.prompt = func() (string, error) {
		var in mcp.GetPromptRequest
		in.Params.Name, in.Params.Arguments = "p", map[string]string{"a": "b"}
		out, err := c.GetPrompt(ctx, in)
		if err != nil {
			return "", err
		}
		return out.Messages[0].Content.(mcp.TextContent).Text, nil
	}
	u.completion = func() (string, error) {
		var in mcp.CompleteRequest
		in.Params.Ref = mcp.PromptReference{Type: "ref/prompt", Name: "p"}
		in.Params.Argument.Name, in.Params.Argument.Value = "a", "b"
		out, err := c.Complete(ctx, in)
		if err != nil {
			return "", err
		}
		return strings.Join(out.Completion.Values, " "), nil
	}
	u.call = func(name, args string) (string, error) {
		var in mcp.CallToolRequest
		in.Params.Name, in.Params.Arguments = name, raw(args)
		out, err := c.CallTool(ctx, in)
		if err != nil {
			return "", err
		}
		return out.Content[0].(mcp.TextContent).Text, nil
	}
	u.follow = func(uri string) error {
		if era == modern {
			stop, err := c.ListenAsync(ctx, mcp.SubscriptionFilter{ResourceSubscriptions: []string{uri}}, nil)
			if err == nil {
				closing := u.close
				u.close = func() { stop(); closing() }
			}
			return err
		}
		var in mcp.SubscribeRequest
		in.Params.URI = uri

		return c.Subscribe(ctx, in)
	}
	u.level = func(l string) error {
		var in mcp.SetLevelRequest
		in.Params.Level = mcp.LoggingLevel(l)

		return c.SetLevel(ctx, in)
	}
	return u
}

// Clients of every era see what is no tool as they would without us.
func TestClientsUseEveryFeature(t *testing.T) {
	users(t, func(t *testing.T, d *door, u *user, era string) {
		for _, row := range []struct {
			name string
			do   func() (string, error)
			want string
		}{
			{"templates", u.templates, "s+a:{x}"}, {"read", u.read, "s+a:b t"}, {"prompt", u.prompt, `{"a":"b"}`}, {"completion", u.completion, "v"},
		} {
			if got, err := row.do(); err != nil || got != row.want {
				t.Errorf("%s: %q %v", row.name, got, err)
			}
		}
		if err := u.follow("s+a:b"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "a follower", func() bool { return d.update("s+a:b") > 0 })
		if got := get(t, "update", u.updates); got != "s+a:b" {
			t.Error(got)
		}
		// The level holds for a session; of a modern client, for the requests to come.
		if err := u.level("error"); err != nil {
			t.Fatal(err)
		}
		if _, err := u.call("log", "{}"); err != nil {
			t.Fatal(err)
		}
		if got := get(t, "log message", u.logs); got != "error" || len(u.logs) != 0 {
			t.Errorf("%s, and %d more", got, len(u.logs))
		}
		if era == modern {
			got, err := u.call("need", "{}")
			if err != nil || !strings.HasPrefix(got, `st {"who":{`) || !strings.Contains(got, "ada") {
				t.Errorf("a call that asks: %q %v", got, err)
			}
			return
		}
		if _, err := u.call("ask", `{"asks":[`+strings.Join([]string{formAsk, sampleAsk, rootsAsk}, ",")+`]}`); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"ada", "sampled", "file:///r"} {
			if d.asksErr[i] != nil || !strings.Contains(string(d.asks[i].Raw), want) {
				t.Errorf("asked: %s %s %v", d.asks[i].Raw, d.asks[i].Error, d.asksErr[i])
			}
		}
	})
}

// A client that is sent to the console's page hears when it can call again.
func TestSDKIsSentToTheConsole(t *testing.T) {
	for _, over := range []string{"http", "stdio"} {
		t.Run(over, func(t *testing.T) {
			decided := make(chan struct{})
			d := open(t, func(c *Config) {
				c.Decided = func(ctx context.Context, _, _ string) error {
					select {
					case <-decided:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			})
			d.refusal = &gateway.Refusal{Code: gateway.PendingApproval, Approval: &gateway.ApprovalRequest{ID: "apr-1", Tenant: "acme", Expires: time.Now().Add(time.Hour)}}
			var tr sdk.Transport = &sdk.StreamableClientTransport{Endpoint: d.url + "/mcp", HTTPClient: &http.Client{Transport: bearer{"alice"}}}
			if over == "stdio" {
				r, w := pipes(t, d)
				tr = &sdk.IOTransport{Reader: r, Writer: w}
			}
			complete := make(chan string, 1)
			c := sdk.NewClient(&sdk.Implementation{Name: "t", Version: "1"}, &sdk.ClientOptions{
				Capabilities:       &sdk.ClientCapabilities{Elicitation: &sdk.ElicitationCapabilities{URL: &sdk.URLElicitationCapabilities{}}},
				ElicitationHandler: func(context.Context, *sdk.ElicitRequest) (*sdk.ElicitResult, error) { return nil, errDown },
				ElicitationCompleteHandler: func(_ context.Context, r *sdk.ElicitationCompleteNotificationRequest) {
					complete <- r.Params.ElicitationID
				},
			})
			s, err := c.Connect(t.Context(), tr, &sdk.ClientSessionOptions{ProtocolVersion: mcp.ProtocolVersion20251125})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, err = s.CallTool(t.Context(), &sdk.CallToolParams{Name: "refuse"})
			bad, ok := errors.AsType[*jsonrpc.Error](err)
			if !ok || bad.Code != sdk.CodeURLElicitationRequired || !strings.Contains(string(bad.Data), `"url":"https://console.example/approvals/acme/apr-1"`) {
				t.Fatalf("%v", err)
			}
			d.set(func() { d.refusal = nil }) // a human agrees
			close(decided)
			if id := get(t, "word", complete); id != "apr-1" {
				t.Error(id)
			}
			if out, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "refuse"}); err != nil || out.IsError {
				t.Errorf("%+v %v", out, err)
			}
		})
	}
}
