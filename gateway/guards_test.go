package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// A state and a handle are one caller's, and a state one call's: each of these makes
// it another's.
func TestWhatIsBound(t *testing.T) {
	type one struct {
		who  gateway.Principal
		task gateway.Task

		method     string
		tool       gateway.Tool
		args, meta string
	}
	base := one{gateway.Principal{Tenant: "acme", ID: "agent:a", OnBehalfOf: "alice"}, gateway.Task{ID: "task-a"},
		gateway.MethodCall, gateway.Tool{Server: "s", Name: "n", Hash: "h"}, "{}", "{}"}
	bound := func(o one) [2]string {
		return [2]string{gateway.Who(o.who, o.task), gateway.What(o.method, o.tool, o.args, o.meta)}
	}
	for name, row := range map[string]struct {
		change func(*one)
		at     int // 0: whose it is, 1: what it is
	}{
		"tenant":     {func(o *one) { o.who.Tenant = "globex" }, 0},
		"workload":   {func(o *one) { o.who.ID = "agent:b" }, 0},
		"human":      {func(o *one) { o.who.OnBehalfOf = "bob" }, 0},
		"nobody":     {func(o *one) { o.who.OnBehalfOf = "" }, 0},
		"task":       {func(o *one) { o.task.ID = "task-b" }, 0},
		"method":     {func(o *one) { o.method = gateway.MethodGet }, 1},
		"server":     {func(o *one) { o.tool.Server = "t" }, 1},
		"tool":       {func(o *one) { o.tool.Name = "m" }, 1},
		"definition": {func(o *one) { o.tool.Hash = "i" }, 1},
		"arguments":  {func(o *one) { o.args = `{"a":1}` }, 1},
		"meta":       {func(o *one) { o.meta = `{"a":1}` }, 1},
	} {
		other := base
		row.change(&other)
		is, was := bound(other), bound(base)
		if is[row.at] == was[row.at] || is[1-row.at] != was[1-row.at] {
			t.Errorf("another %s: %v", name, is)
		}
	}
	again := base
	if bound(base) != bound(again) {
		t.Error("it is not always the same")
	}
}

// A state goes with the definition that the agent saw when it was asked.
func TestAStateOfAnotherDefinition(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	ask := asking("a", "files__read", `{}`, "2026-07-28")
	r, err := h.Handle(t.Context(), ask, nil)
	if err != nil {
		t.Fatal(err)
	}
	ask.State, ask.Answers = stateOf(t, r), json.RawMessage(`{"k":{"action":"accept"}}`)
	h.Servers.Redefine("files__read")
	if _, err := h.Handle(t.Context(), ask, nil); codeOf(err) != gateway.BadState {
		t.Error(err)
	}
}

// What a server asks holds none of our secrets when the agent hears it, whoever is
// asked in whatever way.
func TestQuestionsHoldNoSecret(t *testing.T) {
	const secret = "canary-canary"
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Leases.Secret = secret
	params := json.RawMessage(`{"message":"log in with ` + secret + ` or can\u0061ry-canary"}`)
	h.Servers.Answer = func(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error) {
		if f.Answers != nil {
			return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
		}
		if f.Protocol < "2026-07-28" {
			if _, err := s.Ask(ctx, gateway.MethodElicit, params); err != nil {
				t.Error(err)
			}
		}
		return gateway.Result{Type: gateway.ResultInput,
			Raw: json.RawMessage(`{"resultType":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":` + string(params) + `}}}`)}, nil
	}
	who := &human{answer: accepted}
	if _, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, "2025-11-25"), who); err != nil || len(who.asked) != 2 {
		t.Errorf("asked %v, %v", who.asked, err)
	}
	r, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, "2026-07-28"), nil)
	if err != nil {
		t.Error(err)
	}
	for _, heard := range append(who.asked, string(r.Raw)) {
		if !strings.Contains(heard, "log in with [redacted] or [redacted]") || strings.Contains(heard, secret) {
			t.Errorf("the agent hears %s", heard)
		}
	}
}

