package edge

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const tasksCap = `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`

// declaring is a modern request of a client with these capabilities.
func declaring(caps, method, name, params string) req {
	r := modernReq(method, name, params)
	r.body = strings.Replace(r.body, `"io.modelcontextprotocol/clientCapabilities":{}`, `"io.modelcontextprotocol/clientCapabilities":`+caps, 1)
	return r
}

// A call that takes long gives a handle to who takes one on that very request, and
// the gateway hears whether it may.
func TestCallsGiveHandles(t *testing.T) {
	at := time.Date(2026, 11, 25, 7, 0, 0, 123456789, time.FixedZone("", 3600))
	h := gateway.Handle{ID: "h1", Status: gateway.HandleWorking, Message: "waiting for a human", Created: at, Updated: at.Add(time.Second),
		Expires: at.Add(time.Hour), Poll: 1500 * time.Millisecond}
	d := open(t)
	d.result = gateway.Result{Type: gateway.ResultTask, Handle: &h}
	got := d.do(declaring(tasksCap, "tools/call", "raw", `"name":"raw"`))
	const want = `{"jsonrpc":"2.0","id":1,"result":{"resultType":"task","taskId":"h1","status":"working","statusMessage":"waiting for a human",` +
		`"createdAt":"2026-11-25T06:00:00.123Z","lastUpdatedAt":"2026-11-25T06:00:01.123Z","ttlMs":3600000,"pollIntervalMs":1500}}`
	if got.status != 200 || got.body != want || !d.calls[0].Later {
		t.Errorf("%d %s, %+v", got.status, got.body, d.calls[0])
	}
	// And to nobody else, whatever the gateway says.
	for name, r := range map[string]req{
		"undeclared": modernReq("tools/call", "raw", `"name":"raw"`),
		"of no size": declaring(`{"extensions":{"io.modelcontextprotocol/tasks":true}}`, "tools/call", "raw", `"name":"raw"`),
		"legacy":     req{body: call("raw", "{}")}.with(mcp.HeaderSessionID, d.sessionOf("alice", "2025-11-25", tasksCap)),
	} {
		if got := d.do(r); strings.Contains(got.body, "h1") || !strings.Contains(got.body, `"code":"downstream"`) {
			t.Errorf("%s: %s", name, got.body)
		}
		if d.calls[len(d.calls)-1].Later {
			t.Errorf("%s: the gateway hears that it takes a handle", name)
		}
	}
	if d.do(declaring(tasksCap, "prompts/get", "p", `"name":"p"`)); d.calls[len(d.calls)-1].Later {
		t.Error("a prompt may give a handle")
	}
}

