package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// A human is an agent that can be asked.
type human struct {
	mu     sync.Mutex
	answer string
	asked  []string
}

func (h *human) Notify(context.Context, string, json.RawMessage) error { return nil }

func (h *human) Ask(_ context.Context, method string, params json.RawMessage) (gateway.Result, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, method+" "+string(params))
	return gateway.Result{Raw: json.RawMessage(h.answer)}, nil
}

const (
	elicitRows = `
p, agent:a, acme, work, files/read, elicit, args.mode != 'url', allow
p, agent:a, acme, work, files/write, elicit, , allow
`
	everyCap = `{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{},"experimental":{"x":{}}}`
	accepted = `{"action":"accept","content":{"ok":true}}`
)

func asking(bearer, tool, args, protocol string) gateway.Call {
	c := gatewaytest.Call(bearer, tool, args)
	c.Caps, c.Protocol = json.RawMessage(everyCap), protocol
	return c
}

// What a server asks during a call is denied by default, decided for this tool and
// this question, and on record before the agent hears it.
func TestAsk(t *testing.T) {
	for name, row := range map[string]struct {
		rows, method, params string
		caps                 string
		reaches              bool
		log                  string
	}{
		"without a row":     {"", gateway.MethodElicit, `{"message":"?"}`, everyCap, false, "tool.ask.denied:denied"},
		"with a row":        {elicitRows, gateway.MethodElicit, `{"message":"?"}`, everyCap, true, "tool.ask.allowed tool.ask.answered"},
		"by its params":     {elicitRows, gateway.MethodElicit, `{"mode":"url"}`, everyCap, false, "tool.ask.denied:denied"},
		"another action":    {elicitRows, gateway.MethodSample, `{}`, everyCap, false, "tool.ask.denied:denied"},
		"not declared":      {elicitRows, gateway.MethodElicit, `{"message":"?"}`, `{"sampling":{}}`, false, "tool.ask.denied:downstream"},
		"nothing that is":   {elicitRows, "elicitation/other", `{}`, everyCap, false, ""},
		"read two ways":     {elicitRows, gateway.MethodElicit, `{"Mode":"url","url":"https://evil.example"}`, everyCap, false, ""},
		"not to be read":    {elicitRows, gateway.MethodElicit, `[1]`, everyCap, false, ""},
		"where a human has": {"p, agent:a, acme, work, files/read, elicit, , approve", gateway.MethodElicit, `{}`, everyCap, false, "tool.ask.denied:denied"},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Policy.Set(gatewaytest.Text + row.rows)
			var got error
			h.Servers.Answer = func(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error) {
				_, got = s.Ask(ctx, row.method, json.RawMessage(row.params))
				return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
			}
			who := &human{answer: accepted}
			call := asking("a", "files__read", `{}`, "2025-11-25")
			call.Caps = json.RawMessage(row.caps)
			if _, err := h.Handle(t.Context(), call, who); err != nil {
				t.Fatal(err)
			}
			if (len(who.asked) > 0) != row.reaches || (got == nil) != row.reaches || !row.reaches && !errors.Is(got, gateway.ErrCannotAsk) {
				t.Errorf("asked %v, %v", who.asked, got)
			}
			log := strings.Join(strings.Fields(strings.NewReplacer("tool.call.allowed", "", "secret.issued", "", "tool.call.completed", "").Replace(h.Events())), " ")
			if log != row.log {
				t.Errorf("log %s, want %s", log, row.log)
			}
		})
	}
}

// A server is only told of what it may ask.
func TestCaps(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Handle(t.Context(), asking("a", "files__read", `{}`, "2025-11-25"), nil)
	h.Handle(t.Context(), asking("a", "files__slow", `{}`, "2025-11-25"), nil)
	for i, want := range []string{`{"elicitation":{"form":{},"url":{}}}`, ""} {
		if got := string(h.Servers.Sent()[i].Caps); got != want {
			t.Errorf("caps %s, want %s", got, want)
		}
	}
}

// An approved call's server hears no answer that nobody approved.
func TestApprovedCallsAskNothing(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = func(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error) {
		if _, err := s.Ask(ctx, gateway.MethodElicit, json.RawMessage(`{}`)); !errors.Is(err, gateway.ErrCannotAsk) {
			t.Errorf("it may ask: %v", err)
		}
		return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
	}
	call := asking("a", "files__write", `{}`, "2025-11-25")
	h.Handle(t.Context(), call, &human{answer: accepted})
	approveAll(t, h, "bob")
	who := &human{answer: accepted}
	if _, err := h.Handle(t.Context(), call, who); err != nil || len(who.asked) != 0 {
		t.Errorf("%v, asked %v", err, who.asked)
	}
}

