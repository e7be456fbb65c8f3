package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

func patient(c *gateway.Config) { c.Hold = 20 * time.Second }

// asked waits until a request is pending and returns it.
func asked(t *testing.T, h *gatewaytest.House, tenant string) gateway.ApprovalRequest {
	t.Helper()
	changes := h.Changes(t.Context())
	for {
		rs, err := h.Approvals.List(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			if r.State == gateway.ApprovalPending {
				return r
			}
		}
		select {
		case <-changes:
		case <-time.After(10 * time.Millisecond): // a change between List and Changes
		case <-t.Context().Done():
			t.Fatal("nobody asked")
		}
	}
}

func vote(t *testing.T, h *gatewaytest.House, name string, r gateway.ApprovalRequest, yes bool) (gateway.ApprovalRequest, error) {
	t.Helper()
	return h.Vote(t.Context(), h.Operators.Op(name), r.Tenant, r.ID, yes, r.Digest, "because")
}

// call makes a call that waits, and hands over its end.
func call(t *testing.T, h *gatewaytest.House, tool, args string) <-chan error {
	end := make(chan error, 1)
	go func() {
		_, err := h.Call(t.Context(), tool, args)
		end <- err
	}()
	return end
}

func TestApproved(t *testing.T) {
	h := gatewaytest.New(t, patient)
	h.Leases.Secret = "canary-canary"
	end := call(t, h, "files__write", `{"path":"x"}`)
	r := asked(t, h, "acme")
	if string(r.Args) != `{"path":"x"}` {
		t.Errorf("the operator is shown %s", r.Args)
	}
	for !strings.Contains(h.Events(), "approval.requested") { // an operator is not that quick
		time.Sleep(time.Millisecond)
	}
	if _, err := vote(t, h, "bob", r, true); err != nil {
		t.Fatal(err)
	}
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	want := "tool.call.held approval.requested approval.vote approval.consumed tool.call.allowed secret.issued tool.call.completed"
	if log := h.Events(); log != want {
		t.Errorf("log:\n got %s\nwant %s", log, want)
	}
	if sent := h.Servers.Sent(); len(sent) != 1 || string(sent[0].Args) != string(r.Args) {
		t.Errorf("sent %v", sent)
	}
	if n := h.Leases.Live(); n != 0 {
		t.Errorf("%d leases live", n)
	}
	for _, e := range h.Lines() {
		if e.Type == audit.ApprovalConsumed && (e.Approval.State != "consumed" || len(e.Approval.Votes) != 1 || e.Approval.Votes[0].By != "bob") {
			t.Errorf("consumed as %+v", e.Approval)
		}
	}
}

func TestDeniedByOperator(t *testing.T) {
	h := gatewaytest.New(t, patient)
	end := call(t, h, "files__write", `{}`)
	r := asked(t, h, "acme")
	if _, err := vote(t, h, "bob", r, false); err != nil {
		t.Fatal(err)
	}
	if err := <-end; gateway.CodeOf(err) != gateway.DeniedByOperator {
		t.Fatalf("%v", err)
	}
	// A repeat gets the denial; it does not ask again.
	if _, err := h.Call(t.Context(), "files__write", `{}`); gateway.CodeOf(err) != gateway.DeniedByOperator {
		t.Fatalf("repeat: %v", err)
	}
	if len(h.Servers.Sent()) != 0 {
		t.Error("something was sent")
	}
}

// A repeat with the same meaning attaches to the request; the grant runs once.
func TestRepeatAttaches(t *testing.T) {
	h := gatewaytest.New(t)
	for _, args := range []string{`{"path":"x","amount":1}`, `{"path":"x","amount":1}`, `{"amount":1.0, "path":"x"}`} {
		if _, err := h.Call(t.Context(), "files__write", args); gateway.CodeOf(err) != gateway.PendingApproval {
			t.Fatal(err)
		}
	}
	rs, _ := h.Approvals.List(t.Context(), "acme")
	if len(rs) != 1 {
		t.Fatalf("%d requests", len(rs))
	}
	if _, err := vote(t, h, "bob", rs[0], true); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { _, _ = h.Call(t.Context(), "files__write", `{"path":"x","amount":1}`) })
	}
	wg.Wait()
	if n := len(h.Servers.Sent()); n != 1 {
		t.Errorf("the approved call ran %d times", n)
	}
}

