//lint:file-ignore SA1019 roots, sampling and logging are deprecated, and relayed all the same.

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

var update = flag.Bool("update", false, "write docs/eras.md")

// What agents may do to the two servers of the matrix, and what those may ask back.
const eraRows = `
p, agent:a, acme, work, */guarded,   call,      , approve
p, agent:a, acme, work, modern/**,   call,      , allow
p, agent:a, acme, work, legacy/**,   call,      , allow
p, agent:a, acme, work, jobs/**,     call,      , allow
p, agent:a, acme, work, tasks/**,    call,      , allow
p, agent:a, acme, work, modern/**,   read,      , allow
p, agent:a, acme, work, legacy/**,   read,      , allow
p, agent:a, acme, work, modern/**,   subscribe, , allow
p, agent:a, acme, work, legacy/**,   subscribe, , allow
p, agent:a, acme, work, modern/**,   get,       , allow
p, agent:a, acme, work, legacy/**,   get,       , allow
p, agent:a, acme, work, modern/**,   complete,  , allow
p, agent:a, acme, work, legacy/**,   complete,  , allow
p, agent:a, acme, work, modern/**,   elicit,    , allow
p, agent:a, acme, work, legacy/**,   elicit,    , allow
p, agent:a, acme, work, modern/**,   sample,    , allow
p, agent:a, acme, work, legacy/**,   sample,    , allow
p, agent:a, acme, work, modern/**,   roots,     , allow
p, agent:a, acme, work, legacy/**,   roots,     , allow
p, agent:a, acme, work, also-*/**,   *,         , allow
p, agent:*, *,    *,    task:work,   start,     , allow
`

// A pair is a client of one era before a server of one.
type pair struct {
	h              *House
	token          string
	client, server string     // eras
	prefix         string     // of the server's names; empty where there is no gateway between
	fixture        *eraServer // the server
	s              *sdk.ClientSession
	c              *sdk.Client
	progress, logs chan string
	updated        chan string
}

func (p *pair) modernServer() bool { return p.server >= "2026" }

// tool calls one of the server's and says what came of it.
func (p *pair) tool(ctx context.Context, name string, meta sdk.Meta) (*sdk.CallToolResult, error) {
	return p.s.CallTool(ctx, &sdk.CallToolParams{Name: p.name(name), Arguments: map[string]any{"v": 1}, Meta: meta})
}

// name and uri are the server's own, as the client sees them.
func (p *pair) name(own string) string {
	if p.prefix == "" {
		return own
	}
	return p.prefix + "__" + own
}

func (p *pair) uri(own string) string {
	if p.prefix == "" {
		return own
	}
	return p.prefix + "+" + own
}

// said is what a result or an error says, with nothing in it that differs from run to run.
func said(out *sdk.CallToolResult, err error) string {
	if err != nil {
		var e *jsonrpc.Error
		if errors.As(err, &e) {
			return plain(fmt.Sprintf("error %d: %s", e.Code, e.Message))
		}
		return plain(err.Error())
	}
	var lines []string
	for _, c := range out.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			lines = append(lines, t.Text)
		}
	}
	return plain(strings.Join(lines, " "))
}

var varying = regexp.MustCompile(` \(call-\w+\)|\bapr_[\w-]+|\d\d:\d\d(:\d\d)?Z?|http://127\.0\.0\.1:\d+`)

func plain(s string) string {
	return strings.Join(strings.Fields(varying.ReplaceAllString(s, "")), " ")
}

// no is a cell that says how it does not work.
func no(how string) string {
	if len(how) > 160 {
		how = how[:160] + "…"
	}
	return "no: `" + strings.ReplaceAll(strings.ReplaceAll(how, "`", "'"), "|", "/") + "`"
}

const (
	works = "works"
	none  = "the server has none"
)

// wants is a cell for a tool that should say something.
func (p *pair) wants(ctx context.Context, name, want string) string {
	out, err := p.tool(ctx, name, nil)
	if got := said(out, err); err != nil || out.IsError || got != want {
		return no(got)
	}
	return works
}

// A feature is a row of the matrix.
type feature struct {
	name string
	try  func(ctx context.Context, t *testing.T, p *pair) string
}

