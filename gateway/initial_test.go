package gateway_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// houseWithInitial has the kind "reading", which gives files/read at first, and
// everything to whoever a human lets.
func houseWithInitial(t *testing.T) *gatewaytest.House {
	h := gatewaytest.New(t, func(c *gateway.Config) {
		c.Kinds = append(c.Kinds, gateway.TaskKind{
			Name: "reading", TTL: time.Minute, Scope: c.Kinds[0].Scope, Initial: must(authz.NewScope(rows("files/read", "files/pay"))), Own: true, Parallel: true, Escalate: time.Minute,
		})
	})
	h.Policy.Set(gatewaytest.Text + `
p, *, acme, *,       task:reading, start,    , allow
p, *, acme, work,    task:reading, delegate, , allow
p, *, acme, reading, files/*,      call,     , allow
p, *, acme, reading, files/hidden, escalate, , approve 1 of group:sre
`)
	return h
}

// What a kind does not give at first no workload has by naming it, whichever way
// it asks; an operator may give it.
func TestOnlyAnOperatorStartsBeyondInitial(t *testing.T) {
	h := houseWithInitial(t)
	naming := func(tools ...string) gateway.TaskSpec {
		return gateway.TaskSpec{Kind: "reading", Purpose: "x", Scope: rows(tools...)}
	}
	for name, start := range map[string]func(gateway.TaskSpec) (gateway.Task, error){
		"a workload for itself": func(s gateway.TaskSpec) (gateway.Task, error) {
			task, _, err := h.StartTask(t.Context(), as("key"), s)
			return task, err
		},
		"an orchestrator for another": func(s gateway.TaskSpec) (gateway.Task, error) {
			s.Principal = "agent:a"
			task, _, err := h.StartTask(t.Context(), as("ci"), s)
			return task, err
		},
		"an exchange": func(s gateway.TaskSpec) (gateway.Task, error) {
			task, _, err := h.Exchange(t.Context(), gateway.Credential{}, gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: s})
			return task, err
		},
		"an exchange for a human": func(s gateway.TaskSpec) (gateway.Task, error) {
			task, _, err := h.Exchange(t.Context(), gateway.Credential{}, gateway.Exchange{Subject: gateway.NewSecret("human-bob"), Actor: gateway.NewSecret("c"), Spec: s})
			return task, err
		},
		"an exchange of a task's token": func(s gateway.TaskSpec) (gateway.Task, error) {
			task, _, err := h.Exchange(t.Context(), gateway.Credential{}, gateway.Exchange{Subject: gateway.NewSecret("a"), Spec: s})
			return task, err
		},
		"a delegation": func(s gateway.TaskSpec) (gateway.Task, error) {
			task, _, err := h.Delegate(t.Context(), as("a"), "task-a", s)
			return task, err
		},
		"a delegation by our tool": func(s gateway.TaskSpec) (gateway.Task, error) {
			args, _ := json.Marshal(map[string]any{"kind": s.Kind, "purpose": s.Purpose, "scope": s.Scope})
			out, err := ask(h, "toolbroker__delegate", string(args))
			if err != nil {
				return gateway.Task{}, err
			}
			var body struct {
				StructuredContent gateway.Task `json:"structuredContent"`
			}
			return body.StructuredContent, json.Unmarshal(out.Raw, &body)
		},
	} {
		_, err := start(naming("files/hidden"))
		r, _ := err.(*gateway.Refusal)
		if r == nil || r.Code != gateway.BadArguments || !strings.Contains(r.Say, "wider than the scope of a new task of kind reading; a task can ask for more while it runs") {
			t.Errorf("%s, beyond it: %v", name, err)
		}
		if _, err := start(naming("files/read", "files/hidden")); gateway.CodeOf(err) != gateway.BadArguments || err == nil {
			t.Errorf("%s, one row within and one beyond: %v", name, err)
		}
		if _, err := start(naming("files/*")); err != nil {
			t.Errorf("%s, partly: %v", name, err)
		}
	}
	for _, started := range h.Lines() {
		if started.Type == "task.started" && started.Task.ScopeHash != must(authz.NewScope(rows("files/pay", "files/read"))).Hash() {
			t.Errorf("%s got more than its kind gives at first", started.Workload.ID)
		}
	}
	byOperator := naming("files/hidden")
	byOperator.Tenant, byOperator.Principal = "acme", "agent:a"
	task, token, err := h.TaskStart(t.Context(), h.Operators.Op("alice"), byOperator)
	if err != nil || len(task.Scope.Rows()) != 1 {
		t.Fatalf("an operator: %v", err)
	}
	if _, err := h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: "files__hidden", Args: json.RawMessage(`{}`)}, nil); err != nil {
		t.Errorf("what an operator gave: %v", err)
	}
}