// Shown = sent: what runs are the approved bytes' own, not a repeat's other
// spelling of them.
func TestOtherSpellingSendsApprovedBytes(t *testing.T) {
	h := gatewaytest.New(t)
	if _, err := h.Call(t.Context(), "files__write", `{"path":"x","amount":1}`); gateway.CodeOf(err) != gateway.PendingApproval {
		t.Fatal(err)
	}
	r := asked(t, h, "acme")
	if _, err := vote(t, h, "bob", r, true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Call(t.Context(), "files__write", `{ "amount": 1.0, "path":"x" }`); err != nil {
		t.Fatal(err)
	}
	if got := string(h.Servers.Sent()[0].Args); got != string(r.Args) {
		t.Errorf("approved %s, sent %s", r.Args, got)
	}
}

// Whoever asked, and whoever is behind it, cannot answer.
func TestWhoMayVote(t *testing.T) {
	h := gatewaytest.New(t)
	_, _ = h.Call(t.Context(), "files__pay", `{"amount":500}`)
	r := asked(t, h, "acme")
	for name, ok := range map[string]bool{"alice": false, "vic": false, "bob": true} {
		if _, err := vote(t, h, name, r, true); (err == nil) != ok {
			t.Errorf("%s votes: %v", name, err)
		}
	}
	if _, err := vote(t, h, "bob", r, true); err == nil {
		t.Error("bob votes twice")
	}
	gina := gateway.Operator{Name: "gina", Roles: []string{"approver"}, Tenants: []string{"globex"}, Groups: []string{"sre"}}
	if _, err := h.Vote(t.Context(), gina, "acme", r.ID, true, r.Digest, ""); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("another tenant's operator: %v", err)
	}
	if _, err := h.ApprovalShow(t.Context(), gina, "acme", r.ID); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("another tenant's operator sees it: %v", err)
	}
	if _, err := h.Vote(t.Context(), h.Operators.Op("carol"), "acme", r.ID, true, "sha256:other", ""); err == nil {
		t.Error("a vote for another digest counts")
	}
	if _, err := h.Vote(t.Context(), h.Operators.Op("carol"), "acme", r.ID, false, r.Digest, ""); err == nil {
		t.Error("a denial without a reason counts")
	}
	if after, err := vote(t, h, "carol", r, true); err != nil || after.State != gateway.ApprovalGranted {
		t.Errorf("2 of sre: %v %v", after.State, err)
	}
}

// A grant counts only if everything that asked for it still stands.
func TestAfterApprovalEverythingIsAskedAgain(t *testing.T) {
	for _, row := range []struct {
		name string
		set  func(h *gatewaytest.House)
		code gateway.Code
		end  gateway.ApprovalState
	}{
		{"nothing changed", func(*gatewaytest.House) {}, "", gateway.ApprovalConsumed},
		{"policy denies now", func(h *gatewaytest.House) {
			h.Policy.Set(gatewaytest.Text + "p, *, *, *, files/write, call, args.path == 'x', deny\n")
		}, gateway.Denied, gateway.ApprovalGranted}, // refused before the grant was touched
		{"policy wants more people now", func(h *gatewaytest.House) {
			h.Policy.Set(gatewaytest.Text + "p, *, *, *, files/write, call, , require 2 of group:sre\n")
		}, gateway.Denied, gateway.ApprovalVoided},
		{"policy wants the same in other words", func(h *gatewaytest.House) {
			h.Policy.Set(gatewaytest.Text + "p, *, *, *, files/write, call, , require 1 of group:sre\n")
		}, "", gateway.ApprovalConsumed},
		{"no credential", func(h *gatewaytest.House) { h.Leases.Err = errors.New("sealed") }, gateway.NoCredential, gateway.ApprovalGranted},
		{"task ended", func(h *gatewaytest.House) {
			if _, err := h.TaskEnd(context.Background(), h.Operators.Op("alice"), "acme", "task-a"); err != nil {
				panic(err)
			}
		}, gateway.NoTask, gateway.ApprovalCancelled},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := gatewaytest.New(t)
			_, _ = h.Call(t.Context(), "files__write", `{"path":"x"}`)
			r := asked(t, h, "acme")
			if _, err := vote(t, h, "bob", r, true); err != nil {
				t.Fatal(err)
			}
			row.set(h)
			_, err := h.Call(t.Context(), "files__write", `{"path":"x"}`)
			if err == nil && row.code != "" || err != nil && gateway.CodeOf(err) != row.code {
				t.Fatalf("%v, want %q", err, row.code)
			}
			now, _ := h.Approvals.Get(t.Context(), "acme", r.ID)
			for deadline := time.Now().Add(10 * time.Second); now.State != row.end && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				now, _ = h.Approvals.Get(t.Context(), "acme", r.ID) // a task closes what hangs on it after its end was answered
			}
			if now.State != row.end {
				t.Errorf("the grant is %s, want %s", now.State, row.end)
			}
			if sent := len(h.Servers.Sent()); sent > 0 != (row.code == "") {
				t.Errorf("%d calls sent", sent)
			}
		})
	}
}