// A server may ask ten times one after another by its answers, and 32 questions
// in all.
func TestHowMuchAServerMayAsk(t *testing.T) {
	question := `{"method":"elicitation/create","params":{"message":"?"}}`
	input := func(n int) gateway.Result {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf(`"k%d":%s`, i, question)
		}
		return gateway.Result{Type: gateway.ResultInput, Raw: json.RawMessage(`{"resultType":"input_required","inputRequests":{` + strings.Join(all, ",") + `}}`)}
	}
	done := gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}
	rounds := func(n int) func(int) gateway.Result {
		return func(sent int) gateway.Result {
			if sent <= n {
				return input(1)
			}
			return done
		}
	}
	at := func(n int) func(int) gateway.Result {
		return func(sent int) gateway.Result {
			if sent == 1 {
				return input(n)
			}
			return done
		}
	}
	for name, row := range map[string]struct {
		protocol string
		answer   func(sent int) gateway.Result
		beside   int // questions that it asks beside its answer
		asked    int
		fine     bool
	}{
		"nine rounds":               {"2025-11-25", rounds(9), 0, 9, true},
		"ten rounds":                {"2025-11-25", rounds(10), 0, 10, false},
		"32 at once":                {"2025-11-25", at(32), 0, 32, true},
		"33 at once":                {"2025-11-25", at(33), 0, 0, false},
		"32 at once, modern":        {"2026-07-28", at(32), 0, 0, true},
		"33 at once, modern":        {"2026-07-28", at(33), 0, 0, false},
		"32 one after another":      {"2025-11-25", rounds(0), 32, 32, true},
		"33 one after another":      {"2025-11-25", rounds(0), 33, 32, true}, // the last is refused to the server
		"too many in several ways":  {"2025-11-25", at(2), 31, 32, false},
		"just enough in both of it": {"2025-11-25", at(2), 15, 32, true}, // it is sent twice
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Policy.Set(gatewaytest.Text + elicitRows)
			h.Servers.Answer = func(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error) {
				for i := range row.beside {
					if _, err := s.Ask(ctx, gateway.MethodElicit, json.RawMessage(`{"message":"?"}`)); err != nil && i < 31 {
						t.Errorf("%d: %v", i, err)
					}
				}
				return row.answer(len(h.Servers.Sent())), nil
			}
			who := &human{answer: accepted}
			_, err := h.Handle(t.Context(), asking("a", "files__read", `{}`, row.protocol), who)
			if (err == nil) != row.fine || len(who.asked) != row.asked {
				t.Errorf("asked %d, %v", len(who.asked), err)
			}
			if err != nil && codeOf(err) != gateway.Downstream {
				t.Error(err)
			}
		})
	}
}