func TestHandles(t *testing.T) {
	at := time.Date(2026, 11, 25, 7, 0, 0, 0, time.UTC)
	base := gateway.Handle{ID: "h1", Status: gateway.HandleWorking, Created: at, Updated: at}
	const flat = `"taskId":"h1","status":"STATUS","createdAt":"2026-11-25T07:00:00.000Z","lastUpdatedAt":"2026-11-25T07:00:00.000Z","ttlMs":null`
	for _, row := range []struct {
		name   string
		change func(h *gateway.Handle)
		caps   string
		status string
		more   string
	}{
		{"working", func(*gateway.Handle) {}, tasksCap, "working", ""},
		{"cancelled", func(h *gateway.Handle) { h.Status = gateway.HandleCancelled }, tasksCap, "cancelled", ""},
		{"completed", func(h *gateway.Handle) {
			h.Status, h.Result.Raw = gateway.HandleCompleted, []byte(`{"content":[ {"type":"text","text":"<&>"} ],"n":12345678901234567890,"_meta":{"io.modelcontextprotocol/related-task":1,"io.toolbroker/x":2}}`)
		}, tasksCap, "completed", `,"result":{"resultType":"complete","content":[ {"type":"text","text":"<&>"} ],"n":12345678901234567890}`},
		{"completed by a tool that failed", func(h *gateway.Handle) {
			h.Status, h.Result.Raw = gateway.HandleCompleted, []byte(`{"content":[],"isError":true}`)
		}, tasksCap, "completed", `,"result":{"resultType":"complete","content":[],"isError":true}`},
		{"failed", func(h *gateway.Handle) {
			h.Status, h.Result.Error = gateway.HandleFailed, []byte(`{"code":-5,"message":"m","data":{"io.toolbroker/x":1}}`)
		}, tasksCap, "failed", `,"error":{"code":-5,"message":"m","data":{}}`},
		{"failed by a refusal of ours", func(h *gateway.Handle) {
			h.Status, h.Refused = gateway.HandleFailed, true
			h.Result.Error = []byte(`{"code":-32000,"message":"in_doubt: m","data":{"io.toolbroker/refusal":{"code":"in_doubt","call":"call-1"}}}`)
		}, tasksCap, "failed", `,"error":{"code":-32000,"message":"in_doubt: m","data":{"io.toolbroker/refusal":{"code":"in_doubt","call":"call-1"}}}`},
		{"completed by what cannot be passed on", func(h *gateway.Handle) {
			h.Status, h.Result.Raw = gateway.HandleCompleted, []byte(`{"resultType":"input_required"}`)
		}, tasksCap, "failed", `,"error":{"code":-32603,"message":"the tool's server gave an answer that cannot be passed on"}`},
		{"asking for what the client can give", func(h *gateway.Handle) {
			h.Status, h.Wants = gateway.HandleInput, []byte(`{"a":{"method":"elicitation/create","params":{"message":"m","requestedSchema":{}}},"io.toolbroker/approval":1}`)
		}, `{"elicitation":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}`, "input_required",
			`,"inputRequests":{"a":{"method":"elicitation/create","params":{"message":"m","requestedSchema":{}}}}`},
		{"asking for what it cannot give", func(h *gateway.Handle) {
			h.Status, h.Wants = gateway.HandleInput, []byte(`{"a":{"method":"elicitation/create","params":{"message":"m","requestedSchema":{}}}}`)
		}, tasksCap, "working", ""},
	} {
		d := open(t)
		d.house.handle = base
		row.change(&d.house.handle)
		got := d.do(declaring(row.caps, "tasks/get", "h1", `"taskId":"h1"`))
		want := `{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete",` + strings.Replace(flat, "STATUS", row.status, 1) + row.more + `}}`
		if got.status != 200 || got.body != want || !json.Valid([]byte(got.body)) {
			t.Errorf("%s: %d %s\nwant %s", row.name, got.status, got.body, want)
		}
	}
	d := open(t)
	d.house.handle = base
	for _, row := range []struct {
		name   string
		req    req
		status int
		says   string
	}{
		{"update", declaring(tasksCap, "tasks/update", "h1", `"taskId":"h1","inputResponses":{"a":{"action":"accept"}}`), 200, `"result":{"resultType":"complete"}}`},
		{"update with nothing", declaring(tasksCap, "tasks/update", "h1", `"taskId":"h1"`), 400, "-32602"},
		{"cancel", declaring(tasksCap, "tasks/cancel", "h1", `"taskId":"h1"`), 200, `"result":{"resultType":"complete"}}`},
		{"unknown", declaring(tasksCap, "tasks/get", "h2", `"taskId":"h2"`), 400, `"error":{"code":-32602,"message":"Unknown task"}}`},
		{"unknown, to cancel", declaring(tasksCap, "tasks/cancel", "h2", `"taskId":"h2"`), 400, `"error":{"code":-32602,"message":"Unknown task"}}`},
		{"unknown, and no id of ours", declaring(tasksCap, "tasks/get", "H 2", `"taskId":"H 2"`), 400, `"error":{"code":-32602,"message":"Unknown task"}}`},
		{"undeclared", modernReq("tasks/update", "h1", `"taskId":"h1","inputResponses":{}`), 400, "-32021"},
	} {
		got := d.do(row.req)
		if got.status != row.status || !strings.Contains(got.body, row.says) {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
	}
	if len(d.calls) != 4 || string(d.calls[0].Answers) != `{"a":{"action":"accept"}}` {
		t.Errorf("%+v", d.calls)
	}
}

// How an agent is sent to a human depends on what it says on that request, or in
// that session, that it can do. Nothing it answers approves anything.
func TestLadder(t *testing.T) {
	const url = `{"elicitation":{"url":{}}}`
	pending := &gateway.ApprovalRequest{ID: "apr-1", Tenant: "acme", Expires: time.Now().Add(time.Hour)}
	legacy := func(protocol, caps string) func(d *door) req {
		return func(d *door) req {
			return req{body: call("refuse", "{}")}.with(mcp.HeaderSessionID, d.sessionOf("alice", protocol, caps))
		}
	}
	now := func(caps string) func(*door) req {
		return func(*door) req { return declaring(caps, "tools/call", "refuse", `"name":"refuse"`) }
	}
	for _, row := range []struct {
		name  string
		req   func(d *door) req
		state string
		want  string // input, error or final
	}{
		{"modern, with a page", now(url), "sealed", "input"},
		{"modern, round often enough", now(url), "", "final"},
		{"modern, forms only", now(`{"elicitation":{}}`), "sealed", "final"},
		{"modern, nothing", now(`{}`), "sealed", "final"},
		{"modern, a prompt", func(*door) req { return declaring(url, "prompts/get", "refuse", `"name":"refuse"`) }, "sealed", "input"},
		{"modern, a completion", func(*door) req {
			return declaring(url, "completion/complete", "", `"ref":{"type":"ref/prompt","name":"refuse"},"argument":{"name":"a","value":"b"}`)
		}, "sealed", "fault"},
		{"legacy, with a page", legacy("2025-11-25", url), "sealed", "error"},
		{"legacy, before there were pages", legacy("2025-06-18", url), "sealed", "final"},
		{"legacy, forms only", legacy("2025-11-25", `{"elicitation":{}}`), "sealed", "final"},
		{"legacy, no session", func(*door) req { return req{body: call("refuse", "{}")} }, "sealed", "final"},
	} {
		d := open(t, func(c *Config) {
			c.Decided = func(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() }
		})
		d.refusal = &gateway.Refusal{Code: gateway.PendingApproval, CallID: "call-1", Approval: pending, State: row.state}
		got := d.do(row.req(d))
		want := map[string]string{
			"input": `"inputRequests":{"io.toolbroker/approval":{"method":"elicitation/create","params":{"mode":"url","message":"This call needs human approval (id apr-1). Open the page to review it; what is needed is an operator's decision there.","url":"https://console.example/approvals/acme/apr-1"}}},"requestState":"sealed","resultType":"input_required"}}`,
			"error": `"error":{"code":-32042,"message":"Approval required","data":{"elicitations":[{"mode":"url","elicitationId":"apr-1","message":"This call needs human approval (id apr-1). Open the page to review it; what is needed is an operator's decision there.","url":"https://console.example/approvals/acme/apr-1"}],"io.toolbroker/approval":{"id":"apr-1"`,
			"final": `"text":"PENDING_APPROVAL: `,
			"fault": `"error":{"code":-32000,"message":"PENDING_APPROVAL: `,
		}[row.want]
		if got.status != 200 || !strings.Contains(got.body, want) || strings.Contains(got.body, "sealed") != (row.want == "input") {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
	}
}

// What comes back with a call goes to the gateway as it is, where a call can have
// asked for something.
func TestResuming(t *testing.T) {
	for _, row := range []struct{ method, name, params string }{
		{"tools/call", "echo", `"name":"echo"`}, {"prompts/get", "p", `"name":"p"`}, {"resources/read", "a:b", `"uri":"a:b"`},
	} {
		d := open(t)
		got := d.do(modernReq(row.method, row.name, row.params+`,"inputResponses":{ "k" : {"action":"accept"}},"requestState":"s\u0031"`))
		if got.status != 200 || len(d.calls) != 1 || string(d.calls[0].Answers) != `{ "k" : {"action":"accept"}}` || d.calls[0].State != "s1" {
			t.Errorf("%s: %d %s %+v", row.method, got.status, got.body, d.calls)
		}
		if row.method == "resources/read" && !strings.Contains(got.body, `"ttlMs":0`) {
			t.Errorf("%s", got.body)
		}
	}
}

// A server's question reaches a modern client only where that client said, on that
// request, that it can answer it; a legacy one never in a result.
func TestInputRequired(t *testing.T) {
	form := `{"resultType":"input_required","requestState":"s","inputRequests":{"a":{"method":"elicitation/create","params":{"message":"m","requestedSchema":{}}}}}`
	for _, row := range []struct {
		name, caps, raw, kind string
		passed                bool
	}{
		{"declared", `{"elicitation":{}}`, form, gateway.ResultInput, true},
		{"undeclared", `{}`, form, gateway.ResultInput, false},
		{"another mode", `{"elicitation":{"url":{}}}`, form, gateway.ResultInput, false},
		{"nobody decided", `{"elicitation":{}}`, form, "", false},
		{"decided, and it is something else", `{"elicitation":{}}`, `{"content":[]}`, gateway.ResultInput, false},
		{"only a state", `{}`, `{"resultType":"input_required","requestState":"s"}`, gateway.ResultInput, true},
		{"nothing at all", `{}`, `{"resultType":"input_required"}`, gateway.ResultInput, false},
		{"no question", `{"elicitation":{}}`, `{"resultType":"input_required","inputRequests":{"a":1}}`, gateway.ResultInput, false},
		{"a call of ours", `{"elicitation":{}}`, `{"resultType":"input_required","inputRequests":{"a":{"method":"tools/call","params":{}}}}`, gateway.ResultInput, false},
	} {
		for _, m := range []struct{ method, params string }{{"tools/call", `"name":"raw"`}, {"prompts/get", `"name":"raw"`}, {"resources/read", `"uri":"raw"`}} {
			d := open(t)
			d.result = gateway.Result{Type: row.kind, Raw: json.RawMessage(row.raw)}
			got := d.do(declaring(row.caps, m.method, "raw", m.params))
			if passed := strings.Contains(got.body, row.raw); passed != row.passed || got.status != 200 {
				t.Errorf("%s, %s: %d %s", row.name, m.method, got.status, got.body)
			}
			if got := d.do(req{body: rpc(1, m.method, m.params)}); strings.Contains(got.body, "input_required") {
				t.Errorf("%s, %s, legacy: %s", row.name, m.method, got.body)
			}
		}
	}
	d := open(t)
	d.result = gateway.Result{Type: gateway.ResultInput, Raw: json.RawMessage(form)}
	got := d.do(declaring(`{"elicitation":{}}`, "completion/complete", "", `"ref":{"type":"ref/prompt","name":"raw"},"argument":{"name":"a","value":"b"}`))
	if strings.Contains(got.body, "input_required") {
		t.Errorf("a completion asks: %s", got.body)
	}
}
