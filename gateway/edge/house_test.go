package edge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// A house is the facade behind the door, small and honest: tokens are
// principals, sessions are bound, and a tool's name says what it does.
type house struct {
	mu        sync.Mutex
	tokens    map[string]gateway.Principal
	ended     map[string]bool // tasks
	sessions  map[string]string
	tools     []gateway.Tool
	calls     []gateway.Call
	malformed int
	admits    int
	asked     bool // the last call asked for progress
	closed    []string
	started   []gateway.TaskSpec
	parents   []string // of the children among them
	exchanged []gateway.Exchange
	seen      []gateway.Credential // by Identify and Exchange
	granted   gateway.Task         // what Exchange returns
	proofs    map[string]bool      // that were used
	down      error                // what the gateway says while it cannot tell

	holding chan string    // each held call says its principal
	ended1  chan error     // and how its context ended
	result  gateway.Result // of the tool "raw"
	refusal *gateway.Refusal
}

func tool(name, schema string) gateway.Tool {
	return gateway.Tool{Server: "s", Name: name, Alias: name, Schema: json.RawMessage(schema),
		Definition: json.RawMessage(fmt.Sprintf(`{"name":%q,"description":"does %s","inputSchema":%s}`, name, name, schema))}
}

func newHouse() *house {
	const any = `{"type":"object"}`
	return &house{
		tokens: map[string]gateway.Principal{
			"alice": {ID: "agent:alice", Tenant: "acme", Task: "task-a"},
			"bob":   {ID: "agent:bob", Tenant: "acme", Task: "task-b"},
			"key":   {ID: "agent:key", Tenant: "acme"},
			"bound": {ID: "agent:bound", Tenant: "acme", Task: "task-c", Bound: "jkt:k"},
			"cert":  {ID: "agent:cert", Tenant: "acme", Task: "task-d"}, // by its certificate
		},
		proofs: map[string]bool{},
		ended:  map[string]bool{}, sessions: map[string]string{},
		holding: make(chan string, 16), ended1: make(chan error, 16),
		tools: []gateway.Tool{
			tool("echo", any), tool("hold", any), tool("raw", any), tool("refuse", any), tool("steps", any),
			tool("region", `{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}`),
		},
	}
}

func no(code gateway.Code, say string, err error) *gateway.Refusal {
	return &gateway.Refusal{Code: code, Say: say, Err: err}
}

func (h *house) Identify(_ context.Context, c gateway.Credential) (gateway.Principal, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down != nil {
		return gateway.Principal{}, no(gateway.Internal, "", h.down)
	}
	h.seen = append(h.seen, c)
	token := c.Bearer.Reveal()
	if why, ok := strings.CutPrefix(token, "bad:"); ok { // what is wrong with it
		why = strings.ReplaceAll(why, "_", " ")
		n := &gateway.NotIdentified{Why: why, Err: errors.New("ours")}
		if why == gateway.WhyScope {
			n.Scope = []string{"mcp:tools", "mcp:admin"}
		}
		return gateway.Principal{}, no(gateway.Unidentified, "words", n)
	}
	if c.Bearer.IsZero() {
		if len(c.Proof.Peer) == 0 {
			return gateway.Principal{}, no(gateway.Unidentified, "words", &gateway.NotIdentified{Why: gateway.WhyNone})
		}
		token = c.Proof.Peer[0].Subject.CommonName
	}
	p, ok := h.tokens[token]
	if !ok {
		return p, no(gateway.Unidentified, "", gateway.ErrUnidentified)
	}
	if c.Proof.DPoP != "" || p.Bound != "" && c.Proof.Proven != p.Bound {
		if why := h.unproven(p, c); why != "" {
			return gateway.Principal{}, no(gateway.Unidentified, "words", &gateway.NotIdentified{Why: why})
		}
	}
	if c.Session != "" && h.sessions[c.Session] != binding(p, c) {
		return p, no(gateway.Unidentified, "", &gateway.NotIdentified{Why: gateway.WhySession, Err: gateway.ErrNotFound})
	}
	return p, nil
}

// unproven says what is wrong with a request's proof: one is the key, a number
// that it is known by, and the method and URL it was made for; and good once.
func (h *house) unproven(p gateway.Principal, c gateway.Credential) string {
	proof := strings.Fields(c.Proof.DPoP)
	switch {
	case len(proof) != 4, proof[2] != c.Proof.Method, proof[3] != c.Proof.URL,
		p.Bound != "" && (!c.DPoP || "jkt:"+proof[0] != p.Bound):
		return gateway.WhyProof
	case h.proofs[proof[1]]:
		return gateway.WhyReplay
	}
	h.proofs[proof[1]] = true
	return ""
}

func binding(p gateway.Principal, c gateway.Credential) string {
	return p.ID + "\n" + cmp.Or(p.Task, c.Task)
}

