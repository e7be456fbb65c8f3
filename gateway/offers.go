package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	strict "github.com/go-json-experiment/json"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// ours is a tool that the gateway itself offers: it walks the same line as any
// other call, is decided by the same policy, and ends here instead of downstream.
type ours interface {
	// decide asks whether this task may, with these arguments.
	decide(g *Gateway, c *life) (authz.Decision, error)
	// asks says what an approval of it is, and what a human's denial is of: of each
	// of these.
	asks(c *life) (kind RequestKind, denied []string)
	// serve does it, and returns what the agent reads.
	serve(ctx context.Context, g *Gateway, c *life) (string, error)
}

// The names of our tools. No server can be called toolbroker.
const (
	ourServer     = "toolbroker"
	delegateAlias = ourServer + "__delegate"
	accessAlias   = ourServer + "__request_access"
)

// offers lists what the gateway offers to a task, by alias.
func (g *Gateway) offers(p Principal, t Task) []Tool {
	var all []Tool
	for _, alias := range []string{searchAlias, callAlias, delegateAlias, accessAlias} {
		if tool, ok := g.offerOf(p, t, alias); ok {
			all = append(all, tool)
		}
	}
	return all
}

// offer finds the tool that a call names among those offered to its task. One
// that is not is as unknown as any.
func (g *Gateway) offer(c *life) (Tool, bool) { return g.offerOf(c.Principal, c.Task, c.Name) }

func (g *Gateway) offerOf(p Principal, t Task, alias string) (Tool, bool) {
	switch alias {
	case searchAlias, callAlias:
		if !g.Search {
			return Tool{}, false
		}
		if alias == callAlias {
			return callTool(), true
		}
		return searchTool(), true
	case delegateAlias:
		if kinds := g.delegable(p, t); len(kinds) > 0 {
			return ourTool("delegate", alias, delegation{}, delegationSchema(kinds),
				"Hand a part of this task to a sub-agent. Returns a task token for it: its scope can only be narrower, and it ends with this task."), true
		}
	case accessAlias:
		if tools := g.askable(p, t); len(tools) > 0 {
			return ourTool("request_access", alias, escalation{}, escalationSchema(tools),
				"Ask a human for tools that this task does not have. Say why; call again with identical arguments after the approval."), true
		}
	}
	return Tool{}, false
}

func ourTool(name, alias string, o ours, schema map[string]any, about string) Tool {
	input, _ := json.Marshal(schema) // maps, slices and strings cannot fail
	definition, _ := json.Marshal(map[string]any{"name": alias, "description": about, "inputSchema": json.RawMessage(input)})
	return Tool{
		Server: ourServer, Name: name, Alias: alias, Definition: definition, Schema: input, Hash: sha([]byte(about + "\x00" + name)),
		Kind: "gateway", Addr: ourServer, ours: o,
	}
}

// serve carries out one of our tools, and records what came of it like any call's.
func (g *Gateway) serve(ctx context.Context, c *life) (Result, error) {
	text, err := c.Tool.ours.serve(ctx, g, c)
	if r, ok := errors.AsType[*Refusal](err); ok {
		return Result{}, r
	} else if err != nil {
		return Result{}, refuse(Internal, err)
	}
	raw, err := json.Marshal(map[string]any{"content": []map[string]string{{"type": "text", "text": text}}, "structuredContent": json.RawMessage(text)})
	if err != nil {
		return Result{}, refuse(Internal, err)
	}
	result := Result{Raw: raw}
	return result, g.recordOutcome(ctx, c, result, 0)
}

// readOurs decodes the arguments of one of our tools, which were read strictly
// before; what it says is for the agent.
func readOurs(c *life, into any) error {
	if err := strict.Unmarshal(c.Args.raw, into, strict.RejectUnknownMembers(true)); err != nil {
		return badArguments("the arguments do not fit the tool's schema")
	}
	return nil
}

// delegation is toolbroker__delegate.
type delegation struct{}

type delegationArgs struct {
	Kind      string           `json:"kind"`
	Purpose   string           `json:"purpose"`
	Principal string           `json:"principal"`
	Reference string           `json:"reference"`
	TTL       int64            `json:"ttl_seconds"`
	Calls     int64            `json:"calls"`
	Scope     []authz.ScopeRow `json:"scope"`
}

