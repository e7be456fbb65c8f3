package gateway_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
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

func as(bearer string) gateway.Credential {
	return gateway.Credential{Bearer: gateway.NewSecret(bearer), Source: "127.0.0.1:1"}
}

func on(bearer, task string) gateway.Credential {
	c := as(bearer)
	c.Task = task
	return c
}

func spec(change ...func(*gateway.TaskSpec)) gateway.TaskSpec {
	s := gateway.TaskSpec{Kind: gatewaytest.Kind, Purpose: "look at issue 7"}
	for _, f := range change {
		f(&s)
	}
	return s
}

func rows(tools ...string) []authz.ScopeRow {
	var all []authz.ScopeRow
	for _, tool := range tools {
		all = append(all, authz.ScopeRow{Tool: tool, Action: "call", Verdict: "allow"})
	}
	return all
}

// What a caller may not have started, and what it reads.
func TestWhatDoesNotStart(t *testing.T) {
	unowned := func(c *gateway.Config) {
		c.Kinds = append(c.Kinds, gateway.TaskKind{Name: "closed", TTL: time.Hour, Scope: c.Kinds[0].Scope},
			gateway.TaskKind{Name: "narrow", TTL: time.Hour, Scope: must(authz.NewScope(rows("files/read"))), Own: true, Budget: gateway.Budget{Calls: 5}},
			gateway.TaskKind{Name: "bound", TTL: time.Hour, Scope: c.Kinds[0].Scope, Own: true, Bound: true})
	}
	for _, c := range []struct {
		name, bearer string
		change       func(*gateway.TaskSpec)
		code         gateway.Code
		say          string
	}{
		{"by a task token", "a", func(*gateway.TaskSpec) {}, gateway.Denied, "only delegate"},
		{"of no kind", "key", func(s *gateway.TaskSpec) { s.Kind = "nope" }, gateway.BadArguments, "unknown task kind"},
		{"of a kind that is not self-startable", "key", func(s *gateway.TaskSpec) { s.Kind = "closed" }, gateway.Denied, "ask whoever runs you"},
		{"that policy does not grant", "ci", func(s *gateway.TaskSpec) { s.Principal = "agent:a" }, gateway.Denied, "policy"},
		{"wider than its kind", "key", func(s *gateway.TaskSpec) { s.Kind, s.Scope = "narrow", rows("files/read", "files/write") }, gateway.BadArguments, "wider than the scope of task kind narrow"},
		{"longer than its kind", "key", func(s *gateway.TaskSpec) { s.TTL = 2 * time.Hour }, gateway.BadArguments, "at most 1h"},
		{"with more calls than its kind", "key", func(s *gateway.TaskSpec) { s.Kind, s.Calls = "narrow", 6 }, gateway.BadArguments, "at most 5 calls"},
		{"with hidden characters", "key", func(s *gateway.TaskSpec) { s.Purpose = "look\u202eat" }, gateway.BadArguments, "hidden"},
		{"for an operator's name", "key", func(s *gateway.TaskSpec) { s.Principal = "operator:alice" }, gateway.Denied, "for itself only"},
		{"for a name it made up", "key", func(s *gateway.TaskSpec) { s.Principal = "agent:A" }, gateway.Denied, "for itself only"},
		{"with a label that is text", "key", func(s *gateway.TaskSpec) { s.Labels = []string{"a b"} }, gateway.BadArguments, "labels"},
		{"with an approver that is none", "key", func(s *gateway.TaskSpec) { s.Approvers = []string{"role:x"} }, gateway.BadArguments, "approvers"},
		{"with an approver who is nobody", "key", func(s *gateway.TaskSpec) { s.Approvers = []string{"bob", "nobody"} }, gateway.BadArguments, "approvers: nobody is no operator"},
		{"with an approver who only looks on", "key", func(s *gateway.TaskSpec) { s.Approvers = []string{"vic"} }, gateway.BadArguments, "vic is no operator who may answer"},
		{"with an approver who does not answer", "key", func(s *gateway.TaskSpec) { s.Approvers = []string{"root"} }, gateway.BadArguments, "root is no operator who may answer"},
		{"with a group of nobody", "key", func(s *gateway.TaskSpec) { s.Approvers = []string{"group:finance"} }, gateway.BadArguments, "group:finance is no operator"},
		{"unbound, of a bound kind", "key", func(s *gateway.TaskSpec) { s.Kind = "bound" }, gateway.Denied, "bound to a key"},
		{"by an operator's name as a workload", "operator", func(*gateway.TaskSpec) {}, gateway.Unidentified, ""},
		{"by nobody", "nobody", func(*gateway.TaskSpec) {}, gateway.Unidentified, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := gatewaytest.New(t, unowned)
			task, token, err := h.StartTask(t.Context(), as(c.bearer), spec(c.change))
			r, _ := err.(*gateway.Refusal)
			if r == nil || r.Code != c.code || !strings.Contains(r.Say, c.say) || !token.IsZero() || task.ID != "" {
				t.Fatalf("got %+v, %v", task, err)
			}
			if c.code != gateway.Unidentified && !strings.Contains(h.Events(), "task.start_refused:"+string(c.code)) {
				t.Errorf("log: %s", h.Events())
			}
		})
	}
}