// A human's no is not walked around by ending the task and naming the tool in the
// scope of the next.
func TestADenialIsNotWalkedAround(t *testing.T) {
	h := houseWithInitial(t)
	call := func(token gateway.Secret, tool, args string) error {
		_, err := h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: tool, Args: json.RawMessage(args)}, nil)
		return err
	}
	start := func(tools ...string) (gateway.Task, gateway.Secret, error) {
		return h.Exchange(t.Context(), gateway.Credential{}, gateway.Exchange{
			Subject: gateway.NewSecret("key"), Spec: gateway.TaskSpec{Kind: "reading", Purpose: "x", Scope: rows(tools...)},
		})
	}
	task, token, err := start()
	if err != nil {
		t.Fatal(err)
	}
	const wish = `{"tools":["files__hidden"],"reason":"please","minutes":1}`
	r := call(token, "toolbroker__request_access", wish).(*gateway.Refusal).Approval
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", r.ID, false, r.Digest, "no"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.EndTask(t.Context(), as("key"), task.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := start("files/hidden"); err == nil {
		t.Error("it named what was refused, and got it")
	}
	for _, wide := range [][]string{{"files/*"}, {"**"}, nil} {
		_, token, err := start(wide...)
		if err != nil {
			t.Fatal(err)
		}
		if err := call(token, "files__read", `{}`); err != nil {
			t.Errorf("%v: what it has at first: %v", wide, err)
		}
		if err := call(token, "files__hidden", `{}`); gateway.CodeOf(err) != gateway.UnknownTool {
			t.Errorf("%v: called what was refused: %v", wide, err)
		}
		if err := call(token, "toolbroker__request_access", wish); gateway.CodeOf(err) != gateway.DeniedByOperator {
			t.Errorf("%v: asked once more: %v", wide, err)
		}
	}
}