func delegationSchema(kinds []string) map[string]any {
	text := func(about string) map[string]any { return map[string]any{"type": "string", "description": about} }
	whole := func(about string) map[string]any {
		return map[string]any{"type": "integer", "minimum": 1, "description": about}
	}
	return map[string]any{
		"type": "object", "required": []string{"kind", "purpose"}, "additionalProperties": false,
		"properties": map[string]any{
			"kind":        map[string]any{"type": "string", "enum": kinds, "description": "what kind of task"},
			"purpose":     text("what the sub-agent is to do, in a sentence"),
			"principal":   text("the workload that will act on it; this one if left out"),
			"reference":   text("the ticket or prompt behind it"),
			"ttl_seconds": whole("how long it may run; never longer than this task"),
			"calls":       whole("how many calls it may make; they count for this task too"),
			"scope": map[string]any{
				"type": "array", "description": "what it may do, of what its kind gives at first; all of that if left out",
				"items": map[string]any{
					"type": "object", "required": []string{"tool", "action", "verdict"}, "additionalProperties": false,
					"properties": map[string]any{
						"tool": text("server/tool, with or without wildcards"), "action": text("call"), "when": text("a condition"),
						"verdict": text("allow, approve, require or deny"),
					},
				},
			},
		},
	}
}

// delegable lists the kinds of task that policy and the task's scope could let it
// delegate.
func (g *Gateway) delegable(p Principal, t Task) []string {
	var kinds []string
	if t.Limits.Depth <= 0 || t.Limits.FanOut <= 0 {
		return nil
	}
	for name := range g.kinds {
		q := g.question(p, t, "task:"+name, authz.Delegate, nil)
		q.Could = true
		if g.ask(t, q).Verdict != authz.Deny {
			kinds = append(kinds, name)
		}
	}
	slices.Sort(kinds)
	return kinds
}

func (delegation) spec(c *life) (TaskSpec, error) {
	var in delegationArgs
	if err := readOurs(c, &in); err != nil {
		return TaskSpec{}, err
	}
	if in.TTL < 0 || in.TTL > int64(10*365*24*time.Hour/time.Second) {
		return TaskSpec{}, badArguments("ttl_seconds is out of range")
	}
	return TaskSpec{
		Tenant: c.Principal.Tenant, Kind: in.Kind, Purpose: in.Purpose, Principal: in.Principal, Reference: in.Reference,
		TTL: time.Duration(in.TTL) * time.Second, Calls: in.Calls, Scope: in.Scope,
	}, nil
}

// decide asks whether the task may delegate one of this kind to this workload;
// serve asks again, with the child in hand, and records its start.
func (d delegation) decide(g *Gateway, c *life) (authz.Decision, error) {
	spec, err := d.spec(c)
	if err != nil {
		return authz.Decision{}, err
	}
	if spec.Principal == "" {
		spec.Principal = c.Principal.ID
	}
	child, err := g.newTask(d.starter(c), &spec)
	if err != nil {
		return authz.Decision{}, err
	}
	return g.decideStart(d.starter(c), child, spec)
}

func (delegation) starter(c *life) starter {
	p := c.Principal
	return starter{
		id: p.ID, owner: c.Task.Owner, human: c.Task.OnBehalfOf, proves: p.Vouches, bound: p.Bound, parent: &c.Task,
		who: Fact{Principal: &c.Principal, Call: &CallRef{ID: c.ID, JSONRPCID: c.JSONRPCID, Method: "tools/call", Protocol: c.Protocol, Session: sessionRef(c.Credential.Session), Source: c.Credential.Source}},
	}
}

func (delegation) asks(c *life) (RequestKind, []string) {
	return RequestCall, []string{c.Args.canonDigest}
}

func (d delegation) serve(ctx context.Context, g *Gateway, c *life) (string, error) {
	spec, err := d.spec(c)
	if err != nil {
		return "", err
	}
	if spec.Principal == "" {
		spec.Principal = c.Principal.ID
	}
	t, token, err := g.start(ctx, d.starter(c), spec)
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(struct {
		Task    string       `json:"task"`
		Kind    string       `json:"kind"`
		Scope   *authz.Scope `json:"scope"`
		Expires time.Time    `json:"expires"`
		Token   string       `json:"token"`
	}{t.ID, t.Kind, t.Scope, t.Expires, token.Reveal()})
	return string(out), err
}

