package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"toolbroker/gateway"
)

// asker is a legacy server that asks while it works on a call, over the call's own
// stream or over the one beside it.
type asker struct {
	fake
	beside  bool
	asks    func(say func(format string, args ...any))
	answers chan string
	stream  chan func(string)
}

func newAsker(t *testing.T, beside bool, asks func(say func(string, ...any))) (*asker, string) {
	a := &asker{beside: beside, asks: asks, answers: make(chan string, 200), stream: make(chan func(string), 1)}
	a.session, a.caps = "s", `{"tools":{}}`
	a.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		switch {
		case r.Method == http.MethodGet && a.beside:
			w.Header().Set("Content-Type", contentSSE)
			fmt.Fprint(w, "id: 1\ndata:\n\n")
			w.(http.Flusher).Flush()
			var mu sync.Mutex
			a.stream <- func(s string) {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprint(w, s)
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
			mu.Lock() // nobody writes any more
			return true
		case r.Method == http.MethodPost && m.Method == "":
			a.answers <- string(m.raw)
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return false
	}
	a.call = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
		w.Header().Set("Content-Type", contentSSE)
		w.(http.Flusher).Flush()
		write := func(s string) { fmt.Fprint(w, s); w.(http.Flusher).Flush() }
		if a.beside {
			write = <-a.stream
			defer func() { a.stream <- write }()
		}
		a.asks(func(format string, args ...any) { write("data: " + fmt.Sprintf(format, args...) + "\n\n") })
		fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[]}}\n\n", m.ID)
	}
	return a, a.serve(t)
}

func able(caps string) func(*gateway.Forward) {
	return func(f *gateway.Forward) { f.Caps, f.Open = json.RawMessage(caps), json.RawMessage(caps) }
}

const allCaps = `{"elicitation":{},"sampling":{},"roots":{}}`

// What a server asks reaches the agent, its answer reaches the server, and
// everything else is answered with a no.
func TestAsks(t *testing.T) {
	for _, beside := range []bool{false, true} {
		for name, c := range map[string]struct {
			caps, ask string
			answer    gateway.Result
			err       error
			heard     string // by the agent
			told      string // to the server
		}{
			"elicit": {allCaps, `{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{ "message":"\u0041","_meta":{"io.toolbroker/x":1}}}`,
				gateway.Result{Raw: json.RawMessage(`{"action":"accept","content":{ "n":1e0}}`)}, nil,
				`elicitation/create { "message":"\u0041","_meta":{}}`, `{"jsonrpc":"2.0","id":"q","result":{"action":"accept","content":{ "n":1e0}}}`},
			"sample": {allCaps, `{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":{}}`, gateway.Result{Error: json.RawMessage(`{"code":-1,"message":"no"}`)}, nil,
				`sampling/createMessage {}`, `{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"no"}}`},
			"roots":     {allCaps, `{"jsonrpc":"2.0","id":7,"method":"roots/list"}`, gateway.Result{Raw: json.RawMessage(`{"roots":[]}`)}, nil, `roots/list {}`, `{"jsonrpc":"2.0","id":7,"result":{"roots":[]}}`},
			"cannot":    {allCaps, `{"jsonrpc":"2.0","id":7,"method":"roots/list"}`, gateway.Result{}, gateway.ErrCannotAsk, `roots/list {}`, `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"not supported by this client"}}`},
			"gone":      {allCaps, `{"jsonrpc":"2.0","id":7,"method":"roots/list"}`, gateway.Result{}, errors.New("secret"), `roots/list {}`, `{"jsonrpc":"2.0","id":7,"error":{"code":-32603,"message":"the client did not answer"}}`},
			"no object": {allCaps, `{"jsonrpc":"2.0","id":7,"method":"roots/list"}`, gateway.Result{Raw: json.RawMessage(`7`)}, nil, `roots/list {}`, `{"jsonrpc":"2.0","id":7,"error":{"code":-32603,"message":"the client did not answer"}}`},
			"ping":      {allCaps, `{"jsonrpc":"2.0","id":7,"method":"ping"}`, gateway.Result{}, nil, ``, `{"jsonrpc":"2.0","id":7,"result":{}}`},
			// That it asks all the same is decided, and on record, like any question.
			"not declared":      {`{"roots":{}}`, `{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{}}`, gateway.Result{}, gateway.ErrCannotAsk, `elicitation/create {}`, `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"not supported by this client"}}`},
			"declared as null":  {`{"roots":{},"sampling":null}`, `{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":{}}`, gateway.Result{}, gateway.ErrCannotAsk, `sampling/createMessage {}`, `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"not supported by this client"}}`},
			"something else":    {allCaps, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}`, gateway.Result{}, nil, ``, `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"not supported by this client"}}`},
			"params of no kind": {allCaps, `{"jsonrpc":"2.0","id":7,"method":"roots/list","params":[1]}`, gateway.Result{}, nil, ``, `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"not supported by this client"}}`},
			"nested too deep":   {allCaps, `{"jsonrpc":"2.0","id":7,"method":"roots/list","params":{"x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}}`, gateway.Result{}, nil, ``, `{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"not supported by this client"}}`},
		} {
			t.Run(fmt.Sprintf("%s beside=%v", name, beside), func(t *testing.T) {
				var told string
				var a *asker
				var url string
				a, url = newAsker(t, beside, func(say func(string, ...any)) {
					say("%s", c.ask)
					told = <-a.answers
				})
				s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
				e := &ear{asked: func(context.Context, string, json.RawMessage) (gateway.Result, error) { return c.answer, c.err }}
				if _, err := forwardTo(t, s, "x__act", `{}`, e, able(c.caps)); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(e.heard, "\n"); got != c.heard {
					t.Errorf("the agent heard %s", got)
				}
				if told != c.told {
					t.Errorf("the server was told %s", told)
				}
			})
		}
	}
}

