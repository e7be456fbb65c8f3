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
	"toolbroker/gateway/gatewaytest"
)

// A house is the facade behind the door, small and honest: tokens are
// principals, sessions are bound, and a tool's name says what it does.
type house struct {
	mu       sync.Mutex
	tokens   map[string]gateway.Principal
	ended    map[string]bool   // tasks
	sessions map[string]string // to whose they are
	kept     *gatewaytest.Sessions
	shown    map[gateway.Sort]string // what Shown says
	unheard  string                  // a server of which nobody hears
	followed map[string][]func()     // by URI
	watched  map[string][]func()     // by handle
	handle   gateway.Handle          // what Look returns

	everyHandle bool // whatever is named is there
	tools       []gateway.Tool
	calls       []gateway.Call
	malformed   int
	admits      int
	asked       bool // the last call asked for progress
	closed      []string
	started     []gateway.TaskSpec
	parents     []string // of the children among them
	exchanged   []gateway.Exchange
	seen        []gateway.Credential // by Identify and Exchange
	granted     gateway.Task         // what Exchange returns
	proofs      map[string]bool      // that were used
	down        error                // what the gateway says while it cannot tell
	tooFast     error                // what it says of what is no call

	holding chan string      // each held call says its principal
	ended1  chan error       // and how its context ended
	asks    []gateway.Result // what came of the questions of "ask", and its errors
	asksErr []error
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
		ended:  map[string]bool{}, sessions: map[string]string{}, kept: gatewaytest.NewSessions(),
		shown: map[gateway.Sort]string{}, followed: map[string][]func(){}, watched: map[string][]func(){},
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
	return p, h.bound(p, c)
}

func (h *house) InSession(_ context.Context, p gateway.Principal, c gateway.Credential) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, c)
	return h.bound(p, c)
}

func (h *house) bound(p gateway.Principal, c gateway.Credential) error {
	if c.Session != "" && h.sessions[c.Session] != binding(p, c) {
		return no(gateway.Unidentified, "", &gateway.NotIdentified{Why: gateway.WhySession, Err: gateway.ErrNotFound})
	}
	return nil
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

func (h *house) Pace(gateway.Principal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tooFast
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

func (h *house) OpenSession(ctx context.Context, c gateway.Credential, session, protocol string, caps json.RawMessage) error {
	c.Session = ""
	p, t, err := h.Admit(ctx, c)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[session] = binding(p, c)
	return h.kept.Open(ctx, session, gateway.Session{Binding: binding(p, c), Tenant: p.Tenant, Task: t.ID, Protocol: protocol, Caps: caps})
}

func (h *house) RootsChanged(ctx context.Context, c gateway.Credential) error {
	if _, err := h.Identify(ctx, c); err != nil {
		return err
	}
	return h.kept.Tell(ctx, gateway.News{Session: c.Session, Roots: true})
}

func (h *house) CloseSession(ctx context.Context, c gateway.Credential) error {
	if _, err := h.Identify(ctx, c); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, c.Session)
	h.closed = append(h.closed, c.Session)
	return h.kept.Close(ctx, c.Session)
}

func (h *house) List(ctx context.Context, c gateway.Credential, s gateway.Sort, _ gateway.CallRef) ([]gateway.Tool, error) {
	if _, _, err := h.Admit(ctx, c); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []gateway.Tool
	for _, t := range h.tools {
		if cmp.Or(t.Sort, gateway.SortTool) == s {
			all = append(all, t)
		}
	}
	return all, nil
}

func (h *house) Shown(_ context.Context, _ gateway.Credential, s gateway.Sort) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.shown[s], h.down
}

func (h *house) Hears(_ context.Context, _ gateway.Credential, n gateway.Note) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down == nil && n.Server != h.unheard
}

// change makes what the lists of these sorts show another thing, and says so.
func (d *door) change(sorts ...gateway.Sort) {
	d.set(func() {
		for _, s := range sorts {
			d.shown[s] += "x"
		}
	})
	d.edge.Changed(sorts...)
}

func (h *house) Follow(ctx context.Context, c gateway.Call, updated func()) error {
	h.mu.Lock()
	if strings.HasPrefix(c.Name, "hidden:") {
		h.mu.Unlock()
		return no(gateway.UnknownTool, "", nil)
	}
	h.followed[c.Name] = append(h.followed[c.Name], updated)
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.followed, c.Name)
	return no(gateway.Cancelled, "", ctx.Err())
}

// update says that a resource changed, and to how many.
func (h *house) update(uri string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.followed[uri] {
		f()
	}
	return len(h.followed[uri])
}