// escalation is toolbroker__request_access.
type escalation struct{}

type escalationArgs struct {
	Tools   []string `json:"tools"`
	Reason  string   `json:"reason"`
	Minutes int64    `json:"minutes"`
}

func escalationSchema(tools []string) map[string]any {
	return map[string]any{
		"type": "object", "required": []string{"tools", "reason", "minutes"}, "additionalProperties": false,
		"properties": map[string]any{
			"tools": map[string]any{
				"type": "array", "minItems": 1, "maxItems": 16, "uniqueItems": true,
				"items":       map[string]any{"type": "string", "enum": tools},
				"description": "the tools that this task lacks",
			},
			"reason":  map[string]any{"type": "string", "minLength": 1, "maxLength": 500, "description": "why, for the human who decides"},
			"minutes": map[string]any{"type": "integer", "minimum": 1, "description": "for how long"},
		},
	}
}

// askable lists, by alias, the tools that this task has not and could ask for:
// policy lets it, and neither its kind nor a task above it rules it out.
func (g *Gateway) askable(p Principal, t Task) []string {
	if g.kinds[t.Kind].Escalate <= 0 {
		return nil
	}
	var all []string
	for _, tool := range g.Servers.Offered(p.Tenant, SortTool) {
		if g.mayAsk(p, t, tool) && g.ask(t, g.question(p, t, tool.ID(), authz.List, nil)).Verdict == authz.Deny {
			all = append(all, tool.Alias)
		}
	}
	return all
}

// mayAsk reports whether a grant of more scope could make a tool the task's.
func (g *Gateway) mayAsk(p Principal, t Task, tool Tool) bool {
	q := g.question(p, t, tool.ID(), authz.Escalate, nil)
	q.Could, q.Scopes = true, nil
	if g.Policy.Decide(q).Verdict == authz.Deny {
		return false
	}
	q.Action, q.Scopes = authz.List, g.limits(t)
	return g.ask(t, q).Verdict != authz.Deny
}

// wants reads what is asked for: the tools, and how long. A tool that may not be
// asked for is refused like one that does not exist.
func (escalation) wants(g *Gateway, c *life) (in escalationArgs, tools []Tool, err error) {
	if err := readOurs(c, &in); err != nil {
		return in, nil, err
	}
	if err := plainText("The reason", in.Reason, 500); err != nil || strings.TrimSpace(in.Reason) == "" {
		return in, nil, badArguments("say in reason why, in at most 500 characters and without hidden ones")
	}
	if len(in.Tools) == 0 || len(in.Tools) > 16 {
		return in, nil, badArguments("ask for 1 to 16 tools")
	}
	if most := int64(g.kinds[c.Task.Kind].Escalate / time.Minute); in.Minutes < 1 || in.Minutes > most {
		return in, nil, badArguments("minutes must be from 1 to %d", most)
	}
	for _, alias := range in.Tools {
		t, ok := g.Servers.Resolve(c.Principal.Tenant, SortTool, alias)
		if !ok || !g.mayAsk(c.Principal, c.Task, t) {
			return in, nil, refuse(Denied, errors.New("a tool that this task may not ask for")).
				say("this task may not ask for one of these tools")
		}
		tools = append(tools, t)
	}
	return in, tools, nil
}

