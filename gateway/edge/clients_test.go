package edge

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	goclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/gateway"
)

// An agent is a client not written by us, in one era, over one transport.
type agent struct {
	list     func(context.Context) ([]string, error)
	call     func(ctx context.Context, name string, args map[string]any, progress bool) (text string, isError bool, err error)
	progress chan float64
	changed  chan struct{}
	close    func() error
	silent   bool // does not say that it cancels, and only hangs up
}

// agents connects every client in every era over HTTP and stdio.
func agents(t *testing.T, each func(t *testing.T, d *door, a *agent)) {
	for _, over := range []string{"http", "stdio"} {
		for _, era := range []string{mcp.ProtocolVersion20251125, modern} {
			for _, lib := range []string{"mcp-go", "go-sdk"} {
				t.Run(lib+"/"+era+"/"+over, func(t *testing.T) {
					d := open(t)
					connect := mcpGo
					if lib == "go-sdk" {
						connect = goSDK
					}
					a := connect(t, d, era, over)
					each(t, d, a)
					if err := a.close(); err != nil && !errors.Is(err, io.ErrClosedPipe) {
						t.Errorf("close: %v", err)
					}
				})
			}
		}
	}
}

// pipes starts ServeStdio as alice and returns the agent's ends.
func pipes(t *testing.T, d *door) (io.ReadCloser, io.WriteCloser) {
	fromAgent, toEdge := io.Pipe()
	fromEdge, toAgent := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- d.edge.ServeStdio(context.Background(), fromAgent, toAgent, gateway.Credential{Bearer: gateway.NewSecret("alice")})
		toAgent.Close()
	}()
	t.Cleanup(func() {
		toEdge.Close()
		fromEdge.Close()
		err := get(t, "end of stdio", served)
		if err != nil && d.shut.Load() && errors.Is(err, errShutdown) {
			return // the test shut the door while the agent was there
		}
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("ServeStdio: %v", err)
		}
	})
	return fromEdge, toEdge
}