// Whoever can answer may be named as the one who does.
func TestApproversWhoCanAnswer(t *testing.T) {
	h := gatewaytest.New(t)
	task, _, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Approvers = []string{"bob", "group:sre"} }))
	if err != nil || len(task.Approvers) != 2 {
		t.Errorf("%v, %v", task.Approvers, err)
	}
}

// Who names no task hears how to name one, from where it asks.
func TestNoTaskNamed(t *testing.T) {
	for source, want := range map[string][]string{
		"192.0.2.1:4711":    {"Toolbroker-Task", "_meta['io.toolbroker/task']"},
		gateway.SourceStdio: {"--task", "TOOLBROKER_TASK", "_meta['io.toolbroker/task']"},
	} {
		h := gatewaytest.New(t)
		cred := as("key")
		cred.Task, cred.Source = "", source
		_, _, err := h.Admit(t.Context(), cred)
		r, _ := err.(*gateway.Refusal)
		if r == nil || r.Code != gateway.NoTask {
			t.Fatalf("%s: %v", source, err)
		}
		for _, says := range want {
			if !strings.Contains(r.Say, says) {
				t.Errorf("%s hears %q", source, r.Say)
			}
		}
		if source == gateway.SourceStdio && strings.Contains(r.Say, "header") {
			t.Errorf("there are no headers there: %q", r.Say)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What is asked for beyond a kind's scope is left out where some of it lies
// within, and what was granted is what the task says.
func TestGrantedScope(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) {
		c.Kinds = append(c.Kinds, gateway.TaskKind{Name: "narrow", TTL: time.Hour, Scope: must(authz.NewScope(rows("files/read", "files/pay"))), Own: true})
	})
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, *, task:*, start, , allow\n")
	task, _, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Kind, s.Scope = "narrow", rows("files/*") }))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(task.Scope); string(got) != `[{"tool":"files/pay","action":"call","verdict":"allow"},{"tool":"files/read","action":"call","verdict":"allow"}]` {
		t.Errorf("granted %s", got)
	}
}

// What a starter says about a task is worth what its credential proves; what it
// does not prove satisfies no row that grants.
func TestClaims(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, ci, acme, work, task:work, start, args.purpose =~ '^deploy', allow\np, agent:c, acme, work, task:work, start, args.purpose =~ '^deploy', allow\n" +
		"p, agent:a, acme, work, task:work, start, args.on_behalf_of == 'mallory', deny\n")
	deploy := func(s *gateway.TaskSpec) {
		s.Purpose, s.OnBehalfOf, s.Labels, s.Reference, s.Principal = "deploy it", "bob", []string{"prod", "eu"}, "TICKET-7", "agent:x"
	}
	task, _, err := h.StartTask(t.Context(), as("ci"), spec(deploy))
	if err != nil {
		t.Fatal(err)
	}
	want := gateway.Claims{Owner: gateway.Proven, Purpose: gateway.Proven, Labels: gateway.Proven, OnBehalfOf: gateway.Asserted, Reference: gateway.Asserted}
	if task.Claims != want {
		t.Errorf("claims %+v", task.Claims)
	}
	if !strings.HasPrefix(task.Reference, "hmac-sha256:") || strings.Contains(task.Reference, "TICKET") {
		t.Errorf("reference %q", task.Reference)
	}
	again, _, err := h.StartTask(t.Context(), as("ci"), spec(deploy))
	if err != nil || again.Reference != task.Reference {
		t.Errorf("the same ticket, another reference: %v", err)
	}
	if _, _, err := h.StartTask(t.Context(), as("c"), spec(deploy)); gateway.CodeOf(err) != gateway.Denied {
		t.Errorf("an asserted purpose was granted something: %v", err)
	}
	// A row that restricts holds for what nobody proved.
	if _, _, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.OnBehalfOf = "bob" })); gateway.CodeOf(err) != gateway.Denied {
		t.Errorf("a denial was escaped by saying something else: %v", err)
	}
	for _, e := range h.Lines() {
		if e.Type == audit.TaskStarted && (!slices.Equal(e.Task.Asserted, []string{"on_behalf_of", "reference"}) || e.Task.Reference != task.Reference) {
			t.Errorf("on record: %+v", e.Task)
		}
	}
}