// decide puts the answers for all tools together: whoever must agree to one must
// agree to all. A human always answers, also where a row says allow.
func (e escalation) decide(g *Gateway, c *life) (authz.Decision, error) {
	_, tools, err := e.wants(g, c)
	if err != nil {
		g.escalation(c, audit.EscalationRefused, asRefusal(err))
		return authz.Decision{}, err
	}
	// What is agreed to are these tools as they are defined now, not their names.
	c.Tool.Hash = wanted(tools)
	sum := authz.Decision{Verdict: authz.Approve, Revision: g.Policy.Revision()}
	var reasons []string
	for _, t := range tools {
		q := g.question(c.Principal, c.Task, t.ID(), authz.Escalate, c.Args.raw)
		q.Scopes = nil // they are what it is to be more than
		d := g.Policy.Decide(q)
		if d.Verdict == authz.Deny {
			r := refuse(Denied, nil).say("this task may not ask for one of these tools")
			c.Decision = d
			g.escalation(c, audit.EscalationRefused, r)
			return d, r
		}
		sum.Rules, sum.Cited = append(sum.Rules, d.Rules...), append(sum.Cited, d.Cited...)
		sum.Need = append(sum.Need, d.Need...)
		sum.Revision = d.Revision
		reasons = append(reasons, t.ID()+": "+d.Reason)
		if d.Verdict == authz.Allow && len(d.Rules) > 0 {
			sum.Need = append(sum.Need, authz.Requirement{N: 1, Rule: d.Rules[0]})
		}
	}
	slices.SortFunc(sum.Need, func(a, b authz.Requirement) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	sum.Need = slices.Compact(sum.Need)
	if len(sum.Need) == 0 {
		return authz.Decision{}, refuse(Internal, errors.New("an escalation that asks nobody"))
	}
	sum.Reason = "more scope: " + strings.Join(reasons, "; ")
	return sum, nil
}

// asks: a denial is of each tool, whatever reason it is asked for with, and
// whatever else beside it.
func (escalation) asks(c *life) (RequestKind, []string) {
	var in escalationArgs
	if readOurs(c, &in) != nil || len(in.Tools) == 0 {
		return RequestEscalation, []string{c.Args.canonDigest}
	}
	return RequestEscalation, sorted(in.Tools)
}

// serve widens the task by what was granted. The grant is used up and on record
// before it; a crash in between costs the agent another request.
func (e escalation) serve(ctx context.Context, g *Gateway, c *life) (string, error) {
	in, tools, err := e.wants(g, c)
	if err != nil {
		return "", err
	}
	if wanted(tools) != c.Request.Definition {
		return "", refuse(Denied, errors.New("a tool is not the one that was approved"))
	}
	until := g.now().UTC().Add(time.Duration(in.Minutes) * time.Minute).Truncate(time.Millisecond)
	if until.After(c.Task.Expires) {
		until = c.Task.Expires
	}
	w := Widening{Approval: c.Request.ID, Until: until}
	for _, t := range tools {
		w.Rows = append(w.Rows, authz.ScopeRow{Tool: t.ID(), Action: string(authz.Call), Verdict: "allow"})
	}
	for _, v := range c.Request.Votes {
		if v.Approve {
			w.By = append(w.By, v.By)
		}
	}
	f := c.fact(audit.EscalationGranted)
	f.Detail = fmt.Sprintf("%s until %s", strings.Join(ids(tools), ", "), stamp(until))
	f.Key = c.Request.ID + ":widened"
	if err := g.Recorder.Durable(context.WithoutCancel(ctx), f); err != nil {
		return "", refuse(Internal, fmt.Errorf("record grant of scope: %w", err))
	}
	t, err := g.Tasks.Widen(ctx, c.Principal.Tenant, c.Task.ID, w)
	if err != nil {
		return "", g.noTask(c.Principal, fmt.Errorf("widen: %w", err))
	}
	c.Task = t
	out, err := json.Marshal(map[string]any{"granted": in.Tools, "until": until})
	return string(out), err
}

// wanted is the digest of tools and their definitions.
func wanted(tools []Tool) string {
	var b strings.Builder
	for _, t := range tools {
		fmt.Fprintf(&b, "%s\x00%s\x00", t.ID(), t.Hash)
	}
	return sha([]byte(b.String()))
}

func ids(tools []Tool) []string {
	all := make([]string, len(tools))
	for i, t := range tools {
		all[i] = t.ID()
	}
	return all
}

// escalation records what became of an agent's wish for more scope.
func (g *Gateway) escalation(c *life, t audit.Type, r *Refusal) {
	f := c.fact(t)
	if r != nil {
		f.Code, f.Detail = r.Code, r.detail()
	}
	if err := g.Recorder.Record(context.Background(), f); err != nil {
		g.Logger.Error("escalation not recorded", "task", c.Task.ID, "err", err)
	}
}
