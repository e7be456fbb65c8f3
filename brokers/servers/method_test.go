package servers

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"toolbroker/gateway"
)

// Every method's envelope, as each era has it.
func TestEnvelopes(t *testing.T) {
	tool := gateway.Tool{Server: "x", Name: "act"}
	prompt := gateway.Tool{Server: "x", Name: "hello", Sort: gateway.SortPrompt}
	resource := gateway.Tool{Server: "x", Name: `file:///é"`, Sort: gateway.SortResource}
	template := gateway.Tool{Server: "x", Name: "file:///{p}", Sort: gateway.SortTemplate}
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for name, c := range map[string]struct {
		f            gateway.Forward
		modern, name string // what is sent in the modern era, with Mcp-Name
		legacy       string // and in the legacy one; empty: nothing
	}{
		"a tool": {gateway.Forward{Tool: tool, Args: raw(`{ "a":1e0 }`)}, `{"name":"act","arguments":{ "a":1e0 },META}`, "act", `{"name":"act","arguments":{ "a":1e0 }}`},
		"a tool, with answers": {gateway.Forward{Method: gateway.MethodCall, Tool: tool, Answers: raw(`{"q": {"action":"accept"}}`), State: "s\n"},
			`{"name":"act","arguments":{},"inputResponses":{"q": {"action":"accept"}},"requestState":"s\n",META}`, "act", ""},
		"a prompt":                   {gateway.Forward{Method: gateway.MethodGet, Tool: prompt, Args: raw(`{"who":"x"}`)}, `{"name":"hello","arguments":{"who":"x"},META}`, "hello", `{"name":"hello","arguments":{"who":"x"}}`},
		"a prompt without more":      {gateway.Forward{Method: gateway.MethodGet, Tool: prompt}, `{"name":"hello",META}`, "hello", `{"name":"hello"}`},
		"a resource":                 {gateway.Forward{Method: gateway.MethodRead, Tool: resource, Args: raw(`{"x":1}`)}, `{"uri":"file:///é\"",META}`, "=?base64?ZmlsZTovLy/DqSI=?=", `{"uri":"file:///é\""}`},
		"a resource, with a state":   {gateway.Forward{Method: gateway.MethodRead, Tool: resource, State: "s"}, `{"uri":"file:///é\"","requestState":"s",META}`, "=?base64?ZmlsZTovLy/DqSI=?=", ""},
		"a completion of a prompt":   {gateway.Forward{Method: gateway.MethodComplete, Tool: prompt, Args: raw(`{"argument":{"name":"who","value":""},"context":{},"ref":{"type":"ref/prompt","name":"other"}}`)}, `{"ref":{"type":"ref/prompt","name":"hello"},"argument":{"name":"who","value":""},"context":{},META}`, "", `{"ref":{"type":"ref/prompt","name":"hello"},"argument":{"name":"who","value":""},"context":{}}`},
		"a completion of a template": {gateway.Forward{Method: gateway.MethodComplete, Tool: template, Args: raw(`{"argument":{}}`)}, `{"ref":{"type":"ref/resource","uri":"file:///{p}"},"argument":{},META}`, "", `{"ref":{"type":"ref/resource","uri":"file:///{p}"},"argument":{}}`},
		"a task":                     {gateway.Forward{Method: gateway.MethodTaskGet, Tool: tool, Remote: "r 1"}, `{"taskId":"r 1",META}`, "r 1", ""},
		"a task's answers":           {gateway.Forward{Method: gateway.MethodTaskUpdate, Tool: tool, Remote: "r", Answers: raw(`{"q":{}}`)}, `{"taskId":"r","inputResponses":{"q":{}},META}`, "r", ""},
		"a task's end":               {gateway.Forward{Method: gateway.MethodTaskCancel, Tool: tool, Remote: "r"}, `{"taskId":"r",META}`, "r", ""},
		"a state that breaks out":    {gateway.Forward{Tool: tool, State: `","name":"other`}, `{"name":"act","arguments":{},"requestState":"\",\"name\":\"other",META}`, "act", ""},
		"answers that break out":     {gateway.Forward{Tool: tool, Answers: raw(`{},"name":"other"`)}, "", "", ""},
		"arguments that break out":   {gateway.Forward{Tool: tool, Args: raw(`{},"name":"other"`)}, "", "", ""},
		"a completion of nothing":    {gateway.Forward{Method: gateway.MethodComplete, Tool: template, Args: raw(`{"argument":7}`)}, "", "", ""},
		"another method":             {gateway.Forward{Method: "ping", Tool: tool}, "", "", ""},
		"what the agent can, wrong":  {gateway.Forward{Tool: tool, Caps: raw(`{}},"x":{`)}, "", "", ""},
	} {
		for _, modern := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				var mu sync.Mutex
				var sent *fakeMessage
				var head http.Header
				f := &fake{modern: modern, caps: everySort, before: func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
					if !strings.Contains(m.Method, "/") || strings.HasSuffix(m.Method, "/list") || strings.HasPrefix(m.Method, "notifications/") || m.Method == "server/discover" {
						return false
					}
					mu.Lock()
					sent, head = &m, r.Header.Clone()
					mu.Unlock()
					says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":{"content":[],"contents":[],"messages":[],"completion":{},"status":"working"}}`)(w, r, m)
					return true
				}}
				s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}, Version: "9"})
				c.f.Principal.Tenant = "a"
				r, err := s.Forward(t.Context(), c.f, nil)
				want := c.legacy
				if modern {
					want = strings.Replace(c.modern, "META", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"toolbroker","version":"9"},"io.modelcontextprotocol/clientCapabilities":{}}`, 1)
				}
				if want == "" {
					if !errors.Is(err, gateway.ErrNotSent) || sent != nil {
						t.Fatalf("%v; it was sent: %v", err, sent != nil)
					}
					return
				}
				if err != nil || r.Type != gateway.ResultComplete {
					t.Fatal(err, r.Type)
				}
				if string(sent.Params) != want {
					t.Errorf("sent was\n%s\nnot\n%s", sent.Params, want)
				}
				if method := c.f.Method; modern && (head.Get("Mcp-Name") != c.name || method != "" && head.Get("Mcp-Method") != method) || !modern && head.Get("Mcp-Name") != "" {
					t.Errorf("its headers are %v", head)
				}
			})
		}
	}
}

// What the server is told that the agent can, and which messages it wants.
func TestWhatAServerIsTold(t *testing.T) {
	for _, modern := range []bool{true, false} {
		var mu sync.Mutex
		var said []string
		f := &fake{modern: modern, caps: `{"tools":{},"logging":{}}`, session: "s", before: func(_ http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
			mu.Lock()
			defer mu.Unlock()
			if m.Method == "initialize" || m.Method == "tools/call" || m.Method == "logging/setLevel" {
				said = append(said, m.Method+" "+string(m.Params))
			}
			return false
		}, answers: map[string]string{"logging/setLevel": "{}"}}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}, Version: "9"})
		said = nil
		wants := func(caps, level string) func(*gateway.Forward) {
			return func(f *gateway.Forward) {
				f.Caps, f.Open, f.LogLevel = json.RawMessage(caps), json.RawMessage(caps), level
			}
		}
		e := &ear{}
		for _, w := range []func(*gateway.Forward){wants(`{"elicitation":{"url":{}}}`, "info"), wants(`{"elicitation":{"url":{}}}`, "info"), wants(`{"elicitation":{"url":{}}}`, "error"), wants(`{"elicitation":{"url":{}}}`, `x","y":"`), wants(`{"elicitation":{"url":{}}}`, "")} {
			if _, err := forwardTo(t, s, "x__act", `{}`, e, w); err != nil {
				t.Fatal(err)
			}
		}
		got := strings.Join(said, "\n")
		want := `initialize {"protocolVersion":"2025-11-25","capabilities":{"elicitation":{"url":{}}},"clientInfo":{"name":"toolbroker","version":"9"}}