func (h *house) handleOf(ctx context.Context, c gateway.Call) (gateway.Handle, error) {
	if _, _, err := h.Admit(ctx, c.Credential); err != nil {
		return gateway.Handle{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, c)
	if h.everyHandle {
		one := h.handle
		one.ID = c.Name
		return one, nil
	}
	if c.Name != h.handle.ID || h.handle.ID == "" {
		return gateway.Handle{}, no(gateway.UnknownHandle, "words", errors.New("another's, or none"))
	}
	return h.handle, nil
}

func (h *house) Look(ctx context.Context, c gateway.Call) (gateway.Handle, error) {
	return h.handleOf(ctx, c)
}

func (h *house) Kept(ctx context.Context, c gateway.Call) (gateway.Handle, error) {
	one, err := h.handleOf(ctx, c)
	return one, err
}

func (h *house) Watch(ctx context.Context, c gateway.Call, moved func()) error {
	moved()
	h.mu.Lock()
	h.watched[c.Name] = append(h.watched[c.Name], moved)
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watched, c.Name)
	return no(gateway.Cancelled, "", ctx.Err())
}

// move says that a handle moved, and to how many.
func (h *house) move(id string) int {
	h.mu.Lock()
	all := h.watched[id]
	h.mu.Unlock()
	for _, moved := range all {
		moved()
	}
	return len(all)
}

func (h *house) Update(ctx context.Context, c gateway.Call) (gateway.Handle, error) {
	return h.handleOf(ctx, c)
}

func (h *house) Withdraw(ctx context.Context, c gateway.Call) (gateway.Handle, error) {
	return h.handleOf(ctx, c)
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
	if c.Method != gateway.MethodCall {
		return h.read(c)
	}
	for i := range h.tools {
		if h.tools[i].Alias == c.Name && h.tools[i].Sort == "" {
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
			_ = s.Notify(ctx, "notifications/progress", json.RawMessage(`{"progress":1,"message":"Waiting for human approval"}`))
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
	case "ask":
		var in struct {
			Asks []struct {
				Method string
				Params json.RawMessage
			}
		}
		if err := json.Unmarshal(c.Args, &in); err != nil || s == nil {
			return refuse(no(gateway.BadArguments, "", err))
		}
		for _, a := range in.Asks {
			if strings.HasPrefix(a.Method, "notifications/") {
				_ = s.Notify(ctx, a.Method, a.Params)
				continue
			}
			out, err := s.Ask(ctx, a.Method, a.Params)
			h.set(func() { h.asks, h.asksErr = append(h.asks, out), append(h.asksErr, err) })
		}
		if ctx.Err() != nil {
			return refuse(no(gateway.Cancelled, "the call was cancelled", ctx.Err()))
		}
	case "need":
		if c.Answers == nil {
			return gateway.Result{Type: gateway.ResultInput, Raw: json.RawMessage(`{"resultType":"input_required","requestState":"st","inputRequests":{"who":{"method":"elicitation/create","params":{"mode":"form","message":"who?","requestedSchema":{"type":"object","properties":{"name":{"type":"string"}}}}}}}`)}, nil
		}
		return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":` + string(mustJSON(c.State+" "+string(c.Answers))) + `}]}`)}, nil
	case "log":
		for _, level := range []string{"debug", "info", "error", "nonsense"} {
			if s != nil {
				_ = s.Notify(ctx, "notifications/message", json.RawMessage(`{"level":"`+level+`","data":{"io.toolbroker/x":1,"y":2}}`))
			}
		}
	case "refuse":
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.refusal == nil {
			return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
		}
		r := *h.refusal
		return gateway.Result{}, &r
	}
	return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":` + string(mustJSON(string(c.Args))) + `}]}`)}, nil
}

// read answers what is no tool's: what begins with "hidden" is not there.
func (h *house) read(c gateway.Call) (gateway.Result, error) {
	if strings.HasPrefix(c.Name, "hidden") {
		return gateway.Result{}, no(gateway.UnknownTool, "words", errors.New("hidden"))
	}
	if c.Name == "refuse" {
		r := *h.refusal
		return gateway.Result{}, &r
	}
	if c.Name == "raw" {
		return h.result, nil
	}
	return gateway.Result{Raw: json.RawMessage(map[string]string{
		gateway.MethodRead:      `{"contents":[{"uri":` + string(mustJSON(c.Name)) + `,"text":"t"}]}`,
		gateway.MethodGet:       `{"messages":[{"role":"user","content":{"type":"text","text":` + string(mustJSON(string(c.Args))) + `}}]}`,
		gateway.MethodComplete:  `{"completion":{"values":["v"]}}`,
		gateway.MethodSubscribe: `{}`,
	}[c.Method])}, nil
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
	return another(t, newHouse(), change...)
}

// another opens one more door of a house: another replica.
func another(t *testing.T, h *house, change ...func(*Config)) *door {
	t.Helper()
	c := Config{Gateway: h, Sessions: h.kept, Version: "1", Instructions: "be kind",
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
	srv.Listener = Watch(srv.Config, srv.Listener)
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

// session opens a legacy session of a client that can do nothing for us.
func (d *door) session(token string) string { return d.sessionOf(token, "2025-11-25", "{}") }

func (d *door) sessionOf(token, protocol, caps string) string {
	d.Helper()
	out := d.do(req{token: token, body: rpc(1, "initialize", `"protocolVersion":"`+protocol+`","capabilities":`+caps+`,"clientInfo":{"name":"t","version":"1"}`)})
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

// httpDo returns the status of an answer that nobody reads.
func httpDo(r *http.Request) (int, error) {
	out, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	out.Body.Close()
	return out.StatusCode, nil
}
