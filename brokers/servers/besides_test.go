package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
)

// An agent's session has one session or child at a server, whatever is asked for in
// it, and shares it with no other session of anybody's.
func TestOneSessionForOneSession(t *testing.T) {
	f := newSessions()
	usual := f.before
	f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		if m.Method == "initialize" {
			id := fmt.Sprint("s", f.n.Add(1))
			w.Header().Set("Mcp-Session-Id", id)
			w.Header().Set("Content-Type", contentJSON)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{},"logging":{},"resources":{"subscribe":true}}}}`, m.ID)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.over[id] = append(f.over[id], "initialize "+string(m.Params))
			return true
		}
		return usual(w, r, m)
	}
	f.answers = map[string]string{"resources/list": `{"resources":[{"uri":"a:b","name":"b"}]}`, "resources/subscribe": `{}`, "resources/unsubscribe": `{}`,
		"logging/setLevel": `{}`, "resources/read": `{"contents":[]}`}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	before := f.n.Load()
	var all []*follower
	for _, session := range []string{"m1", "m2"} {
		of := func(caps, level string) func(*gateway.Forward) {
			return func(f *gateway.Forward) {
				f.Session, f.LogLevel, f.Open = session, level, json.RawMessage(allCaps)
				if caps != "" {
					f.Caps = json.RawMessage(caps)
				}
			}
		}
		all = append(all, follow(t, s, "x+a:b", of("", "")))
		for _, caps := range []string{"", `{"roots":{}}`, allCaps} {
			for _, level := range []string{"", "info", "debug"} {
				if _, err := forwardTo(t, s, "x__act", `{}`, &ear{}, of(caps, level)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, one := range all {
		one.stop()
		<-one.ended
	}
	if n := f.n.Load() - before; n != 2 {
		t.Errorf("two sessions of agents have %d at the server", n)
	}
	if ids := slices.Compact(f.calls()); len(ids) != 2 || !strings.Contains(f.history(ids[0]), `"capabilities":`+allCaps) {
		t.Errorf("they are %q, the first of %s", ids, f.history(ids[0]))
	}

	// Nor is a child anybody else's, in either era.
	for _, mode := range []string{"good", "modern"} {
		s, _ := start(t, Config{Servers: []Server{self("c", mode)}})
		pids := map[string]string{}
		for _, who := range []struct{ principal, session, caps, level string }{
			{"p", "m1", "", ""}, {"p", "m1", allCaps, ""}, {"p", "m1", "", "info"}, {"p", "m2", "", ""}, {"p", "m2", allCaps, "info"},
			{"p", "", "", ""}, {"p", "", allCaps, "info"}, {"q", "", "", ""},
		} {
			r, err := forwardTo(t, s, "c__act", `{"do":"pid"}`, &ear{}, func(f *gateway.Forward) {
				f.Principal.ID, f.Session, f.LogLevel = who.principal, who.session, who.level
				if who.caps != "" {
					f.Caps = json.RawMessage(who.caps)
				}
			})
			owner, pid := who.principal+" "+who.session, said(t, r, err)
			for other, its := range pids {
				if (its == pid) != (other == owner) {
					t.Errorf("%s: the children of %q and %q are %s and %s", mode, other, owner, its, pid)
				}
			}
			pids[owner] = pid
		}
	}
}

// The end of an agent's session is the end of what it has at servers, of nothing
// else, and nothing new is opened for it.
func TestTheEndOfASession(t *testing.T) {
	f := newSessions()
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}, self("c", "good")}})
	of := func(session string) func(*gateway.Forward) {
		return func(f *gateway.Forward) { f.Session = session }
	}
	pid := func(session string) string {
		r, err := forward(t, s, "c__act", `{"do":"pid"}`, of(session))
		return said(t, r, err)
	}
	kept := pid("m2")
	pid("m1")
	for _, session := range []string{"m1", "m2", ""} {
		if _, err := forward(t, s, "x__act", `{}`, of(session)); err != nil {
			t.Fatal(err)
		}
	}
	owner, ends := s.EndSession(t.Context(), "m1")
	slices.Sort(ends.Gone)
	if want := (gateway.Owner{Tenant: "a", Task: "t1", Principal: "p"}); owner != want || !slices.Equal(ends.Gone, []string{"c", "x"}) || len(ends.Open)+len(ends.Lost) > 0 {
		t.Errorf("of %+v: %+v", owner, ends)
	}
	ended := 0
	for _, id := range f.calls() {
		if strings.HasSuffix(f.history(id), "DELETE") {
			ended++
		}
	}
	if ended != 1 || pid("m2") != kept {
		t.Errorf("%d sessions ended, or another session's child did", ended)
	}
	for _, server := range []string{"x", "c"} {
		if _, err := forward(t, s, server+"__act", `{}`, of("m1")); err == nil {
			t.Errorf("something of %s was opened for a session that is over", server)
		}
	}
	if owner, ends := s.EndSession(t.Context(), "m1"); owner != (gateway.Owner{}) || len(ends.Gone) > 0 {
		t.Errorf("it ended again: %+v %+v", owner, ends)
	}
	if _, ends := s.EndSession(t.Context(), ""); len(ends.Gone)+len(ends.Open) > 0 {
		t.Errorf("nobody's session ended %+v", ends)
	}
	if ends := s.EndTask(t.Context(), "a", "t1"); len(ends.Gone) != 3 {
		t.Errorf("the task's end: %+v", ends)
	}
}

// beside is the way to an agent beside its calls.
type beside struct {
	ear
	told chan string
}

func newBeside() *beside { return &beside{told: make(chan string, 100)} }

func (b *beside) Notify(_ context.Context, method string, params json.RawMessage) error {
	b.told <- method + " " + string(params)
	return nil
}

func (b *beside) hears(t *testing.T, want string) {
	t.Helper()
	expect(t, b.told, want)
}

func (b *beside) with(f *gateway.Forward) { f.Beside = b }

// What a server says beside all calls reaches the agent of the session: its log
// messages, and its question for roots, the answer to which it hears though no call
// is under way, and one that is ends. Nothing else is asked of anybody.
func TestBesideAllCalls(t *testing.T) {
	n, url := newNotifier(t, false)
	n.caps = `{"resources":{"subscribe":true},"logging":{},"tools":{}}`
	answers := make(chan string, 10)
	usual := n.before
	n.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		switch {
		case r.Method == http.MethodPost && m.Method == "", m.Method == "notifications/roots/list_changed", m.Method == "logging/setLevel":
			answers <- string(m.raw)
		}
		return usual(w, r, m)
	}
	n.answers["logging/setLevel"] = `{}`
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	b := newBeside()
	b.asked = agrees
	e := &ear{asked: agrees}
	if _, err := forwardTo(t, s, "x__act", `{}`, e, able(`{"roots":{},"sampling":{}}`), b.with); err != nil {
		t.Fatal(err)
	}
	<-n.open
	n.say("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{ \"data\":\"\\u0041\",\"level\":\"info\",\"_meta\":{\"io.toolbroker/x\":1}}}\n\n")
	b.hears(t, `notifications/message { "data":"\u0041","level":"info","_meta":{}}`)
	n.say("data: {\"jsonrpc\":\"2.0\",\"id\":\"r1\",\"method\":\"roots/list\"}\n\n")
	expect(t, answers, `{"jsonrpc":"2.0","id":"r1","result":{"action":"accept","content":{}}}`)
	n.say("data: {\"jsonrpc\":\"2.0\",\"id\":\"r2\",\"method\":\"sampling/createMessage\",\"params\":{}}\n\n")
	expect(t, answers, `{"jsonrpc":"2.0","id":"r2","error":{"code":-32601,"message":"not supported by this client"}}`)
	if len(e.heard) > 0 || len(b.heard) != 1 {
		t.Errorf("the call heard %q, the session %q", e.heard, b.heard)
	}

	// What the agent says of its session reaches the server.
	s.Hear(t.Context(), gateway.News{Session: "m1", Roots: true})
	expect(t, answers, `{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`)
	s.Hear(t.Context(), gateway.News{Session: "m2", Roots: true})
	s.Hear(t.Context(), gateway.News{Session: "m1", Level: "error"})
	var m fakeMessage
	if json.Unmarshal([]byte(<-answers), &m); m.Method != "logging/setLevel" || string(m.Params) != `{"level":"error"}` {
		t.Errorf("the server was told %s %s", m.Method, m.Params)
	}

	// What it may not ask it is told at once, and nobody hears of it.
	c := newBeside()
	if _, err := forwardTo(t, s, "x__act", `{}`, e, able(`{"sampling":{}}`), c.with, func(f *gateway.Forward) { f.Session = "m3" }); err != nil {
		t.Fatal(err)
	}
	<-n.open
	n.mu.Lock()
	newest := n.streams[n.n]
	newest("data: {\"jsonrpc\":\"2.0\",\"id\":\"r3\",\"method\":\"roots/list\"}\n\n")
	n.mu.Unlock()
	expect(t, answers, `{"jsonrpc":"2.0","id":"r3","error":{"code":-32601,"message":"not supported by this client"}}`)
	s.Hear(t.Context(), gateway.News{Session: "m3", Roots: true})
	s.Hear(t.Context(), gateway.News{Session: "m3", Level: "alert"})
	if got := <-answers; !strings.Contains(got, "alert") {
		t.Errorf("the server was told %s", got)
	}
	if len(c.heard) > 0 {
		t.Errorf("asked %q", c.heard)
	}
}

// A server that begins its stream beside all calls only when it has something to say
// holds up no call for long.
func TestASilentStream(t *testing.T) {
	f := &fake{session: "s", caps: `{"tools":{},"logging":{}}`, before: func(_ http.ResponseWriter, r *http.Request, _ fakeMessage) bool {
		if r.Method == http.MethodGet {
			<-r.Context().Done()
		}
		return r.Method == http.MethodGet
	}}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t), Timeout: 20 * time.Second}}})
	for range 2 {
		if _, err := forwardTo(t, s, "x__act", `{}`, &ear{}, able(allCaps), newBeside().with); err != nil {
			t.Fatal(err)
		}
	}
}

// A child that asks for roots as soon as it may, as some do, has them before its
// first call; what it asks later outlasts the calls that are under way meanwhile. Its
// log messages of no call reach the session.
func TestAChildBesideAllCalls(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "roots")}})
	b := newBeside()
	n, late := 0, make(chan struct{})
	b.asked = func(ctx context.Context, method string, _ json.RawMessage) (gateway.Result, error) {
		if n++; n > 1 {
			select {
			case <-late:
			case <-ctx.Done():
			}
		}
		return gateway.Result{Raw: json.RawMessage(fmt.Sprintf(`{"roots":[{"uri":"file:///%d"}]}`, n))}, ctx.Err()
	}
	say := func() string {
		r, err := forwardTo(t, s, "c__act", `{}`, &ear{asked: agrees}, able(`{"roots":{"listChanged":true}}`), b.with)
		return said(t, r, err)
	}
	if got := say(); got != `{"roots":[{"uri":"file:///1"}]}` {
		t.Errorf("at its first call it had %q", got)
	}
	b.hears(t, `notifications/message {"level":"info","data":"roots"}`)
	s.Hear(t.Context(), gateway.News{Session: "m1", Roots: true})
	if got := say(); got != `{"roots":[{"uri":"file:///1"}]}` {
		t.Errorf("while it asks it has %q", got)
	}
	close(late)
	b.hears(t, `notifications/message {"level":"info","data":"roots"}`)
	if got := say(); got != `{"roots":[{"uri":"file:///2"}]}` {
		t.Errorf("then it has %q", got)
	}
	// An agent that does not answer holds up the first call for a moment only.
	b.asked = func(ctx context.Context, _ string, _ json.RawMessage) (gateway.Result, error) {
		<-ctx.Done()
		return gateway.Result{}, ctx.Err()
	}
	r, err := forwardTo(t, s, "c__act", `{}`, &ear{}, able(`{"roots":{}}`), b.with, func(f *gateway.Forward) { f.Session = "m2" })
	if got := said(t, r, err); got != "no roots yet" {
		t.Errorf("it said %q", got)
	}
}

// Questions and messages beside calls are bounded: a flood is told so, and hurts
// nobody.
func TestBesidesAreBounded(t *testing.T) {
	d := newDesk(&server{Server: Server{MaxResponse: 1 << 20}, tidy: func(f func()) { go f() }})
	hold := make(chan struct{})
	b := newBeside()
	b.asked = func(context.Context, string, json.RawMessage) (gateway.Result, error) {
		<-hold
		return gateway.Result{Raw: json.RawMessage(`{"roots":[]}`)}, nil
	}
	d.serves(client{json.RawMessage(allCaps), b})
	var mu sync.Mutex
	answers := map[string]int{}
	var all sync.WaitGroup
	respond := func(_ context.Context, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		var m struct{ Error struct{ Message string } }
		json.Unmarshal(b, &m)
		answers[m.Error.Message]++
		all.Done()
		return nil
	}
	ask := func(id string) {
		all.Add(1)
		if err := d.take(message{id: json.RawMessage(id), method: gateway.MethodRoots}, 10, respond); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxAtOnce + 3 {
		ask(fmt.Sprint(i))
	}
	ask("0")
	close(hold)
	all.Wait()
	if answers[""] != maxAtOnce || answers["too many requests at once"] != 3 || answers["not supported by this client"] != 1 {
		t.Errorf("answered %v", answers)
	}
	for i := range 2 * maxBeside {
		ask(fmt.Sprint(i))
		all.Wait()
	}
	if answers[""] > maxBeside {
		t.Errorf("%d were asked in a minute", answers[""])
	}
	// Withdrawn, and over with the link.
	d.minute = time.Time{}
	asked := make(chan struct{}, 2)
	over := make(chan error, 2)
	b.asked = func(ctx context.Context, _ string, _ json.RawMessage) (gateway.Result, error) {
		asked <- struct{}{}
		<-ctx.Done()
		over <- ctx.Err()
		return gateway.Result{}, ctx.Err()
	}
	for i, end := range []func(){
		func() {
			d.take(message{method: "notifications/cancelled", params: json.RawMessage(`{"requestId":"w0"}`)}, 10, nil)
		},
		func() { d.fail(errChildEnded) },
	} {
		if err := d.take(message{id: json.RawMessage(fmt.Sprintf(`"w%d"`, i)), method: gateway.MethodRoots}, 10, respond); err != nil {
			t.Fatal(err)
		}
		<-asked
		end()
		if err := <-over; err != context.Canceled {
			t.Errorf("%d: %v", i, err)
		}
	}
}