// A legacy server does not ask a modern agent, and is told so from the start; a
// modern one is told all the same what it can ask by its answer.
func TestAModernAgentIsNotAskedBesideACall(t *testing.T) {
	for _, modern := range []bool{true, false} {
		var mu sync.Mutex
		var told []string
		f := &fake{modern: modern, session: "s", before: func(_ http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
			mu.Lock()
			defer mu.Unlock()
			if m.Method == "initialize" || m.Method == "tools/call" {
				told = append(told, fmt.Sprint(m.Method, " ", strings.Contains(string(m.Params), `"roots"`)))
			}
			return false
		}}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
		told = nil
		if _, err := forwardTo(t, s, "x__act", `{}`, &ear{asked: agrees}, able(allCaps), func(f *gateway.Forward) { f.Protocol = "2026-07-28" }); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(told, ", "), map[bool]string{true: "tools/call true", false: "initialize false, tools/call false"}[modern]; got != want {
			t.Errorf("modern=%v: it was told %s", modern, got)
		}
	}
}

// A server may ask several things at once, but not without end, and not twice
// under one id.
func TestAsksAreBounded(t *testing.T) {
	for _, beside := range []bool{false, true} {
		hold := make(chan struct{})
		var a *asker
		var url string
		a, url = newAsker(t, beside, func(say func(string, ...any)) {
			for i := range maxAtOnce + 1 {
				say(`{"jsonrpc":"2.0","id":%d,"method":"roots/list"}`, i)
			}
			if got := <-a.answers; got != fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"error":{"code":-32603,"message":"too many requests at once"}}`, maxAtOnce) {
				t.Errorf("the server was told %s", got)
			}
			say(`{"jsonrpc":"2.0","id":0,"method":"roots/list"}`)
			if got := <-a.answers; !strings.HasPrefix(got, `{"jsonrpc":"2.0","id":0,"error":{"code":-32601,`) {
				t.Errorf("the server was told %s", got)
			}
			close(hold)
			for range maxAtOnce {
				<-a.answers
			}
		})
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
		e := &ear{asked: func(context.Context, string, json.RawMessage) (gateway.Result, error) {
			<-hold
			return gateway.Result{Raw: json.RawMessage(`{"roots":[]}`)}, nil
		}}
		if _, err := forwardTo(t, s, "x__act", `{}`, e, able(allCaps)); err != nil {
			t.Fatal(err)
		}
		if len(e.heard) != maxAtOnce {
			t.Errorf("the agent was asked %d times", len(e.heard))
		}
	}
}

// The time that an agent takes to answer is not the server's.
func TestTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c, stop := within(t.Context(), 30*time.Second)
		defer stop()
		time.Sleep(20 * time.Second)
		c.hold()
		c.hold() // asked twice at once
		time.Sleep(time.Hour)
		c.run()
		time.Sleep(time.Hour)
		c.run()
		time.Sleep(9 * time.Second)
		if ctx.Err() != nil {
			t.Error("it ended while it stood still")
		}
		time.Sleep(2 * time.Second)
		if err := over(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended with %v", err)
		}
	})
}

// A call's end, for whatever reason, is the end of what its agent is asked.
func TestAsksEndWithTheirCall(t *testing.T) {
	for name, end := range map[string]func(say func(string, ...any), cancel func()){
		"the agent cancels":  func(_ func(string, ...any), cancel func()) { cancel() },
		"the server answers": func(func(string, ...any), func()) {},
		"the server withdraws": func(say func(string, ...any), _ func()) {
			say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			asked, over := make(chan struct{}), make(chan struct{})
			_, url := newAsker(t, false, func(say func(string, ...any)) {
				say(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`)
				<-asked
				end(say, cancel)
				switch name {
				case "the agent cancels": // nobody reads an answer
					<-t.Context().Done()
				case "the server withdraws":
					<-over
				}
			})
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
			e := &ear{asked: func(ctx context.Context, _ string, _ json.RawMessage) (gateway.Result, error) {
				close(asked)
				<-ctx.Done()
				close(over)
				return gateway.Result{}, ctx.Err()
			}}
			tool, _ := s.Resolve("a", gateway.SortTool, "x__act")
			_, err := s.Forward(ctx, gateway.Forward{Tool: tool, Caps: json.RawMessage(allCaps), Open: json.RawMessage(allCaps), Session: "m1", Principal: gateway.Principal{Tenant: "a"}}, e)
			select {
			case <-over:
			default:
				t.Error("the agent is still asked though the call is over")
			}
			if (name == "the agent cancels") != errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// What comes beside all calls is of the call that it names, or of all that are under
// way; log messages go once to each agent that may hear of all of those.
func TestWhatComesBesideCalls(t *testing.T) {
	type under struct{ name, session, human string }
	ask := message{id: json.RawMessage("1"), method: "elicitation/create"}
	progress := message{method: "notifications/progress", params: json.RawMessage(`{"progressToken":"token of b"}`)}
	a, b, own, deaf := under{name: "a", session: "m"}, under{name: "b", session: "m"}, under{}, under{name: "deaf", session: "m"}
	x, y, z := under{name: "x", human: "h"}, under{name: "y", human: "h"}, under{name: "z", human: "i"}
	for _, c := range []struct {
		under []under
		m     message
		about string
		hears string
	}{
		{nil, ask, "", ""},
		{[]under{a}, ask, "a", "a"},
		{[]under{own, a, own}, ask, "a", "a"},
		{[]under{a, b}, ask, "b a", "b"},
		{[]under{b, a}, progress, "b", "b"},
		{[]under{a, b, a}, progress, "b", "b"},
		{[]under{a}, progress, "", ""},
		{[]under{a, deaf}, ask, "deaf a", "a"},
		{[]under{x, y}, ask, "y x", "y x"},
		{[]under{x, y, z}, ask, "z y x", ""},
	} {
		d := newDesk(&server{Server: Server{MaxResponse: 1 << 20}})
		names := map[*hearing]string{}
		for _, u := range c.under {
			if u == own { // a ping of ours
				d.join(call{}, true)
				continue
			}
			h := &hearing{session: u.session, human: u.human, token: "token of " + u.name, out: &ear{}}
			if u == deaf {
				h.out = nil
			}
			names[h] = u.name
			d.join(call{hears: h}, true)
			if u == b { // its server makes a task of it
				d.join(call{hears: h}, true)
			}
		}
		list := func(all []*waiter) string {
			var some []string
			for _, w := range all {
				some = append(some, names[w.call.hears])
			}
			return strings.Join(some, " ")
		}
		all := d.about(c.m)
		if got := list(all); got != c.about {
			t.Errorf("of %v under way, %s is about %q, want %q", c.under, c.m.method, got, c.about)
		}
		if got := list(hearers(all)); got != c.hears {
			t.Errorf("of %v under way, %q hear, want %q", c.under, got, c.hears)
		}
	}
}

// joint is an agent that can be asked about several calls.
type joint struct {
	ear
	askFor func(ctx context.Context, calls []gateway.Stream, method string, params json.RawMessage) (gateway.Result, error)
}

func (j *joint) AskFor(ctx context.Context, calls []gateway.Stream, method string, params json.RawMessage) (gateway.Result, error) {
	return j.askFor(ctx, calls, method, params)
}

// What a child asks while it works on several calls is of all of them: it outlasts any
// one, and the child is answered in the end, whatever ends first.
func TestAQuestionOfSeveralCalls(t *testing.T) {
	for name, c := range map[string]struct {
		end  string // what happens while the agent is asked
		want string // what the child is told
	}{
		"another call ends":     {"other", `{"jsonrpc":"2.0","id":"q1","result":{"action":"accept"}}`},
		"its own call ends":     {"own", `{"jsonrpc":"2.0","id":"q1","result":{"action":"accept"}}`},
		"all calls end":         {"both", `{"jsonrpc":"2.0","id":"q1","error":{"code":-32603,"message":"the client did not answer"}}`},
		"the agent cannot":      {"cannot", `{"jsonrpc":"2.0","id":"q1","error":{"code":-32601,"message":"not supported by this client"}}`},
		"one call and it ends":  {"alone", `{"jsonrpc":"2.0","id":"q1","error":{"code":-32603,"message":"the client did not answer"}}`},
		"the child withdraws":   {"withdrawn", ""},
		"it says it over again": {"twice", `{"jsonrpc":"2.0","id":"q1","error":{"code":-32601,"message":"not supported by this client"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
			asked, answer, ended := make(chan int, 10), make(chan struct{}), make(chan error, 10)
			j := &joint{}
			j.askFor = func(ctx context.Context, calls []gateway.Stream, method string, params json.RawMessage) (gateway.Result, error) {
				asked <- len(calls)
				if c.end == "cannot" {
					return gateway.Result{}, gateway.ErrCannotAsk
				}
				select {
				case <-answer:
					return gateway.Result{Raw: json.RawMessage(`{"action":"accept"}`)}, nil
				case <-ctx.Done():
					ended <- ctx.Err()
					return gateway.Result{}, ctx.Err()
				}
			}
			j.asked = func(ctx context.Context, method string, params json.RawMessage) (gateway.Result, error) {
				return j.askFor(ctx, []gateway.Stream{j}, method, params)
			}
			begin := func(do string) (cancel func(), over chan error) {
				ctx, cancel := context.WithCancel(t.Context())
				over = make(chan error, 1)
				tool, _ := s.Resolve("a", gateway.SortTool, "c__act")
				go func() {
					_, err := s.Forward(ctx, gateway.Forward{CallID: "call-1", Tool: tool, Args: json.RawMessage(`{"do":"` + do + `"}`), Session: "m1", Caps: json.RawMessage(allCaps), Open: json.RawMessage(allCaps),
						Principal: gateway.Principal{ID: "p", Tenant: "a"}, Task: gateway.Task{ID: "t1", Tenant: "a"}}, j)
					over <- err
				}()
				return cancel, over
			}
			do := func(what string) string {
				r, err := forwardTo(t, s, "c__act", `{"do":"`+what+`"}`, j, able(allCaps))
				return said(t, r, err)
			}
			do("ok")
			d := deskOf(t, s)
			calls := 1
			stopOther, otherOver := func() {}, make(chan error)
			if c.end != "alone" {
				stopOther, otherOver = begin("hang")
				awaitWaiting(t, d, 1)
				calls++
			}
			defer stopOther()
			stop, over := begin("elicit")
			defer stop()
			if n := <-asked; n != calls {
				t.Fatalf("asked about %d calls", n)
			}
			if c.end != "cannot" && stoodStill(d) != calls {
				t.Error("the time that the agent takes counts against a call's")
			}
			switch c.end {
			case "other":
				stopOther()
				<-otherOver
				close(answer)
				if err := <-over; err != nil {
					t.Error(err)
				}
			case "own":
				stop()
				<-over
				close(answer)
			case "both", "alone":
				stop()
				<-over
				if stopOther(); c.end == "both" {
					<-otherOver
				}
				<-ended
			case "withdrawn":
				do("withdraw")
				<-ended
			case "twice":
				do("elicit again")
			}
			for start := time.Now(); ; time.Sleep(time.Millisecond) {
				got := do("heard")
				if got == c.want && (c.end != "withdrawn" || len(ended) == 0) {
					break
				}
				if time.Since(start) > 10*time.Second {
					t.Fatalf("the child was told %q", got)
				}
			}
			if c.end == "twice" {
				close(answer)
			}
			if len(asked) > 0 {
				t.Error("the agent was asked again")
			}
		})
	}
}

// A child asks over its one pipe; two agents who can be asked have two children.
func TestAChildAsks(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	answer := func(text string) *ear {
		return &ear{asked: func(context.Context, string, json.RawMessage) (gateway.Result, error) {
			return gateway.Result{Raw: json.RawMessage(`{"text":"` + text + `"}`)}, nil
		}}
	}
	pids := map[string]bool{}
	for _, agent := range []string{"p", "q"} {
		who := func(f *gateway.Forward) { f.Principal.ID = agent }
		e := answer("of " + agent)
		r, err := forwardTo(t, s, "c__act", `{"do":"ask"}`, e, who, able(allCaps))
		if got := said(t, r, err); !strings.Contains(got, `"id":"q1","result":{"text":"of `+agent+`"}`) || !strings.Contains(got, `{"jsonrpc":"2.0","id":"q2","result":{}}`) {
			t.Errorf("the child was told %s", got)
		}
		r, err = forwardTo(t, s, "c__act", `{"do":"pid"}`, e, who, able(allCaps))
		pids[said(t, r, err)] = true
	}
	// In the modern era what it needs is in its answer; it asks for nothing.
	m, _ := start(t, Config{Servers: []Server{self("m", "modern")}})
	e := answer("no")
	r, err := forwardTo(t, m, "m__act", `{"do":"ask"}`, e, able(allCaps))
	if got := said(t, r, err); len(e.heard) > 0 || !strings.Contains(got, `"id":"q1","error":{"code":-32601`) {
		t.Errorf("the child was told %s", got)
	}
	if len(pids) != 2 {
		t.Errorf("two agents who can be asked have %d children", len(pids))
	}
}

// Log messages of a child go to whoever's child it is, before the answer, and to
// nobody else.
func TestMessagesOfAChild(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	var ears [3]ear
	for i := range ears {
		r, err := forwardTo(t, s, "c__act", `{"do":"log"}`, &ears[i], func(f *gateway.Forward) {
			f.Session = []string{"m1", "m2", ""}[i]
			f.LogLevel = []string{"info", "", "info"}[i]
		})
		said(t, r, err)
	}
	for i := range ears {
		if !slices.Equal(ears[i].heard, []string{`notifications/message {"level":"info","data":"hello"}`}) {
			t.Errorf("%d heard %q", i, ears[i].heard)
		}
	}
}

// stoodStill counts the calls whose clock stands still.
func stoodStill(d *desk) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waiting {
		if w.call.hears == nil {
			continue
		}
		c := w.call.hears.clock
		c.mu.Lock()
		if c.held > 0 {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// What a child says while it works on several calls, each agent of those hears once.
func TestMessagesOfAChildThatWorksOnSeveralCalls(t *testing.T) {
	const hello = `notifications/message {"level":"info","data":"hello"}`
	for session, want := range map[string][2]string{"m1": {"", hello}, "": {hello, hello}} { // one agent; two of one workload
		s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
		var ears [2]ear
		in := func(f *gateway.Forward) { f.Session = session }
		over := make(chan struct{})
		r, err := forwardTo(t, s, "c__act", `{"do":"ok"}`, nil, in)
		said(t, r, err)
		go func() {
			defer close(over)
			r, err := forwardTo(t, s, "c__act", `{"do":"later"}`, &ears[0], in)
			said(t, r, err)
		}()
		awaitWaiting(t, deskOf(t, s), 1)
		r, err = forwardTo(t, s, "c__act", `{"do":"log"}`, &ears[1], in)
		said(t, r, err)
		r, err = forwardTo(t, s, "c__act", `{"do":"now"}`, nil, in)
		said(t, r, err)
		<-over
		for i := range ears {
			if got := strings.Join(ears[i].heard, " "); got != want[i] {
				t.Errorf("session %q: %d heard %q", session, i, got)
			}
		}
	}
}

// 60 calls of 60 agents ask at once, all with the same id: each hears its own.
func TestManyAskAtOnce(t *testing.T) {
	var mu sync.Mutex
	waiting := map[string]chan string{} // by session
	n := 0
	f := &fake{caps: `{"tools":{}}`}
	f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case m.Method == "initialize":
			n++
			id := fmt.Sprint("s", n)
			waiting[id] = make(chan string, 1)
			w.Header().Set("Mcp-Session-Id", id)
		case r.Method == http.MethodPost && m.Method == "":
			waiting[r.Header.Get("Mcp-Session-Id")] <- string(m.raw)
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return false
	}
	f.call = func(w http.ResponseWriter, r *http.Request, m fakeMessage) {
		w.Header().Set("Content-Type", contentSSE)
		fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"elicitation/create\",\"params\":"+string(m.Params)+"}\n\n")
		w.(http.Flusher).Flush()
		mu.Lock()
		c := waiting[r.Header.Get("Mcp-Session-Id")]
		mu.Unlock()
		text, _ := json.Marshal(<-c)
		fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[{\"type\":\"text\",\"text\":%s}]}}\n\n", m.ID, text)
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			mine := fmt.Sprint("agent-", i)
			e := &ear{asked: func(_ context.Context, _ string, params json.RawMessage) (gateway.Result, error) {
				if !strings.Contains(string(params), `"`+mine+`"`) {
					t.Errorf("%s was asked %s", mine, params)
				}
				return gateway.Result{Raw: json.RawMessage(`{"from":"` + mine + `"}`)}, nil
			}}
			r, err := forwardTo(t, s, "x__act", `{"who":"`+mine+`"}`, e, able(allCaps), func(f *gateway.Forward) { f.Principal.ID = mine })
			if got := said(t, r, err); got != `{"jsonrpc":"2.0","id":1,"result":{"from":"`+mine+`"}}` {
				t.Errorf("%s: the server was told %s", mine, got)
			}
		})
	}
	all.Wait()
}

// An agent that does not take what it is told holds up nothing but its own call,
// and that not for long.
func TestAnAgentThatDoesNotListen(t *testing.T) {
	told := make(chan struct{})
	_, url := newAsker(t, true, func(say func(string, ...any)) {
		say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}`)
		<-told
	})
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	if _, err := forwardTo(t, s, "x__act", `{}`, deaf{told}, able(allCaps)); err != nil {
		t.Error(err)
	}
}

// deaf is an agent that takes nothing.
type deaf struct{ told chan struct{} }

func (d deaf) Notify(ctx context.Context, _ string, _ json.RawMessage) error {
	close(d.told)
	<-ctx.Done()
	return ctx.Err()
}

func (deaf) Ask(context.Context, string, json.RawMessage) (gateway.Result, error) {
	return gateway.Result{}, gateway.ErrCannotAsk
}

// A flood ends a link; as much over an hour does not.
func TestNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(&server{Server: Server{MaxResponse: 1000}})
		note := message{method: "notifications/message", params: json.RawMessage(`{}`)}
		for range 60 {
			if err := d.take(note, 500, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		var err error
		for range 2 {
			err = d.take(note, 500, nil)
		}
		if !errors.Is(err, gateway.ErrBadAnswer) {
			t.Errorf("a flood: %v", err)
		}
	})
}

// A server's word that somebody is done with a page reaches the session that it sent
// there, once: on the stream of its call, or beside all calls.
func TestPagesThatAreDone(t *testing.T) {
	const ask = `{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"mode":"url","message":"m","url":"https://x.example","elicitationId":"e1"}}`
	const done = `{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"%s"}}`
	opened := func(context.Context, string, json.RawMessage) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(`{"action":"accept"}`)}, nil
	}
	type word struct{ session, id string }
	begin := func(t *testing.T, beside bool, during func(a *asker, say func(string, ...any))) (*Servers, *asker, chan word) {
		told := make(chan word, 10)
		var a *asker
		var url string
		a, url = newAsker(t, beside, func(say func(string, ...any)) { during(a, say) })
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}, Completed: func(session, id string) { told <- word{session, id} }})
		return s, a, told
	}
	const caps = `{"elicitation":{"url":{}}}`
	for _, beside := range []bool{false, true} {
		s, _, told := begin(t, beside, func(a *asker, say func(string, ...any)) {
			say(done, "e1") // nobody was sent there yet
			say("%s", ask)
			<-a.answers
			say(done, "e2")
			say(done, "e1")
			say(done, "e1")
		})
		e := &ear{asked: opened}
		if _, err := forwardTo(t, s, "x__act", `{}`, e, able(caps)); err != nil {
			t.Fatal(err)
		}
		heard := 0
		for _, h := range e.heard {
			if strings.HasPrefix(h, "notifications/elicitation/complete") {
				heard++
				if h != `notifications/elicitation/complete {"elicitationId":"e1"}` {
					t.Errorf("the agent heard %s", h)
				}
			}
		}
		if beside && heard == 0 { // it comes by another way than the answer
			select {
			case <-told:
				heard++
			case <-time.After(10 * time.Second):
			}
		}
		if heard+len(told) != 1 {
			t.Errorf("beside=%v: heard %d times, told %d", beside, heard, len(told))
		}
	}
	// When the call is over, too, and where an error names the page.
	for name, fault := range map[string]bool{"asked": false, "in an error": true} {
		t.Run(name, func(t *testing.T) {
			s, a, told := begin(t, true, func(a *asker, say func(string, ...any)) {
				say("%s", ask)
				<-a.answers
			})
			if fault {
				a.call = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) {
					w.Header().Set("Content-Type", contentJSON)
					fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32042,"message":"m","data":{"elicitations":[{"mode":"url","elicitationId":"e1","url":"https://x.example","message":"m"},{"mode":"form","elicitationId":"e3"}]}}}`, m.ID)
				}
			}
			if _, err := forwardTo(t, s, "x__act", `{}`, &ear{asked: opened}, able(caps)); err != nil {
				t.Fatal(err)
			}
			write := <-a.stream
			for _, id := range []string{"e2", "e3", "e1", "e1"} {
				write("data: " + fmt.Sprintf(done, id) + "\n\n")
			}
			write("data: " + `{"jsonrpc":"2.0","id":9,"method":"ping"}` + "\n\n")
			<-a.answers // all of that was read
			if got := <-told; got != (word{"m1", "e1"}) || len(told) != 0 {
				t.Errorf("told %v, and %d more", got, len(told))
			}
		})
	}
}
