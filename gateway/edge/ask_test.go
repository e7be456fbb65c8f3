package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const (
	formAsk   = `{"method":"elicitation/create","params":{"message":"who?","requestedSchema":{"type":"object"},"io.toolbroker/approval":1}}`
	urlAsk    = `{"method":"elicitation/create","params":{"mode":"url","message":"go there","url":"https://x.example","elicitationId":"e1"}}`
	sampleAsk = `{"method":"sampling/createMessage","params":{"messages":[],"maxTokens":1}}`
	rootsAsk  = `{"method":"roots/list"}`
	everyCap  = `{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{"listChanged":true}}`
)

func asking(id any, asks ...string) string {
	return rpc(id, "tools/call", `"name":"ask","arguments":{"asks":[`+strings.Join(asks, ",")+`]}`)
}

// asked opens a door whose house has a tool that asks, and a call of it.
func (d *door) canAsk() *door {
	d.house.tools = append(d.house.tools, tool("ask", `{"type":"object"}`), tool("log", `{"type":"object"}`))
	return d
}

// post opens a call's stream.
func (d *door) post(r req) *openStream {
	ctx, cancel := context.WithCancel(d.Context())
	return d.stream(ctx, cancel, r)
}

type asked struct {
	ID     string
	Method string
	Params json.RawMessage
}

func readAsk(t *testing.T, s *openStream) (a asked) {
	t.Helper()
	line := get(t, "question", s.lines)
	if err := json.Unmarshal([]byte(line), &a); err != nil || !isOurAsk(a.ID) {
		t.Fatalf("not a question: %s", line)
	}
	return a
}

// What a server asks is put to the session whose call it is, under an id that
// nobody can guess, and its answer finds the call from whatever replica.
func TestAsks(t *testing.T) {
	d := open(t).canAsk()
	other := another(t, d.house)
	sid := d.sessionOf("alice", "2025-11-25", everyCap)
	in := func(body string) req { return req{body: body}.with(mcp.HeaderSessionID, sid) }
	s := d.post(in(asking(7, formAsk, urlAsk, sampleAsk, rootsAsk)))
	seen := map[string]bool{}
	for i, row := range []struct{ method, says, answer, got string }{
		{"elicitation/create", `{"message":"who?","requestedSchema":{"type":"object"}}`, `"result":{"action":"accept","content":{"name":"x"},"io.toolbroker/x":1}`, `{"action":"accept","content":{"name":"x"}}`},
		{"elicitation/create", `"mode":"url"`, `"error":{"code":-1,"message":"no","data":{"a":1}}`, `{"code":-1,"message":"no","data":{"a":1}}`},
		{"sampling/createMessage", `"maxTokens":1`, `"result":{"role":"assistant"}`, `{"role":"assistant"}`},
		{"roots/list", "", `"result":{"roots":[]}`, `{"roots":[]}`},
	} {
		a := readAsk(t, s)
		if a.Method != row.method || !strings.Contains(string(a.Params), row.says) || seen[a.ID] {
			t.Errorf("asked %+v %s", a, a.Params)
		}
		seen[a.ID] = true
		at := []*door{d, other}[i%2]
		if got := at.do(in(`{"jsonrpc":"2.0","id":"` + a.ID + `",` + row.answer + `}`)); got.status != 202 || got.body != "" {
			t.Errorf("answer: %d %s", got.status, got.body)
		}
		// It is taken once.
		waitFor(t, "the answer", func() (there bool) { d.set(func() { there = len(d.asks) > i }); return there })
		if got := at.do(in(`{"jsonrpc":"2.0","id":"` + a.ID + `",` + row.answer + `}`)); got.status != 400 {
			t.Errorf("answered again: %d %s", got.status, got.body)
		}
		out := d.asks[i]
		if d.asksErr[i] != nil || string(out.Raw)+string(out.Error) != row.got {
			t.Errorf("%s: %s %s %v", row.method, out.Raw, out.Error, d.asksErr[i])
		}
	}
	if got := get(t, "answer to the call", s.lines); !strings.HasPrefix(got, `{"jsonrpc":"2.0","id":7,"result":{`) {
		t.Error(got)
	}
	if len(d.calls) != 1 || string(d.calls[0].Caps) != everyCap {
		t.Errorf("%+v", d.calls)
	}
}

