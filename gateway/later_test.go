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

// Who takes a kept call back takes back what operators were asked, too, unless they
// are asked the same for somebody else who waits.
func TestWithdrawing(t *testing.T) {
	type world struct {
		*gatewaytest.House
		first, second gateway.Handle
	}
	for name, row := range map[string]struct {
		do   func(*testing.T, *world)
		want gateway.ApprovalState
	}{
		"the only one":     {func(*testing.T, *world) {}, gateway.ApprovalCancelled},
		"approved already": {func(t *testing.T, w *world) { approveAll(t, w.House, "bob") }, gateway.ApprovalCancelled},
		"another handle":   {func(t *testing.T, w *world) { w.second = keep(t, w.House, later("files__write", `{ }`)) }, gateway.ApprovalPending},
		"another that is taken back, too": {func(t *testing.T, w *world) {
			w.second = keep(t, w.House, later("files__write", `{}`))
			if _, err := w.Withdraw(t.Context(), about(w.second.ID)); err != nil {
				t.Fatal(err)
			}
		}, gateway.ApprovalCancelled},
		"a call that was held": {func(t *testing.T, w *world) {
			if _, err := w.Call(t.Context(), "files__write", `{}`); codeOf(err) != gateway.PendingApproval {
				t.Fatal(err)
			}
		}, gateway.ApprovalPending},
		"another call": {func(t *testing.T, w *world) { keep(t, w.House, later("files__write", `{"path":"other"}`)) }, gateway.ApprovalCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{House: gatewaytest.New(t)}
			w.first = keep(t, w.House, later("files__write", `{}`))
			kept, err := w.Handles.Handle(t.Context(), "acme", w.first.ID)
			if err != nil {
				t.Fatal(err)
			}
			row.do(t, w)
			for range 2 { // asking again is harmless
				if one, err := w.Withdraw(t.Context(), about(w.first.ID)); err != nil || one.Status != gateway.HandleCancelled {
					t.Fatalf("%s, %v", one.Status, err)
				}
			}
			r, err := w.Approvals.Get(t.Context(), "acme", kept.Approval)
			if err != nil || r.State != row.want {
				t.Fatalf("operators are asked: %s, %v; want %s", r.State, err, row.want)
			}
			if w.second.ID == "" || row.want != gateway.ApprovalPending {
				return
			}
			approveAll(t, w.House, "bob")
			until(t, w.House, w.second.ID, gateway.HandleCompleted)
		})
	}
}

// A call that cannot be kept leaves operators in peace.
func TestNobodyIsAskedAboutWhatIsNotKept(t *testing.T) {
	h := gatewaytest.New(t)
	h.Handles.Most = 1
	if _, err := h.Handle(t.Context(), later("files__write", `{}`), nil); codeOf(err) != gateway.TooMany {
		t.Fatal(err)
	}
	all, err := h.Approvals.List(t.Context(), "acme")
	if err != nil || len(all) != 1 || all[0].State != gateway.ApprovalCancelled {
		t.Errorf("%+v, %v", all, err)
	}
}