logging/setLevel {"level":"info"}
tools/call {"name":"act","arguments":{}}
tools/call {"name":"act","arguments":{}}
logging/setLevel {"level":"error"}
tools/call {"name":"act","arguments":{}}
tools/call {"name":"act","arguments":{}}
tools/call {"name":"act","arguments":{}}`
		if modern {
			call := `tools/call {"name":"act","arguments":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"toolbroker","version":"9"},"io.modelcontextprotocol/clientCapabilities":{"elicitation":{"url":{}}}LEVEL}}`
			level := func(l string) string { return strings.Replace(call, "LEVEL", l, 1) }
			info := level(`,"io.modelcontextprotocol/logLevel":"info"`)
			want = strings.Join([]string{info, info, level(`,"io.modelcontextprotocol/logLevel":"error"`), level(""),
				level(`,"io.modelcontextprotocol/logLevel":"debug"`)}, "\n") // it said none, and leaves it to the server
		}
		if got != want {
			t.Errorf("modern=%v: it was told\n%s\nnot\n%s", modern, got, want)
		}
	}
}

// What a result is said to be, and what is not passed on.
func TestResults(t *testing.T) {
	tasks := json.RawMessage(`{"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
	for _, c := range []struct {
		method string
		caps   json.RawMessage
		result string
		want   string // its type, or empty: an error
	}{
		{"tools/call", nil, `{"content":[]}`, "complete"},
		{"tools/call", nil, `{}`, "complete"},
		{"tools/call", nil, `{"resultType":"complete","content":[]}`, "complete"},
		{"tools/call", nil, `{"resultType":"input_required","requestState":"s"}`, "input_required"},
		{"tools/call", nil, `{"resultType":"input_required","inputRequests":{}}`, "input_required"},
		{"prompts/get", nil, `{"resultType":"input_required","inputRequests":{}}`, "input_required"},
		{"resources/read", nil, `{"resultType":"input_required","inputRequests":{}}`, "input_required"},
		{"completion/complete", nil, `{"resultType":"input_required","inputRequests":{}}`, ""},
		{"tasks/get", nil, `{"resultType":"input_required","inputRequests":{}}`, ""},
		{"tools/call", tasks, `{"resultType":"task","taskId":"t"}`, "task"},
		{"tools/call", nil, `{"resultType":"task","taskId":"t"}`, ""},
		{"tools/call", json.RawMessage(`{"extensions":{}}`), `{"resultType":"task","taskId":"t"}`, ""},
		{"tools/call", tasks, `{"resultType":"task"}`, ""},
		{"tools/call", tasks, `{"resultType":"task","taskId":""}`, ""},
		{"tools/call", tasks, `{"resultType":"task","taskId":7}`, ""},
		{"tools/call", tasks, `{"resultType":"task","taskId":"` + strings.Repeat("t", 2000) + `"}`, ""},
		{"prompts/get", tasks, `{"resultType":"task","taskId":"t"}`, ""},
		{"tools/call", tasks, `{"resultType":7}`, ""},
		{"tools/call", nil, `{"content":[{}]}`, ""},
		{"tools/call", nil, `{"content":[],"isError":1}`, ""},
		{"resources/read", nil, `{"contents":[{"uri":"a:b"}]}`, "complete"},
		{"resources/read", nil, `{"contents":{}}`, ""},
		{"resources/read", nil, `{}`, ""},
		{"resources/read", nil, `{"contents":[7]}`, ""},
		{"prompts/get", nil, `{"messages":[]}`, "complete"},
		{"prompts/get", nil, `{"messages":7}`, ""},
		{"completion/complete", nil, `{"completion":{"values":[]}}`, "complete"},
		{"completion/complete", nil, `{"completion":[]}`, ""},
		{"tasks/get", nil, `{"status":"working"}`, "complete"},
		{"tasks/get", nil, `{}`, ""},
		{"tasks/get", nil, `{"status":"completed","result":{"content":[{"type":"text"}]}}`, "complete"},
		{"tasks/get", nil, `{"status":"completed","result":{"content":[{}]}}`, ""},
		{"tasks/get", nil, `{"status":"completed","result":{"content":[],"isError":1}}`, ""},
		{"tasks/cancel", nil, `{}`, "complete"},
	} {
		m, err := parse([]byte(`{"jsonrpc":"2.0","id":1,"result":` + c.result + `}`))
		if err != nil {
			t.Fatal(err)
		}
		is, err := finished(gateway.Forward{Method: c.method, Caps: c.caps}, modernEra, m)
		if is != c.want && err == nil || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, gateway.ErrBadAnswer) {
			t.Errorf("%s of %s is %q, %v", c.result, c.method, is, err)
		}
		if _, err := finished(gateway.Forward{Method: c.method, Caps: c.caps}, legacyEra, m); err == nil && c.want != "complete" {
			t.Errorf("%s of %s passes in the legacy era", c.result, c.method)
		}
	}
}

