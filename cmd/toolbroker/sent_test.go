package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/servers"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/edge"
	"toolbroker/gateway/gatewaytest"
)

// A line is everything that a call goes through between an agent and a server: the
// door, the gateway, the way to a server, and the server, which notes what it reads.
type line struct {
	door     http.Handler
	recorder *permits

	mu   sync.Mutex
	sent []json.RawMessage // what had a tool's or a resource's name in it
}

// permits are what the record says that may be sent.
type permits struct {
	gateway.Recorder
	mu    sync.Mutex
	facts []gateway.Fact
}

func (a *permits) Durable(ctx context.Context, f ...gateway.Fact) error {
	a.mu.Lock()
	for _, one := range f {
		if one.Type == audit.CallAllowed {
			a.facts = append(a.facts, one)
		}
	}
	a.mu.Unlock()
	return a.Recorder.Durable(ctx, f...)
}

func (l *line) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var m struct {
		ID     json.RawMessage
		Method string
	}
	if err != nil || r.Method != http.MethodPost || json.Unmarshal(body, &m) != nil {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if m.ID == nil {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	const caps = `"capabilities":{"tools":{},"prompts":{},"resources":{},"completions":{}}`
	result, listed := map[string]string{
		"server/discover":          `{"supportedVersions":["2026-07-28"],` + caps + `,"resultType":"complete"}`,
		"initialize":               `{"protocolVersion":"2025-11-25",` + caps + `,"serverInfo":{"name":"f","version":"1"}}`,
		"tools/list":               `{"tools":[{"name":"read","inputSchema":{"type":"object"}},{"name":"pay","inputSchema":{"type":"object"}}],"resultType":"complete","ttlMs":0}`,
		"prompts/list":             `{"prompts":[{"name":"review","arguments":[{"name":"what"}]}],"resultType":"complete","ttlMs":0}`,
		"resources/list":           `{"resources":[],"resultType":"complete","ttlMs":0}`,
		"resources/templates/list": `{"resourceTemplates":[{"name":"f","uriTemplate":"file:///open/{+path}"}],"resultType":"complete","ttlMs":0}`,
		"ping":                     `{}`,
	}[m.Method]
	if !listed {
		l.mu.Lock()
		l.sent = append(l.sent, body)
		l.mu.Unlock()
		result = map[string]string{
			"tools/call": `{"content":[]}`, "prompts/get": `{"messages":[]}`, "resources/read": `{"contents":[]}`, "completion/complete": `{"completion":{"values":[]}}`,
		}[m.Method]
	}
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
}

func newLine(t testing.TB, era servers.Protocol) *line {
	l := &line{recorder: &permits{}}
	web := httptest.NewServer(l)
	t.Cleanup(web.Close)
	down, err := servers.New(servers.Config{Tenants: []string{"acme", "globex"},
		Servers: []servers.Server{{Name: "files", URL: web.URL, Protocol: era, Meta: []string{"com.example/kept"}, Refresh: time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { defer close(over); down.Run(t.Context()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := down.Close(ctx); err != nil {
			t.Error(err)
		}
		<-over
	})
	<-down.Ready()
	h := gatewaytest.New(t, func(c *gateway.Config) {
		l.recorder.Recorder = c.Recorder
		c.Servers, c.Recorder, c.CallsPerSecond, c.TenantDay = down, l.recorder, 1e9, 1<<60
	})
	h.Policy.Set(gatewaytest.Text + `
p, agent:a, acme, work, files/file:///open/**,  read,     , allow
p, agent:a, acme, work, files/file:///open/**,  complete, , allow
p, agent:a, acme, work, files/review,           get,      , allow
p, agent:a, acme, work, files/review,           complete, , allow
`)
	e, err := edge.New(edge.Config{Gateway: h.Gateway, Sessions: h.Sessions, Hosts: []string{"agents.example"}, PublicURL: "https://agents.example"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	l.door = e.Handler()
	return l
}

// post sends an agent's message, and returns what was allowed and sent because of it.
func (l *line) post(t testing.TB, raw []byte, modern bool) ([]gateway.Fact, []json.RawMessage) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://agents.example/mcp", bytes.NewReader(raw))
	r.Header.Set("Authorization", "Bearer a")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	r.Header.Set("MCP-Protocol-Version", "2025-11-25")
	if modern { // headers as an honest client has them
		var m said
		_ = json.Unmarshal(raw, &m)
		r.Header.Set("MCP-Protocol-Version", "2026-07-28")
		r.Header.Set("Mcp-Method", m.Method)
		if m.Params.Name+m.Params.URI != "" {
			r.Header.Set("Mcp-Name", m.Params.Name+m.Params.URI)
		}
	}
	l.mu.Lock()
	l.sent = nil
	l.mu.Unlock()
	l.recorder.mu.Lock()
	l.recorder.facts = nil
	l.recorder.mu.Unlock()
	l.door.ServeHTTP(httptest.NewRecorder(), r)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recorder.mu.Lock()
	defer l.recorder.mu.Unlock()
	return slices.Clone(l.recorder.facts), slices.Clone(l.sent)
}

// said is a message as encoding/json reads it, which takes the last of two names and
// ignores case: another decoder than any of ours.
type said struct {
	Method string
	Params struct {
		Name      string
		URI       string
		Arguments json.RawMessage
		Ref       struct{ Type, Name, URI string }
		Argument  json.RawMessage
		Context   json.RawMessage
		Meta      map[string]json.RawMessage `json:"_meta"`
	}
}

// What the fuzz test compares does reach a server, by every method and in both eras.
func TestSent(t *testing.T) {
	meta := map[bool]string{
		true:  `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"com.example/kept":{"a":1}}`,
		false: `"_meta":{"com.example/kept":{"a":1},"com.example/other":2}`,
	}
	for _, era := range []servers.Protocol{servers.Modern, servers.Legacy} {
		l := newLine(t, era)
		for method, params := range map[string]string{
			"tools/call": `"name":"files__read","arguments":{"path":"x"}`, "prompts/get": `"name":"files__review"`, "resources/read": `"uri":"files+file:///open/a"`,
			"completion/complete": `"ref":{"type":"ref/prompt","name":"files__review"},"argument":{"name":"what","value":"v"}`,
		} {
			for _, modern := range []bool{false, true} {
				raw := []byte(`{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":{` + params + `,` + meta[modern] + `}}`)
				facts, sent := l.post(t, raw, modern)
				if len(facts) != 1 || len(sent) != 1 {
					t.Errorf("%s, %s: %d allowed, sent %s", era, raw, len(facts), sent)
					continue
				}
				checkSent(t, raw, facts[0], sent[0], era == servers.Modern)
			}
		}
	}
}

// What a server reads is what another decoder reads in the agent's message, and what
// the record says was allowed: this name, these bytes, and no other member.
func FuzzSent(f *testing.F) {
	const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"com.example/kept":{"a":1},"com.example/other":2,"progressToken":"p","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`
	for _, params := range []string{
		`"name":"files__read","arguments":{"path":"x"}`, `"name":"files__read","arguments" : { "pa\u0074h" : "\ud83d\ude00<>&" , "n": 1.50e1 }`, `"name":"files__read"`,
		`"name":"files__pay","arguments":{"amount":5}`, `"name":"files\u005f_read","arguments":{"uri":"file:///open/x","x":[{"name":"files__pay"}]},"x":1,"task":{}`,
		`"name":"files__read","arguments":{},"arguments":{"a":1}`, `"Name":"files__pay","name":"files__read","arguments":{}`, `"name":"files__hidden","arguments":{}`,
		`"name":"files__read","arguments":{"a":"}],\"_meta\":{"},"uri":"file:///open/y","inputResponses":{"a":{}},"requestState":"s"`,
	} {
		for _, more := range []string{"", "," + meta} {
			f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + params + more + `}}`))
		}
	}
	for method, params := range map[string]string{
		"prompts/get": `"name":"files__review","arguments":{"what":"x\u002f"}`, "resources/read": `"uri":"files+file:///open/a%20b"`,
		"completion/complete": `"ref":{"type":"ref/prompt","name":"files__review"},"argument":{"name":"what","value":"v"},"context":{"arguments":{"a":"b"}}`,
	} {
		f.Add([]byte(`{"jsonrpc":"2.0","id":"i","method":"` + method + `","params":{` + params + `}}`))
		f.Add([]byte(` {"params":{` + params + `,` + meta + `},"method":"` + method + `","id":2,"jsonrpc":"2.0"}` + "\n"))
	}
	f.Add([]byte(`{"jsonrpc":"2.0","id":3,"method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"files+file:///open/{+path}"},"argument":{"name":"path","value":"v"}}}`))
	lines := []*line{newLine(f, servers.Modern), newLine(f, servers.Legacy)}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m said
		if json.Unmarshal(raw, &m) == nil && m.Method == "subscriptions/listen" {
			return // it has no end
		}
		for i, l := range lines {
			for _, modern := range []bool{false, true} {
				facts, sent := l.post(t, raw, modern)
				if len(sent) == 0 {
					continue
				}
				if len(sent) > 1 || len(facts) != 1 {
					t.Fatalf("%q: %d allowed, sent %s", raw, len(facts), sent)
				}
				checkSent(t, raw, facts[0], sent[0], i == 0)
			}
		}
	})
}

func checkSent(t *testing.T, raw []byte, allowed gateway.Fact, sent json.RawMessage, modern bool) {
	t.Helper()
	var want, got said
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatalf("%q was sent on, and another decoder cannot read it: %v", raw, err)
	}
	var message, params, meta map[string]json.RawMessage
	for what, err := range map[string]error{"message": json.Unmarshal(sent, &message), "names": json.Unmarshal(sent, &got)} {
		if err != nil {
			t.Fatalf("%s: the server cannot read the %s: %v", sent, what, err)
		}
	}
	if err := json.Unmarshal(message["params"], &params); err != nil {
		t.Fatal(err)
	}
	only(t, sent, message, "jsonrpc", "id", "method", "params")
	if got.Method != want.Method || allowed.Call.Method != want.Method {
		t.Fatalf("%q became %s", raw, sent)
	}
	bytesOf := func(what string, is, was json.RawMessage) {
		t.Helper()
		if !bytes.Equal(is, was) {
			t.Fatalf("%q: the server reads the %s %s", raw, what, is)
		}
	}
	own := func(alias, prefix string) string {
		name, ok := strings.CutPrefix(alias, prefix)
		if !ok {
			t.Fatalf("%q reached a server", raw)
		}
		return name
	}
	var name string
	args := json.RawMessage("{}")
	switch want.Method {
	case "tools/call", "prompts/get":
		name = own(want.Params.Name, "files__")
		if want.Params.Arguments != nil && string(want.Params.Arguments) != "null" {
			args = want.Params.Arguments
		}
		only(t, sent, params, "name", "arguments", "_meta")
		bytesOf("arguments", params["arguments"], args)
		if got.Params.Name != name {
			t.Fatalf("%q became %s", raw, sent)
		}
	case "resources/read":
		name = own(want.Params.URI, "files+")
		only(t, sent, params, "uri", "_meta")
		if got.Params.URI != name {
			t.Fatalf("%q became %s", raw, sent)
		}
	case "completion/complete":
		only(t, sent, params, "ref", "argument", "context", "_meta")
		bytesOf("argument", params["argument"], want.Params.Argument)
		if string(want.Params.Context) != "null" {
			bytesOf("context", params["context"], want.Params.Context)
		}
		ref := want.Params.Ref
		if ref.Type == "ref/prompt" {
			name, ref.URI = own(ref.Name, "files__"), ""
			ref.Name = name
		} else {
			name, ref.Name = own(ref.URI, "files+"), ""
			ref.URI = name
		}
		if got.Params.Ref != ref {
			t.Fatalf("%q became %s", raw, sent)
		}
		args = nil
	default:
		t.Fatalf("%q reached a server as %s", raw, sent)
	}
	if allowed.Tool.Server != "files" || allowed.Tool.Name != name {
		t.Fatalf("%q: %s was allowed, and %s sent", raw, allowed.Tool.ID(), name)
	}
	if sum := sha256.Sum256(args); args != nil && want.Method != "resources/read" && allowed.Args.Raw != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Fatalf("%q: other bytes were allowed than %s", raw, args)
	}
	if params["_meta"] != nil {
		if err := json.Unmarshal(params["_meta"], &meta); err != nil {
			t.Fatal(err)
		}
	}
	mine := []string{"com.example/kept", "traceparent", "tracestate", "progressToken"}
	if modern {
		mine = append(mine, "io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientInfo", "io.modelcontextprotocol/clientCapabilities", "io.modelcontextprotocol/logLevel")
	}
	only(t, sent, meta, mine...)
	if kept := meta["com.example/kept"]; kept != nil {
		bytesOf("_meta", kept, want.Params.Meta["com.example/kept"])
	}
	if token := meta["progressToken"]; token != nil && bytes.Equal(token, want.Params.Meta["progressToken"]) {
		t.Fatalf("%q: the agent's own progress token reaches the server", raw)
	}
}

// only fails where there are other members than these.
func only(t *testing.T, sent json.RawMessage, all map[string]json.RawMessage, names ...string) {
	t.Helper()
	for name := range all {
		if !slices.Contains(names, name) {
			t.Fatalf("%s has %q", sent, name)
		}
	}
}