var features = []feature{
	{"tools", func(ctx context.Context, _ *testing.T, p *pair) string { return p.wants(ctx, "echo", `{"v":1}`) }},
	{"structured output", func(ctx context.Context, _ *testing.T, p *pair) string {
		out, err := p.tool(ctx, "count", nil)
		if err != nil || out.IsError {
			return no(said(out, err))
		}
		if b, _ := json.Marshal(out.StructuredContent); string(b) != `{"n":3}` {
			return no(string(b))
		}
		return works
	}},
	{"progress", func(ctx context.Context, _ *testing.T, p *pair) string {
		out, err := p.tool(ctx, "progress", sdk.Meta{"progressToken": "mine"})
		if err != nil || out.IsError {
			return no(said(out, err))
		}
		for i := range 3 {
			select {
			case got := <-p.progress:
				if got != fmt.Sprint("mine ", i+1, "/3") {
					return no(got)
				}
			case <-ctx.Done():
				return no("not told")
			}
		}
		return works
	}},
	{"logging", func(ctx context.Context, _ *testing.T, p *pair) string {
		var meta sdk.Meta
		if p.client >= "2026" {
			meta = sdk.Meta{sdk.MetaKeyLogLevel: "info"}
		} else if err := p.s.SetLoggingLevel(ctx, &sdk.SetLoggingLevelParams{Level: "info"}); err != nil {
			return no(said(nil, err))
		}
		out, err := p.tool(ctx, "log", meta)
		if err != nil || out.IsError {
			return no(said(out, err))
		}
		return heard(ctx, p.logs, "heard")
	}},
	{"logging, when no call runs", func(ctx context.Context, _ *testing.T, p *pair) string {
		if p.modernServer() {
			return none
		}
		if out, err := p.tool(ctx, "log_later", nil); err != nil || out.IsError {
			return no(said(out, err))
		}
		some, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return heard(some, p.logs, "heard later")
	}},
	{"one session, whatever is asked in it", func(ctx context.Context, _ *testing.T, p *pair) string {
		if p.modernServer() {
			return none
		}
		if out, err := p.tool(ctx, "keep", nil); err != nil || out.IsError {
			return no(said(out, err))
		}
		if p.client < "2026" {
			if err := p.s.SetLoggingLevel(ctx, &sdk.SetLoggingLevelParams{Level: "error"}); err != nil {
				return no(said(nil, err))
			}
		}
		return p.wants(ctx, "kept", "kept")
	}},
	{"cancellation", func(ctx context.Context, t *testing.T, p *pair) string {
		one, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			// A mark of its own: the same call under the same number, by another client of the
			// same workload, would be taken for a repeated one.
			out, err := p.s.CallTool(one, &sdk.CallToolParams{Name: p.name("hang"), Arguments: map[string]any{"by": p.client}})
			if err == nil && out.IsError {
				t.Log(said(out, nil))
			}
			done <- err
		}()
		time.AfterFunc(500*time.Millisecond, cancel)
		if err := <-done; err == nil {
			return no("the call ended well")
		}
		var stopped chan struct{} // of one that is a program: none
		if p.fixture != nil {
			stopped = p.fixture.stopped
		}
		for {
			select {
			case <-stopped:
				return works
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return no("the server was not told")
			}
			if p.fixture == nil && p.wants(ctx, "stopped", "stopped") == works {
				return works
			}
		}
	}},
	{"resources", func(ctx context.Context, _ *testing.T, p *pair) string {
		return p.reads(ctx, "eras://one", func() (uris []string, err error) {
			for r, err := range p.s.Resources(ctx, nil) {
				if err != nil {
					return nil, err
				}
				uris = append(uris, r.URI)
			}
			return uris, nil
		}, p.uri("eras://one"))
	}},
	{"resource templates", func(ctx context.Context, _ *testing.T, p *pair) string {
		return p.reads(ctx, "eras://many/7", func() (uris []string, err error) {
			for r, err := range p.s.ResourceTemplates(ctx, nil) {
				if err != nil {
					return nil, err
				}
				uris = append(uris, r.URITemplate)
			}
			return uris, nil
		}, p.uri("eras://many/{id}"))
	}},
	{"subscriptions", func(ctx context.Context, t *testing.T, p *pair) string {
		if err := p.s.Subscribe(ctx, &sdk.SubscribeParams{URI: p.uri("eras://one")}); err != nil {
			return no(said(nil, err))
		}
		defer p.s.Unsubscribe(ctx, &sdk.UnsubscribeParams{URI: p.uri("eras://one")})
		// A subscription holds somewhat later than its answer: touch until it is heard.
		for {
			if out, err := p.tool(ctx, "touch", nil); err != nil || out.IsError {
				return no(said(out, err))
			}
			select {
			case got := <-p.updated:
				if got != p.uri("eras://one") {
					return no(got)
				}
				return works
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return no("not told")
			}
		}
	}},
	{"prompts", func(ctx context.Context, _ *testing.T, p *pair) string {
		out, err := p.s.GetPrompt(ctx, &sdk.GetPromptParams{Name: p.name("greet"), Arguments: map[string]string{"who": "Ada"}})
		return prompted(out, err, "hello Ada")
	}},
	{"completion", func(ctx context.Context, _ *testing.T, p *pair) string {
		out, err := p.s.Complete(ctx, &sdk.CompleteParams{Ref: &sdk.CompleteReference{Type: "ref/prompt", Name: p.name("greet")}, Argument: sdk.CompleteParamsArgument{Name: "who", Value: "A"}})
		if err != nil {
			return no(said(nil, err))
		}
		if !slices.Equal(out.Completion.Values, []string{"Ax"}) {
			return no(fmt.Sprint(out.Completion.Values))
		}
		return works
	}},
	{"elicitation, by form", func(ctx context.Context, _ *testing.T, p *pair) string { return p.wants(ctx, "ask_form", "accept Ada") }},
	{"elicitation, by URL", func(ctx context.Context, _ *testing.T, p *pair) string { return p.wants(ctx, "ask_url", "accept") }},
	{"sampling", func(ctx context.Context, _ *testing.T, p *pair) string { return p.wants(ctx, "ask_sample", "sampled") }},
	{"roots", func(ctx context.Context, _ *testing.T, p *pair) string {
		return p.wants(ctx, "ask_roots", "file:///roots/one")
	}},
	{"roots, when no call runs", func(ctx context.Context, _ *testing.T, p *pair) string {
		if p.modernServer() {
			return none
		}
		p.c.AddRoots(&sdk.Root{URI: "file:///roots/two", Name: "two"})
		defer p.c.RemoveRoots("file:///roots/two")
		some, cancel := context.WithTimeout(ctx, 4*time.Second)
		defer cancel()
		for {
			got := p.wants(ctx, "root", "file:///roots/two")
			if got == works {
				return got
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-some.Done():
				return no("not asked")
			}
		}
	}},
	{"a prompt in rounds (MRTR)", func(ctx context.Context, _ *testing.T, p *pair) string {
		if !p.modernServer() {
			return none
		}
		out, err := p.s.GetPrompt(ctx, &sdk.GetPromptParams{Name: p.name("rounds")})
		return prompted(out, err, "two Ada Ada")
	}},
	{"the tasks extension", func(ctx context.Context, t *testing.T, p *pair) string {
		if !p.modernServer() {
			return none
		}
		c := newRaw(t, p.h.MCP, p.token, p.client, `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
		a, err := c.do(ctx, "tools/call", `{"name":"jobs__failing_job","arguments":{}}`)
		if err != nil {
			return no(err.Error())
		}
		id := a.handle()
		if id == "" {
			return no(plain(a.text()))
		}
		return c.until(ctx, id, "the job failed, as it always does")
	}},
	{"a tool that runs as a task (2025-11-25)", func(ctx context.Context, _ *testing.T, p *pair) string {
		if p.modernServer() {
			return "the server has none"
		}
		out, err := p.s.CallTool(ctx, &sdk.CallToolParams{Name: "tasks__research"})
		if got := said(out, err); err != nil || out.IsError || got != "found" {
			return no(got)
		}
		return works
	}},
	{"a page first, by the server's error (-32042)", func(ctx context.Context, t *testing.T, p *pair) string {
		if p.modernServer() {
			return "the server has none"
		}
		return p.page(ctx, t)
	}},
	{"an approval, and the client takes tasks", func(ctx context.Context, t *testing.T, p *pair) string {
		return p.approval(ctx, t, `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
	}},
	{"an approval, and the client opens URLs", func(ctx context.Context, t *testing.T, p *pair) string {
		return p.approval(ctx, t, `{"elicitation":{"url":{}}}`)
	}},
	{"an approval, and the client does neither", func(ctx context.Context, t *testing.T, p *pair) string {
		return p.approval(ctx, t, `{}`)
	}},
}