// What changes while a call is held is seen when its grant is claimed.
func TestChangesWhileHeld(t *testing.T) {
	for _, row := range []struct {
		name string
		set  func(h *gatewaytest.House)
	}{
		{"policy", func(h *gatewaytest.House) { h.Policy.Set("p, agent:a, acme, work, files/read, call, , allow") }},
		{"tool", func(h *gatewaytest.House) { h.Servers.Redefine("files__write") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := gatewaytest.New(t, patient)
			end := call(t, h, "files__write", `{}`)
			r := asked(t, h, "acme")
			row.set(h)
			if _, err := vote(t, h, "bob", r, true); err != nil {
				t.Fatal(err)
			}
			if err := <-end; gateway.CodeOf(err) != gateway.Denied {
				t.Fatalf("%v", err)
			}
			if now, _ := h.Approvals.Get(t.Context(), "acme", r.ID); now.State != gateway.ApprovalVoided {
				t.Errorf("the grant is %s", now.State)
			}
			if len(h.Servers.Sent()) != 0 {
				t.Error("sent")
			}
		})
	}
}

// A changed definition is another call: the old grant is not for it.
func TestChangedToolNeedsANewApproval(t *testing.T) {
	h := gatewaytest.New(t)
	_, _ = h.Call(t.Context(), "files__write", `{}`)
	r := asked(t, h, "acme")
	if _, err := vote(t, h, "bob", r, true); err != nil {
		t.Fatal(err)
	}
	h.Servers.Redefine("files__write")
	if _, err := h.Call(t.Context(), "files__write", `{}`); gateway.CodeOf(err) != gateway.PendingApproval {
		t.Fatal(err)
	}
	if len(h.Servers.Sent()) != 0 {
		t.Error("sent")
	}
}

