package console_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
)

// house is a small gateway that does what the facade promises, in memory.
type house struct {
	mu        sync.Mutex
	passwords map[string]string
	operators map[string]gateway.Operator
	sessions  map[string]string
	csrf      map[string]string
	requests  []*gateway.ApprovalRequest
	tasks     []*gateway.Task
	specs     []gateway.TaskSpec // what tasks were started from
	stops     []gateway.Stop
	defined   []gateway.Definition // of acme's servers
	waiting   []chan struct{}
	asked     []string // what was looked for, as tenant/id
	viewed    []string // whoever saw the bytes of a request
	tries     int
	broken    error
}

func newHouse(t testing.TB) *house {
	t.Helper()
	return &house{
		passwords: map[string]string{"alice": "correct horse", "bob": "battery staple", "vera": "look only", "root": "whole world"},
		operators: map[string]gateway.Operator{
			"alice": {Name: "alice", Groups: []string{"sre"}, Roles: []string{"approver", "admin"}, Tenants: []string{"acme"}},
			"bob":   {Name: "bob", Groups: []string{"support"}, Roles: []string{"approver"}, Tenants: []string{"globex"}},
			"root":  {Name: "root", Roles: []string{"admin"}, Tenants: []string{"*"}},
			"vera":  {Name: "vera", Roles: []string{"viewer"}, Tenants: []string{"*"}},
		},
		sessions: map[string]string{}, csrf: map[string]string{},
	}
}

func (h *house) changed() {
	for _, c := range h.waiting {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// ask puts a request before the operators.
func (h *house) ask(id string, edit ...func(*gateway.ApprovalRequest)) *gateway.ApprovalRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	rule := authz.Rule{File: "policy.csv", Line: 14, Text: "p, agent:triage, acme, triage, issues/close, call, , approve 1 of group:sre"}
	now := time.Now()
	r := &gateway.ApprovalRequest{
		ID: id, Tenant: "acme", Digest: "sha256:" + strings.Repeat("5d", 32), Fingerprint: "sha256:" + strings.Repeat("1f", 32),
		Principal: "agent:triage", OnBehalfOf: "mallory", Owner: "oscar", TaskID: "task-01jd7q", TaskKind: "triage", TaskOwner: "oscar", StartedBy: "agent:planner",
		Purpose: "Close duplicates that the weekly triage found", Server: "issues", Tool: "close", Alias: "issues__close",
		Definition: "sha256:" + strings.Repeat("aa", 32), ArgsDigest: "sha256:" + strings.Repeat("bc", 32),
		Args: []byte(`{"number":7,"comment":"Duplicate of #3"}`), Class: "static", Revision: "sha256:" + strings.Repeat("0e", 32), FourEyes: true,
		Rules: []authz.Rule{rule}, Need: []authz.Requirement{{N: 1, Group: "sre", Rule: rule}},
		Created: now, Expires: now.Add(10 * time.Minute), State: gateway.ApprovalPending,
	}
	for _, e := range edit {
		e(r)
	}
	h.requests = append(h.requests, r)
	h.changed()
	return r
}

func (h *house) Login(_ context.Context, name string, password gateway.Secret, source string) (gateway.Secret, gateway.Operator, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tries++; h.tries > 20 {
		return gateway.Secret{}, gateway.Operator{}, gateway.ErrTooMany
	}
	if want, ok := h.passwords[name]; !ok || want != password.Reveal() {
		return gateway.Secret{}, gateway.Operator{}, gateway.ErrLogin
	}
	token := rand.Text()
	h.sessions[token], h.csrf[token] = name, rand.Text()
	op := h.operators[name]
	op.CSRF, op.Source = gateway.NewSecret(h.csrf[token]), source
	return gateway.NewSecret(token), op, nil
}

func (h *house) Operator(_ context.Context, token gateway.Secret) (gateway.Operator, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken != nil {
		return gateway.Operator{}, h.broken
	}
	name, ok := h.sessions[token.Reveal()]
	if !ok {
		return gateway.Operator{}, gateway.ErrLogin
	}
	op := h.operators[name]
	op.CSRF = gateway.NewSecret(h.csrf[token.Reveal()])
	return op, nil
}

func (h *house) Logout(_ context.Context, token gateway.Secret) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, token.Reveal())
	return nil
}

func sees(op gateway.Operator, tenant string) bool {
	return slices.Contains(op.Tenants, "*") || slices.Contains(op.Tenants, tenant)
}

func (h *house) ApprovalList(_ context.Context, op gateway.Operator) ([]gateway.ApprovalRequest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []gateway.ApprovalRequest
	for _, r := range h.requests {
		if sees(op, r.Tenant) {
			c := *r
			c.Args = nil
			all = append(all, c)
		}
	}
	return all, nil
}

func (h *house) find(op gateway.Operator, tenant, id string) (*gateway.ApprovalRequest, error) {
	h.asked = append(h.asked, tenant+"/"+id)
	for _, r := range h.requests {
		if r.Tenant == tenant && r.ID == id && sees(op, tenant) {
			return r, nil
		}
	}
	return nil, gateway.ErrNotFound
}