func heard(ctx context.Context, from chan string, want string) string {
	select {
	case got := <-from:
		if got != want {
			return no(got)
		}
		return works
	case <-ctx.Done():
		return no("not told")
	}
}

// reads lists, and reads what the server calls own.
func (p *pair) reads(ctx context.Context, own string, list func() ([]string, error), want string) string {
	uris, err := list()
	if err != nil {
		return no(said(nil, err))
	}
	if !slices.Contains(uris, want) {
		return no(fmt.Sprint("the list has ", uris))
	}
	out, err := p.s.ReadResource(ctx, &sdk.ReadResourceParams{URI: p.uri(own)})
	if err != nil {
		return no(said(nil, err))
	}
	if len(out.Contents) != 1 || out.Contents[0].Text != "text of "+own || out.Contents[0].URI != p.uri(own) {
		b, _ := json.Marshal(out.Contents)
		return no(string(b))
	}
	return works
}

func prompted(out *sdk.GetPromptResult, err error, want string) string {
	if err != nil {
		return no(said(nil, err))
	}
	if len(out.Messages) != 1 {
		return no("no message")
	}
	if got := out.Messages[0].Content.(*sdk.TextContent).Text; got != want {
		return no(got)
	}
	return works
}

// handle is the id of the task that an answer stands for, or "".
func (a rpcAnswer) handle() string {
	var r struct{ ResultType, TaskID string }
	if json.Unmarshal(a.Result, &r) != nil || r.ResultType != "task" {
		return ""
	}
	return r.TaskID
}