func mcpGo(t *testing.T, d *door, era, over string) *agent {
	var tr transport.Interface
	var err error
	if over == "stdio" {
		r, w := pipes(t, d)
		tr = transport.NewIO(r, w, io.NopCloser(strings.NewReader("")))
	} else {
		opts := []transport.StreamableHTTPCOption{transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer alice"})}
		if era != modern {
			//lint:ignore SA1019 what clients of that era do
			opts = append(opts, transport.WithContinuousListening())
		}
		if tr, err = transport.NewStreamableHTTP(d.url+"/mcp", opts...); err != nil {
			t.Fatal(err)
		}
	}
	c := goclient.NewClient(tr, goclient.WithProtocolVersion(era))
	a := &agent{progress: make(chan float64, 16), changed: make(chan struct{}, 16), close: c.Close, silent: era != modern && over == "http"}
	c.OnNotification(func(n mcp.JSONRPCNotification) {
		switch n.Method {
		case "notifications/progress":
			v, _ := n.Params.AdditionalFields["progress"].(float64)
			a.progress <- v
		case mcp.MethodNotificationToolsListChanged:
			a.changed <- struct{}{}
		}
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var in mcp.InitializeRequest
	in.Params.ProtocolVersion = era
	in.Params.ClientInfo = mcp.Implementation{Name: "t", Version: "1"}
	out, err := c.Initialize(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if c.ProtocolVersion() != era {
		t.Fatalf("speaks %s, want %s", c.ProtocolVersion(), era)
	}
	if out.Instructions != "be kind" || out.Capabilities.Tools == nil || !out.Capabilities.Tools.ListChanged || out.Capabilities.Resources == nil || !out.Capabilities.Resources.Subscribe || out.Capabilities.Prompts == nil || out.Capabilities.Completions == nil || out.Capabilities.Logging == nil || (out.Capabilities.Extensions != nil) != (era == modern) {
		t.Errorf("says of itself: %+v", out)
	}
	if era == modern {
		stop, err := c.ListenAsync(context.Background(), mcp.SubscriptionFilter{ToolsListChanged: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		a.close = func() error { stop(); return c.Close() }
	}
	a.list = func(ctx context.Context) (names []string, err error) {
		out, err := c.ListTools(ctx, mcp.ListToolsRequest{})
		if err != nil {
			return nil, err
		}
		for _, t := range out.Tools {
			names = append(names, t.Name)
		}
		return names, nil
	}
	a.call = func(ctx context.Context, name string, args map[string]any, progress bool) (string, bool, error) {
		in := mcp.CallToolRequest{}
		in.Params.Name, in.Params.Arguments = name, args
		if progress {
			in.Params.Meta = &mcp.Meta{ProgressToken: "tok"}
		}
		out, err := c.CallTool(ctx, in)
		if err != nil {
			return "", false, err
		}
		return out.Content[0].(mcp.TextContent).Text, out.IsError, nil
	}
	return a
}

type bearer struct{ token string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

func goSDK(t *testing.T, d *door, era, over string) *agent {
	var tr sdk.Transport
	if over == "stdio" {
		r, w := pipes(t, d)
		tr = &sdk.IOTransport{Reader: r, Writer: w}
	} else {
		tr = &sdk.StreamableClientTransport{Endpoint: d.url + "/mcp", HTTPClient: &http.Client{Transport: bearer{"alice"}}}
	}
	a := &agent{progress: make(chan float64, 16), changed: make(chan struct{}, 16)}
	c := sdk.NewClient(&sdk.Implementation{Name: "t", Version: "1"}, &sdk.ClientOptions{
		Capabilities:                &sdk.ClientCapabilities{},
		ToolListChangedHandler:      func(context.Context, *sdk.ToolListChangedRequest) { a.changed <- struct{}{} },
		ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) { a.progress <- r.Params.Progress },
	})
	s, err := c.Connect(t.Context(), tr, &sdk.ClientSessionOptions{ProtocolVersion: era})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.InitializeResult().ProtocolVersion; got != era {
		t.Fatalf("speaks %s, want %s", got, era)
	}
	a.close = s.Close
	a.list = func(ctx context.Context) (names []string, err error) {
		for t, err := range s.Tools(ctx, nil) {
			if err != nil {
				return nil, err
			}
			names = append(names, t.Name)
		}
		return names, nil
	}
	a.call = func(ctx context.Context, name string, args map[string]any, progress bool) (string, bool, error) {
		in := &sdk.CallToolParams{Name: name, Arguments: args}
		if progress {
			in.SetProgressToken("tok")
		}
		out, err := s.CallTool(ctx, in)
		if err != nil {
			return "", false, err
		}
		return out.Content[0].(*sdk.TextContent).Text, out.IsError, nil
	}
	return a
}

func TestClientsListAndCall(t *testing.T) {
	agents(t, func(t *testing.T, d *door, a *agent) {
		names, err := a.list(t.Context())
		if err != nil || strings.Join(names, " ") != "echo hold raw refuse steps region" {
			t.Fatalf("list: %v %v", names, err)
		}
		text, isError, err := a.call(t.Context(), "echo", map[string]any{"n": 12}, false)
		if err != nil || isError || text != `{"n":12}` {
			t.Fatalf("call: %q %v %v", text, isError, err)
		}
		// A client that mirrors arguments into headers is understood.
		if text, _, err = a.call(t.Context(), "region", map[string]any{"region": "eu"}, false); err != nil || text != `{"region":"eu"}` {
			t.Fatalf("call with a mirrored argument: %q %v", text, err)
		}
		if _, _, err = a.call(t.Context(), "nope", nil, false); err == nil || !strings.Contains(err.Error(), "Unknown tool") {
			t.Errorf("an unknown tool: %v", err)
		}
		d.refusal = &gateway.Refusal{Code: gateway.Denied, Say: "not on this task", CallID: "call-9"}
		text, isError, err = a.call(t.Context(), "refuse", nil, false)
		if err != nil || !isError || text != "DENIED: not on this task (call-9)" {
			t.Errorf("a denied call: %q %v %v", text, isError, err)
		}
		d.set(func() { d.ended["task-a"] = true })
		text, isError, err = a.call(t.Context(), "echo", nil, false)
		if err != nil || !isError || !strings.HasPrefix(text, "NO_TASK: ") {
			t.Errorf("after the task: %q %v %v", text, isError, err)
		}
		d.set(func() { d.ended["task-a"] = false })
	})
}

func TestClientsSeeProgressGrow(t *testing.T) {
	agents(t, func(t *testing.T, d *door, a *agent) {
		if _, _, err := a.call(t.Context(), "steps", nil, true); err != nil {
			t.Fatal(err)
		}
		last := 0.0
		for range 5 {
			v := get(t, "progress", a.progress)
			if v <= last {
				t.Errorf("progress %v after %v", v, last)
			}
			last = v
		}
		if last != 9 {
			t.Errorf("ends at %v", last)
		}
		// Without a token there is nothing to say.
		if _, _, err := a.call(t.Context(), "steps", nil, false); err != nil {
			t.Fatal(err)
		}
		if len(a.progress) != 0 {
			t.Error("progress that was not asked for")
		}
	})
}

func TestClientsCancel(t *testing.T) {
	agents(t, func(t *testing.T, d *door, a *agent) {
		for _, progress := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				_, _, err := a.call(ctx, "hold", nil, progress)
				failed <- err
			}()
			get(t, "held call", d.holding)
			cancel()
			if err := get(t, "client's error", failed); err == nil {
				t.Error("the cancelled call came back")
			}
			if a.silent { // its call goes on, until its session ends
				d.edge.local.mu.Lock()
				sid := slices.Collect(maps.Keys(d.edge.local.sessions))[0]
				d.edge.local.mu.Unlock()
				d.edge.local.end(sid)
			}
			get(t, "end of the call's context", d.ended1)
		}
		// The connection is still good.
		if _, _, err := a.call(t.Context(), "echo", nil, false); err != nil {
			t.Error(err)
		}
	})
}

func TestClientsHearOfChangedTools(t *testing.T) {
	agents(t, func(t *testing.T, d *door, a *agent) {
		waitFor(t, "a listener", func() bool { d.change(gateway.SortTool); return len(a.changed) > 0 })
		get(t, "tools changed", a.changed)
	})
}

// waitFor polls where the other side gives no event to wait for.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		for !ok() {
			select {
			case <-t.Context().Done():
				return
			case <-tick():
			}
		}
		close(done)
	}()
	get(t, what, done)
}

func TestModernSubscriptionCarriesItsID(t *testing.T) {
	d := open(t)
	r, w := pipes(t, d)
	lines := json.NewDecoder(r)
	send := func(s string) { go io.WriteString(w, s+"\n") }
	send(`{"jsonrpc":"2.0","id":"sub-1","method":"subscriptions/listen","params":{` + modernMeta("") + `,"notifications":{"toolsListChanged":true}}}`)
	for _, method := range []string{"notifications/subscriptions/acknowledged", "notifications/tools/list_changed"} {
		var n struct {
			Method string
			Params struct {
				Meta map[string]any `json:"_meta"`
			}
		}
		if err := lines.Decode(&n); err != nil || n.Method != method || n.Params.Meta[mcp.MetaKeySubscriptionID] != "sub-1" {
			t.Fatalf("%+v %v, want %s", n, err, method)
		}
		if method == "notifications/subscriptions/acknowledged" {
			d.change(gateway.SortTool)
		}
	}
	// It can be cancelled, and is then not answered: the next line answers what is asked after it.
	send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"sub-1"}}` + "\n" +
		`{"jsonrpc":"2.0","id":2,"method":"ping"}`)
	var pong struct{ ID any }
	if err := lines.Decode(&pong); err != nil || pong.ID != 2.0 {
		t.Fatalf("%+v %v", pong, err)
	}
}