func (h *house) ApprovalShow(_ context.Context, op gateway.Operator, tenant, id string) (gateway.ApprovalRequest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, err := h.find(op, tenant, id)
	if err != nil {
		return gateway.ApprovalRequest{}, err
	}
	h.viewed = append(h.viewed, op.Name)
	return *r, nil
}

func (h *house) MayVote(op gateway.Operator, r gateway.ApprovalRequest) error {
	switch {
	case op.Name == r.TaskOwner:
		return &gateway.Forbidden{Why: "You own this task. Someone else has to answer this request."}
	case !op.Can(gateway.MayVote):
		return &gateway.Forbidden{Why: "Your roles do not let you vote on requests."}
	case slices.ContainsFunc(r.Votes, func(v gateway.Vote) bool { return v.By == op.Name }):
		return &gateway.Forbidden{Why: "You have voted on this request already."}
	}
	return nil
}

func (h *house) Vote(_ context.Context, op gateway.Operator, tenant, id string, approve bool, digest, reason string) (gateway.ApprovalRequest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, err := h.find(op, tenant, id)
	if err != nil {
		return gateway.ApprovalRequest{}, err
	}
	if err := h.MayVote(op, *r); err != nil {
		return gateway.ApprovalRequest{}, err
	}
	if digest != r.Digest || r.State != gateway.ApprovalPending {
		return gateway.ApprovalRequest{}, gateway.ErrNotNow
	}
	r.Votes = append(r.Votes, gateway.Vote{By: op.Name, Groups: op.Groups, Approve: approve, Reason: reason, Digest: digest, At: time.Now()})
	yes := 0
	for _, v := range r.Votes {
		if v.Approve {
			yes++
		}
	}
	switch {
	case !approve:
		r.State, r.Args = gateway.ApprovalDenied, nil
	case yes >= r.Need[0].N:
		r.State = gateway.ApprovalGranted
	}
	h.changed()
	return *r, nil
}

func (h *house) TaskStart(_ context.Context, op gateway.Operator, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, spec.Tenant) {
		return gateway.Task{}, gateway.Secret{}, gateway.ErrNotFound
	}
	if !op.Can(gateway.MayStart) {
		return gateway.Task{}, gateway.Secret{}, &gateway.Forbidden{Why: "Your roles do not let you start tasks."}
	}
	if spec.Kind != "triage" {
		return gateway.Task{}, gateway.Secret{}, &gateway.Refusal{Code: gateway.BadArguments, Say: "unknown task kind"}
	}
	t := &gateway.Task{
		ID: fmt.Sprintf("task-%d", len(h.tasks)+1), Tenant: spec.Tenant, Kind: spec.Kind, Purpose: spec.Purpose, Owner: op.Name, OnBehalfOf: spec.OnBehalfOf,
		Principal: spec.Principal, StartedBy: "operator:" + op.Name, State: gateway.TaskRunning, Started: time.Now(), Expires: time.Now().Add(spec.TTL),
		Reference: spec.Reference, Labels: spec.Labels, Approvers: spec.Approvers, Budget: gateway.Budget{Calls: spec.Calls},
	}
	h.tasks, h.specs = append(h.tasks, t), append(h.specs, spec)
	return *t, gateway.NewSecret("aaa.bbb.ccc"), nil
}

func (h *house) TaskDelegate(ctx context.Context, op gateway.Operator, tenant, parent string, spec gateway.TaskSpec) (gateway.Task, gateway.Secret, error) {
	h.mu.Lock()
	p, err := h.task(op, tenant, parent)
	h.mu.Unlock()
	switch {
	case err != nil:
		return gateway.Task{}, gateway.Secret{}, err
	case p.State != gateway.TaskRunning:
		return gateway.Task{}, gateway.Secret{}, &gateway.Refusal{Code: gateway.NoTask, Err: gateway.ErrNoTask}
	case p.Limits.Depth == 0 && op.Can(gateway.MayStart):
		return gateway.Task{}, gateway.Secret{}, &gateway.Refusal{Code: gateway.Denied, Say: "this task may not delegate"}
	case slices.ContainsFunc(h.stops, func(s gateway.Stop) bool { return s.Kind == gateway.StopPrincipal && s.Name == spec.Principal }):
		return gateway.Task{}, gateway.Secret{}, &gateway.Refusal{Code: gateway.NoTask, Err: errors.Join(gateway.ErrStopped, gateway.ErrNoTask)}
	}
	spec.OnBehalfOf = p.OnBehalfOf
	t, token, err := h.TaskStart(ctx, op, spec)
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		child := h.tasks[len(h.tasks)-1]
		child.Parent, child.Ancestors = p.ID, append(slices.Clone(p.Ancestors), gateway.Ancestor{ID: p.ID, Kind: p.Kind, Principal: p.Principal, Scope: p.Scope})
		t = *child
	}
	return t, token, err
}

