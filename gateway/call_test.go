package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// Every way a call can end: what the agent reads, what the log says, how many
// calls reached the server. After each the log is whole and no lease lives.
func TestEveryEnd(t *testing.T) {
	answers := func(err error) func(h *gatewaytest.House) {
		return func(h *gatewaytest.House) {
			h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
				return gateway.Result{}, err
			}
		}
	}
	for _, row := range []struct {
		name   string
		bearer string
		tool   string
		args   string
		set    func(h *gatewaytest.House)
		code   gateway.Code // what the agent reads; empty: the answer
		log    string
		sent   int
	}{
		{"allowed", "a", "files__read", `{"path":"x"}`, nil, "",
			"tool.call.allowed secret.issued tool.call.completed", 1},
		{"allowed by its arguments", "a", "files__pay", `{"amount":100}`, nil, "",
			"tool.call.allowed secret.issued tool.call.completed", 1},
		{"nobody", "nobody", "files__read", `{}`, nil, gateway.Unidentified, "", 0},
		{"no task named", "key", "files__read", `{}`, nil, gateway.NoTask, "tool.call.denied:no_task", 0},
		{"task ended", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Tasks.End(context.Background(), "acme", "task-a", gateway.Ending{As: gateway.TaskEnded, By: "x"})
		},
			gateway.NoTask, "tool.call.denied:no_task", 0},
		{"task cannot be confirmed", "a", "files__read", `{}`, func(h *gatewaytest.House) { h.Tasks.Stale = true },
			gateway.Internal, "tool.call.denied:internal", 0},
		{"no such tool", "a", "files__none", `{}`, nil, gateway.UnknownTool, "tool.call.denied:unknown_tool", 0},
		{"hidden tool", "a", "files__hidden", `{}`, nil, gateway.UnknownTool, "tool.call.denied:unknown_tool", 0},
		{"hidden tool, rubbish arguments", "a", "files__hidden", `{`, nil, gateway.UnknownTool, "tool.call.denied:unknown_tool", 0},
		{"another tenant's tool", "b", "files__write", `{}`, nil, gateway.UnknownTool, "tool.call.denied:unknown_tool", 0},
		{"arguments that do not fit", "a", "files__read", `{"path":1}`, nil, gateway.BadArguments, "tool.call.denied:bad_arguments", 0},
		{"arguments read differently", "a", "files__read", `{"path":"x","path":"y"}`, nil, gateway.BadArguments, "tool.call.denied:bad_arguments", 0},
		{"undeclared where a condition reads", "a", "files__pay", `{"amount":1,"note":"x"}`, nil, gateway.BadArguments, "tool.call.denied:bad_arguments", 0},
		{"undeclared where nothing reads", "a", "files__read", `{"note":"x"}`, nil, "",
			"tool.call.allowed secret.issued tool.call.completed", 1},
		{"denied by its arguments", "a", "files__pay", `{"amount":"lots"}`, nil, gateway.Denied, "tool.call.denied:denied", 0},
		{"nobody answers", "a", "files__write", `{}`, nil, gateway.PendingApproval, "tool.call.held approval.requested", 0},
		{"no credential", "a", "files__read", `{}`, func(h *gatewaytest.House) { h.Leases.Err = errors.New("sealed") },
			gateway.NoCredential, "tool.call.allowed tool.call.denied:no_credential", 0},
		{"task ends while a credential is fetched", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Leases.Before = func() {
				h.Tasks.End(context.Background(), "acme", "task-a", gateway.Ending{As: gateway.TaskEnded, By: "x"})
			}
		}, gateway.NoTask, "tool.call.allowed secret.issued tool.call.denied:no_task", 0},
		{"policy changes while a credential is fetched", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Leases.Before = func() { h.Policy.Set("p, agent:a, acme, work, files/slow, call, , allow") }
		}, gateway.Denied, "tool.call.allowed secret.issued tool.call.denied:denied", 0},
		{"tool changes while a credential is fetched", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Leases.Before = func() { h.Servers.Redefine("files__read") }
		}, gateway.UnknownTool, "tool.call.allowed secret.issued tool.call.denied:unknown_tool", 0},
		{"server not reached", "a", "files__read", `{}`, answers(gateway.ErrNotSent), gateway.Downstream,
			"tool.call.allowed secret.issued tool.call.failed:downstream", 1},
		{"server too slow", "a", "files__read", `{}`, answers(context.DeadlineExceeded), gateway.Downstream,
			"tool.call.allowed secret.issued tool.call.failed:downstream", 1},
		{"server answers rubbish", "a", "files__read", `{}`, answers(gateway.ErrBadAnswer), gateway.Downstream,
			"tool.call.allowed secret.issued tool.call.failed:downstream", 1},
		{"connection breaks", "a", "files__read", `{}`, answers(io.ErrUnexpectedEOF), gateway.Downstream,
			"tool.call.allowed secret.issued tool.call.in_doubt:downstream", 1},
		{"tool fails", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
				return gateway.Result{Raw: json.RawMessage(`{"content":[],"isError":true}`)}, nil
			}
		}, "", "tool.call.allowed secret.issued tool.call.completed", 1},
		{"server answers an error", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
				return gateway.Result{Error: json.RawMessage(`{"code":-32000,"message":"no"}`)}, nil
			}
		}, "", "tool.call.allowed secret.issued tool.call.failed", 1},
		{"result holds the secret", "a", "files__read", `{}`, func(h *gatewaytest.House) {
			h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
				return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"it is canary-canary"}]}`)}, nil
			}
		}, "", "tool.call.allowed secret.issued tool.call.completed response.redacted", 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Leases.Secret = "canary-canary"
			if row.set != nil {
				row.set(h)
			}
			result, err := h.Handle(t.Context(), gatewaytest.Call(row.bearer, row.tool, row.args), nil)
			switch {
			case err == nil && row.code != "":
				t.Fatalf("answered; want refused: %s", row.code)
			case err != nil && gateway.CodeOf(err) != row.code:
				t.Fatalf("%v; want %q", err, row.code)
			}
			if log := h.Events(); log != row.log {
				t.Errorf("log:\n got %s\nwant %s", log, row.log)
			}
			if n := len(h.Servers.Sent()); n != row.sent {
				t.Errorf("%d calls reached the server, want %d", n, row.sent)
			}
			if n := h.Leases.Live(); n != 0 {
				t.Errorf("%d leases outlived the call", n)
			}
			if strings.Contains(string(result.Raw)+string(result.Error), "canary") {
				t.Errorf("the agent reads the secret: %s", result.Raw)
			}
		})
	}
}

// An agent reads of an answer that is too long which limit it was; and of a tool that
// its process defines in another way what it would of none. Both are on record.
func TestFailuresThatSayWhy(t *testing.T) {
	for _, row := range []struct {
		err            error
		code           gateway.Code
		doubt          bool
		say            string
		typ            audit.Type
		detail, reason string
	}{
		{fmt.Errorf("server files: %w", gateway.ErrTooLong), gateway.Downstream, true, "max_response", audit.CallFailed, "max_response", "downstream"},
		{fmt.Errorf("%w: %w: in another way", gateway.ErrNotSent, gateway.ErrWithheld), gateway.UnknownTool, false, "unknown tool; list the tools again", audit.CallDenied, "withheld: in another way", "unknown_tool"},
	} {
		h := gatewaytest.New(t)
		h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
			return gateway.Result{}, row.err
		}
		_, err := h.Call(t.Context(), "files__read", `{}`)
		r, ok := errors.AsType[*gateway.Refusal](err)
		if !ok || r.Code != row.code || r.InDoubt != row.doubt || !strings.Contains(r.Say, row.say) {
			t.Errorf("%v: the agent reads %+v", row.err, r)
		}
		lines := h.Lines()
		if e := lines[len(lines)-1]; e.Type != row.typ || !strings.Contains(e.Detail, row.detail) || e.Decision.ReasonCode != row.reason {
			t.Errorf("%v: on record is %s %s %+v", row.err, e.Type, e.Detail, e.Decision)
		}
	}
}

// No record, no act: a log that cannot be written stops the call before
// anything leaves.
func TestNoRecordNoAct(t *testing.T) {
	h := gatewaytest.New(t)
	h.Log.Close()
	_, err := h.Call(t.Context(), "files__read", `{}`)
	if gateway.CodeOf(err) != gateway.Internal || len(h.Servers.Sent()) != 0 {
		t.Fatalf("%v; %d calls sent without a record", err, len(h.Servers.Sent()))
	}
}

// What is decided on is what is sent, byte for byte.
func TestBytes(t *testing.T) {
	h := gatewaytest.New(t)
	const args = "{ \"path\" : \"\\u00e9\\n\", \"n\":1.50e1 }"
	if _, err := h.Call(t.Context(), "files__read", args); err != nil {
		t.Fatal(err)
	}
	if got := string(h.Servers.Sent()[0].Args); got != args {
		t.Fatalf("sent %q", got)
	}
}

// A call that runs when its task ends is cancelled.
func TestTaskEndCancelsCall(t *testing.T) {
	h := gatewaytest.New(t)
	h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		if _, err := h.EndTask(context.Background(), gateway.Credential{Bearer: gateway.NewSecret("a")}, "task-a"); err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		return gateway.Result{}, ctx.Err()
	}
	_, err := h.Call(t.Context(), "files__slow", `{}`)
	if gateway.CodeOf(err) != gateway.NoTask {
		t.Fatalf("%v", err)
	}
	if log := h.Events(); log != "tool.call.allowed task.ending tool.call.cancelled:no_task" {
		t.Fatalf("log: %s", log)
	}
}

// A call that runs while nobody can say any more whether its task has ended is
// cancelled, and said to be in doubt.
func TestBlindnessCancelsCall(t *testing.T) {
	for _, row := range []struct {
		err     error
		inDoubt bool
		detail  string
	}{
		{context.Canceled, true, "it cannot be confirmed that the task is running, and the call was cancelled; it may have run"},
		{gateway.ErrNotSent, false, "it cannot be confirmed that the task is running; nothing reached the server"},
	} {
		h := gatewaytest.New(t)
		h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
			h.Tasks.GoBlind()
			<-ctx.Done()
			return gateway.Result{}, row.err
		}
		_, err := h.Call(t.Context(), "files__slow", `{}`)
		if r, ok := errors.AsType[*gateway.Refusal](err); !ok || r.Code != gateway.Internal || r.InDoubt != row.inDoubt {
			t.Errorf("%+v", err)
		}
		lines := h.Lines()
		if e := lines[len(lines)-1]; e.Type != audit.CallCancelled || e.Detail != row.detail {
			t.Errorf("%s: %s", e.Type, e.Detail)
		}
	}
}

// An agent that goes away is recorded; what it may have caused is said.
func TestAgentGoesAway(t *testing.T) {
	h := gatewaytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		cancel()
		<-ctx.Done()
		return gateway.Result{}, ctx.Err()
	}
	if _, err := h.Call(ctx, "files__slow", `{}`); gateway.CodeOf(err) != gateway.Cancelled {
		t.Fatalf("%v", err)
	}
	if log := h.Events(); log != "tool.call.allowed tool.call.cancelled:cancelled" {
		t.Fatalf("log: %s", log)
	}
}

// Unidentified callers fill no log: they are counted.
func TestFloodIsCounted(t *testing.T) {
	h := gatewaytest.New(t)
	for range 10_000 {
		if _, err := h.Handle(t.Context(), gatewaytest.Call("bad", "files__read", `{}`), nil); gateway.CodeOf(err) != gateway.Unidentified {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Fatal(err)
	}
	lines := h.Lines()
	if len(lines) != 1 || lines[0].Type != audit.IdentityRejected || lines[0].Count != 10_000 {
		t.Fatalf("%d events, %+v", len(lines), lines)
	}
}

// Over its rate a principal is refused and counted; others are not affected.
func TestRateLimit(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	h := gatewaytest.New(t, func(c *gateway.Config) { c.CallsPerSecond, c.Now = 2, func() time.Time { return now } })
	var refused int
	for range 10 {
		if _, err := h.Call(t.Context(), "files__read", `{}`); gateway.CodeOf(err) == gateway.TooMany && err != nil {
			refused++
		}
	}
	if refused != 6 {
		t.Errorf("%d of 10 refused, want 6", refused)
	}
	if _, err := h.Handle(t.Context(), gatewaytest.Call("b", "files__read", `{}`), nil); err != nil {
		t.Errorf("the neighbour is refused: %v", err)
	}
}

// What an identified caller can cause without end is limited like its calls,
// and what cannot be read is counted.
func TestRefusalsAreLimitedToo(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	h := gatewaytest.New(t, func(c *gateway.Config) { c.CallsPerSecond, c.Now = 2, func() time.Time { return now } })
	h.Tasks.End(t.Context(), "acme", "task-a", gateway.Ending{As: gateway.TaskEnded, By: "x"})
	for range 100 {
		_, _ = h.Call(t.Context(), "files__read", `{}`)
		h.Malformed(t.Context(), gateway.Credential{Bearer: gateway.NewSecret("a")})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Fatal(err)
	}
	counts := map[audit.Type]int64{}
	for _, e := range h.Lines() {
		counts[e.Type] += max(1, e.Count)
	}
	if counts[audit.CallDenied] != 4 || counts[audit.RateLimited] != 96 || counts[audit.RequestRejected] != 100 {
		t.Errorf("%v", counts)
	}
}

// The agent reads the same of a hidden tool and of none; the record tells them
// apart.
func TestUnknownToolOnRecord(t *testing.T) {
	h := gatewaytest.New(t)
	var said []string
	for _, name := range []string{"files__hidden", "files__none", strings.Repeat("x", 10_000)} {
		_, err := h.Call(t.Context(), name, `{}`)
		var r *gateway.Refusal
		if !errors.As(err, &r) {
			t.Fatal(err)
		}
		said = append(said, r.Say)
	}
	if said[0] != said[1] || said[1] != said[2] {
		t.Errorf("the agent reads %q", said)
	}
	lines := h.Lines()
	for i, want := range []audit.Tool{{Server: "files", Name: "hidden"}, {Server: "unknown", Name: "files__none"}, {Server: "unknown", Name: strings.Repeat("x", 128)}} {
		if got := lines[i].Tool; got == nil || got.Server != want.Server || got.Name != want.Name {
			t.Errorf("on record: %+v, want %+v", got, want)
		}
	}
}

// A tenant's day is its own.
func TestTenantDay(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	h := gatewaytest.New(t, func(c *gateway.Config) { c.TenantDay, c.Now = 3, func() time.Time { return now } })
	call := func(bearer string) gateway.Code {
		_, err := h.Handle(t.Context(), gatewaytest.Call(bearer, "files__read", `{}`), nil)
		if err == nil {
			return ""
		}
		return gateway.CodeOf(err)
	}
	for i, want := range []gateway.Code{"", "", "", gateway.TooMany} {
		if got := call("a"); got != want {
			t.Errorf("call %d: %q", i, got)
		}
	}
	if got := call("b"); got != "" {
		t.Errorf("the neighbour: %q", got)
	}
	now = now.Add(24 * time.Hour)
	if got := call("a"); got == gateway.TooMany {
		t.Error("the next day is still over")
	}
}

// A list shows what could be granted, and nothing of a neighbour's.
func TestList(t *testing.T) {
	h := gatewaytest.New(t)
	for bearer, want := range map[string]string{"a": "files__pay files__read files__slow files__write toolbroker__delegate toolbroker__request_access", "b": "files__read"} {
		tools, err := h.List(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(bearer)}, gateway.SortTool, gateway.CallRef{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, tool := range tools {
			names = append(names, tool.Alias)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s sees %q, want %q", bearer, got, want)
		}
	}
}

// A session belongs to whoever opened it, on the task it was opened on.
func TestSessionIsBound(t *testing.T) {
	h := gatewaytest.New(t)
	a, b := gateway.NewSecret("a"), gateway.NewSecret("b")
	if err := h.OpenSession(t.Context(), gateway.Credential{Bearer: a}, "s1", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Identify(t.Context(), gateway.Credential{Bearer: a, Session: "s1"}); err != nil {
		t.Errorf("its owner: %v", err)
	}
	for _, cred := range []gateway.Credential{
		{Bearer: b, Session: "s1"},
		{Bearer: a, Session: "s2"},
		{Bearer: gateway.NewSecret("key"), Session: "s1"},
	} {
		if _, err := h.Identify(t.Context(), cred); err == nil {
			t.Errorf("%+v is let in", cred)
		}
	}
	if err := h.CloseSession(t.Context(), gateway.Credential{Bearer: b, Session: "s1"}); err == nil {
		t.Error("another closes it")
	}
	if err := h.CloseSession(t.Context(), gateway.Credential{Bearer: a, Session: "s1"}); err != nil {
		t.Error(err)
	}
	if _, err := h.Identify(t.Context(), gateway.Credential{Bearer: a, Session: "s1"}); err == nil {
		t.Error("a closed session is let in")
	}
}

// Token and header must name the same task.
func TestTaskDisagreement(t *testing.T) {
	h := gatewaytest.New(t)
	for _, row := range []struct {
		bearer, header string
		ok             bool
	}{
		{"a", "", true},
		{"a", "task-a", true},
		{"a", "task-b", false},
		{"key", "task-a", true},
		{"key", "task-b", false},
		{"key", "", false},
	} {
		_, _, err := h.Admit(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(row.bearer), Task: row.header})
		if (err == nil) != row.ok {
			t.Errorf("token %q with header %q: %v", row.bearer, row.header, err)
		}
	}
}

// Every code has its line in docs/call.md.
func TestCodesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/call.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range gateway.Codes {
		if !strings.Contains(string(page), "| `"+string(code)+"` |") {
			t.Errorf("docs/call.md lacks a row for %s", code)
		}
	}
}

// A result that is not what its tool promises reaches the agent as it is, and that is
// on record.
func TestResultsThatWereNotPromised(t *testing.T) {
	for answer, log := range map[string]string{
		`{"content":[],"structuredContent":{"x":1}}`: "tool.call.completed",
		`{"content":[],"structuredContent":{"y":1}}`: "tool.result.mismatch tool.call.completed",
		`{"content":[]}`: "tool.result.mismatch tool.call.completed",
		`{"content":[],"structuredContent":{"y":1},"isError":true}`: "tool.call.completed",
	} {
		h := gatewaytest.New(t)
		h.Servers.Offer(gateway.Tool{Server: "task:other", Name: "typed", Alias: "other__typed", Hash: "sha256:typed", Schema: json.RawMessage(`{"type":"object"}`),
			Promise: func(structured json.RawMessage) error {
				if string(structured) != `{"x":1}` {
					return gateway.ErrBadAnswer
				}
				return nil
			}})
		h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, task:other/typed, call, , allow\n")
		h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
			return gateway.Result{Raw: json.RawMessage(answer)}, nil
		}
		r, err := h.Call(t.Context(), "other__typed", `{}`)
		if err != nil || string(r.Raw) != answer {
			t.Errorf("%s came as %s, %v", answer, r.Raw, err)
		}
		var got []string
		for _, e := range h.Lines() {
			got = append(got, string(e.Type))
		}
		if got := strings.Join(got, " "); !strings.HasSuffix(got, "tool.call.allowed "+log) {
			t.Errorf("%s: on record is %s", answer, got)
		}
	}
}
