package gateway_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// childHouse has a child of task-a, of a kind that may ask for files/hidden, and its token.
func childHouse(t *testing.T) (*gatewaytest.House, gateway.Task, gateway.Secret) {
	t.Helper()
	h := gatewaytest.New(t, func(c *gateway.Config) {
		c.Kinds[0].Initial = nil
		c.Kinds[1].Initial, c.Kinds[1].Escalate = must(authz.NewScope(rows("files/read"))), time.Minute
	})
	h.Policy.Set(gatewaytest.Text + "p, agent:c, acme, sub, files/*, escalate, , approve 1 of group:sre\n")
	top, token, err := h.StartTask(t.Context(), as("key"), spec())
	if err != nil {
		t.Fatal(err)
	}
	child, token, err := h.Delegate(t.Context(), gateway.Credential{Bearer: token}, top.ID, spec(func(s *gateway.TaskSpec) {
		s.Kind, s.Principal, s.Labels = gatewaytest.SubKind, "agent:c", []string{"eu"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	return h, child, token
}

func try(t *testing.T, h *gatewaytest.House, token gateway.Secret, tool, args string) error {
	t.Helper()
	_, err := h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: tool, Args: json.RawMessage(args)}, nil)
	return err
}

// What operators do about a child's request says whose child it is, and so does
// what becomes of the request.
func TestTheChainIsOnWhatOperatorsDo(t *testing.T) {
	h, child, token := childHouse(t)
	const wish = `{"tools":["files__hidden"],"reason":"x","minutes":1}`
	r := try(t, h, token, "toolbroker__request_access", wish).(*gateway.Refusal).Approval
	bob := h.Operators.Op("bob")
	if _, err := h.ApprovalShow(t.Context(), bob, "acme", r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Vote(t.Context(), h.Operators.Op("alice"), "acme", r.ID, true, r.Digest, ""); err == nil {
		t.Fatal("its owner agreed with herself")
	}
	if _, err := h.Vote(t.Context(), bob, "acme", r.ID, false, r.Digest, "no"); err != nil {
		t.Fatal(err)
	}
	seen := map[audit.Type]bool{}
	for _, e := range h.Lines() {
		if e.Approval == nil && e.Type != audit.EscalationRefused {
			continue
		}
		seen[e.Type] = true
		got := e.Task
		if got == nil || got.ID != child.ID || got.Parent != child.Parent || !slices.Equal(got.Chain, []string{child.Parent}) || got.State != "running" ||
			got.Expires != child.Expires.UTC().Format("2006-01-02T15:04:05.000000Z") || !slices.Equal(got.Asserted, []string{"labels", "purpose"}) || got.ScopeHash != child.Scope.Hash() {
			t.Errorf("%s is about %+v", e.Type, got)
		}
	}
	for _, want := range []audit.Type{audit.ApprovalRequested, audit.ApprovalViewed, audit.ApprovalVoteRefused, audit.ApprovalVote, audit.EscalationRefused} {
		if !seen[want] {
			t.Errorf("no %s on record", want)
		}
	}
	if _, err := h.TaskEnd(t.Context(), h.Operators.Op("root"), "acme", child.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ApprovalShow(t.Context(), bob, "acme", r.ID); err != nil {
		t.Fatal(err)
	}
	if all := h.Lines(); all[len(all)-1].Task.State == "running" {
		t.Error("looked at after the end, and on record as running")
	}
	// What others write of it later, they know from the request.
	if on := r.AskedOn(); on.ID != child.ID || on.Parent != child.Parent || len(on.Ancestors) != 1 || on.Ancestors[0].Scope != nil || on.Scope.Hash() != child.Scope.Hash() {
		t.Errorf("asked on %+v", on)
	}
}

// Who goes on after the end stands on the task's record, with its chain and what
// it was to call.
func TestCallsAfterTheEndAreOnTheTask(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(h *gatewaytest.House, child gateway.Task) error
		code   gateway.Code
		states []string
	}{
		{"its own end", func(h *gatewaytest.House, child gateway.Task) error {
			_, err := h.TaskEnd(t.Context(), h.Operators.Op("alice"), "acme", child.ID)
			return err
		}, gateway.NoTask, []string{"ending", "ended"}},
		{"its parent's end", func(h *gatewaytest.House, child gateway.Task) error {
			_, err := h.TaskEnd(t.Context(), h.Operators.Op("alice"), "acme", child.Parent)
			return err
		}, gateway.NoTask, []string{"ending", "revoked"}},
		{"a stop", func(h *gatewaytest.House, child gateway.Task) error {
			return h.StopSet(t.Context(), h.Operators.Op("alice"), gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:c", Reason: "x"})
		}, gateway.NoTask, []string{"ending", "revoked"}},
		{"when nobody can say", func(h *gatewaytest.House, child gateway.Task) error {
			h.Tasks.Stale = true
			return nil
		}, gateway.Internal, []string{"unknown"}},
	} {
		h, child, token := childHouse(t)
		if err := c.end(h, child); err != nil {
			t.Fatal(err)
		}
		if err := try(t, h, token, "files__read", `{}`); gateway.CodeOf(err) != c.code {
			t.Fatalf("%s: %v", c.name, err)
		}
		_, _, err := h.Delegate(t.Context(), gateway.Credential{Bearer: token}, child.ID, spec())
		if gateway.CodeOf(err) != c.code {
			t.Fatalf("%s: delegate: %v", c.name, err)
		}
		refused := 0
		for _, e := range h.Lines() {
			if e.Type != audit.CallDenied && e.Type != audit.TaskStartRefused {
				continue
			}
			refused++
			if e.Task == nil || e.Task.ID != child.ID || e.Task.Kind != child.Kind || !slices.Equal(e.Task.Chain, []string{child.Parent}) ||
				!slices.Contains(c.states, e.Task.State) || !slices.Equal(e.Workload.Delegation, []string{"agent:a"}) || e.Unbound != "" {
				t.Errorf("after %s, %s is about %+v of %+v", c.name, e.Type, e.Task, e.Workload)
			}
			if e.Type == audit.CallDenied && (e.Tool == nil || e.Tool.Name != "read") {
				t.Errorf("after %s, it was to call %+v", c.name, e.Tool)
			}
		}
		if refused != 2 {
			t.Errorf("after %s: %d refusals on record", c.name, refused)
		}
	}
}

// A task that is not the caller's is not written into by it, and one that nothing
// is known of is named only where the token names it.
func TestRefusalsOnWhatIsNotTheCallers(t *testing.T) {
	h := gatewaytest.New(t)
	handle := func(cred gateway.Credential) {
		if _, err := h.Handle(t.Context(), gateway.Call{Credential: cred, Name: "files__read", Args: json.RawMessage(`{}`)}, nil); err == nil {
			t.Fatal("called")
		}
	}
	handle(on("c", "task-a"))
	handle(on("key", "task-nope"))
	h.Tasks.Stale = true
	handle(as("url-bob"))
	var why []string
	for _, e := range h.Lines() {
		if e.Type == audit.CallDenied {
			if e.Task != nil {
				t.Errorf("%s wrote into %s", e.Workload.ID, e.Task.ID)
			}
			why = append(why, e.Unbound)
		}
	}
	if got := strings.Join(why, ", "); got != "no running task, no running task, whether its task runs could not be confirmed" {
		t.Errorf("on record: %s", got)
	}
}

// A delegation that was refused is on its parent's record.
func TestARefusedDelegationIsOnItsParent(t *testing.T) {
	h, child, token := childHouse(t)
	before := len(h.Lines())
	if _, _, err := h.Delegate(t.Context(), gateway.Credential{Bearer: token}, child.ID, spec()); gateway.CodeOf(err) != gateway.Denied {
		t.Fatal(err)
	}
	if _, _, err := h.TaskDelegate(t.Context(), h.Operators.Op("alice"), "acme", child.ID, spec(func(s *gateway.TaskSpec) { s.Principal = "agent:c" })); err == nil {
		t.Fatal("delegated")
	}
	for _, e := range h.Lines()[before:] {
		if e.Type != audit.TaskStartRefused || e.Task == nil || e.Task.ID != child.ID || !slices.Equal(e.Task.Chain, []string{child.Parent}) {
			t.Errorf("%s is about %+v", e.Type, e.Task)
		}
	}
	if got := len(h.Lines()) - before; got != 2 {
		t.Errorf("%d events", got)
	}
}