// Nothing is told to the server of a task whose call a human approved as it was, and
// nothing to another server than the one that made it.
func TestServersTasksHearOnlyWhatIsTheirs(t *testing.T) {
	h, server := gatewaytest.New(t), &remote{says: itsInput}
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = server.answer
	k := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	answers := about(k.ID)
	answers.Answers = json.RawMessage(`{"k":{"action":"accept"}}`)
	until(t, h, k.ID, gateway.HandleInput)
	sent := len(h.Servers.Sent())
	if _, err := h.Update(t.Context(), answers); codeOf(err) != gateway.Denied {
		t.Errorf("answers that nobody approved: %v", err)
	}
	one := kept(t, h, k.ID)
	one.Server = "mail" // as if its alias had been given to another
	if _, err := h.Handles.Move(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(context.Context, gateway.Call) (gateway.Handle, error){"get": h.Look, "update": h.Update, "cancel": h.Withdraw} {
		if _, err := do(t.Context(), answers); codeOf(err) != gateway.UnknownHandle {
			t.Errorf("%s of what another server's tool made: %v", name, err)
		}
	}
	if n := len(h.Servers.Sent()) - sent; n != 0 {
		t.Errorf("%d were sent", n)
	}
}

// A requestState goes on with the call that it was given out for, for whom it was,
// within its hour, and with nothing else.
func FuzzRequestState(f *testing.F) {
	now := time.Now()
	h := gatewaytest.New(f, func(c *gateway.Config) {
		c.Now, c.CallsPerSecond, c.TenantDay = func() time.Time { return now }, 1e9, 1<<60
	})
	h.Policy.Set(gatewaytest.Text + elicitRows + "p, agent:*, *, work, files/*, call, , allow\np, agent:*, *, work, files/*, elicit, , allow\n")
	h.Servers.Answer = needs("inner")
	h.Servers.TakesMeta("files__read", "k")
	second := gateway.Task{ID: "task-c", Tenant: "acme", Principal: "agent:a", Owner: "alice"}
	first, err := h.Tasks.Get(f.Context(), "acme", "task-a")
	if err != nil {
		f.Fatal(err)
	}
	second.Kind, second.Purpose, second.Scope, second.State = first.Kind, first.Purpose, first.Scope, first.State
	second.Started, second.Expires = first.Started, first.Expires
	if _, err := h.Tasks.Start(f.Context(), second); err != nil {
		f.Fatal(err)
	}
	callers := []string{"a", "b", "token-of-task-c"}
	tools := []string{"files__read", "files__slow", "files__write"}
	given := func(caller, tool int, args, meta string) gateway.Call {
		c := asking(callers[caller], tools[tool], args, "2026-07-28")
		c.Meta = json.RawMessage(meta)
		return c
	}
	states := map[string]gateway.Call{} // all that were given out, by themselves
	var all []string
	began := now
	for i, c := range []gateway.Call{
		given(0, 0, `{"path":"x"}`, ""), given(0, 0, `{"path":"y"}`, ""), given(0, 1, `{"path":"x"}`, ""), given(0, 0, `{"path":"x"}`, `{"k":1}`),
		given(1, 0, `{"path":"x"}`, ""), given(2, 0, `{"path":"x"}`, ""),
	} {
		r, err := h.Handle(f.Context(), c, nil)
		if err != nil {
			f.Fatal(i, err)
		}
		var body struct {
			State string `json:"requestState"`
		}
		if err := json.Unmarshal(r.Raw, &body); err != nil || body.State == "" {
			f.Fatal(i, err)
		}
		states[body.State] = c
		all = append(all, body.State)
		f.Add(body.State, `{"k":{}}`, uint8(0), uint8(0), `{"path":"x"}`, "", int64(0))
		f.Add(body.State, `{"k":{}}`, uint8(i%3), uint8(i%2), `{ "path" : "\u0078" }`, `{"k":1}`, int64(59*time.Minute))
	}
	f.Add(all[0]+"=", `{}`, uint8(0), uint8(0), `{"path":"x"}`, "", int64(0))
	f.Add(all[0], `{"k":{}}`, uint8(0), uint8(0), `{"path":"x"}`, "", int64(time.Hour+1))
	f.Add("tb1.", `{"io.toolbroker/approval":{"action":"accept"}}`, uint8(1), uint8(0), `{}`, "", int64(-time.Hour))
	f.Add(strings.ToLower(all[0]), `null`, uint8(0), uint8(0), `{"path":"x"}`, "", int64(0))
	f.Add("0", `{"k":{}}`, uint8(0), uint8(0), `{"path":"x"}`, "", int64(0)) // the first that was given out
	f.Add("3", `{"k":{}}`, uint8(0), uint8(0), `{"path":"x"}`, `{"k":1.0}`, int64(0))
	f.Fuzz(func(t *testing.T, state, answers string, caller, tool uint8, args, meta string, after int64) {
		if len(state) == 1 && int(state[0]-'0') < len(all) {
			state = all[state[0]-'0'] // none of which a fuzzer finds by itself
		}
		c := given(int(caller)%len(callers), int(tool)%len(tools), args, meta)
		if meta == "" {
			c.Meta = nil
		}
		c.State, c.Answers = state, json.RawMessage(answers)
		now = began.Add(time.Duration(after % int64(3*time.Hour)))
		before := len(h.Servers.Sent())
		_, err := h.Handle(t.Context(), c, nil)
		sent := len(h.Servers.Sent()) > before
		if sent != (err == nil) {
			t.Fatalf("sent %v, %v", sent, err)
		}
		if !sent || state == "" {
			return
		}
		of, known := states[state]
		if !known || now.Sub(began) > time.Hour || of.Credential.Bearer.Reveal() != c.Credential.Bearer.Reveal() || of.Name != c.Name ||
			!same(of.Args, c.Args) || !same(chosen(of.Meta), chosen(c.Meta)) {
			t.Fatalf("%q of %+v went on with %s of %s, %s %s after %s", state, of, c.Credential.Bearer.Reveal(), c.Name, c.Args, c.Meta, now.Sub(began))
		}
	})
}

// same reports whether two texts of JSON say the same, as encoding/json has it.
func same(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return len(a) == 0 && len(b) == 0
	}
	p, _ := json.Marshal(x)
	q, _ := json.Marshal(y)
	return string(p) == string(q)
}

// chosen is what of _meta the server's config lets through.
func chosen(meta json.RawMessage) json.RawMessage {
	var all map[string]json.RawMessage
	if json.Unmarshal(meta, &all) != nil || all["k"] == nil {
		return json.RawMessage("null")
	}
	return all["k"]
}