// Nobody answers for another session, and nothing but a question of ours is answered.
func TestAnswersAreTheSessionsOwn(t *testing.T) {
	d := open(t).canAsk()
	mine, other := d.sessionOf("alice", "2025-11-25", everyCap), d.session("alice")
	bobs := d.session("bob")
	s := d.post(req{body: asking(1, formAsk)}.with(mcp.HeaderSessionID, mine))
	id := readAsk(t, s).ID
	for _, row := range []struct {
		name, token, session, body string
		status                     int
	}{
		{"another session of its own", "alice", other, `"id":"` + id + `","result":{}`, 400},
		{"another's session", "bob", bobs, `"id":"` + id + `","result":{}`, 400},
		{"somebody else in its session", "bob", mine, `"id":"` + id + `","result":{}`, 404},
		{"no session", "alice", "", `"id":"` + id + `","result":{}`, 400},
		{"another id", "alice", mine, `"id":"ask-x","result":{}`, 400},
		{"the mailbox", "alice", mine, `"id":"notices","result":{"elicitationId":"x"}`, 400},
		{"a number", "alice", mine, `"id":1,"result":{}`, 400},
		{"a result that is no object", "alice", mine, `"id":"` + id + `","result":[]`, 400},
		{"an error that is no object", "alice", mine, `"id":"` + id + `","error":"x"`, 400},
		{"an error without a number", "alice", mine, `"id":"` + id + `","error":{"code":"x"}`, 400},
		{"an error in another case", "alice", mine, `"id":"` + id + `","error":{"code":1,"Code":2,"message":"m"}`, 400},
		{"both", "alice", mine, `"id":"` + id + `","result":{},"error":{"code":1,"message":"m"}`, 400},
		{"a result twice", "alice", mine, `"id":"` + id + `","result":{},"result":{}`, 400},
	} {
		r := req{token: row.token, body: `{"jsonrpc":"2.0",` + row.body + `}`}
		if row.session != "" {
			r = r.with(mcp.HeaderSessionID, row.session)
		}
		if got := d.do(r); got.status != row.status {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
	}
	if len(d.asks) != 0 {
		t.Fatalf("it was answered: %+v", d.asks)
	}
	if got := d.do(req{body: `{"jsonrpc":"2.0","id":"` + id + `","result":{}}`}.with(mcp.HeaderSessionID, mine)); got.status != 202 {
		t.Errorf("its own answer: %d %s", got.status, got.body)
	}
	get(t, "answer to the call", s.lines)
}

// A client is asked only what it said, in its session, that it can answer.
func TestAsksOnlyWhatWasDeclared(t *testing.T) {
	for _, row := range []struct {
		name, protocol, caps string
		may                  string // f form, u url, s sampling, r roots
	}{
		{"nothing", "2025-11-25", `{}`, ""},
		{"elicitation as it was", "2025-06-18", `{"elicitation":{}}`, "f"},
		{"elicitation as it is", "2025-11-25", `{"elicitation":{}}`, "f"},
		{"one mode", "2025-11-25", `{"elicitation":{"url":{}}}`, "u"},
		{"a mode that was not there yet", "2025-06-18", `{"elicitation":{"form":{},"url":{}}}`, "f"},
		{"no objects", "2025-11-25", `{"elicitation":{"form":true,"url":1},"sampling":{},"roots":{}}`, "sr"},
		{"all", "2025-11-25", everyCap, "fusr"},
		{"tasks, of which that era knows nothing", "2025-11-25", `{"extensions":{"io.modelcontextprotocol/tasks":{}}}`, ""},
	} {
		can := abilities([]byte(row.caps), row.protocol)
		for i, ask := range []string{formAsk, urlAsk, sampleAsk, rootsAsk} {
			var a asked
			if err := json.Unmarshal([]byte(ask), &a); err != nil {
				t.Fatal(err)
			}
			if may, want := can.may(a.Method, a.Params), strings.Contains(row.may, "fusr"[i:i+1]); may != want {
				t.Errorf("%s: %s: %v", row.name, ask, may)
			}
		}
		if can.tasks {
			t.Errorf("%s: tasks", row.name)
		}
		if can.may("tools/call", []byte("{}")) || can.may("elicitation/create", []byte(`{"mode":"voice"}`)) || can.may("elicitation/create", nil) {
			t.Errorf("%s: may be asked anything", row.name)
		}
	}
	// And where nobody could answer, nothing is sent.
	all := everyCap
	for _, row := range []struct {
		name string
		req  func(d *door) req
	}{
		{"no session", func(*door) req { return req{body: asking(1, formAsk)} }},
		{"an incapable one", func(d *door) req {
			return req{body: asking(1, formAsk)}.with(mcp.HeaderSessionID, d.session("alice"))
		}},
		{"no events", func(d *door) req {
			return req{body: asking(1, formAsk)}.with(mcp.HeaderSessionID, d.sessionOf("alice", "2025-11-25", all)).with("Accept", "application/json")
		}},
		{"another era", func(*door) req {
			r := modernReq("tools/call", "ask", `"name":"ask","arguments":{"asks":[`+formAsk+`]}`)
			r.body = strings.Replace(r.body, `"io.modelcontextprotocol/clientCapabilities":{}`, `"progressToken":1,"io.modelcontextprotocol/clientCapabilities":`+all, 1)
			return r
		}},
	} {
		d := open(t).canAsk()
		got := d.do(row.req(d))
		if got.status != 200 || strings.Contains(got.body, "ask-") || len(d.asksErr) > 0 && !errors.Is(d.asksErr[0], gateway.ErrCannotAsk) {
			t.Errorf("%s: %d %s %v", row.name, got.status, got.body, d.asksErr)
		}
	}
}

// One call asks so much at once, and no more.
func TestAsksAreBounded(t *testing.T) {
	d := open(t)
	r := &reply{edge: d.edge, events: true, w: &tape{}, request: &request{can: ability{roots: true}, cred: gateway.Credential{Session: "s"}}, gone: func(error) {}}
	r.w.(*tape).header = map[string][]string{}
	ctx, cancel := context.WithCancel(t.Context())
	ends := make(chan error, 2*maxAsks)
	for range 2 * maxAsks {
		go func() {
			_, err := r.Ask(ctx, gateway.MethodRoots, nil)
			ends <- err
		}()
	}
	for range maxAsks {
		if err := get(t, "refused question", ends); !errors.Is(err, gateway.ErrCannotAsk) {
			t.Error(err)
		}
	}
	cancel()
	for range maxAsks {
		if err := get(t, "end of a question", ends); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	r.close()
	if text := r.w.(*tape).String(); strings.Count(text, `"method":"roots/list"`) != maxAsks || strings.Count(text, `notifications/cancelled`) != maxAsks {
		t.Errorf("%s", text)
	}
}

// The question ends with the call: by a cancellation wherever it comes in, and with
// the session.
func TestAsksEndWithTheirCall(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(d, other *door, sid string)
	}{
		{"cancelled here", func(d, _ *door, sid string) {
			d.do(req{body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`}.with(mcp.HeaderSessionID, sid))
		}},
		{"cancelled there", func(_, other *door, sid string) {
			other.do(req{body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`}.with(mcp.HeaderSessionID, sid))
		}},
		{"the session ended there", func(_, other *door, sid string) {
			other.do(req{method: "DELETE"}.with(mcp.HeaderSessionID, sid))
		}},
		{"the task ended", func(d, _ *door, sid string) { _, _ = d.kept.EndTask(context.Background(), "acme", "task-a") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := open(t).canAsk()
			other := another(t, d.house)
			sid := d.sessionOf("alice", "2025-11-25", everyCap)
			s := d.post(req{body: asking(1, formAsk)}.with(mcp.HeaderSessionID, sid))
			id := readAsk(t, s).ID
			row.end(d, other, sid)
			if got := get(t, "word of the end", s.lines); got != string(askCancelled(id)) {
				t.Error(got)
			}
			waitFor(t, "the end", func() (there bool) { d.set(func() { there = len(d.asksErr) > 0 }); return there })
			if !errors.Is(d.asksErr[0], context.Canceled) {
				t.Error(d.asksErr[0])
			}
		})
	}
}

// 200 clients count alike, and nobody touches another's call, question or
// cancellation.
func TestManyClientsCountAlike(t *testing.T) {
	d := open(t).canAsk()
	const n = 200
	type client struct {
		sid string
		s   *openStream
		ask string
	}
	all := make([]*client, n)
	for i := range all {
		token := []string{"alice", "bob"}[i%2]
		c := &client{sid: d.sessionOf(token, "2025-11-25", everyCap)}
		c.s = d.post(req{token: token, body: asking(1, formAsk)}.with(mcp.HeaderSessionID, c.sid))
		all[i] = c
	}
	for _, c := range all {
		c.ask = readAsk(t, c.s).ID
	}
	for i, c := range all {
		token := []string{"alice", "bob"}[i%2]
		body := fmt.Sprintf(`{"jsonrpc":"2.0","id":%q,"result":{"action":"accept","content":{"n":%d}}}`, c.ask, i)
		if i%4 == 3 {
			body = `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`
		}
		if got := d.do(req{token: token, body: body}.with(mcp.HeaderSessionID, c.sid)); got.status != 202 {
			t.Fatalf("%d: %d %s", i, got.status, got.body)
		}
	}
	for i, c := range all {
		got := get(t, "end of a call", c.s.lines)
		if answered := strings.Contains(got, `"id":1,"result"`); answered != (i%4 != 3) {
			t.Errorf("%d: %s", i, got)
		}
	}
	waitFor(t, "the end of every question", func() (all bool) { d.set(func() { all = len(d.asks) == n }); return all })
	cancelled := 0
	seen := map[string]bool{}
	for i, err := range d.asksErr {
		if err != nil {
			cancelled++
		} else if seen[string(d.asks[i].Raw)] {
			t.Errorf("%s twice", d.asks[i].Raw)
		}
		seen[string(d.asks[i].Raw)] = true
	}
	if cancelled != n/4 {
		t.Errorf("%d were cancelled", cancelled)
	}
}

// Log messages reach an agent from the level on that it asked for: a session's, or
// a request's own.
func TestLogMessages(t *testing.T) {
	call := `"name":"log"`
	for _, row := range []struct{ name, level, want string }{
		{"a session that did not say", "", "debug info error"},
		{"a session that wants little", "warning", "error"},
		{"a session that wants all", "debug", "debug info error"},
		{"modern, without a level", "-", ""},
		{"modern, with progress and without a level", "-token", ""},
		{"modern, with one", "-info", "info error"},
	} {
		d := open(t).canAsk()
		r := req{body: rpc(1, "tools/call", call)}
		if level, is := strings.CutPrefix(row.level, "-"); is {
			r = modernReq("tools/call", "log", call)
			switch level {
			case "":
			case "token":
				r.body = strings.Replace(r.body, `"_meta":{`, `"_meta":{"progressToken":1,`, 1)
			default:
				r.body = strings.Replace(r.body, `"_meta":{`, `"_meta":{"io.modelcontextprotocol/logLevel":"`+level+`",`, 1)
			}
		} else {
			sid := d.session("alice")
			r = r.with(mcp.HeaderSessionID, sid)
			if level != "" {
				if got := d.do(req{body: rpc(1, "logging/setLevel", `"level":"`+level+`"`)}.with(mcp.HeaderSessionID, sid)); got.body != `{"jsonrpc":"2.0","id":1,"result":{}}` {
					t.Errorf("%s: %s", row.name, got.body)
				}
			}
		}
		got := d.do(r)
		var levels []string
		for line := range strings.Lines(got.body) {
			var n struct {
				Method string
				Params map[string]json.RawMessage
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &n) == nil && n.Method == "notifications/message" {
				levels = append(levels, strings.Trim(string(n.Params["level"]), `"`))
				if string(n.Params["data"]) != `{"y":2}` {
					t.Errorf("%s: %s", row.name, n.Params["data"])
				}
			}
		}
		if strings.Join(levels, " ") != row.want || !strings.Contains(got.body, `"id":1,"result"`) {
			t.Errorf("%s: %v in %s", row.name, levels, got.body)
		}
		if want := strings.TrimPrefix(strings.TrimPrefix(row.level, "-"), "token"); d.calls[0].LogLevel != want {
			t.Errorf("%s: the gateway heard %q", row.name, d.calls[0].LogLevel)
		}
	}
}

// Over stdio a server's question is a line, and so is its answer.
func TestAsksOverStdio(t *testing.T) {
	d := open(t).canAsk()
	r, w := pipes(t, d)
	lines := json.NewDecoder(r)
	send := func(s string) { fmt.Fprintln(w, s) }
	var a struct {
		ID, Method string
		Result     json.RawMessage
	}
	next := func() {
		t.Helper()
		a.ID, a.Method, a.Result = "", "", nil
		if err := lines.Decode(&a); err != nil {
			t.Fatal(err)
		}
	}
	send(rpc("i", "initialize", `"protocolVersion":"2025-11-25","capabilities":{"roots":{}}`))
	next()
	send(asking("c", rootsAsk, sampleAsk))
	next()
	if a.Method != "roots/list" || !isOurAsk(a.ID) {
		t.Fatalf("%+v", a)
	}
	send(`{"jsonrpc":"2.0","id":"ask-another","result":{}}`)
	send(`{"jsonrpc":"2.0","id":"` + a.ID + `","result":[]}`)
	send(`{"jsonrpc":"2.0","id":"` + a.ID + `","result":{"roots":[]}}`)
	if next(); a.ID != "c" || a.Result == nil {
		t.Fatalf("%+v", a)
	}
	if d.asksErr[0] != nil || string(d.asks[0].Raw) != `{"roots":[]}` || !errors.Is(d.asksErr[1], gateway.ErrCannotAsk) {
		t.Errorf("%s %v", d.asks[0].Raw, d.asksErr)
	}
	// What it declared in one era holds in that one only.
	send(rpc("m", "tools/call", modernMeta("")+`,"name":"ask","arguments":{"asks":[`+rootsAsk+`]}`))
	if next(); a.ID != "m" || len(d.asksErr) > 2 && !errors.Is(d.asksErr[2], gateway.ErrCannotAsk) {
		t.Errorf("%+v %v", a, d.asksErr)
	}
	// And a call that its agent cancels asks no more.
	send(asking("d", rootsAsk))
	next()
	id := a.ID
	send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"d"}}`)
	if next(); a.Method != "notifications/cancelled" {
		t.Errorf("%+v", a)
	}
	send(`{"jsonrpc":"2.0","id":"` + id + `","result":{"roots":[]}}`)
	send(rpc("p", "ping", ""))
	if next(); a.ID != "p" {
		t.Errorf("%+v", a)
	}
}