func (h *house) Malformed(context.Context, gateway.Credential) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.malformed++
}

func (h *house) Admit(ctx context.Context, c gateway.Credential) (gateway.Principal, gateway.Task, error) {
	p, err := h.Identify(ctx, c)
	if err != nil {
		return p, gateway.Task{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.admits++
	id := p.Task
	if id == "" {
		id = c.Task
	}
	if id == "" || h.ended[id] || c.Task != "" && c.Task != id {
		return p, gateway.Task{}, no(gateway.NoTask, "there is no running task", gateway.ErrNoTask)
	}
	return p, gateway.Task{ID: id, Tenant: p.Tenant}, nil
}

func (h *house) OpenSession(ctx context.Context, c gateway.Credential, session string) error {
	c.Session = ""
	p, _, err := h.Admit(ctx, c)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[session] = binding(p, c)
	return nil
}

func (h *house) CloseSession(ctx context.Context, c gateway.Credential) error {
	if _, err := h.Identify(ctx, c); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, c.Session)
	h.closed = append(h.closed, c.Session)
	return nil
}

func (h *house) Tools(ctx context.Context, c gateway.Credential, _ gateway.CallRef) ([]gateway.Tool, error) {
	if _, _, err := h.Admit(ctx, c); err != nil {
		return nil, err
	}
	return h.tools, nil
}

func (h *house) Handle(ctx context.Context, c gateway.Call, s gateway.Stream) (gateway.Result, error) {
	refuse := func(r *gateway.Refusal) (gateway.Result, error) {
		r.CallID = "call-1"
		return gateway.Result{}, r
	}
	p, _, err := h.Admit(ctx, c.Credential)
	if err != nil {
		return refuse(err.(*gateway.Refusal))
	}
	h.mu.Lock()
	h.calls, h.asked = append(h.calls, c), s != nil
	h.mu.Unlock()
	var tool *gateway.Tool
	for i := range h.tools {
		if h.tools[i].Alias == c.Name {
			tool = &h.tools[i]
		}
	}
	if tool == nil {
		return refuse(no(gateway.UnknownTool, "no tool is called "+c.Name, nil))
	}
	if c.Agrees != nil {
		if err := c.Agrees(*tool); err != nil {
			return refuse(err.(*gateway.Refusal))
		}
	}
	switch c.Name {
	case "hold":
		if s != nil {
			if err := s.Notify(ctx, "notifications/progress", json.RawMessage(`{"progress":1,"message":"Waiting for human approval"}`)); err != nil {
				return refuse(no(gateway.Cancelled, "", err))
			}
		}
		h.holding <- p.ID
		<-ctx.Done()
		h.ended1 <- context.Cause(ctx)
		return refuse(no(gateway.Cancelled, "the call was cancelled", ctx.Err()))
	case "steps":
		for _, n := range []string{"1", "2", "0.5", "0.75", "9"} {
			if s != nil {
				if err := s.Notify(ctx, "notifications/progress", json.RawMessage(`{"progress":`+n+`,"total":10,"message":"step","x":1}`)); err != nil {
					return refuse(no(gateway.Cancelled, "", err))
				}
			}
		}
	case "raw":
		return h.result, nil
	case "refuse":
		r := *h.refusal
		return gateway.Result{}, &r
	}
	return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":` + string(mustJSON(string(c.Args))) + `}]}`)}, nil
}

func (h *house) StartTask(ctx context.Context, c gateway.Credential, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error) {
	p, err := h.Identify(ctx, c)
	if err != nil {
		return gateway.Task{}, gateway.Secret{}, err
	}
	if p.Task != "" {
		return gateway.Task{}, gateway.Secret{}, no(gateway.Denied, "a task token starts nothing", nil)
	}
	h.started = append(h.started, spec)
	return gateway.Task{ID: "task-new", Tenant: p.Tenant, Kind: spec.Kind, State: gateway.TaskRunning}, gateway.NewSecret("the-token"), nil
}

func (h *house) Delegate(ctx context.Context, c gateway.Credential, parent string, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error) {
	p, t, err := h.Admit(ctx, c)
	if err != nil {
		return gateway.Task{}, gateway.Secret{}, err
	}
	if t.ID != parent {
		return gateway.Task{}, gateway.Secret{}, no(gateway.NoTask, "no such task", gateway.ErrNoTask)
	}
	h.started, h.parents = append(h.started, spec), append(h.parents, parent)
	return gateway.Task{ID: "task-child", Tenant: p.Tenant, Kind: spec.Kind, Parent: parent, State: gateway.TaskRunning}, gateway.NewSecret("the-childs-token"), nil
}

func (h *house) Exchange(ctx context.Context, c gateway.Credential, x gateway.Exchange) (gateway.Task, gateway.Secret, error) {
	by := c
	by.Bearer = x.Subject
	if _, err := h.Identify(ctx, by); err != nil {
		return gateway.Task{}, gateway.Secret{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refusal != nil {
		r := *h.refusal
		return gateway.Task{}, gateway.Secret{}, &r
	}
	h.exchanged, h.seen = append(h.exchanged, x), append(h.seen, c)
	return h.granted, gateway.NewSecret("the-task-token"), nil
}

func (h *house) ShowTask(ctx context.Context, c gateway.Credential, id string) (gateway.Task, error) {
	p, err := h.Identify(ctx, c)
	if err != nil {
		return gateway.Task{}, err
	}
	if id != p.Task {
		return gateway.Task{}, no(gateway.NoTask, "no such task", gateway.ErrNoTask)
	}
	return gateway.Task{ID: id, State: gateway.TaskRunning}, nil
}

func (h *house) EndTask(ctx context.Context, c gateway.Credential, id string) (gateway.Task, error) {
	t, err := h.ShowTask(ctx, c, id)
	t.State = gateway.TaskEnded
	return t, err
}

func (h *house) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// A door is an Edge that listens on loopback.
type door struct {
	*testing.T
	*house
	edge *Edge
	url  string
	shut atomic.Bool // by the test itself
}

func open(t *testing.T, change ...func(*Config)) *door {
	t.Helper()
	h := newHouse()
	c := Config{Gateway: h, Version: "1", Instructions: "be kind",
		ApprovalURL: func(tenant, id string) string { return "https://console.example/approvals/" + tenant + "/" + id }}
	for _, f := range change {
		f(&c)
	}
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(e.Handler())
	srv.Config = Server("", e.Handler())
	srv.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		srv.Close()
	})
	return &door{T: t, house: h, edge: e, url: srv.URL}
}

// A req is one HTTP request, with what every test would say left out.
type req struct {
	method, path, token, body string
	header                    map[string]string
	host                      string
}

const (
	legacyAccept = "application/json, text/event-stream"
	modern       = mcp.ProtocolVersion20260728
)

func (d *door) request(r req) *http.Request {
	d.Helper()
	if r.method == "" {
		r.method = http.MethodPost
	}
	if r.path == "" {
		r.path = "/mcp"
	}
	hr, err := http.NewRequestWithContext(d.Context(), r.method, d.url+r.path, strings.NewReader(r.body))
	if err != nil {
		d.Fatal(err)
	}
	if r.token == "" {
		r.token = "alice"
	}
	hr.Header.Set("Authorization", "Bearer "+r.token)
	hr.Header.Set("Content-Type", "application/json")
	hr.Header.Set("Accept", legacyAccept)
	for k, v := range r.header {
		hr.Header.Del(k)
		if v != "" {
			hr.Header.Set(k, v)
		}
	}
	if r.host != "" {
		hr.Host = r.host
	}
	return hr
}

type res struct {
	status int
	header http.Header
	body   string
}

func (d *door) do(r req) res {
	d.Helper()
	out, err := http.DefaultClient.Do(d.request(r))
	if err != nil {
		d.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		d.Fatal(err)
	}
	return res{out.StatusCode, out.Header, string(body)}
}

// session opens a legacy session.
func (d *door) session(token string) string {
	d.Helper()
	out := d.do(req{token: token, body: rpc(1, "initialize", `"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}`)})
	id := out.header.Get(mcp.HeaderSessionID)
	if out.status != 200 || id == "" {
		d.Fatalf("initialize: %d %s", out.status, out.body)
	}
	return id
}

func rpc(id any, method, params string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":{%s}}`, mustJSON(id), method, params)
}

func modernMeta(more string) string {
	if more != "" {
		more = "," + more
	}
	return `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}` + more + `}`
}

// modernReq is a well-formed 2026-07-28 request.
func modernReq(method, name, params string) req {
	all := modernMeta("")
	if params != "" {
		all += "," + params
	}
	r := req{body: rpc(1, method, all), header: map[string]string{
		mcp.HeaderProtocolVersion: modern, mcp.HeaderMethod: method,
	}}
	if name != "" {
		r.header[mcp.HeaderName] = name
	}
	return r
}

func (r req) with(k, v string) req {
	h := map[string]string{k: v}
	for name, value := range r.header {
		if !strings.EqualFold(name, k) {
			h[name] = value
		}
	}
	r.header = h
	return r
}

func call(name, args string) string {
	return rpc(1, "tools/call", `"name":"`+name+`","arguments":`+args)
}

// get fails the test if what should happen does not.
func get[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing came: %s", what)
		panic("unreachable")
	}
}

var errDown = errors.New("redis is away")

func tick() <-chan time.Time { return time.After(5 * time.Millisecond) }