// What a run asks while its handle is taken back, nobody is left to wait for.
func TestARunThatIsTakenBack(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + elicitRows)
	h.Servers.Answer = needs("inner")
	kept := keep(t, h, later("files__write", `{}`))
	approveAll(t, h, "bob")
	until(t, h, kept.ID, gateway.HandleInput)
	asked, release := make(chan struct{}), make(chan struct{})
	h.Approvals.Asked = func() { close(asked); <-release }
	c := about(kept.ID)
	c.Answers = json.RawMessage(`{"k":{"action":"accept"}}`)
	if _, err := h.Update(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	<-asked
	if _, err := h.Withdraw(t.Context(), about(kept.ID)); err != nil {
		t.Fatal(err)
	}
	close(release)
	for deadline := time.Now().Add(5 * time.Second); ; {
		all, err := h.Approvals.List(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		cancelled := 0
		for _, r := range all {
			if r.State == gateway.ApprovalCancelled {
				cancelled++
			}
		}
		if cancelled == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are cancelled", cancelled, len(all))
		}
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
	says0 := says
	for _, odd := range []string{
		`{"taskId":"guess-me","status":"working","Status":"completed","result":{"content":[]}}`,
		`{"taskId":"guess-me","status":"completed","result":{"content":[]},"Result":{}}`,
		`{"taskId":"guess-me","status":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"message":"?","Message":"!"}}}}`,
	} {
		says = odd
		if one, err := h.Look(t.Context(), about(kept.ID)); codeOf(err) != gateway.Downstream {
			t.Errorf("%s: %+v %v", odd, one, err)
		}
	}
	says = says0
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

// What a server's task comes to goes the way of an answer to a call: it is held to the
// tool's promise, read in one way, and sends nobody anywhere undecided.
func TestWhatAServersTaskComesTo(t *testing.T) {
	const page = `{"mode":"url","elicitationId":"e1","url":"https://pay.example/1","message":"Pay."}`
	const elicits = "p, agent:a, acme, work, task:other/typed, elicit, , allow\n"
	ended := func(result string) string { return `{"taskId":"t","status":"completed","result":` + result + `}` }
	failed := func(fault string) string { return `{"taskId":"t","status":"failed","error":` + fault + `}` }
	for name, row := range map[string]struct {
		rows, says string
		status     string
		holds      string // what the handle says
		log        string // since the call
	}{
		"as promised":                {"", ended(`{"content":[],"structuredContent":{"x":1}}`), gateway.HandleCompleted, `"x":1`, "tool.call.completed"},
		"not as promised":            {"", ended(`{"content":[],"structuredContent":{}}`), gateway.HandleCompleted, `{}`, "tool.result.mismatch tool.call.completed"},
		"it asks, and says complete": {elicits, ended(`{"resultType":"complete","content":[],"inputRequests":{"k":{"method":"elicitation/create","params":` + page + `}}}`), gateway.HandleFailed, "downstream", "tool.call.failed"},
		"it asks for input":          {elicits, ended(`{"resultType":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":` + page + `}}}`), gateway.HandleFailed, "downstream", "tool.call.failed"},
		"it is a task":               {"", ended(`{"resultType":"task","taskId":"u","status":"working"}`), gateway.HandleFailed, "downstream", "tool.call.failed"},
		"it is read in two ways":     {"", ended(`{"content":[],"IsError":true}`), gateway.HandleFailed, "downstream", "tool.call.failed"},
		"it comes to nothing":        {"", `{"taskId":"t","status":"completed"}`, gateway.HandleFailed, "downstream", "tool.call.failed"},
		"an error":                   {"", failed(`{"code":-5,"message":"disk full"}`), gateway.HandleFailed, "disk full", "tool.call.failed"},
		"an error, in two ways":      {elicits, failed(`{"code":1,"Code":-32042,"message":"m","data":{"elicitations":[` + page + `]}}`), gateway.HandleFailed, "downstream", "tool.call.failed"},
		"pages that are denied":      {"", failed(`{"code":-32042,"message":"m","data":{"elicitations":[` + page + `]}}`), gateway.HandleFailed, "denied", "tool.ask.denied tool.call.failed"},
		"pages":                      {elicits, failed(`{"code":-32042,"message":"m","data":{"elicitations":[` + page + `]}}`), gateway.HandleInput, "https://pay.example/1", "tool.ask.allowed tool.call.completed"},
		"pages, once it was approved": {elicits + "p, agent:a, acme, work, task:other/typed, call, , approve\n", failed(`{"code":-32042,"message":"m","data":{"elicitations":[` + page + `]}}`),
			gateway.HandleFailed, "downstream", "tool.ask.denied tool.call.failed"},
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Servers.Offer(gateway.Tool{Server: "task:other", Name: "typed", Alias: "other__typed", Kind: "stdio", Hash: "sha256:typed", Schema: json.RawMessage(`{"type":"object"}`),
				Promise: func(structured json.RawMessage) error {
					if !strings.Contains(string(structured), `"x"`) {
						return gateway.ErrBadAnswer
					}
					return nil
				}})
			h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, task:other/typed, call, , allow\n" + row.rows)
			says, opened := `{"resultType":"task","taskId":"t","status":"working"}`, false
			h.Servers.Answer = func(_ context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
				switch {
				case f.Method == gateway.MethodCall && opened:
					return gateway.Result{Raw: json.RawMessage(`{"content":[],"structuredContent":{"x":2}}`)}, nil
				case f.Method == gateway.MethodCall:
					return gateway.Result{Type: gateway.ResultTask, Raw: json.RawMessage(says)}, nil
				}
				return gateway.Result{Type: gateway.ResultComplete, Raw: json.RawMessage(row.says)}, nil
			}
			call := later("other__typed", `{}`)
			call.Caps = json.RawMessage(`{"elicitation":{"form":{},"url":{}},"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
			kept := keep(t, h, call)
			if strings.Contains(row.rows, "approve") {
				approveAll(t, h, "bob")
				for one := kept; one.Remote == ""; {
					var err error
					if one, err = h.Handles.Handle(t.Context(), "acme", kept.ID); err != nil {
						t.Fatal(err)
					}
					if one.Run == "" && one.Remote == "" {
						if _, err := h.Look(t.Context(), about(kept.ID)); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			before := len(h.Lines())
			one := until(t, h, kept.ID, row.status)
			until(t, h, kept.ID, row.status) // nothing more is on record for that
			if got := string(one.Result.Raw) + string(one.Result.Error) + string(one.Wants); !strings.Contains(got, row.holds) {
				t.Errorf("it says %s", got)
			}
			var log []string
			for _, e := range h.Lines()[before:] {
				log = append(log, string(e.Type))
			}
			if got := strings.Join(log, " "); got != row.log {
				t.Errorf("on record is %s", got)
			}
			if row.status != gateway.HandleInput {
				return
			}
			opened = true
			c := about(kept.ID)
			c.Answers = json.RawMessage(`{"page-1":{"action":"accept"}}`)
			if _, err := h.Update(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if one := until(t, h, kept.ID, gateway.HandleCompleted); !strings.Contains(string(one.Result.Raw), `"x":2`) {
				t.Errorf("it comes to %s", one.Result.Raw)
			}
			sent := h.Servers.Sent()
			if last := sent[len(sent)-1]; last.Method != gateway.MethodCall || last.Answers != nil || last.State != "" {
				t.Errorf("the server hears %+v", last)
			}
		})
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