// A store that forgets that a grant was used brings it back to nobody.
func TestForgottenUse(t *testing.T) {
	h := gatewaytest.New(t)
	_, _ = h.Call(t.Context(), "files__write", `{}`)
	r := asked(t, h, "acme")
	if _, err := vote(t, h, "bob", r, true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Call(t.Context(), "files__write", `{}`); err != nil {
		t.Fatal(err)
	}
	h.Approvals.Forget(r.ID)
	if _, err := h.Call(t.Context(), "files__write", `{}`); gateway.CodeOf(err) != gateway.Internal {
		t.Errorf("again: %v", err)
	}
	// Nor after a restart, which reads what was used from the log.
	h2 := gatewaytest.New(t, func(c *gateway.Config) { c.Used = map[string]time.Time{r.ID: r.Expires} })
	_, _ = h2.Call(t.Context(), "files__write", `{}`)
	r2 := asked(t, h2, "acme")
	h2.Approvals.Rename(r2.ID, r.ID)
	if _, err := vote(t, h2, "bob", asked(t, h2, "acme"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.Call(t.Context(), "files__write", `{}`); gateway.CodeOf(err) != gateway.Internal {
		t.Errorf("after a restart: %v", err)
	}
	if a, b := len(h.Servers.Sent()), len(h2.Servers.Sent()); a != 1 || b != 0 {
		t.Errorf("one approval ran %d and %d times", a, b)
	}
}

// No spelling of a name makes it another human's.
func TestSpellingsOfAHuman(t *testing.T) {
	h := gatewaytest.New(t)
	alice := h.Operators.Op("alice")
	for _, name := range []string{"alice", "Alice", "ALICE", " alice ", "alice@acme", "Alice@ACME", "mailto:alice@acme", "acct:Alice@acme", "operator:alice", "\uff21lice", "\talice"} {
		if h.MayVote(alice, gateway.ApprovalRequest{TaskFor: name, Need: []authz.Requirement{{N: 1}}}) == nil {
			t.Errorf("alice may approve for %q", name)
		}
	}
	// Each way to be behind a request is enough by itself.
	for what, r := range map[string]gateway.ApprovalRequest{
		"owns the task": {TaskOwner: "alice"}, "started it": {StartedBy: "operator:alice"}, "acted for": {OnBehalfOf: "alice@acme"},
		"the task is for her": {TaskFor: "alice"}, "owns the credential": {Owner: "alice"}, "is the agent": {Principal: "alice@acme"}, "delegated": {Chain: []string{"bob", "alice"}},
	} {
		if r.Need = []authz.Requirement{{N: 1}}; h.MayVote(alice, r) == nil {
			t.Errorf("alice may approve, though: %s", what)
		}
	}
	for _, name := range []string{"", "bob", "alice@acme.example", "malice"} {
		if err := h.MayVote(alice, gateway.ApprovalRequest{TaskFor: name, Need: []authz.Requirement{{N: 1}}}); err != nil {
			t.Errorf("for %q: %v", name, err)
		}
	}
}

// The human behind a credential is behind what it starts: it cannot name
// another and so choose who may approve.
func TestHumanBehindAStart(t *testing.T) {
	h := gatewaytest.New(t)
	cred := gateway.Credential{Bearer: gateway.NewSecret("key-for-alice")}
	if _, _, err := h.StartTask(t.Context(), cred, gateway.TaskSpec{Kind: "work", OnBehalfOf: "nobody@acme"}); gateway.CodeOf(err) != gateway.BadArguments {
		t.Errorf("another human: %v", err)
	}
	for _, spec := range []gateway.TaskSpec{{Kind: "work"}, {Kind: "work", Principal: "agent:other"}, {Kind: "work", OnBehalfOf: "alice@acme"}} {
		task, _, err := h.StartTask(t.Context(), cred, spec)
		if err != nil || task.OnBehalfOf != "alice@acme" {
			t.Errorf("%+v: for %q, %v", spec, task.OnBehalfOf, err)
		}
		if _, err := h.EndTask(t.Context(), cred, task.ID); err != nil { // it can be on one at a time
			t.Error(err)
		}
	}
}

// The end of the task ends what waits for a human.
func TestTaskEndEndsTheWait(t *testing.T) {
	h := gatewaytest.New(t, patient)
	end := call(t, h, "files__write", `{}`)
	r := asked(t, h, "acme")
	if _, err := h.TaskEnd(t.Context(), h.Operators.Op("alice"), "acme", "task-a"); err != nil {
		t.Fatal(err)
	}
	if err := <-end; gateway.CodeOf(err) != gateway.NoTask {
		t.Fatalf("%v", err)
	}
	h.Tasks.Settle()
	if now, _ := h.Approvals.Get(t.Context(), "acme", r.ID); now.State != gateway.ApprovalCancelled {
		t.Errorf("request is %s", now.State)
	}
}

// The digests change with each thing they bind.
func TestDigestBinds(t *testing.T) {
	base := gateway.ApprovalRequest{ID: "apr-1", Fingerprint: "f", ArgsDigest: "a", Class: "static", Revision: "r", Expires: time.Unix(1, 0),
		Need: []authz.Requirement{{N: 1, Group: "sre"}}}
	seen := map[string]string{}
	for name, change := range map[string]func(*gateway.ApprovalRequest){
		"nothing":     func(*gateway.ApprovalRequest) {},
		"id":          func(r *gateway.ApprovalRequest) { r.ID = "apr-2" },
		"fingerprint": func(r *gateway.ApprovalRequest) { r.Fingerprint = "g" },
		"arguments":   func(r *gateway.ApprovalRequest) { r.ArgsDigest = "b" },
		"class":       func(r *gateway.ApprovalRequest) { r.Class = "revocable" },
		"revision":    func(r *gateway.ApprovalRequest) { r.Revision = "s" },
		"expiry":      func(r *gateway.ApprovalRequest) { r.Expires = time.Unix(2, 0) },
		"quorum":      func(r *gateway.ApprovalRequest) { r.Need = []authz.Requirement{{N: 2, Group: "sre"}} },
		"group":       func(r *gateway.ApprovalRequest) { r.Need = []authz.Requirement{{N: 1, Group: "dba"}} },
	} {
		r := base
		change(&r)
		d, err := gateway.ApprovalDigest(r)
		if err != nil {
			t.Fatal(err)
		}
		if other := seen[d]; other != "" {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[d] = name
	}
}

// A flood of waiting calls is bounded.
func TestHeldCallsAreCapped(t *testing.T) {
	h := gatewaytest.New(t, patient, func(c *gateway.Config) { c.Held = 2 })
	for _, args := range []string{`{"path":"1"}`, `{"path":"2"}`} {
		call(t, h, "files__write", args)
	}
	for {
		if rs, _ := h.Approvals.List(t.Context(), "acme"); len(rs) == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := h.Call(t.Context(), "files__write", `{"path":"3"}`); gateway.CodeOf(err) != gateway.TooMany {
		t.Fatalf("%v", err)
	}
}

// Starting a task is a decision, on record before the task runs.
func TestStartTask(t *testing.T) {
	h := gatewaytest.New(t)
	key := gateway.Credential{Bearer: gateway.NewSecret("key")}
	for _, row := range []struct {
		name string
		cred gateway.Credential
		spec gateway.TaskSpec
		code gateway.Code
	}{
		{"a kind policy lets it start", key, gateway.TaskSpec{Kind: "work", Purpose: "p"}, ""},
		{"an unknown kind", key, gateway.TaskSpec{Kind: "none"}, gateway.BadArguments},
		{"too long", key, gateway.TaskSpec{Kind: "work", TTL: 2 * time.Hour}, gateway.BadArguments},
		{"hidden characters in the purpose", key, gateway.TaskSpec{Kind: "work", Purpose: "a\u202eb"}, gateway.BadArguments},
		{"a scope that is none", key, gateway.TaskSpec{Kind: "work", Scope: []authz.ScopeRow{{Tool: "x"}}}, gateway.BadArguments},
		{"by a task token", gateway.Credential{Bearer: gateway.NewSecret("a")}, gateway.TaskSpec{Kind: "work"}, gateway.Denied},
		{"by a workload without a row", gateway.Credential{Bearer: gateway.NewSecret("b")}, gateway.TaskSpec{Kind: "work"}, gateway.Denied},
		{"by nobody", gateway.Credential{Bearer: gateway.NewSecret("x")}, gateway.TaskSpec{Kind: "work"}, gateway.Unidentified},
	} {
		task, token, err := h.StartTask(t.Context(), row.cred, row.spec)
		if err == nil && row.code != "" || err != nil && gateway.CodeOf(err) != row.code {
			t.Errorf("%s: %v, want %q", row.name, err, row.code)
		}
		if err == nil && (token.IsZero() || task.Owner != "alice" || task.State != gateway.TaskRunning) {
			t.Errorf("%s: %+v", row.name, task)
		}
	}
	if log := h.Events(); !strings.HasPrefix(log, "task.started task.start_refused:bad_arguments") {
		t.Errorf("log: %s", log)
	}
	if _, _, err := h.TaskStart(t.Context(), h.Operators.Op("bob"), gateway.TaskSpec{Tenant: "acme", Kind: "work", Principal: "agent:a"}); err == nil {
		t.Error("an approver starts tasks")
	}
	if _, _, err := h.TaskStart(t.Context(), h.Operators.Op("alice"), gateway.TaskSpec{Tenant: "globex", Kind: "work", Principal: "agent:b"}); !errors.Is(err, gateway.ErrNotFound) {
		t.Errorf("another tenant's task: %v", err)
	}
	if _, _, err := h.TaskStart(t.Context(), h.Operators.Op("alice"), gateway.TaskSpec{Tenant: "acme", Kind: "work", Principal: "agent:a"}); err != nil {
		t.Error(err)
	}
}

// Whose side can be sent to the page is sent there before its call waits for
// anyone; coming back, it waits. Nobody waits who never was to.
func TestThePageComesFirst(t *testing.T) {
	for _, protocol := range []string{"2026-07-28", "2025-11-25"} {
		t.Run(protocol, func(t *testing.T) {
			h := gatewaytest.New(t, patient)
			in := gateway.Call{Credential: as("a"), Name: "files__write", Args: json.RawMessage(`{"path":"x"}`), Protocol: protocol, Page: true}
			began := time.Now()
			_, err := h.Handle(t.Context(), in, nil)
			refused, _ := errors.AsType[*gateway.Refusal](err)
			if refused == nil || refused.Code != gateway.PendingApproval || refused.Approval == nil {
				t.Fatalf("the first time: %v", err)
			}
			if took := time.Since(began); took > 10*time.Second { // Hold is twice that
				t.Errorf("it waited %v", took)
			}
			in.State = refused.State
			if refused.State != "" {
				in.Answers = json.RawMessage(`{"io.toolbroker/approval":{"action":"accept"}}`)
			}
			end := make(chan error, 1)
			go func() {
				_, err := h.Handle(t.Context(), in, nil)
				end <- err
			}()
			if _, err := vote(t, h, "bob", asked(t, h, "acme"), true); err != nil {
				t.Fatal(err)
			}
			if err := <-end; err != nil {
				t.Errorf("coming back: %v", err)
			}
		})
	}
}

// Who does not open the page is not asked again: the call ends, and its request waits
// for operators.
func TestThePageIsNotOpened(t *testing.T) {
	for _, answer := range []string{`{"action":"decline"}`, `{"action":"cancel"}`, `7`} {
		h := gatewaytest.New(t, patient)
		in := gateway.Call{Credential: as("a"), Name: "files__write", Args: json.RawMessage(`{"path":"x"}`), Protocol: "2026-07-28", Page: true}
		_, err := h.Handle(t.Context(), in, nil)
		refused, _ := errors.AsType[*gateway.Refusal](err)
		if refused == nil || refused.State == "" {
			t.Fatalf("the first time: %v", err)
		}
		in.State, in.Answers = refused.State, json.RawMessage(`{"io.toolbroker/approval":`+answer+`}`)
		began := time.Now()
		_, err = h.Handle(t.Context(), in, nil)
		if refused, _ = errors.AsType[*gateway.Refusal](err); refused == nil || refused.Code != gateway.PendingApproval || refused.State != "" {
			t.Errorf("%s: %v", answer, err)
		}
		if took := time.Since(began); took > 10*time.Second { // Hold is twice that
			t.Errorf("%s: it waited %v", answer, took)
		}
		if _, err := vote(t, h, "bob", asked(t, h, "acme"), true); err != nil {
			t.Errorf("%s: the request waits no more: %v", answer, err)
		}
	}
}

// A session that was not shown the page of a request that another made is shown it at
// once, and once.
func TestEachSessionIsShownThePage(t *testing.T) {
	h := gatewaytest.New(t, patient)
	in := func(session string) gateway.Call {
		cred := as("a")
		cred.Session = session
		if err := h.OpenSession(t.Context(), as("a"), session, "2025-11-25", nil); err != nil {
			t.Fatal(err)
		}
		return gateway.Call{Credential: cred, Name: "files__write", Args: json.RawMessage(`{"path":"x"}`), Protocol: "2025-11-25", Page: true}
	}
	for _, session := range []string{"one", "two"} {
		call := in(session)
		began := time.Now()
		if _, err := h.Handle(t.Context(), call, nil); gateway.CodeOf(err) != gateway.PendingApproval {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 10*time.Second { // Hold is twice that
			t.Errorf("session %s waited %v", session, took)
		}
	}
	end := make(chan error, 1)
	go func() {
		_, err := h.Handle(t.Context(), in("two"), nil)
		end <- err
	}()
	if _, err := vote(t, h, "bob", asked(t, h, "acme"), true); err != nil {
		t.Fatal(err)
	}
	if err := <-end; err != nil {
		t.Errorf("coming back: %v", err)
	}
}
