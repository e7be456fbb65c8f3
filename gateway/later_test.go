package gateway_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func later(tool, args string) gateway.Call {
	c := gatewaytest.Call("a", tool, args)
	c.Later, c.Protocol = true, "2026-07-28"
	c.Caps = json.RawMessage(`{"elicitation":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
	return c
}

func about(id string) gateway.Call { return gatewaytest.Call("a", id, "") }

func keep(t testing.TB, h *gatewaytest.House, c gateway.Call) gateway.Handle {
	t.Helper()
	r, err := h.Handle(t.Context(), c, nil)
	if err != nil || r.Type != gateway.ResultTask || r.Handle == nil {
		t.Fatalf("%+v %v", r, err)
	}
	return *r.Handle
}

// until looks until the handle is in a state.
func until(t testing.TB, h *gatewaytest.House, id, status string) gateway.Handle {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		one, err := h.Look(t.Context(), about(id))
		if err != nil {
			t.Fatal(err)
		}
		if one.Status == status {
			return one
		}
		if one.Final() || time.Now().After(deadline) {
			t.Fatalf("it is %s (%s), want %s", one.Status, one.Message, status)
		}
	}
}

// A call that waits for a human is kept, runs once somebody agreed and its agent
// came back, and once only.
func TestAKeptCall(t *testing.T) {
	h := gatewaytest.New(t)
	kept := keep(t, h, later("files__write", `{"path":"x"}`))
	if len(kept.ID) < 50 || kept.Status != gateway.HandleWorking {
		t.Errorf("%+v", kept)
	}
	until(t, h, kept.ID, gateway.HandleWorking)
	approveAll(t, h, "bob")
	if n := len(h.Servers.Sent()); n != 0 {
		t.Errorf("%d were sent before the agent came back", n)
	}
	done := until(t, h, kept.ID, gateway.HandleCompleted)
	if !strings.Contains(string(done.Result.Raw), "done") {
		t.Errorf("%s", done.Result.Raw)
	}
	until(t, h, kept.ID, gateway.HandleCompleted)
	if n := len(h.Servers.Sent()); n != 1 {
		t.Errorf("%d were sent", n)
	}
	if h.Leases.Live() != 0 {
		t.Error("a lease lives on")
	}
}

// Whatever else a human, an operator or time makes of it, the handle says.
func TestEndsOfAKeptCall(t *testing.T) {
	deny := func(t *testing.T, h *gatewaytest.House, _ gateway.Handle) {
		all, _ := h.Approvals.List(t.Context(), "acme")
		if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", all[0].ID, false, all[0].Digest, "because"); err != nil {
			t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		do     func(*testing.T, *gatewaytest.House, gateway.Handle)
		status string
		says   string
	}{
		"denied":    {deny, gateway.HandleFailed, "denied_by_operator"},
		"withdrawn": {func(t *testing.T, h *gatewaytest.House, k gateway.Handle) { h.Withdraw(t.Context(), about(k.ID)) }, gateway.HandleCancelled, ""},
		"withdrawn, then approved": {func(t *testing.T, h *gatewaytest.House, k gateway.Handle) {
			h.Withdraw(t.Context(), about(k.ID))
			approveAll(t, h, "bob")
		}, gateway.HandleCancelled, ""},
		"policy changed since": {func(t *testing.T, h *gatewaytest.House, k gateway.Handle) {
			approveAll(t, h, "bob")
			h.Policy.Set("p, agent:a, acme, work, files/write, list, , allow\np, agent:a, acme, work, files/write, call, , deny\np, agent:a, acme, work, files/read, call, , allow")
		}, gateway.HandleFailed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			kept := keep(t, h, later("files__write", `{}`))
			row.do(t, h, kept)
			one := until(t, h, kept.ID, row.status)
			if !strings.Contains(string(one.Result.Error), row.says) {
				t.Errorf("%s", one.Result.Error)
			}
			if n := len(h.Servers.Sent()); n != 0 {
				t.Errorf("%d were sent", n)
			}
		})
	}
}

// A handle is its owner's, on its task, while that runs.
func TestHandlesAreTheirOwners(t *testing.T) {
	h := gatewaytest.New(t)
	kept := keep(t, h, later("files__write", `{}`))
	for name, c := range map[string]gateway.Call{
		"another tenant's":     {Credential: gateway.Credential{Bearer: gateway.NewSecret("b")}, Name: kept.ID},
		"another workload's":   {Credential: gateway.Credential{Bearer: gateway.NewSecret("url-bob")}, Name: kept.ID},
		"one that is not":      {Credential: gateway.Credential{Bearer: gateway.NewSecret("a")}, Name: "x"},
		"with no handle named": {Credential: gateway.Credential{Bearer: gateway.NewSecret("a")}},
	} {
		for verb, do := range map[string]func(context.Context, gateway.Call) (gateway.Handle, error){"get": h.Look, "update": h.Update, "cancel": h.Withdraw} {
			if _, err := do(t.Context(), c); codeOf(err) != gateway.UnknownHandle {
				t.Errorf("%s, %s: %v", name, verb, err)
			}
		}
	}
	if _, err := h.EndTask(t.Context(), gateway.Credential{Bearer: gateway.NewSecret("a")}, "task-a"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Look(t.Context(), about(kept.ID)); codeOf(err) != gateway.NoTask {
		t.Errorf("after its task: %v", err)
	}
}

// Whoever runs a kept call and dies leaves it in doubt: it is never run again.
func TestAKeptCallWhoseRunnerDied(t *testing.T) {
	h := gatewaytest.New(t)
	kept := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	one, err := h.Handles.Handle(t.Context(), "acme", kept.ID)
	if err != nil {
		t.Fatal(err)
	}
	one.Run, one.RunUntil = "call-x", time.Now().Add(-time.Second)
	if _, err := h.Handles.Move(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	got := until(t, h, kept.ID, gateway.HandleFailed)
	if !strings.Contains(string(got.Result.Error), "in_doubt") || len(h.Servers.Sent()) != 0 {
		t.Errorf("%s, %d sent", got.Result.Error, len(h.Servers.Sent()))
	}
}

// A server's task is its agent's by a handle of ours; its questions are decided, its
// answers go through, and it is asked with the credential of the moment.
func TestAServersTask(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	says := `{"resultType":"task","taskId":"guess-me","status":"working","ttlMs":60000,"pollIntervalMs":10}`
	h.Servers.Answer = func(_ context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		if f.Method == gateway.MethodCall {
			return gateway.Result{Type: gateway.ResultTask, Raw: json.RawMessage(says)}, nil
		}
		if f.Remote != "guess-me" {
			t.Errorf("asked about %q", f.Remote)
		}
		if f.Method == gateway.MethodTaskUpdate {
			says = `{"taskId":"guess-me","status":"completed","result":{"content":[],"got":` + string(f.Answers) + `}}`
		}
		return gateway.Result{Raw: json.RawMessage(says)}, nil
	}
	kept := keep(t, h, later("files__read", `{}`))
	if kept.ID == "guess-me" || kept.Poll != 10*time.Millisecond {
		t.Errorf("%+v", kept)
	}
	until(t, h, kept.ID, gateway.HandleWorking)
	says = `{"taskId":"guess-me","status":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"message":"?"}}}}`
	if one := until(t, h, kept.ID, gateway.HandleInput); !strings.Contains(string(one.Wants), `"message":"?"`) {
		t.Errorf("%s", one.Wants)
	}
	h.Policy.Set(gatewaytest.Text)
	if _, err := h.Look(t.Context(), about(kept.ID)); codeOf(err) != gateway.Denied && codeOf(err) != gateway.Downstream {
		t.Errorf("a question that policy denies: %v", err)
	}
	h.Policy.Set(gatewaytest.Text + elicitRows)
	twice := about(kept.ID)
	twice.Answers = json.RawMessage(`{"k":{"action":"accept","action":"decline"}}`)
	if _, err := h.Update(t.Context(), twice); codeOf(err) != gateway.BadArguments {
		t.Errorf("answers that are read two ways: %v", err)
	}
	answers := about(kept.ID)
	answers.Answers = json.RawMessage(`{"k":{"action":"accept"}}`)
	if _, err := h.Update(t.Context(), answers); err != nil {
		t.Fatal(err)
	}
	if one := until(t, h, kept.ID, gateway.HandleCompleted); !strings.Contains(string(one.Result.Raw), `"got":{"k":{"action":"accept"}}`) {
		t.Errorf("%s", one.Result.Raw)
	}
	if h.Leases.Live() != 0 {
		t.Error("a lease lives on")
	}
	unasked := gatewaytest.Call("a", "files__read", `{}`)
	says = `{"resultType":"task","taskId":"guess-me","status":"working"}`
	if _, err := h.Handle(t.Context(), unasked, nil); codeOf(err) != gateway.Downstream {
		t.Errorf("an agent that takes no handles: %v", err)
	}
}

// What a kept call's server asks is asked of whoever looks, and its answers are
// approved with the call.
func TestAKeptCallThatIsAsked(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	kept := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	one := until(t, h, kept.ID, gateway.HandleInput)
	if !strings.Contains(string(one.Wants), "sure?") {
		t.Errorf("%s", one.Wants)
	}
	c := about(kept.ID)
	c.Answers = json.RawMessage(`{"k":{"action":"accept"}}`)
	if _, err := h.Update(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		all, err := h.Approvals.List(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		pending := 0
		for _, r := range all {
			if r.State == gateway.ApprovalPending {
				pending++
			}
		}
		if pending > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody is asked about the answers")
		}
	}
	approveAll(t, h, "bob")
	if done := until(t, h, kept.ID, gateway.HandleCompleted); !strings.Contains(string(done.Result.Raw), `"state":"inner"`) {
		t.Errorf("%s", done.Result.Raw)
	}
}

// A result that is too large to keep is no result, and says so.
func TestAResultThatIsTooLargeToKeep(t *testing.T) {
	h := gatewaytest.New(t)
	h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"` + strings.Repeat("x", 100_000) + `"}]}`)}, nil
	}
	h.Handles.Most = 50_000
	kept := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	if one := until(t, h, kept.ID, gateway.HandleFailed); !strings.Contains(string(one.Result.Error), "too large") {
		t.Errorf("%s", one.Result.Error)
	}
}

// A gateway that goes down does not wait for what it runs for handles.
func TestKeptCallsEndWithTheGateway(t *testing.T) {
	h := gatewaytest.New(t)
	sent := make(chan struct{})
	h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		close(sent)
		<-ctx.Done()
		return gateway.Result{}, ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- h.Run(ctx) }()
	kept := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	if _, err := h.Look(t.Context(), about(kept.ID)); err != nil {
		t.Fatal(err)
	}
	<-sent
	stop()
	<-over
	if one, err := h.Handles.Handle(t.Context(), "acme", kept.ID); err != nil || one.Status != gateway.HandleFailed {
		t.Errorf("%s, %v", one.Status, err)
	}
}