// By a credential of its own a workload is on one root task at a time.
func TestHopping(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) {
		k := c.Kinds[0]
		k.Name, k.Parallel = "side", true
		c.Kinds = append(c.Kinds, k)
	})
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, *, task:side, start, , allow\np, agent:a, acme, side, files/*, call, , allow\n")
	first, _, err := h.StartTask(t.Context(), as("key"), spec())
	if err != nil {
		t.Fatal(err)
	}
	call := func(task string) error {
		_, err := h.Handle(t.Context(), gateway.Call{Credential: on("key", task), Name: "files__read", Args: json.RawMessage(`{}`)}, nil)
		return err
	}
	if err := call(first.ID); err != nil {
		t.Error(err)
	}
	if _, _, err := h.StartTask(t.Context(), as("key"), spec()); gateway.CodeOf(err) != gateway.Denied {
		t.Errorf("a second root task: %v", err)
	}
	if err := call("task-a"); gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("another root task: %v", err)
	}
	if _, err := h.Call(t.Context(), "files__read", `{}`); err != nil {
		t.Errorf("by that task's own token: %v", err)
	}
	side, _, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Kind = "side" }))
	if err != nil || call(side.ID) != nil {
		t.Errorf("a kind that says so: %v", err)
	}
	if _, err := h.EndTask(t.Context(), as("key"), first.ID); err != nil {
		t.Fatal(err)
	}
	if err := call("task-a"); err != nil {
		t.Errorf("after the first ended: %v", err)
	}
	if log := h.Events(); !strings.Contains(log, "task.hop_refused:denied") {
		t.Errorf("log: %s", log)
	}
}

// A client that only knows a URL is on a task of its own, which a human can stop
// for good.
func TestStanding(t *testing.T) {
	h := gatewaytest.New(t)
	call := func(bearer string) error {
		_, err := h.Handle(t.Context(), gateway.Call{Credential: as(bearer), Name: "files__read", Args: json.RawMessage(`{}`)}, nil)
		return err
	}
	for range 2 {
		if err := call("url-bob"); err != nil {
			t.Fatal(err)
		}
	}
	if err := call("url-carol"); err != nil {
		t.Fatal(err)
	}
	if err := call("key"); gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("without a standing kind: %v", err)
	}
	var bobs []gateway.Task
	all, _ := h.Tasks.List(t.Context(), "acme")
	for _, task := range all {
		if task.Implicit && task.OnBehalfOf == "bob" {
			bobs = append(bobs, task)
		}
	}
	if len(bobs) != 1 || bobs[0].Claims.OnBehalfOf != gateway.Proven {
		t.Fatalf("bob's: %+v", bobs)
	}
	// Carol's client is the same workload, and cannot act on bob's task.
	_, err := h.Handle(t.Context(), gateway.Call{Credential: on("url-carol", bobs[0].ID), Name: "files__read", Args: json.RawMessage(`{}`)}, nil)
	if gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("carol on bob's task: %v", err)
	}
	if _, err := h.TaskEnd(t.Context(), h.Operators.Op("alice"), "acme", bobs[0].ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := call("url-bob"); gateway.CodeOf(err) != gateway.NoTask || !strings.Contains(err.(*gateway.Refusal).Say, "operator stopped") {
			t.Errorf("after the stop: %v", err)
		}
	}
	if err := call("url-carol"); err != nil {
		t.Errorf("carol: %v", err)
	}
	stops, _ := h.StopList(t.Context(), h.Operators.Op("alice"), "acme")
	if len(stops) != 1 || stops[0].Kind != gateway.StopStanding {
		t.Fatalf("stops: %+v", stops)
	}
	if err := h.StopLift(t.Context(), h.Operators.Op("alice"), "acme", stops[0].Kind, stops[0].Name); err != nil {
		t.Fatal(err)
	}
	if err := call("url-bob"); err != nil {
		t.Errorf("after the lift: %v", err)
	}
	for _, e := range h.Lines() {
		if e.Type == audit.TaskStarted && !e.Task.Implicit {
			t.Errorf("not marked implicit: %+v", e.Task)
		}
	}
}

// The human's token says who may act for it; the task is the actor's, for the
// human, and the human's word is proof of that.
func TestExchange(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, agent:c, acme, work, task:work, start, args.on_behalf_of == 'bob', allow\n")
	x := func(subject, actor string) (gateway.Task, gateway.Secret, error) {
		return h.Exchange(t.Context(), gateway.Credential{Source: "127.0.0.1:1"}, gateway.Exchange{
			Subject: gateway.NewSecret(subject), Actor: gateway.NewSecret(actor), Spec: spec(),
		})
	}
	task, token, err := x("human-bob", "c")
	if err != nil || task.Principal != "agent:c" || task.OnBehalfOf != "bob" || task.Claims.OnBehalfOf != gateway.Proven || token.IsZero() {
		t.Fatalf("%+v, %v", task, err)
	}
	for _, c := range []struct {
		name, subject, actor string
		code                 gateway.Code
	}{
		{"an actor that may_act does not name", "human-bob", "key", gateway.Denied},
		{"a subject without may_act", "url-carol", "c", gateway.Denied},
		{"a task token as subject", "a", "c", gateway.Denied},
		{"a task token as actor", "human-bob", "a", gateway.Denied},
		{"an unknown subject", "nobody", "c", gateway.Unidentified},
		{"an unknown actor", "human-bob", "nobody", gateway.Unidentified},
		{"nobody's token", "nobody", "", gateway.Unidentified},
	} {
		if _, _, err := x(c.subject, c.actor); gateway.CodeOf(err) != c.code {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Without an actor, a workload's own token buys a root task, a task token a child.
	root, _, err := x("key", "")
	if err != nil || root.Principal != "agent:a" || !root.Own || root.Parent != "" {
		t.Errorf("root: %+v, %v", root, err)
	}
	child, _, err := h.Exchange(t.Context(), gateway.Credential{}, gateway.Exchange{
		Subject: gateway.NewSecret("a"), Spec: spec(func(s *gateway.TaskSpec) { s.Kind = gatewaytest.SubKind }),
	})
	if err != nil || child.Parent != "task-a" {
		t.Errorf("child: %+v, %v", child, err)
	}
}

// A token that was bought with a proof of a key is good with that key only, and a
// wrong proof buys nothing.
func TestBoundTask(t *testing.T) {
	h := gatewaytest.New(t)
	proof := gateway.Credential{Proof: gateway.Proof{DPoP: "proof"}, Source: "127.0.0.1:1"}
	task, token, err := h.Exchange(t.Context(), proof, gateway.Exchange{Subject: gateway.NewSecret("bound"), Spec: spec()})
	if err != nil || task.Bound != "jkt:proof" {
		t.Fatalf("%+v, %v", task, err)
	}
	bad := proof
	bad.Proof.DPoP = "another's"
	if _, _, err := h.Exchange(t.Context(), bad, gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec()}); gateway.CodeOf(err) != gateway.Unidentified {
		t.Errorf("a wrong proof: %v", err)
	}
	for dpop, want := range map[string]gateway.Code{"proof": "", "": gateway.Unidentified} {
		cred := gateway.Credential{Bearer: token, Proof: gateway.Proof{DPoP: dpop}}
		if _, err := h.Handle(t.Context(), gateway.Call{Credential: cred, Name: "files__read", Args: json.RawMessage(`{}`)}, nil); want == "" && err != nil || want != "" && gateway.CodeOf(err) != want {
			t.Errorf("with %q: %v", dpop, err)
		}
	}
}

// A child is never wider, never longer, never for another, and its whole chain is
// on every record.
func TestDelegation(t *testing.T) {
	h := gatewaytest.New(t)
	sub := func(change ...func(*gateway.TaskSpec)) gateway.TaskSpec {
		return spec(append([]func(*gateway.TaskSpec){func(s *gateway.TaskSpec) { s.Kind, s.Principal = gatewaytest.SubKind, "agent:c" }}, change...)...)
	}
	for _, c := range []struct {
		name   string
		change func(*gateway.TaskSpec)
		code   gateway.Code
	}{
		{"wider than its parent", func(s *gateway.TaskSpec) { s.Scope = rows("files/hidden") }, gateway.BadArguments},
		{"of a kind that policy does not let it delegate", func(s *gateway.TaskSpec) { s.Kind = gatewaytest.Kind }, gateway.Denied},
		{"for a human where its parent is for none", func(s *gateway.TaskSpec) { s.OnBehalfOf = "carol" }, gateway.BadArguments},
		{"longer than its kind", func(s *gateway.TaskSpec) { s.TTL = time.Hour }, gateway.BadArguments},
	} {
		if _, _, err := h.Delegate(t.Context(), as("a"), "task-a", sub(c.change)); err == nil || gateway.CodeOf(err) != c.code {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, _, err := h.Delegate(t.Context(), as("b"), "task-a", sub()); gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("a neighbour's task: %v", err)
	}
	child, token, err := h.Delegate(t.Context(), as("a"), "task-a", sub(func(s *gateway.TaskSpec) { s.Scope = rows("files/read") }))
	if err != nil {
		t.Fatal(err)
	}
	if child.Parent != "task-a" || len(child.Ancestors) != 1 || child.Owner != "alice" || child.Limits.Depth != 1 {
		t.Errorf("child %+v", child)
	}
	call := func(tool string) error {
		_, err := h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: tool, Args: json.RawMessage(`{}`)}, nil)
		return err
	}
	if err := call("files__read"); err != nil {
		t.Error(err)
	}
	if err := call("files__write"); gateway.CodeOf(err) != gateway.UnknownTool {
		t.Errorf("beyond its scope: %v", err)
	}
	for _, e := range h.Lines() {
		if e.Type == audit.CallCompleted && (!slices.Equal(e.Workload.Delegation, []string{"agent:a"}) || !slices.Equal(e.Task.Chain, []string{"task-a"}) || e.Task.Parent != "task-a") {
			t.Errorf("on record: %+v %+v", e.Workload, e.Task)
		}
	}
	// Room for two more; then for none.
	for i := range 3 {
		_, _, err := h.Delegate(t.Context(), as("a"), "task-a", sub())
		if i == 2 && gateway.CodeOf(err) != gateway.TooMany || i < 2 && err != nil {
			t.Errorf("child %d: %v", i+2, err)
		}
	}
	// It ends with its parent.
	if _, err := h.EndTask(t.Context(), as("a"), "task-a"); err != nil {
		t.Fatal(err)
	}
	if err := call("files__read"); gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("after its parent's end: %v", err)
	}
	if got, _ := h.Tasks.Get(t.Context(), "acme", child.ID); got.Outcome != gateway.TaskRevoked {
		t.Errorf("the child: %+v", got)
	}
}

// Depth is counted down from the root, whatever a kind would allow.
func TestDelegationDepth(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, agent:*, acme, *, task:sub, delegate, , allow\n")
	cred, parent := as("a"), "task-a"
	for depth := 1; ; depth++ {
		child, token, err := h.Delegate(t.Context(), cred, parent, spec(func(s *gateway.TaskSpec) { s.Kind = gatewaytest.SubKind }))
		if err != nil {
			if gateway.CodeOf(err) != gateway.Denied || depth != 3 {
				t.Errorf("depth %d: %v", depth, err)
			}
			return
		}
		cred, parent = gateway.Credential{Bearer: token}, child.ID
	}
}

func ask(h *gatewaytest.House, tool, args string) (gateway.Result, error) {
	return h.Handle(context.Background(), gatewaytest.Call("a", tool, args), nil)
}

// An agent that lacks scope asks; a human agrees; the tool is there, for this task
// and until it lapses, and all of that is on record.
func TestEscalation(t *testing.T) {
	now := time.Now()
	h := gatewaytest.New(t, func(c *gateway.Config) { c.Now = func() time.Time { return now } })
	h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(`{"content":[]}`)}, nil
	}
	const args = `{"tools":["files__hidden"],"reason":"issue 7 needs it","minutes":10}`
	for name, bad := range map[string]string{
		"a tool that does not exist":      `{"tools":["files__nope"],"reason":"x","minutes":10}`,
		"a tool that policy does not let": `{"tools":["files__hidden","files__slow"],"reason":"x","minutes":10}`,
	} {
		if _, err := ask(h, "toolbroker__request_access", bad); gateway.CodeOf(err) != gateway.Denied || err.(*gateway.Refusal).Say != "this task may not ask for one of these tools" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string]string{
		"too long": `{"tools":["files__hidden"],"reason":"x","minutes":31}`, "no reason": `{"tools":["files__hidden"],"reason":" ","minutes":3}`,
		"nothing": `{"tools":[],"reason":"x","minutes":3}`, "hidden characters": `{"tools":["files__hidden"],"reason":"a\u202eb","minutes":3}`,
	} {
		if _, err := ask(h, "toolbroker__request_access", bad); gateway.CodeOf(err) != gateway.BadArguments {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ask(h, "files__hidden", `{}`); gateway.CodeOf(err) != gateway.UnknownTool {
		t.Fatalf("before: %v", err)
	}
	_, err := ask(h, "toolbroker__request_access", args)
	r, _ := err.(*gateway.Refusal)
	if r == nil || r.Code != gateway.PendingApproval || r.Approval.Kind != gateway.RequestEscalation {
		t.Fatalf("asked: %v", err)
	}
	if _, err := h.Vote(t.Context(), h.Operators.Op("alice"), "acme", r.Approval.ID, true, r.Approval.Digest, ""); err == nil {
		t.Error("the task's owner agreed with herself")
	}
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", r.Approval.ID, true, r.Approval.Digest, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(h, "files__hidden", `{}`); gateway.CodeOf(err) != gateway.UnknownTool {
		t.Fatalf("before it was taken: %v", err)
	}
	if _, err := ask(h, "toolbroker__request_access", args); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(h, "files__hidden", `{}`); err != nil {
		t.Fatalf("after: %v", err)
	}
	task, _ := h.Tasks.Get(t.Context(), "acme", "task-a")
	if len(task.Widened) != 1 || !slices.Equal(task.Widened[0].By, []string{"bob"}) || task.Widened[0].Approval != r.Approval.ID {
		t.Errorf("widened: %+v", task.Widened)
	}
	now = now.Add(11 * time.Minute)
	if _, err := ask(h, "files__hidden", `{}`); gateway.CodeOf(err) != gateway.UnknownTool {
		t.Errorf("after it lapsed: %v", err)
	}
	log := h.Events()
	for _, want := range []string{"escalation.refused:denied", "escalation.requested", "escalation.granted", "approval.consumed"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in %s", want, log)
		}
	}
}

// A human's no outlives the task it was said in, and another reason.
func TestADenialIsRemembered(t *testing.T) {
	h := gatewaytest.New(t)
	_, err := ask(h, "toolbroker__request_access", `{"tools":["files__hidden"],"reason":"please","minutes":10}`)
	r := err.(*gateway.Refusal).Approval
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", r.ID, false, r.Digest, "no"); err != nil {
		t.Fatal(err)
	}
	if log := h.Events(); !strings.Contains(log, "escalation.refused:denied_by_operator") {
		t.Errorf("log: %s", log)
	}
	if _, err := ask(h, "toolbroker__request_access", `{"tools":["files__hidden"],"reason":"pretty please","minutes":5}`); gateway.CodeOf(err) != gateway.DeniedByOperator {
		t.Errorf("asked again: %v", err)
	}
	// The same for a call, made again on another task of the same workload.
	_, err = ask(h, "files__write", `{"path":"x"}`)
	r = err.(*gateway.Refusal).Approval
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", r.ID, false, r.Digest, "no"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.EndTask(t.Context(), as("a"), "task-a"); err != nil {
		t.Fatal(err)
	}
	_, token, err := h.StartTask(t.Context(), as("key"), spec())
	if err != nil {
		t.Fatal(err)
	}
	again := gatewaytest.Call("", "files__write", `{"path": "x"}`)
	again.Credential.Bearer = token
	if _, err := h.Handle(t.Context(), again, nil); gateway.CodeOf(err) != gateway.DeniedByOperator {
		t.Errorf("on a new task: %v", err)
	}
}

// What the agent may not see offered it cannot call either.
func TestOurToolsAreDecided(t *testing.T) {
	h := gatewaytest.New(t)
	for _, tool := range []string{"toolbroker__delegate", "toolbroker__request_access", "toolbroker__nope"} {
		call := gatewaytest.Call("b", tool, `{}`)
		if _, err := h.Handle(t.Context(), call, nil); gateway.CodeOf(err) != gateway.UnknownTool {
			t.Errorf("%s: %v", tool, err)
		}
	}
	result, err := ask(h, "toolbroker__delegate", `{"kind":"sub","purpose":"read","principal":"agent:c"}`)
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		StructuredContent struct{ Task, Token string }
	}
	if err := json.Unmarshal(result.Raw, &out); err != nil || out.StructuredContent.Token != "token-of-"+out.StructuredContent.Task {
		t.Errorf("%s, %v", result.Raw, err)
	}
	if log := h.Events(); !strings.HasSuffix(log, "tool.call.allowed task.started tool.call.completed") {
		t.Errorf("log: %s", log)
	}
}

// No tool gets the credential that the agent came with.
func TestOwnTokenInArguments(t *testing.T) {
	h := gatewaytest.New(t)
	_, token, err := h.Delegate(t.Context(), as("a"), "task-a", spec(func(s *gateway.TaskSpec) { s.Kind, s.Principal = gatewaytest.SubKind, "agent:c" }))
	if err != nil {
		t.Fatal(err)
	}
	raw := token.Reveal()
	for path, holds := range map[string]bool{
		raw: true, "x " + raw + " y": true, base64.StdEncoding.EncodeToString([]byte("Bearer " + raw)): true, hex.EncodeToString([]byte(raw)): true,
		`\u0074` + raw[1:]: true, "%74" + raw[1:]: true, raw[:len(raw)-1]: false, strings.Repeat("nothing of it ", 20): false,
	} {
		args := []byte(`{"path":"` + path + `"}`)
		call := gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: "files__read", Args: args}
		_, err := h.Handle(t.Context(), call, nil)
		if holds != (gateway.CodeOf(err) == gateway.Denied && err != nil) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if len(h.Servers.Sent()) != 2 {
		t.Errorf("%d calls reached the server", len(h.Servers.Sent()))
	}
}

func TestBudget(t *testing.T) {
	h := gatewaytest.New(t)
	_, token, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Calls = 2 }))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, err := h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: "files__read", Args: json.RawMessage(`{}`)}, nil)
		if (i < 2) != (err == nil) || i == 2 && gateway.CodeOf(err) != gateway.OverBudget {
			t.Errorf("call %d: %v", i+1, err)
		}
	}
	if log := h.Events(); !strings.HasSuffix(log, "tool.call.denied:over_budget") {
		t.Errorf("log: %s", log)
	}
}

// Further workloads act on a task by credentials of their own; a stop of one of
// them stops it.
func TestFurtherPrincipals(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, agent:c, acme, work, files/read, call, , allow\n")
	task, token, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Principals = []string{"agent:c"} }))
	if err != nil {
		t.Fatal(err)
	}
	call := func(cred gateway.Credential) error {
		_, err := h.Handle(t.Context(), gateway.Call{Credential: cred, Name: "files__read", Args: json.RawMessage(`{}`)}, nil)
		return err
	}
	for name, cred := range map[string]gateway.Credential{"its token": {Bearer: token}, "its workload": on("key", task.ID), "the other": on("c", task.ID)} {
		if err := call(cred); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := call(on("url-bob", task.ID)); gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("a third: %v", err)
	}
	for _, e := range h.Lines() {
		if e.Type == audit.CallCompleted && e.Workload.ID == "agent:c" && e.Task.ID != task.ID {
			t.Errorf("on record: %+v", e)
		}
	}
	if err := h.StopSet(t.Context(), h.Operators.Op("alice"), gateway.Stop{Tenant: "acme", Kind: gateway.StopPrincipal, Name: "agent:c", Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := call(gateway.Credential{Bearer: token}); gateway.CodeOf(err) != gateway.NoTask {
		t.Errorf("after the stop: %v", err)
	}
}

// What policy asks of a task it asks of all below it: delegating to another name
// sheds nothing.
func TestAChildNeedsWhatItsParentNeeds(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, agent:*, acme, sub, files/*, call, , allow\n")
	for _, who := range []string{"agent:c", "agent:a"} {
		_, token, err := h.Delegate(t.Context(), as("a"), "task-a", spec(func(s *gateway.TaskSpec) { s.Kind, s.Principal = gatewaytest.SubKind, who }))
		if err != nil {
			t.Fatal(err)
		}
		call := func(tool, args string) error {
			_, err := h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: tool, Args: json.RawMessage(args)}, nil)
			return err
		}
		if err := call("files__read", `{}`); err != nil {
			t.Errorf("%s: what both may do: %v", who, err)
		}
		err = call("files__pay", `{"amount":10000}`)
		r, _ := err.(*gateway.Refusal)
		if r == nil || r.Code != gateway.PendingApproval || len(r.Approval.Need) != 1 || r.Approval.Need[0].N != 2 {
			t.Errorf("%s: what its parent needs two humans for: %v", who, err)
		}
		if err := call("files__hidden", `{}`); gateway.CodeOf(err) != gateway.UnknownTool {
			t.Errorf("%s: what its parent lacks: %v", who, err)
		}
	}
}

// Whoever stands behind a task above cannot answer for one below, and a chain that
// a credential brought stays with the task that it bought.
func TestBehindAChild(t *testing.T) {
	h := gatewaytest.New(t)
	h.Policy.Set(gatewaytest.Text + "p, operator:*, acme, work, task:sub, delegate, , allow\n")
	top := spec(func(s *gateway.TaskSpec) { s.Kind, s.Principal = gatewaytest.SubKind, "agent:a" })
	if _, _, err := h.TaskDelegate(t.Context(), h.Operators.Op("alice"), "acme", "task-a", top); err != nil {
		t.Fatal(err)
	}
	tasks, _ := h.Tasks.List(t.Context(), "acme")
	var mid gateway.Task
	for _, task := range tasks {
		if task.Parent == "task-a" {
			mid = task
		}
	}
	r := gateway.ApprovalRequest{Principal: "agent:c", Starters: []string{"operator:carol"}, Need: []authz.Requirement{{N: 1}}}
	if err := h.MayVote(h.Operators.Op("carol"), r); err == nil {
		t.Error("who started a task above may answer")
	}
	if mid.StartedBy != "operator:alice" || mid.Ancestors[0].StartedBy != "" {
		t.Errorf("%+v", mid)
	}
	delegated := gateway.Task{Chain: []string{"operator:zoe"}, Ancestors: []gateway.Ancestor{{Principal: "agent:a"}}}
	if got := delegated.Delegators(); !slices.Equal(got, []string{"operator:zoe", "agent:a"}) {
		t.Errorf("delegators %v", got)
	}
}

// A human whom nobody proved washes off neither a denial nor a day's budget.
func TestNamingAHumanWashesNothingOff(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.Kinds[0].Parallel = true })
	deny := func(human string) error {
		_, token, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.OnBehalfOf = human }))
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Handle(t.Context(), gateway.Call{Credential: gateway.Credential{Bearer: token}, Name: "files__write", Args: json.RawMessage(`{"path":"x"}`)}, nil)
		return err
	}
	r := deny("").(*gateway.Refusal).Approval
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", r.ID, false, r.Digest, "no"); err != nil {
		t.Fatal(err)
	}
	for _, human := range []string{"", "dora", "emil"} {
		if err := deny(human); gateway.CodeOf(err) != gateway.DeniedByOperator {
			t.Errorf("for %q: %v", human, err)
		}
	}
}

// The agent's own token goes to no tool by a _meta key that its server takes, either.
func TestOwnTokenInMeta(t *testing.T) {
	h := gatewaytest.New(t)
	h.Servers.TakesMeta("files__read", "corp/ticket")
	_, token, err := h.Delegate(t.Context(), as("a"), "task-a", spec(func(s *gateway.TaskSpec) { s.Kind = gatewaytest.SubKind }))
	if err != nil {
		t.Fatal(err)
	}
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, sub, files/read, call, , allow\n")
	for ticket, want := range map[string]gateway.Code{"T-1": "", token.Reveal(): gateway.Denied} {
		call := gateway.Call{
			Credential: gateway.Credential{Bearer: token}, Name: "files__read", Args: json.RawMessage(`{}`), Meta: json.RawMessage(`{"corp/ticket":"` + ticket + `"}`),
		}
		if _, err := h.Handle(t.Context(), call, nil); want == "" && err != nil || want != "" && gateway.CodeOf(err) != want {
			t.Errorf("%q: %v", ticket, err)
		}
	}
}

// What is granted are the tools that were shown: one that is defined anew in the
// meantime is not.
func TestEscalationIsOfDefinitions(t *testing.T) {
	h := gatewaytest.New(t)
	const args = `{"tools":["files__hidden"],"reason":"x","minutes":5}`
	_, err := ask(h, "toolbroker__request_access", args)
	r := err.(*gateway.Refusal).Approval
	if _, err := h.Vote(t.Context(), h.Operators.Op("bob"), "acme", r.ID, true, r.Digest, ""); err != nil {
		t.Fatal(err)
	}
	h.Servers.Redefine("files__hidden")
	if _, err := ask(h, "toolbroker__request_access", args); err == nil {
		t.Error("granted")
	}
	if task, _ := h.Tasks.Get(t.Context(), "acme", "task-a"); len(task.Widened) > 0 {
		t.Errorf("widened: %+v", task.Widened)
	}
}

// What no reader would see has no place in what operators read.
func TestHiddenCharacters(t *testing.T) {
	h := gatewaytest.New(t)
	for _, r := range []rune{0x200b, 0x202e, 0xfe0f, 0xe0150, 0x3164, 0x115f, 0xffa0, 0x34f, 0x17b4, 0x180b, 0x2800, 0x7, 0x2028} {
		if _, _, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Purpose = "a" + string(r) + "b" })); gateway.CodeOf(err) != gateway.BadArguments {
			t.Errorf("%U: %v", r, err)
		}
	}
	if _, _, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Purpose = "größer, 日本語, one\nline more" })); err != nil {
		t.Error(err)
	}
}

// Who is refused a standing task with every request fills no log.
func TestRefusedStandingTasksAreCounted(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.CallsPerSecond = 1 })
	h.Policy.Set("p, agent:a, acme, work, files/read, call, , allow\n")
	for range 50 {
		if err := h.OpenSession(t.Context(), as("url-bob"), "mcp-1", "", nil); err == nil {
			t.Fatal("opened")
		}
	}
	if log := h.Events(); log != "" {
		t.Errorf("log: %s", log)
	}
}