// An answer that holds the agent's own token reaches no server.
func TestAnswersKeepTheToken(t *testing.T) {
	h := gatewaytest.New(t)
	const token = "token-of-task-a"
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = func(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error) {
		r, err := s.Ask(ctx, gateway.MethodElicit, json.RawMessage(`{}`))
		if err == nil || strings.Contains(string(r.Raw), token) && err == nil {
			t.Errorf("the server hears %s", r.Raw)
		}
		return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
	}
	h.Handle(t.Context(), asking(token, "files__read", `{}`, "2025-11-25"), &human{answer: `{"action":"accept","content":{"x":"` + token + `"}}`})
}

// needs is a server that wants an answer before it is done.
func needs(state string) func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
	return func(_ context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		if f.Answers == nil {
			return gateway.Result{Type: gateway.ResultInput, Raw: json.RawMessage(
				`{"resultType":"input_required","x":1,"inputRequests":{"k":{"method":"elicitation/create","params":{"message":"sure?"}}},"requestState":"` + state + `"}`)}, nil
		}
		return gateway.Result{Raw: json.RawMessage(fmt.Sprintf(`{"content":[],"got":%s,"state":%q}`, f.Answers, f.State))}, nil
	}
}

func stateOf(t *testing.T, r gateway.Result) string {
	t.Helper()
	var body struct {
		State string `json:"requestState"`
		X     int    `json:"x"`
	}
	if err := json.Unmarshal(r.Raw, &body); err != nil || body.State == "" || body.X != 1 || r.Type != gateway.ResultInput {
		t.Fatalf("%s %s", r.Type, r.Raw)
	}
	return body.State
}

// A modern agent gets the server's question with our state around the server's, and
// brings both back; nobody else's, nothing older, and no other call's is taken.
func TestAnswersOverRounds(t *testing.T) {
	now := time.Now()
	h := gatewaytest.New(t, func(c *gateway.Config) { c.Now = func() time.Time { return now } })
	h.Policy.Set(gatewaytest.Text + elicitRows + "p, agent:u, acme, work, files/read, elicit, , allow\n")
	h.Servers.Answer = needs("inner")
	ask := asking("a", "files__read", `{"path":"x"}`, "2026-07-28")
	r, err := h.Handle(t.Context(), ask, nil)
	if err != nil {
		t.Fatal(err)
	}
	state := stateOf(t, r)
	if strings.Contains(state, "inner") {
		t.Error("the server's state shows")
	}
	again := ask
	again.State, again.Answers = state, json.RawMessage(`{"k":{"action":"accept"}}`)
	if r, err := h.Handle(t.Context(), again, nil); err != nil || !strings.Contains(string(r.Raw), `"got":{"k":{"action":"accept"}},"state":"inner"`) {
		t.Fatalf("%s %v", r.Raw, err)
	}
	sent := len(h.Servers.Sent())
	for name, spoil := range map[string]func(*gateway.Call){
		"tampered":              func(c *gateway.Call) { c.State = c.State[:len(c.State)-3] + "AAA" },
		"cut":                   func(c *gateway.Call) { c.State = c.State[:8] },
		"the server's own":      func(c *gateway.Call) { c.State = "inner" },
		"for other arguments":   func(c *gateway.Call) { c.Args = json.RawMessage(`{"path":"y"}`) },
		"for another tool":      func(c *gateway.Call) { c.Name = "files__slow" },
		"another caller's":      func(c *gateway.Call) { c.Credential.Bearer = gateway.NewSecret("b") },
		"answers twice":         func(c *gateway.Call) { c.Answers = json.RawMessage(`{"k":{"a":1,"a":2}}`) },
		"answers that are none": func(c *gateway.Call) { c.Answers = json.RawMessage(`[]`) },
	} {
		c := again
		spoil(&c)
		if _, err := h.Handle(t.Context(), c, nil); codeOf(err) != gateway.BadState {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What nobody asked for counts for nothing.
	extra := again
	extra.Answers = json.RawMessage(`{"k":{"action":"accept"},"l":{}}`)
	if r, err := h.Handle(t.Context(), extra, nil); err != nil || !strings.Contains(string(r.Raw), `"got":{"k":{"action":"accept"}},"state":"inner"`) {
		t.Errorf("%s %v", r.Raw, err)
	}
	sent++
	extra.State = ""
	if r, err := h.Handle(t.Context(), extra, nil); err != nil || r.Type != gateway.ResultInput {
		t.Errorf("answers without a state: %s %v", r.Raw, err)
	}
	sent++
	now = now.Add(2 * time.Hour)
	if _, err := h.Handle(t.Context(), again, nil); codeOf(err) != gateway.BadState {
		t.Errorf("an old one: %v", err)
	}
	if n := len(h.Servers.Sent()); n != sent {
		t.Errorf("%d were sent", n-sent)
	}
}

// What a server may not ask is not passed on, in either era.
func TestQuestionsThatPolicyDenies(t *testing.T) {
	for _, protocol := range []string{"2025-11-25", "2026-07-28"} {
		h := gatewaytest.New(t)
		h.Servers.Answer = needs("inner")
		who := &human{answer: accepted}
		if _, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, protocol), who); codeOf(err) != gateway.Denied || len(who.asked) != 0 {
			t.Errorf("%s: %v", protocol, err)
		}
	}
}