func TestIdempotency(t *testing.T) {
	for _, modern := range []bool{true, false} {
		var mu sync.Mutex
		seen := map[string][]string{}
		f := &fake{modern: modern, caps: everySort, before: func(_ http.ResponseWriter, r *http.Request, m fakeMessage) bool {
			mu.Lock()
			defer mu.Unlock()
			var p struct {
				Meta map[string]any `json:"_meta"`
			}
			json.Unmarshal(m.Params, &p)
			key, _ := p.Meta["example.com/key"].(string)
			if n := strings.Count(string(m.Params), "example.com/key"); n > 1 {
				key = "twice"
			}
			seen[m.Method] = append(seen[m.Method], r.Header.Get("Idempotency-Key")+" "+key)
			return false
		}, answers: map[string]string{"resources/read": `{"contents":[]}`, "resources/list": `{"resources":[{"uri":"a:b","name":"n"}]}`}}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), IdempotencyHeader: "Idempotency-Key", IdempotencyMeta: "example.com/key", Meta: []string{"example.com/key"}}}})
		for _, id := range []string{"c1", "c2", "c1"} {
			if _, err := forward(t, s, "x__act", `{}`, func(f *gateway.Forward) {
				f.CallID, f.Meta = id, json.RawMessage(`{"example.com/key":"the agent's"}`)
			}); err != nil {
				t.Fatal(err)
			}
		}
		r, _ := s.Resolve("a", gateway.SortResource, "x+a:b")
		if _, err := s.Forward(t.Context(), gateway.Forward{Method: gateway.MethodRead, Tool: r, CallID: "c3", Principal: gateway.Principal{Tenant: "a"}}, nil); err != nil {
			t.Fatal(err)
		}
		got := seen["tools/call"]
		header, meta, _ := strings.Cut(got[0], " ")
		if header != meta || len(header) != 32 || got[0] == got[1] || got[0] != got[2] || strings.Contains(got[0], "c1") {
			t.Errorf("the keys are %q", got)
		}
		if got := seen["resources/read"]; got[0] != " " {
			t.Errorf("a read carries %q", got)
		}
	}
}