// until asks for a task until it is over.
func (c *raw) until(ctx context.Context, id, want string) string {
	for {
		a, err := c.do(ctx, "tasks/get", fmt.Sprintf(`{"taskId":%q}`, id))
		if err != nil {
			return no(err.Error())
		}
		var r struct {
			Status string
			Result json.RawMessage
		}
		if a.Error != nil || json.Unmarshal(a.Result, &r) != nil {
			return no(plain(a.text()))
		}
		switch r.Status {
		case "working":
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return no("still working")
			}
			continue
		case "completed":
			if got := (rpcAnswer{Result: r.Result}).text(); got != want {
				return no(got)
			}
			return works
		}
		return no(r.Status)
	}
}

// approval calls what a human must agree to, has one agree, and goes on as a client
// of these capabilities does.
func (p *pair) approval(ctx context.Context, t *testing.T, caps string) string {
	c := newRaw(t, p.h.MCP, p.token, p.client, caps)
	name := p.name("guarded")
	args := fmt.Sprintf(`{"for":%q}`, p.client+" "+p.server+" "+caps)
	params := fmt.Sprintf(`{"name":%q,"arguments":%s}`, name, args)
	a, err := c.do(ctx, "tools/call", params)
	if err != nil {
		return no(err.Error())
	}
	bob := p.h.Login("bob")
	if all := p.h.Approvals(bob); !slices.ContainsFunc(all, func(a Approval) bool { return a.State == "pending" }) {
		return no("nobody was asked: " + plain(a.text()))
	}
	if code := p.h.Vote(bob, p.h.Pending(bob), true); code != 200 {
		return no(fmt.Sprint("vote: ", code))
	}
	var r struct {
		ResultType, RequestState string
		IsError                  bool
		InputRequests            map[string]struct {
			Method string
			Params struct{ Mode, URL string }
		}
	}
	json.Unmarshal(a.Result, &r)
	var step, then string
	again := func(params string) string {
		a, err := c.do(ctx, "tools/call", params)
		if err != nil {
			return no(err.Error())
		}
		if a.text() != "done" {
			return no(plain(a.text()))
		}
		return works
	}
	switch {
	case a.handle() != "":
		step, then = "a task", c.until(ctx, a.handle(), "done")
	case r.ResultType == "input_required":
		step = "a URL, in a round"
		answers := []string{}
		for key, in := range r.InputRequests {
			if in.Method != "elicitation/create" || in.Params.Mode != "url" || !strings.HasPrefix(in.Params.URL, p.h.Console) {
				return no(plain(string(a.Result)))
			}
			answers = append(answers, fmt.Sprintf(`%q:{"action":"accept"}`, key))
		}
		then = again(fmt.Sprintf(`{"name":%q,"arguments":%s,"requestState":%q,"inputResponses":{%s}}`, name, args, r.RequestState, strings.Join(answers, ",")))
	case a.Error != nil && a.Error.Code == -32042:
		if !strings.Contains(string(a.Error.Data), p.h.Console) {
			return no(plain(a.Body))
		}
		step, then = "a URL, by -32042", again(params)
	case r.IsError && strings.Contains(a.text(), "PENDING_APPROVAL"):
		step, then = "`PENDING_APPROVAL`, and the same call again", again(params)
	default:
		return no(plain(a.text()))
	}
	if then != works {
		return step + "; then " + then
	}
	return step
}