// What a child has of its parent, whatever it says of itself.
func TestBelow(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.Kinds[0].Limits.FanOut = 9 })
	h.Policy.Set(gatewaytest.Text + "p, *, acme, *, task:*, delegate, , allow\np, *, acme, *, task:*, start, , allow\n")
	child := func(parent gateway.Secret, id string, change func(*gateway.TaskSpec)) (gateway.Task, error) {
		task, _, err := h.Delegate(t.Context(), gateway.Credential{Bearer: parent, Proof: gateway.Proof{DPoP: "proof"}}, id, spec(change))
		return task, err
	}
	top, token, err := h.StartTask(t.Context(), as("ci"), spec(func(s *gateway.TaskSpec) {
		s.Principal, s.OnBehalfOf, s.Labels, s.Approvers = "agent:a", "bob", []string{"prod"}, []string{"bob", "group:sre"}
	}))
	if err != nil || top.Claims.Labels != gateway.Proven || top.Claims.OnBehalfOf != gateway.Asserted || top.Claims.Approvers != gateway.Asserted {
		t.Fatalf("%+v, %v", top.Claims, err)
	}
	sub := func(s *gateway.TaskSpec) { s.Kind, s.Labels = gatewaytest.SubKind, []string{"eu"} }
	got, err := child(token, top.ID, sub)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got.Labels, " ") != "eu prod" {
		t.Errorf("its labels: %v", got.Labels)
	}
	if strings.Join(got.Approvers, " ") != "bob group:sre" || got.Claims.Approvers != gateway.Asserted {
		t.Errorf("its approvers: %v, %s", got.Approvers, got.Claims.Approvers)
	}
	if got.OnBehalfOf != "bob" || got.Claims.OnBehalfOf != gateway.Asserted {
		t.Errorf("its human is as proven as its parent's: %s", got.Claims.OnBehalfOf)
	}
	if got.Limits != (gateway.Limits{Depth: 1, FanOut: 1}) {
		t.Errorf("its limits: %+v", got.Limits)
	}
	fewer, err := child(token, top.ID, func(s *gateway.TaskSpec) { sub(s); s.Approvers = []string{"bob", "carol"} })
	if err != nil || strings.Join(fewer.Approvers, " ") != "bob" {
		t.Errorf("approvers that its parent has not: %v, %v", fewer.Approvers, err)
	}
	if _, err := child(token, top.ID, func(s *gateway.TaskSpec) { sub(s); s.Approvers = []string{"carol"} }); gateway.CodeOf(err) != gateway.BadArguments || err == nil {
		t.Errorf("none of its parent's approvers: %v", err)
	}

	// Its human is worth what it was above, whoever starts it.
	byOperator := spec(sub, func(s *gateway.TaskSpec) { s.Principal = "agent:c" })
	if got, _, err := h.TaskDelegate(t.Context(), h.Operators.Op("alice"), "acme", top.ID, byOperator); err != nil || got.Claims.OnBehalfOf != gateway.Asserted {
		t.Errorf("an operator's child, for a human whom nobody proved: %q, %v", got.Claims.OnBehalfOf, err)
	}
	proven, forAlice, err := h.StartTask(t.Context(), as("key-for-alice"), spec())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := child(forAlice, proven.ID, sub); err != nil || got.OnBehalfOf != "alice@acme" || got.Claims.OnBehalfOf != gateway.Proven {
		t.Errorf("a child for a human who was proved: %q, %v", got.Claims.OnBehalfOf, err)
	}

	// A kind that lets more children run than its parent's does not get them.
	narrow, token, err := h.Delegate(t.Context(), gateway.Credential{Bearer: token}, top.ID, spec(sub))
	if err != nil {
		t.Fatal(err)
	}
	if wide, err := child(token, narrow.ID, func(*gateway.TaskSpec) {}); err != nil || wide.Limits.FanOut != 1 {
		t.Errorf("its fan-out: %+v, %v", wide.Limits, err)
	}

	// Labels that nobody proved stay so, though the child says none.
	asserted, token, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Labels = []string{"prod"} }))
	if err != nil || asserted.Claims.Labels != gateway.Asserted {
		t.Fatalf("%+v, %v", asserted.Claims, err)
	}
	if got, err := child(token, asserted.ID, func(s *gateway.TaskSpec) { s.Kind = gatewaytest.SubKind }); err != nil || got.Claims.Labels != gateway.Asserted {
		t.Errorf("its labels are worth: %q, %v", got.Claims.Labels, err)
	}
}

// Below a task whose token is bound to a key there is no token that anybody can use
// who finds it.
func TestBelowABoundTask(t *testing.T) {
	h := gatewaytest.New(t)
	proof := gateway.Credential{Proof: gateway.Proof{DPoP: "proof"}}
	top, token, err := h.Exchange(t.Context(), proof, gateway.Exchange{Subject: gateway.NewSecret("bound"), Spec: spec()})
	if err != nil || top.Bound == "" {
		t.Fatal(err)
	}
	sub := spec(func(s *gateway.TaskSpec) { s.Kind = gatewaytest.SubKind })
	// An operator has no key to prove.
	h.Policy.Set(gatewaytest.Text + "p, operator:*, acme, work, task:sub, delegate, , allow\n")
	forOp := sub
	forOp.Principal = "agent:c"
	if _, _, err := h.TaskDelegate(t.Context(), h.Operators.Op("alice"), "acme", top.ID, forOp); err == nil || !strings.Contains(err.Error(), "bound to a key") {
		t.Errorf("an unbound child: %v", err)
	}
	child, _, err := h.Exchange(t.Context(), proof, gateway.Exchange{Subject: token, Spec: sub})
	if err != nil || child.Bound != "jkt:proof" {
		t.Errorf("a bound child: %+v, %v", child, err)
	}
}
