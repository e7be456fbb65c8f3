package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// inSession is a call in a's session s1, whose client can do everything.
func inSession(t *testing.T, h *gatewaytest.House, tool string) gateway.Call {
	t.Helper()
	c := asking("a", tool, `{}`, "2025-11-25")
	if _, err := h.Sessions.Session(t.Context(), "s1"); err != nil {
		if err := h.OpenSession(t.Context(), c.Credential, "s1", c.Protocol, c.Caps); err != nil {
			t.Fatal(err)
		}
	}
	c.Credential.Session = "s1"
	return c
}

// A session's server is told the same at each of its calls: what could be granted
// on anything that it offers.
func TestASessionOpensWithAllThatCouldBeAsked(t *testing.T) {
	h := gatewaytest.New(t)
	h.Servers.Offer(gateway.Tool{Sort: gateway.SortResource, Server: "files", Name: "file:///x", Alias: "files+file:///x", Hash: "sha256:x"}, another)
	h.Policy.Set(gatewaytest.Text + elicitRows + "p, agent:a, acme, work, files/file:///x, *, , allow\np, agent:b, *, work, **, sample, , allow\n")
	const want = `{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{}}`
	open := func(c gateway.Call) string {
		t.Helper()
		if _, err := h.Handle(t.Context(), c, nil); err != nil {
			t.Fatal(err)
		}
		sent := h.Servers.Sent()
		f := sent[len(sent)-1]
		if (f.Beside != nil) != (f.Session != "" && c.Protocol < "2026") {
			t.Errorf("%s: the way beside its calls is %v", c.Name, f.Beside)
		}
		return string(f.Open)
	}
	for _, tool := range []string{"files__read", "files__slow", "files__slow"} {
		if got := open(inSession(t, h, tool)); got != want {
			t.Errorf("%s: opened with %s", tool, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	follow := inSession(t, h, "files+file:///x")
	over := make(chan error, 1)
	go func() { over <- h.Follow(ctx, follow, func() {}) }()
	for h.Servers.Changed("file:///x") == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-over
	for name, c := range map[string]gateway.Call{
		"no session": asking("a", "files__read", `{}`, "2025-11-25"),
		"modern":     asking("a", "files__read", `{}`, "2026-07-28"),
	} {
		if got := open(c); got != "" {
			t.Errorf("%s: opened with %s", name, got)
		}
	}
	// Another policy is asked anew.
	h.Policy.Set(gatewaytest.Text + elicitRows + "p, agent:a, acme, work, task:other/do, roots, , allow\n")
	if got := open(inSession(t, h, "files__slow")); got != `{"elicitation":{"form":{},"url":{}}}` {
		t.Errorf("opened with %s", got)
	}
}

// another server's tool, which a task's scope here reaches by its name.
var another = gateway.Tool{Sort: gateway.SortTool, Server: "task:other", Name: "do", Alias: "other__do", Hash: "sha256:do", Schema: json.RawMessage(`{"type":"object"}`)}

// besideOf returns the way to the agent of session s1 beside its calls.
func besideOf(t *testing.T, h *gatewaytest.House) gateway.Stream {
	t.Helper()
	if _, err := h.Handle(t.Context(), inSession(t, h, "files__slow"), nil); err != nil {
		t.Fatal(err)
	}
	sent := h.Servers.Sent()
	return sent[len(sent)-1].Beside
}

// door is a replica with a stream of s1's: it takes what is asked and answers it.
func door(t *testing.T, h *gatewaytest.House, answer string) <-chan gateway.Note {
	t.Helper()
	notes := make(chan gateway.Note, 64)
	ready := make(chan struct{}, 64)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go h.Sessions.Watch(ctx, func(n gateway.News) {
		switch {
		case n.Session == "ready":
			ready <- struct{}{}
		case n.Session != "s1" || n.Note == nil:
		default:
			notes <- *n.Note
			if n.Note.Ask != "" && answer != "" {
				go func() {
					h.Sessions.Answer(ctx, "s1", n.Note.Taken(), gateway.Result{})
					h.Sessions.Answer(ctx, "s1", n.Note.Ask, gateway.Result{Raw: json.RawMessage(answer)})
				}()
			}
		}
	})
	for {
		h.Sessions.Tell(ctx, gateway.News{Session: "ready"})
		select {
		case <-ready:
			return notes
		case <-time.After(time.Millisecond):
		}
	}
}

// That a server sees the agent's roots beside all calls is decided on what it
// offers, and on record, before the agent is asked; nothing else can be asked.
func TestAskBesideCalls(t *testing.T) {
	const row = "p, agent:a, acme, work, files/read, roots, , allow\n"
	for name, c := range map[string]struct {
		rows, method, answer string
		asked                bool
		log                  string
	}{
		"read two ways":       {row, gateway.MethodRoots, `{"roots":[]}`, false, "tool.ask.denied:downstream"},
		"answered two ways":   {row, gateway.MethodRoots, `{"roots":[],"Roots":[{"uri":"file:///etc"}]}`, true, "tool.ask.allowed tool.ask.answered"},
		"with a row":          {row, gateway.MethodRoots, `{"roots":[]}`, true, "tool.ask.allowed tool.ask.answered"},
		"a deny elsewhere":    {row + "p, agent:a, acme, work, files/write, roots, , deny\n", gateway.MethodRoots, `{"roots":[]}`, true, "tool.ask.allowed tool.ask.answered"},
		"without":             {"", gateway.MethodRoots, `{"roots":[]}`, false, "tool.ask.denied:denied"},
		"on another server's": {"p, agent:a, acme, work, task:other/do, roots, , allow\n", gateway.MethodRoots, `{"roots":[]}`, false, "tool.ask.denied:denied"},
		"denied":              {row + "p, agent:*, *, *, files/*, roots, , deny\n", gateway.MethodRoots, `{"roots":[]}`, false, "tool.ask.denied:denied"},
		"where a human has":   {"p, agent:a, acme, work, files/read, roots, , approve\n", gateway.MethodRoots, `{"roots":[]}`, false, "tool.ask.denied:denied"},
		"not now":             {"p, agent:a, acme, work, files/read, roots, args.never == 'x', allow\n", gateway.MethodRoots, `{"roots":[]}`, false, "tool.ask.denied:denied"},
		"its own token":       {row, gateway.MethodRoots, `{"roots":[{"uri":"token-of-task-a"}]}`, true, "tool.ask.allowed tool.ask.answered"},
		"something else":      {elicitRows, gateway.MethodElicit, accepted, false, ""},
		"a model":             {"p, agent:a, acme, work, **, sample, , allow\n", gateway.MethodSample, `{}`, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Servers.Offer(another)
			h.Policy.Set(gatewaytest.Text + c.rows)
			way := besideOf(t, h)
			if name == "its own token" {
				own := inSession(t, h, "files__slow")
				own.Credential.Bearer = gateway.NewSecret("token-of-task-a")
				if _, err := h.Handle(t.Context(), own, nil); err != nil {
					t.Fatal(err)
				}
				sent := h.Servers.Sent()
				way = sent[len(sent)-1].Beside
			}
			before := len(h.Lines())
			notes := door(t, h, c.answer)
			params := `{}`
			if name == "read two ways" {
				params = `{"_meta":{"a":1,"A":2}}`
			}
			r, err := way.Ask(t.Context(), c.method, json.RawMessage(params))
			if got := len(notes) > 0; got != c.asked {
				t.Fatalf("asked: %v, %v", got, err)
			}
			want := c.asked && name != "its own token" && name != "answered two ways"
			if (err == nil) != want || want && string(r.Raw) != c.answer || !c.asked && !errors.Is(err, gateway.ErrCannotAsk) {
				t.Errorf("%s %v", r.Raw, err)
			}
			var log []string
			for _, e := range h.Lines()[before:] {
				word := string(e.Type)
				if e.Decision != nil && e.Decision.ReasonCode != "ok" {
					word += ":" + e.Decision.ReasonCode
				}
				log = append(log, word)
				if e.Tool == nil || e.Tool.Server != "files" || e.Tool.Name != "" || e.Call.Method != c.method || e.Task.ID != "task-a" || e.Decision == nil {
					t.Errorf("on record is %+v %+v", e.Tool, e.Call)
				}
			}
			if got := strings.Join(log, " "); got != c.log {
				t.Errorf("log %s, want %s", got, c.log)
			}
		})
	}
}

// Where no replica has a stream of the session's, nobody is asked, and nobody waits
// for long; nor is anybody asked whose task or session is over.
func TestNobodyToAskBesideCalls(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, files/read, roots, , allow\n")
	way := besideOf(t, h)
	notes := door(t, h, "")
	if _, err := way.Ask(t.Context(), gateway.MethodRoots, nil); !errors.Is(err, gateway.ErrCannotAsk) || len(notes) != 1 {
		t.Errorf("%v, %d notes", err, len(notes))
	}
	<-notes
	if err := way.Notify(t.Context(), "notifications/message", json.RawMessage(`{"level":"info","data":"x"}`)); err != nil {
		t.Fatal(err)
	}
	if n := <-notes; n.Method != "notifications/message" || string(n.Params) != `{"level":"info","data":"x"}` || n.Ask != "" {
		t.Errorf("noted %+v", n)
	}
	if err := h.CloseSession(t.Context(), inSession(t, h, "").Credential); err != nil {
		t.Fatal(err)
	}
	if _, err := way.Ask(t.Context(), gateway.MethodRoots, nil); !errors.Is(err, gateway.ErrCannotAsk) || len(notes) > 0 {
		t.Errorf("a session that is over was asked: %v", err)
	}
}

// A server's messages beside all calls are for who may use something of its now, and
// each is decided when it is delivered.
func TestWhoHearsAServer(t *testing.T) {
	const others = "p, agent:a, acme, work, task:other/do, call, , allow\n"
	for name, row := range map[string]struct {
		policy string
		used   gateway.Tool // last, in the session
		hears  bool
	}{
		"as it was":                   {gatewaytest.Text, gateway.Tool{}, true},
		"another server's tool":       {others, gateway.Tool{}, false},
		"all of it denied":            {gatewaytest.Text + "p, *, *, *, files/**, *, , deny\n", gateway.Tool{}, false},
		"a resource that no list has": {others + "p, agent:a, acme, work, files/file:///y, read, , allow\n", gateway.Tool{Server: "files", Name: "file:///y"}, true},
		"and that one denied":         {others, gateway.Tool{Server: "files", Name: "file:///y"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Servers.Offer(another)
			way, notes := besideOf(t, h), door(t, h, "")
			if err := way.Notify(t.Context(), "notifications/message", json.RawMessage(`{}`)); err != nil {
				t.Fatal(err)
			}
			n := <-notes
			if n.Server != "files" || n.Used != "files/slow" {
				t.Errorf("it is of %q, %q", n.Server, n.Used)
			}
			if row.used.Server != "" {
				n.Used = row.used.ID()
			}
			cred := inSession(t, h, "").Credential
			h.Policy.Set(row.policy)
			if got := h.Hears(t.Context(), cred, n); got != row.hears {
				t.Errorf("heard: %v", got)
			}
			if err := h.CloseSession(t.Context(), cred); err != nil {
				t.Fatal(err)
			}
			if h.Hears(t.Context(), cred, n) {
				t.Error("heard when its session was over")
			}
		})
	}
}

// What ends with an agent's session ends at once, here and on record; what ends with
// its task is the task's. What its agent says of it reaches its servers.
func TestWhatBelongsToASession(t *testing.T) {
	h := gatewaytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- h.Run(ctx) }()
	door(t, h, "")
	call := inSession(t, h, "files__read")
	if _, err := h.Handle(t.Context(), call, nil); err != nil {
		t.Fatal(err)
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for start := time.Now(); !is(); time.Sleep(time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatal("never: " + what)
			}
		}
	}
	until("the gateway hears", func() bool {
		h.Sessions.Tell(ctx, gateway.News{Session: "s1", Level: "info"})
		return len(h.Servers.Heard()) > 0
	})
	if err := h.RootsChanged(t.Context(), call.Credential); err != nil {
		t.Fatal(err)
	}
	if err := h.RootsChanged(t.Context(), gateway.Credential{Bearer: gateway.NewSecret("u"), Session: "s1"}); err == nil {
		t.Error("another's session")
	}
	heard := slices.DeleteFunc(h.Servers.Heard(), func(n gateway.News) bool { return n.Level == "info" })
	if len(heard) != 1 || heard[0] != (gateway.News{Session: "s1", Roots: true}) {
		t.Errorf("servers heard %+v", heard)
	}
	h.Sessions.Tell(ctx, gateway.News{Session: "s9", Closed: true, WithTask: true})
	h.Servers.Ends = &gateway.LinkEnds{Gone: []string{"files", "files"}, Lost: []string{"other"}}
	if err := h.CloseSession(t.Context(), call.Credential); err != nil {
		t.Fatal(err)
	}
	until("its end is on record", func() bool { return strings.Contains(h.Events(), "session.ended") })
	cancel()
	<-over
	lines := h.Lines()
	e := lines[slices.IndexFunc(lines, func(e audit.Event) bool { return e.Type == audit.SessionEnded })]
	if e.Closing.Links != 2 || !slices.Equal(e.Closing.Names.Links, []string{"files"}) || len(e.Closing.Unproven) != 1 ||
		e.Task.ID != "task-a" || e.Workload.ID != "agent:a" || e.Call.Session == "s1" || e.Call.Session == "" {
		t.Errorf("on record is %+v", e)
	}
	if got := h.Servers.Over(); !slices.Equal(got, []string{"s1"}) {
		t.Errorf("what ended is of %q", got)
	}
}