// page calls what wants a page to be opened first, and goes on as a client does that
// opens it.
func (p *pair) page(ctx context.Context, t *testing.T) string {
	c := newRaw(t, p.h.MCP, p.token, p.client, `{"elicitation":{"form":{},"url":{}}}`)
	params := fmt.Sprintf(`{"name":%q,"arguments":{"for":%q}`, p.name("page"), p.client)
	const url = "https://example.com/open"
	a, err := c.do(ctx, "tools/call", params+"}")
	if err != nil {
		return no(err.Error())
	}
	var r struct {
		ResultType, RequestState string
		InputRequests            map[string]struct{ Params struct{ Mode, URL string } }
	}
	json.Unmarshal(a.Result, &r)
	step := "a URL, by -32042"
	switch {
	case r.ResultType == "input_required" && len(r.InputRequests) == 1:
		step = "a URL, in a round"
		for key, in := range r.InputRequests {
			if in.Params.Mode != "url" || in.Params.URL != url {
				return no(plain(string(a.Result)))
			}
			params += fmt.Sprintf(`,"requestState":%q,"inputResponses":{%q:{"action":"accept"}}`, r.RequestState, key)
		}
	case a.Error == nil || a.Error.Code != -32042 || !strings.Contains(string(a.Error.Data), url):
		return no(plain(a.text()))
	}
	if a, err = c.do(ctx, "tools/call", params+"}"); err != nil || a.text() != "done" {
		return no(plain(a.text()))
	}
	return step
}

// meet connects a client of an era to the gateway, for one of the servers.
func meet(t *testing.T, url, token, client, server, prefix string, e *eraServer) *pair {
	t.Helper()
	p := &pair{token: token, client: client, server: server, prefix: prefix, fixture: e,
		progress: make(chan string, 64), logs: make(chan string, 64), updated: make(chan string, 64)}
	c := sdk.NewClient(&sdk.Implementation{Name: "eras", Version: "1"}, &sdk.ClientOptions{
		Capabilities: &sdk.ClientCapabilities{RootsV2: &sdk.RootCapabilities{ListChanged: true}, Elicitation: &sdk.ElicitationCapabilities{Form: &sdk.FormElicitationCapabilities{}, URL: &sdk.URLElicitationCapabilities{}}},
		ElicitationHandler: func(_ context.Context, r *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			if r.Params.Mode == "url" {
				return &sdk.ElicitResult{Action: "accept"}, nil
			}
			return &sdk.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
		},
		CreateMessageHandler: func(context.Context, *sdk.CreateMessageRequest) (*sdk.CreateMessageResult, error) {
			return &sdk.CreateMessageResult{Content: &sdk.TextContent{Text: "sampled"}, Role: "assistant", Model: "m"}, nil
		},
		ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) {
			p.progress <- fmt.Sprint(r.Params.ProgressToken, " ", r.Params.Progress, "/", r.Params.Total)
		},
		LoggingMessageHandler: func(_ context.Context, r *sdk.LoggingMessageRequest) { p.logs <- fmt.Sprint(r.Params.Data) },
		ResourceUpdatedHandler: func(_ context.Context, r *sdk.ResourceUpdatedNotificationRequest) {
			select {
			case p.updated <- r.Params.URI:
			default:
			}
		},
	})
	c.AddRoots(&sdk.Root{URI: "file:///roots/one", Name: "one"})
	s, err := c.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: withToken{token}}}, &sdk.ClientSessionOptions{ProtocolVersion: client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if got := s.InitializeResult().ProtocolVersion; got != client {
		t.Fatalf("speaks %s, not %s", got, client)
	}
	p.s, p.c = s, c
	return p
}