func (h *house) StopSet(_ context.Context, op gateway.Operator, s gateway.Stop) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, s.Tenant) {
		return gateway.ErrNotFound
	}
	if !op.Can(gateway.MayStop) {
		return &gateway.Forbidden{Why: "Your roles do not let you stop and lift."}
	}
	s.By, s.At = "operator:"+op.Name, time.Now()
	h.stops = append(h.stops, s)
	for _, t := range h.tasks {
		about := map[gateway.StopKind]bool{
			gateway.StopTenant: true, gateway.StopPrincipal: t.Principal == s.Name, gateway.StopOwner: t.Owner == s.Name, gateway.StopHuman: t.OnBehalfOf == s.Name,
		}[s.Kind]
		if (t.Tenant == s.Tenant || s.Tenant == "*") && about && t.State == gateway.TaskRunning {
			t.State, t.Outcome, t.Ended, t.EndedBy, t.Why = gateway.TaskEnding, gateway.TaskRevoked, time.Now(), "stop", s.Reason
		}
	}
	return nil
}

func (h *house) StopLift(_ context.Context, op gateway.Operator, tenant string, kind gateway.StopKind, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, tenant) {
		return gateway.ErrNotFound
	}
	if !op.Can(gateway.MayStop) {
		return &gateway.Forbidden{Why: "Your roles do not let you stop and lift."}
	}
	n := len(h.stops)
	h.stops = slices.DeleteFunc(h.stops, func(s gateway.Stop) bool { return s.Tenant == tenant && s.Kind == kind && s.Name == name })
	if len(h.stops) == n {
		return gateway.ErrNotFound
	}
	return nil
}

func (h *house) StopList(_ context.Context, op gateway.Operator, tenant string) ([]gateway.Stop, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, tenant) {
		return nil, gateway.ErrNotFound
	}
	var all []gateway.Stop
	for _, s := range h.stops {
		if s.Tenant == tenant || s.Tenant == "*" {
			all = append(all, s)
		}
	}
	return all, nil
}

func (h *house) Definitions(_ context.Context, op gateway.Operator, tenant string) ([]gateway.Definition, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, tenant) {
		return nil, gateway.ErrNotFound
	}
	if tenant != "acme" {
		return nil, nil
	}
	return slices.Clone(h.defined), nil
}

func (h *house) AcceptDefinition(_ context.Context, op gateway.Operator, tenant, server string, s gateway.Sort, name, hash string) (gateway.Definition, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, tenant) {
		return gateway.Definition{}, gateway.ErrNotFound
	}
	if !op.Can(gateway.MayAccept) {
		return gateway.Definition{}, &gateway.Forbidden{Why: "Your roles do not let you accept what servers define."}
	}
	for i, d := range h.defined {
		if tenant == "acme" && d.Server == server && d.Sort == s && d.Name == name {
			if d.Hash != hash {
				return gateway.Definition{}, gateway.ErrNotNow
			}
			d.Pinned, d.Accepted, d.By, d.At, d.Held = d.Hash, d.Seen, "operator:"+op.Name, time.Now(), ""
			h.defined[i] = d
			return d, nil
		}
	}
	return gateway.Definition{}, gateway.ErrNotFound
}

func (h *house) TaskList(_ context.Context, op gateway.Operator, tenant string) ([]gateway.Task, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !sees(op, tenant) {
		return nil, gateway.ErrNotFound
	}
	var all []gateway.Task
	for _, t := range slices.Backward(h.tasks) {
		if t.Tenant == tenant {
			all = append(all, *t)
		}
	}
	return all, nil
}

func (h *house) task(op gateway.Operator, tenant, id string) (*gateway.Task, error) {
	for _, t := range h.tasks {
		if t.Tenant == tenant && t.ID == id && sees(op, tenant) {
			return t, nil
		}
	}
	return nil, gateway.ErrNotFound
}

func (h *house) TaskShow(_ context.Context, op gateway.Operator, tenant, id string) (gateway.Task, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, err := h.task(op, tenant, id)
	if err != nil {
		return gateway.Task{}, err
	}
	return *t, nil
}

func (h *house) TaskEnd(_ context.Context, op gateway.Operator, tenant, id string) (gateway.Task, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, err := h.task(op, tenant, id)
	if err != nil {
		return gateway.Task{}, err
	}
	if !op.Can(gateway.MayEnd) {
		return gateway.Task{}, &gateway.Forbidden{Why: "Your roles do not let you end tasks."}
	}
	if t.State == gateway.TaskRunning {
		t.State, t.Ended, t.EndedBy = gateway.TaskEnded, time.Now(), "operator:"+op.Name
	}
	return *t, nil
}

func (h *house) Changes(ctx context.Context) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan struct{}, 1)
	h.waiting = append(h.waiting, c)
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiting = slices.DeleteFunc(h.waiting, func(w chan struct{}) bool { return w == c })
		close(c)
	})
	return c
}