// A legacy agent is asked within the call.
func TestALegacyAgentIsAskedWithinTheCall(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	r, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, "2025-11-25"), &human{answer: accepted})
	if err != nil || !strings.Contains(string(r.Raw), `"state":"inner"`) || !strings.Contains(string(r.Raw), accepted) {
		t.Errorf("%s %v", r.Raw, err)
	}
	if _, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, "2025-11-25"), nil); codeOf(err) != gateway.Downstream {
		t.Errorf("one that cannot be asked: %v", err)
	}
	h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		return gateway.Result{Type: gateway.ResultInput, Raw: json.RawMessage(`{"requestState":"on and on"}`)}, nil
	}
	if _, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, "2025-11-25"), &human{}); codeOf(err) != gateway.Downstream {
		t.Errorf("a server that asks without end: %v", err)
	}
}

// Answers to an approved call are approved with it: a human sees them, and other
// ones do nothing downstream.
func TestAnswersNeedApprovalToo(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	ask := asking("a", "files__write", `{"path":"x"}`, "2026-07-28")
	h.Handle(t.Context(), ask, nil)
	approveAll(t, h, "bob")
	r, err := h.Handle(t.Context(), ask, nil)
	if err != nil {
		t.Fatal(err)
	}
	again := ask
	again.State, again.Answers = stateOf(t, r), json.RawMessage(`{"k":{"action":"accept"}}`)
	_, err = h.Handle(t.Context(), again, nil)
	refused, _ := errors.AsType[*gateway.Refusal](err)
	if refused == nil || refused.Code != gateway.PendingApproval || refused.State == "" {
		t.Fatalf("%v", err)
	}
	want := `{"arguments":{"path":"x"},"inputResponses":{"k":{"action":"accept"}}}`
	if one, err := h.Approvals.Get(t.Context(), "acme", refused.Approval.ID); err != nil || string(one.Args) != want {
		t.Errorf("the human sees %s", one.Args)
	}
	approveAll(t, h, "bob")
	other := again
	other.Answers = json.RawMessage(`{"k":{"action":"decline"}}`)
	sent := len(h.Servers.Sent())
	if _, err := h.Handle(t.Context(), other, nil); codeOf(err) != gateway.PendingApproval || len(h.Servers.Sent()) != sent {
		t.Errorf("altered answers: %v", err)
	}
	// It comes back from the human's page, with our own question answered and nothing else.
	back := ask
	back.State, back.Answers = refused.State, json.RawMessage(`{"io.toolbroker/approval":{"action":"accept"}}`)
	if r, err := h.Handle(t.Context(), back, nil); err != nil || !strings.Contains(string(r.Raw), `"got":{"k":{"action":"accept"}},"state":"inner"`) {
		t.Errorf("%s %v", r.Raw, err)
	}
}

// Coming back from the page agrees to nothing, and is possible a few times only.
func TestComingBackFromThePage(t *testing.T) {
	h := gatewaytest.New(t)
	call := asking("a", "files__write", `{}`, "2026-07-28")
	for round := 1; ; round++ {
		_, err := h.Handle(t.Context(), call, nil)
		refused, _ := errors.AsType[*gateway.Refusal](err)
		if refused == nil || refused.Code != gateway.PendingApproval {
			t.Fatalf("round %d: %v", round, err)
		}
		if refused.State == "" {
			if round != 7 {
				t.Errorf("sent %d times", round-1)
			}
			break
		}
		call.State, call.Answers = refused.State, json.RawMessage(`{"io.toolbroker/approval":{"action":"accept"}}`)
	}
	if n := len(h.Servers.Sent()); n != 0 {
		t.Errorf("%d were sent", n)
	}
	if strings.Contains(h.Events(), string(audit.ApprovalGranted)) {
		t.Error("an accepted elicitation approved it")
	}
}

// No requestState but the one that was given out goes on with a call.
func FuzzRequestState(f *testing.F) {
	h := gatewaytest.New(f)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	ask := asking("a", "files__read", `{"path":"x"}`, "2026-07-28")
	r, err := h.Handle(f.Context(), ask, nil)
	if err != nil {
		f.Fatal(err)
	}
	var body struct {
		State string `json:"requestState"`
	}
	if err := json.Unmarshal(r.Raw, &body); err != nil {
		f.Fatal(err)
	}
	f.Add(body.State, `{"k":{}}`)
	f.Add(body.State+"=", `{}`)
	f.Add("tb1.", `{"io.toolbroker/approval":{"action":"accept"}}`)
	f.Add(strings.ToLower(body.State), `null`)
	f.Fuzz(func(t *testing.T, state, answers string) {
		c := ask
		c.State, c.Answers = state, json.RawMessage(answers)
		before := len(h.Servers.Sent())
		_, err := h.Handle(t.Context(), c, nil)
		if sent := len(h.Servers.Sent()) > before; sent && state != body.State && state != "" || sent != (err == nil) {
			t.Errorf("%q with %q: sent %v, %v", state, answers, sent, err)
		}
	})
}