var (
	clientEras = []string{"2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26"}
	serverEras = []string{"2026-07-28", "2025-11-25"}
)

// Servers that one client is put before, the newest that has sessions: of older
// revisions, each with what it has, and over other transports.
var alsoServers = []struct {
	name, title, version string
	program              bool
}{
	{"also-june", "2025-06-18", "2025-06-18", false},
	{"also-march", "2025-03-26", "2025-03-26", false},
	{"also-sse", "2024-11-05, over HTTP+SSE", sseRevision, false},
	{"also-program", "2025-11-25, a program", "2025-11-25", true},
	{"also-modern-program", "2026-07-28, a program", "2026-07-28", true},
}

const alsoClient = "2025-11-25"

// also says which features are tried there: not what is between the gateway and the
// client alone, nor what takes another fixture.
func also(f feature) bool {
	return !strings.Contains(f.name, "approval") && !strings.Contains(f.name, "task")
}

// TestEraMatrix tries each feature for each era of clients before each era of
// servers, and holds docs/eras.md to what it finds; -update writes that file.
func TestEraMatrix(t *testing.T) {
	store := redis(t)
	modern, legacy := newEraServer(t, true), newEraServer(t, false)
	servers := fmt.Sprintf(`
  - {name: modern, url: %q, protocol: modern}
  - {name: legacy, url: %q, protocol: legacy}
  - {name: jobs, url: %q}
  - {name: tasks, url: %q, protocol: legacy}
`, modern.url, legacy.url, sampleJobs(t), newTaskServer(t))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shown, others := []string{"modern__echo", "legacy__echo", "jobs__greet", "tasks__research"}, map[string]*eraServer{}
	for _, s := range alsoServers {
		if shown = append(shown, s.name+"__echo"); s.program {
			servers += fmt.Sprintf("  - {name: %s, command: %s, args: [-test.run, ^TestAsEraServer$], env: {%s: %q, %s: %s}}\n", s.name, self, asEraServer, s.version, builtBinary, binary)
			continue
		}
		others[s.name] = eraServerOf(t, s.version)
		servers += fmt.Sprintf("  - {name: %s, url: %q}\n", s.name, others[s.name].url)
	}
	h := newHouse(t, Options{Redis: store, Policy: eraRows, Approvals: "{hold: 1s}", Servers: servers})
	_, token := h.Task("agent:a")
	for _, tool := range shown {
		h.shows(token, tool)
	}
	var doc strings.Builder
	doc.WriteString(erasText)
	for _, server := range serverEras {
		prefix, fixture := "legacy", legacy
		if server >= "2026" {
			prefix, fixture = "modern", modern
		}
		pairs := []*pair{}
		for _, client := range clientEras {
			p := meet(t, h.MCP, token, client, server, prefix, fixture)
			p.h = h
			pairs = append(pairs, p)
		}
		fmt.Fprintf(&doc, "\n## Before a server of %s\n\n| | client of %s |\n|---|%s\n", server, strings.Join(clientEras, " | "), strings.Repeat("---|", len(clientEras)))
		for _, f := range features {
			fmt.Fprintf(&doc, "| %s |", f.name)
			for _, p := range pairs {
				cell := func() string {
					ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
					defer cancel()
					return f.try(ctx, t, p)
				}()
				t.Logf("%s, client of %s, server of %s: %s", f.name, p.client, server, cell)
				fmt.Fprintf(&doc, " %s |", cell)
			}
			doc.WriteString("\n")
		}
	}
	var head, row strings.Builder
	cells := map[string]string{}
	for _, s := range alsoServers {
		fmt.Fprintf(&head, " %s |", s.title)
		p := meet(t, h.MCP, token, alsoClient, s.version, s.name, others[s.name])
		p.h = h
		for _, f := range features {
			if !also(f) {
				continue
			}
			cell := none
			if !lacks(f.name, s.version) {
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				cell = f.try(ctx, t, p)
				cancel()
			}
			t.Logf("%s, server %s: %s", f.name, s.title, cell)
			cells[f.name] += " " + cell + " |"
		}
	}
	for _, f := range features {
		if also(f) {
			fmt.Fprintf(&row, "| %s |%s\n", f.name, cells[f.name])
		}
	}
	fmt.Fprintf(&doc, alsoText, alsoClient, head.String(), strings.Repeat("---|", len(alsoServers)), row.String())
	file := filepath.Join("..", "..", "..", "docs", "eras.md")
	if *update {
		write(t, file, doc.String())
		os.Chmod(file, 0o644)
		return
	}
	if got := readFile(t, file); got != doc.String() {
		t.Errorf("docs/eras.md says otherwise; go test ./cmd/toolbroker/e2e -run TestEraMatrix -update writes it.\n%s", differ(got, doc.String()))
	}
	h.Stop()
	h.Verify()
}

// Without a gateway between, a client and a server of one era do all of it: a cell
// that says no is not theirs.
func TestEraServers(t *testing.T) {
	for _, era := range append(slices.Clone(serverEras), "2025-06-18", "2025-03-26") {
		e := eraServerOf(t, era)
		p := meet(t, e.url, "none", era, era, "", e)
		for _, f := range features {
			if strings.Contains(f.name, "approval") || strings.Contains(f.name, "task") || strings.Contains(f.name, "-32042") || strings.Contains(f.name, "rounds") && !p.modernServer() || lacks(f.name, era) {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			if got := f.try(ctx, t, p); got != works && got != none {
				t.Errorf("%s in %s: %s", f.name, era, got)
			}
			cancel()
		}
	}
}

// differ shows the lines that are in one and not in the other.
func differ(old, now string) string {
	var b strings.Builder
	a, c := strings.Split(old, "\n"), strings.Split(now, "\n")
	for _, l := range a {
		if !slices.Contains(c, l) {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range c {
		if !slices.Contains(a, l) {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}

const alsoText = `
## Before older servers, and over other transports

A client of %s, before servers that negotiate no other revision than the one named and have what it has, and before programs (stdio). What the other tables have and this one has not is between the gateway and its client, whatever the server, or of the two newest revisions.

| | server of%s
|---|%s
%s`

const erasText = `# Eras: which client can do what with which server

MCP has revisions that differ in more than their numbers: up to 2025-11-25 there are sessions, and a server asks its client by requests of its own; since 2026-07-28 each request stands alone, and a server asks by an answer that says what it needs (MRTR). A client of any of them speaks to the gateway at the same address, and a server is spoken to in its own. This page is written by a test (` + "`go test ./cmd/toolbroker/e2e -run TestEraMatrix -update`" + `), which fails where it is not so any more; the clients in it are the Go SDK's, and declare all that they can do: elicitation, sampling and roots.

What stands between two eras:

- A server of 2026-07-28 that asks something of an older client: the gateway asks the client in the client's way, and calls the server again with the answer, ten times at most.
- A server of an older revision that asks something of a client of 2026-07-28: it cannot. It would have to wait for an answer within a request that is over for the client; so such a server is told that this client can be asked nothing, and the cell shows what it makes of that. Tools that it has only for clients that can be asked such a client does not see; a call of one is refused in words that say so ([servers.md](servers.md)).
- A server of an older revision also says things when it works on no call: log messages, and that it wants to see the client's roots. They reach an older client's session. A client of 2026-07-28 has none, so they are nobody's.
- A server of 2025-11-25 that wants pages to be opened before a call is made again (its error -32042): a client of 2026-07-28 with URL elicitation is asked to open them, in a round; when it says that they are open, the same call is made again, and what it answered stays here. One that comes back too early waits up to 5 s each time, and is sent six times at most. That a page is complete (` + "`notifications/elicitation/complete`" + `) such a client is not told.
- The tasks extension is of 2026-07-28. An older client is answered plainly, or told by the server that it needs it.
- The tasks of 2025-11-25 (an experiment, and another thing) are between the gateway and servers that run a tool as a task only: clients of every revision call it plainly, wait, and get its result. A client's own ` + "`params.task`" + ` is not looked at, and it is answered plainly.
- What a server asks back (elicitation, sampling, roots) is a decision like any other, denied unless a policy row allows it; these runs have such rows.
- A call that waits for a human is answered by what the client declares with it: a task, a URL to open, or, after a while, a result that says how to go on. Opening a URL approves nothing: an operator's answer does.
`
