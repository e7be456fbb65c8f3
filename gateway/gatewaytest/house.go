// Package gatewaytest builds a real Gateway out of small, honest, in-memory
// parts, with a real policy and a real log, and holds the contract tests that
// every broker passes.
package gatewaytest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A House is a Gateway and everything it stands on. Its fields may be changed
// before the first call, and its parts between calls.
type House struct {
	*gateway.Gateway
	Tasks     *Tasks
	Approvals *Approvals
	Leases    *Leases
	Servers   *Servers
	Operators *Operators
	Sessions  *Sessions
	Handles   *Handles
	Policy    *Policy
	Log       *audit.Log
	Dir       string // the log's

	t testing.TB
}

// Policy is the text in force; it can be swapped.
type Policy struct {
	mu sync.Mutex
	p  *authz.Policy
	t  testing.TB
}

// Set swaps the policy.
func (p *Policy) Set(text string) {
	p.t.Helper()
	parsed, findings := authz.Parse("policy.csv", []byte(text))
	if parsed == nil {
		p.t.Fatalf("policy: %v", findings)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p = parsed
}

// Decide asks the policy in force.
func (p *Policy) Decide(r authz.Request) authz.Decision {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.p.Decide(r)
}

// Revision names the policy in force.
func (p *Policy) Revision() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.p.Revision()
}

// Text is a policy with one tool of each verdict.
const Text = `
p, agent:a,        acme,   work, files/read,    call,  ,                    allow
p, agent:a,        acme,   work, files/write,   call,  ,                    approve
p, agent:a,        acme,   work, files/pay,     call,  args.amount <= 100,  allow
p, agent:a,        acme,   work, files/pay,     call,  args.amount > 100,   approve 2 of group:sre
p, agent:a,        acme,   work, files/slow,    call,  ,                    allow
p, agent:b,        globex, work, files/read,    call,  ,                    allow
p, agent:a,        acme,   work, task:work,     start, ,                    allow
p, agent:a,        acme,   work, task:sub,      delegate, ,                 allow
p, agent:a,        acme,   work, files/hidden,  escalate, ,                 approve 1 of group:sre
p, agent:a,        acme,   work, files/hidden,  call,  ,                    allow
p, agent:u,        acme,   work, files/read,    call,  ,                    allow
p, agent:u,        acme,   work, task:work,     start, ,                    allow
p, agent:c,        acme,   sub,  files/*,       call,  ,                    allow
p, operator:*,     *,      work, task:*,        start, ,                    allow
`

// Kind is the kind of task that New configures: it reaches everything, and gives
// everything but files/hidden at first. SubKind is what a task of it may delegate.
const (
	Kind    = "work"
	SubKind = "sub"
)

// New builds a house. Tenants are acme and globex; the operators are alice (who
// owns agent a's credential), bob, carol (both in group sre, approvers) and vic,
// a viewer; agent:a of acme has the bearer token "a" on task "task-a", agent:b of
// globex "b" on "task-b". Change may alter the config before the gateway is made.
func New(t testing.TB, change ...func(*gateway.Config)) *House {
	t.Helper()
	h := &House{t: t, Dir: filepath.Join(t.TempDir(), "audit"), Policy: &Policy{t: t}}
	h.Policy.Set(Text)
	key, err := audit.NewKey(filepath.Join(t.TempDir(), "audit.key"), "test.example/audit/r1")
	if err != nil {
		t.Fatal(err)
	}
	if h.Log, err = audit.Open(audit.Config{Dir: h.Dir, Origin: "test.example/audit/r1", Key: key}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Log.Close() })
	everything, err := authz.NewScope([]authz.ScopeRow{{Tool: "**", Action: "*", Verdict: "allow"}})
	if err != nil {
		t.Fatal(err)
	}
	atFirst, err := authz.NewScope([]authz.ScopeRow{
		{Tool: "files/read", Action: "*", Verdict: "allow"}, {Tool: "files/write", Action: "*", Verdict: "allow"},
		{Tool: "files/pay", Action: "*", Verdict: "allow"}, {Tool: "files/slow", Action: "*", Verdict: "allow"},
		{Tool: "files/file:///**", Action: "*", Verdict: "allow"}, {Tool: "files/review", Action: "*", Verdict: "allow"},
		{Tool: "task:**", Action: "*", Verdict: "allow"},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Tasks = newTasks()
	h.Operators = &Operators{list: []gateway.Operator{
		{Name: "alice", Roles: []string{"approver", "admin"}, Tenants: []string{"acme"}, Groups: []string{"sre"}, Identities: []string{"alice@acme"}},
		{Name: "bob", Roles: []string{"approver"}, Tenants: []string{"acme", "globex"}, Groups: []string{"sre"}},
		{Name: "carol", Roles: []string{"approver"}, Tenants: []string{"acme"}, Groups: []string{"sre"}},
		{Name: "vic", Roles: []string{"viewer"}, Tenants: []string{"acme"}},
		{Name: "root", Roles: []string{"admin"}, Tenants: []string{"*"}, Identities: []string{"gina"}},
	}}
	h.Leases = &Leases{live: map[string]bool{}}
	h.Servers = NewServers()
	h.Approvals = &Approvals{m: map[string]*gateway.ApprovalRequest{}, changed: make(chan struct{})}
	h.Sessions, h.Handles = NewSessions(), NewHandles()
	c := gateway.Config{
		Identity: Identity{h.Tasks}, Tasks: h.Tasks, Approvals: h.Approvals, Leases: h.Leases, Servers: h.Servers, Operators: h.Operators,
		Sessions: h.Sessions, Handles: h.Handles, Recorder: gateway.NewRecorder(h.Log), Policy: h.Policy,
		Kinds: []gateway.TaskKind{
			{Name: Kind, Purpose: "to test", TTL: time.Hour, Scope: everything, Initial: atFirst, Own: true,
				Limits: gateway.Limits{Depth: 2, FanOut: 3}, Escalate: 30 * time.Minute},
			{Name: SubKind, Purpose: "a part of it", TTL: time.Minute, Scope: everything, Limits: gateway.Limits{Depth: 1, FanOut: 1}},
		},
		Tenants: []string{"acme", "globex"}, Hold: 50 * time.Millisecond, CallsPerSecond: 10_000,
	}
	for _, f := range change {
		f(&c)
	}
	if h.Gateway, err = gateway.New(c); err != nil {
		t.Fatal(err)
	}
	h.Tasks.house = h.Gateway
	for _, task := range []gateway.Task{
		{ID: "task-a", Tenant: "acme", Principal: "agent:a", Owner: "alice"},
		{ID: "task-b", Tenant: "globex", Principal: "agent:b", Owner: "gina"},
	} {
		task.Kind, task.Purpose, task.Scope, task.State = Kind, "test", atFirst, gateway.TaskRunning
		task.Limits = gateway.Limits{Depth: 2, FanOut: 3}
		task.Started, task.Expires = time.Now(), time.Now().Add(time.Hour)
		if _, err := h.Tasks.Start(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// RecordClosings puts the closings of tasks on record, too: they follow in their
// own time, which most tests would have to wait for.
func (h *House) RecordClosings() {
	h.Tasks.mu.Lock()
	defer h.Tasks.mu.Unlock()
	h.Tasks.recorder = h.Config.Recorder
}

// Call makes a call as agent:a.
func (h *House) Call(ctx context.Context, tool, args string) (gateway.Result, error) {
	return h.Handle(ctx, Call("a", tool, args), nil)
}

// Call is a call with a bearer token.
func Call(bearer, tool, args string) gateway.Call {
	return gateway.Call{
		Credential: gateway.Credential{Bearer: gateway.NewSecret(bearer), Source: "127.0.0.1:1"},
		Name:       tool, Args: json.RawMessage(args), JSONRPCID: "1", Protocol: "2025-11-25",
	}
}

// Events returns the log so far, without its own events, as "type" or
// "type:code" words.
func (h *House) Events() string {
	h.t.Helper()
	var words []string
	for _, e := range h.Lines() {
		w := string(e.Type)
		if e.Decision != nil && e.Decision.ReasonCode != "ok" {
			w += ":" + e.Decision.ReasonCode
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

// Lines returns the events of the log so far, without its own, and fails the
// test where the log is not whole.
func (h *House) Lines() []audit.Event {
	h.t.Helper()
	if err := h.Log.Append(h.t.Context(), audit.Event{Type: audit.AuditQueried, Tenant: "none", Unbound: "a test reads"}); err != nil {
		h.t.Fatal(err)
	}
	report, err := audit.Verify(h.Dir, audit.VerifyOptions{})
	if err != nil || report.Bad != nil {
		h.t.Fatalf("log: %v, %+v", err, report.Bad)
	}
	var out []audit.Event
	for line, err := range audit.Read(h.Dir, 0) {
		if err != nil {
			h.t.Fatal(err)
		}
		if !strings.HasPrefix(string(line.Event.Type), "audit.") {
			out = append(out, line.Event)
		}
	}
	return out
}

// Identity takes the bearer tokens "a" (agent:a on task-a), "b" (agent:b on
// task-b), "key" (agent:a, a credential of its own), "key-for-alice" (the same,
// acting for alice), "ci" (an orchestrator), "c" (agent:c, of its own), "url-bob"
// and "url-carol" (agent:u for bob or carol, with a standing task), "human-bob"
// (whose may_act names c), "bound" (agent:a, bound to the key that a DPoP
// header of "proof" proves), and "token-of-ID" for any task that was started.
type Identity struct{ tasks *Tasks }

// Identify implements gateway.Identity.
func (i Identity) Identify(_ context.Context, cred gateway.Credential) (gateway.Principal, error) {
	own := func(id, owner string) gateway.Principal {
		return gateway.Principal{ID: id, Tenant: "acme", Owner: owner, Authn: gateway.AuthnAPIKey, Credential: cred.Bearer.Reveal()}
	}
	raw := cred.Bearer.Reveal()
	switch raw {
	case "a":
		return gateway.Principal{ID: "agent:a", Tenant: "acme", Owner: "alice", Authn: "task_token", Credential: "a", Task: "task-a"}, nil
	case "b":
		return gateway.Principal{ID: "agent:b", Tenant: "globex", Owner: "gina", Authn: "task_token", Credential: "b", Task: "task-b"}, nil
	case "key":
		return own("agent:a", "alice"), nil
	case "key-for-alice":
		p := own("agent:a", "carol")
		p.OnBehalfOf, p.Credential, p.StartsFor = "alice@acme", "key2", []string{"agent:other"}
		return p, nil
	case "ci":
		p := own("ci", "alice")
		p.Vouches, p.StartsFor = []string{"purpose", "labels"}, []string{"agent:*"}
		return p, nil
	case "c":
		p := own("agent:c", "alice")
		p.Subject, p.Issuer = "c", "idp"
		return p, nil
	case "url-bob", "url-carol":
		p := own("agent:u", "alice")
		p.OnBehalfOf, p.Standing = strings.TrimPrefix(raw, "url-"), Kind
		return p, nil
	case "human-bob":
		p := own("user:bob", "bob")
		p.OnBehalfOf, p.Issuer, p.MayAct = "bob", "idp", []string{"c"}
		return p, nil
	case "operator":
		return own("operator:alice", "alice"), nil
	case "bound":
		p := own("agent:a", "alice")
		var err error
		if p.Bound, err = i.Proven(context.Background(), cred); err == nil && p.Bound == "" {
			err = &gateway.NotIdentified{Why: gateway.WhyProof}
		}
		return p, err
	}
	if id, ok := strings.CutPrefix(raw, "token-of-"); ok && i.tasks != nil {
		if t, ok := i.tasks.find(id); ok {
			p := gateway.Principal{ID: t.Principal, Tenant: t.Tenant, OnBehalfOf: t.OnBehalfOf, Owner: t.Owner, Authn: "task_token", Credential: id, Task: id}
			if p.Bound = t.Bound; p.Bound != "" {
				if proven, err := i.Proven(context.Background(), cred); err != nil || proven != p.Bound {
					return gateway.Principal{}, &gateway.NotIdentified{Why: gateway.WhyProof}
				}
			}
			return p, nil
		}
	}
	return gateway.Principal{}, gateway.ErrUnidentified
}

// Proven implements gateway.Identity: a DPoP header of "proof" proves the key
// "jkt:proof".
func (Identity) Proven(_ context.Context, cred gateway.Credential) (string, error) {
	switch {
	case cred.Proof.Proven != "":
		return cred.Proof.Proven, nil
	case cred.Proof.DPoP == "":
		return "", nil
	case cred.Proof.DPoP == "proof":
		return "jkt:proof", nil
	}
	return "", &gateway.NotIdentified{Why: gateway.WhyProof}
}

// Approvals is an in-memory gateway.Approvals: the state machine and nothing else.
type Approvals struct {
	mu       sync.Mutex
	m        map[string]*gateway.ApprovalRequest
	reserved map[string]string
	holders  map[string]map[string]bool // of each request; "" for who has no name
	changed  chan struct{}

	Asked func() // called when a new request is stored; nil for nothing
}

// hold notes who waits for a request.
func (a *Approvals) hold(id, holder string) {
	if a.holders == nil {
		a.holders = map[string]map[string]bool{}
	}
	if a.holders[id] == nil {
		a.holders[id] = map[string]bool{}
	}
	a.holders[id][holder] = true
}

func (a *Approvals) find(tenant, id string) *gateway.ApprovalRequest {
	if r := a.m[id]; r != nil && r.Tenant == tenant {
		if r.State == gateway.ApprovalPending && !time.Now().Before(r.Expires) {
			r.State = gateway.ApprovalExpired
		}
		return r
	}
	return nil
}

func (a *Approvals) move(r *gateway.ApprovalRequest, to gateway.ApprovalState) {
	r.State = to
	r.Seq++
	close(a.changed)
	a.changed = make(chan struct{})
}

// Request implements gateway.Approvals.
func (a *Approvals) Request(_ context.Context, r gateway.ApprovalRequest) (gateway.ApprovalRequest, bool, error) {
	stored, fresh := a.request(r)
	if fresh && a.Asked != nil {
		a.Asked()
	}
	return stored, fresh, nil
}

func (a *Approvals) request(r gateway.ApprovalRequest) (gateway.ApprovalRequest, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	holder := r.Holder
	r.Holder = ""
	for _, old := range a.m {
		if old.Tenant == r.Tenant && a.find(r.Tenant, old.ID) != nil && (old.Fingerprint == r.Fingerprint && !old.State.Final() ||
			old.State == gateway.ApprovalDenied && (old.Fingerprint == r.Fingerprint ||
				slices.ContainsFunc(r.Denials, func(d string) bool { return slices.Contains(old.Denials, d) }))) {
			a.hold(old.ID, holder)
			return *old, false
		}
	}
	a.hold(r.ID, holder)
	a.m[r.ID] = &r
	a.move(&r, gateway.ApprovalPending)
	return r, true
}

// Forget puts a request back to where it was granted, as a store that lost its
// latest writes would.
func (a *Approvals) Forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.m[id].State = gateway.ApprovalGranted
}

// Rename gives a request another id, under a digest that fits.
func (a *Approvals) Rename(from, to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.m[from]
	delete(a.m, from)
	r.ID = to
	var err error
	if r.Digest, err = gateway.ApprovalDigest(*r); err != nil {
		panic(err)
	}
	a.m[to] = r
}

// Wait implements gateway.Approvals.
func (a *Approvals) Wait(ctx context.Context, tenant, id string) (gateway.ApprovalRequest, error) {
	for {
		a.mu.Lock()
		r := a.find(tenant, id)
		changed := a.changed
		var now gateway.ApprovalRequest
		if r != nil {
			now = *r
		}
		a.mu.Unlock()
		if r == nil {
			return gateway.ApprovalRequest{}, gateway.ErrNotFound
		}
		if now.State != gateway.ApprovalPending {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}

func (a *Approvals) step(tenant, id, call string, from, to gateway.ApprovalState) (gateway.ApprovalRequest, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.find(tenant, id)
	if r == nil {
		return gateway.ApprovalRequest{}, gateway.ErrNotFound
	}
	if r.State != from || from == gateway.ApprovalReserved && a.reserved[id] != call {
		return *r, gateway.ErrNotNow
	}
	if to == gateway.ApprovalReserved {
		if a.reserved == nil {
			a.reserved = map[string]string{}
		}
		a.reserved[id] = call
	}
	a.move(r, to)
	return *r, nil
}

// Claim implements gateway.Approvals.
func (a *Approvals) Claim(_ context.Context, tenant, id, call string) (gateway.Grant, error) {
	r, err := a.step(tenant, id, call, gateway.ApprovalGranted, gateway.ApprovalReserved)
	return gateway.Grant{Request: r, Call: call}, err
}

// Consume implements gateway.Approvals.
func (a *Approvals) Consume(_ context.Context, g gateway.Grant) error {
	_, err := a.step(g.Request.Tenant, g.Request.ID, g.Call, gateway.ApprovalReserved, gateway.ApprovalConsumed)
	return err
}

// Release implements gateway.Approvals.
func (a *Approvals) Release(_ context.Context, g gateway.Grant) error {
	_, err := a.step(g.Request.Tenant, g.Request.ID, g.Call, gateway.ApprovalReserved, gateway.ApprovalGranted)
	return err
}

// Void implements gateway.Approvals.
func (a *Approvals) Void(_ context.Context, g gateway.Grant) error {
	_, err := a.step(g.Request.Tenant, g.Request.ID, g.Call, gateway.ApprovalReserved, gateway.ApprovalVoided)
	return err
}

// Vote implements gateway.Approvals.
func (a *Approvals) Vote(_ context.Context, tenant, id string, v gateway.Vote) (gateway.ApprovalRequest, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.find(tenant, id)
	if r == nil {
		return gateway.ApprovalRequest{}, gateway.ErrNotFound
	}
	if r.State != gateway.ApprovalPending || slices.ContainsFunc(r.Votes, func(o gateway.Vote) bool { return o.By == v.By }) {
		return *r, gateway.ErrNotNow
	}
	r.Votes = append(slices.Clone(r.Votes), v)
	to := gateway.ApprovalGranted
	for _, n := range r.Need {
		have := 0
		for _, o := range r.Votes {
			if n.Group == "" || slices.Contains(o.Groups, n.Group) {
				have++
			}
		}
		if have < n.N {
			to = gateway.ApprovalPending
		}
	}
	if !v.Approve {
		to = gateway.ApprovalDenied
	}
	a.move(r, to)
	return *r, nil
}

// Withdraw implements gateway.Approvals.
func (a *Approvals) Withdraw(_ context.Context, tenant, id, holder string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.find(tenant, id)
	if r == nil {
		return gateway.ErrNotFound
	}
	if holder == "" || r.State.Final() || !a.holders[id][holder] {
		return nil
	}
	delete(a.holders[id], holder)
	if len(a.holders[id]) == 0 && r.State != gateway.ApprovalReserved {
		a.move(r, gateway.ApprovalCancelled)
	}
	return nil
}

// Get implements gateway.Approvals.
func (a *Approvals) Get(_ context.Context, tenant, id string) (gateway.ApprovalRequest, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.find(tenant, id); r != nil {
		return *r, nil
	}
	return gateway.ApprovalRequest{}, gateway.ErrNotFound
}

// List implements gateway.Approvals.
func (a *Approvals) List(_ context.Context, tenant string) ([]gateway.ApprovalRequest, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []gateway.ApprovalRequest
	for _, r := range a.m {
		if r.Tenant == tenant {
			out = append(out, *r)
		}
	}
	return out, nil
}

// Cancel implements gateway.Approvals.
func (a *Approvals) Cancel(_ context.Context, tenant, task string) (ended []string, _ error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.m {
		if r.Tenant == tenant && r.TaskID == task && !r.State.Final() {
			a.move(r, gateway.ApprovalCancelled)
			ended = append(ended, r.ID)
		}
	}
	return ended, nil
}

// Changes implements gateway.Approvals.
func (a *Approvals) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for {
			a.mu.Lock()
			changed := a.changed
			a.mu.Unlock()
			select {
			case <-changed:
				select {
				case out <- struct{}{}:
				default:
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// Leases gives every call to the server "files" a credential of its own, and
// counts those that live.
type Leases struct {
	mu     sync.Mutex
	n      int
	live   map[string]bool
	Secret string // what it hands out; none while empty
	Err    error  // what it answers instead, if set
	Before func() // called before it answers, if set
}

// Lease implements gateway.Leases.
func (l *Leases) Lease(_ context.Context, _, _, _, server string) (gateway.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Before != nil {
		l.Before()
	}
	if l.Err != nil {
		return gateway.Lease{}, fmt.Errorf("%w: %w", gateway.ErrNoCredential, l.Err)
	}
	if l.Secret == "" {
		return gateway.Lease{}, nil
	}
	l.n++
	id := fmt.Sprintf("lease-%d", l.n)
	l.live[id] = true
	s := gateway.NewSecret(l.Secret)
	return gateway.Lease{
		ID: id, Server: server, Binding: server, Class: "revocable", PerCall: true, Fresh: true, Values: []gateway.Secret{s},
		Headers: map[string]gateway.Secret{"Authorization": gateway.NewSecret("Bearer " + l.Secret)}, Issued: time.Now(),
	}, nil
}

// GiveBack implements gateway.Leases.
func (l *Leases) GiveBack(_ context.Context, lease gateway.Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.live, lease.ID)
	return nil
}

// EndTask implements gateway.Leases.
func (l *Leases) EndTask(context.Context, string, string) ([]string, error) { return nil, nil }

// Live counts the leases that were not given back.
func (l *Leases) Live() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.live)
}

// Servers is one server, "files", whose tools answer what Answer says.
type Servers struct {
	mu     sync.Mutex
	tools  []gateway.Tool
	shelf  map[gateway.Sort][]gateway.Tool // of tools, made again when they change
	sent   []gateway.Forward
	ended  []string
	over   []string // sessions
	heard  []gateway.News
	follow map[string][]func()
	Ends   *gateway.LinkEnds // what EndTask says; nil for a session of files that is gone
	Answer func(ctx context.Context, f gateway.Forward, s gateway.Stream) (gateway.Result, error)
}

// NewServers makes the tools read, write, pay, slow and hidden.
func NewServers() *Servers {
	s := &Servers{follow: map[string][]func(){}, Answer: func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"done"}]}`)}, nil
	}}
	for _, name := range []string{"hidden", "pay", "read", "slow", "write"} {
		schema := `{"type":"object","properties":{"path":{"type":"string"},"amount":{"type":"number"},"to":{"type":"object","properties":{"iban":{"type":"string"}}}}}`
		s.tools = append(s.tools, gateway.Tool{
			Server: "files", Name: name, Alias: "files__" + name, Kind: "http", Addr: "http://127.0.0.1:1/mcp", Schema: json.RawMessage(schema),
			Definition: json.RawMessage(`{"name":"files__` + name + `","inputSchema":` + schema + `}`), Hash: "sha256:" + name, Target: "path",
			Check: func(args json.RawMessage) error {
				var v struct{ Path string }
				return json.Unmarshal(args, &v)
			},
		})
	}
	return s
}

// Offer adds things that the server offers beside its tools, by their alias.
func (s *Servers) Offer(of ...gateway.Tool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tools, s.shelf = append(s.tools, of...), nil
}

// Offered implements gateway.Servers.
func (s *Servers) Offered(_ string, of gateway.Sort) []gateway.Tool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shelf == nil {
		s.shelf = map[gateway.Sort][]gateway.Tool{}
		for _, t := range s.tools {
			s.shelf[sortOf(t)] = append(s.shelf[sortOf(t)], t)
		}
	}
	return s.shelf[of]
}

// Resolve implements gateway.Servers. A resource is found where it is offered.
func (s *Servers) Resolve(_ string, of gateway.Sort, alias string) (gateway.Tool, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tools {
		if t.Alias == alias && sortOf(t) == of {
			return t, true
		}
	}
	return gateway.Tool{}, false
}

func sortOf(t gateway.Tool) gateway.Sort { return cmp.Or(t.Sort, gateway.SortTool) }

// Follow implements gateway.Servers: Changed is what it hears of.
func (s *Servers) Follow(ctx context.Context, f gateway.Forward, updated func()) error {
	s.mu.Lock()
	s.follow[f.Tool.Name] = append(s.follow[f.Tool.Name], updated)
	s.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// Changed tells whoever follows a resource that it changed, and says how many did.
func (s *Servers) Changed(uri string) int {
	s.mu.Lock()
	all := slices.Clone(s.follow[uri])
	s.mu.Unlock()
	for _, f := range all {
		f()
	}
	return len(all)
}

// Redefine gives a tool another definition.
func (s *Servers) Redefine(alias string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.tools {
		if s.tools[i].Alias == alias {
			s.tools[i].Hash, s.shelf = s.tools[i].Hash+"'", nil
		}
	}
}

// TakesMeta lets keys of an agent's _meta through to a tool.
func (s *Servers) TakesMeta(alias string, keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.tools {
		if s.tools[i].Alias == alias {
			s.tools[i].Meta, s.shelf = keys, nil
		}
	}
}

// Forward implements gateway.Servers.
func (s *Servers) Forward(ctx context.Context, f gateway.Forward, stream gateway.Stream) (gateway.Result, error) {
	s.mu.Lock()
	s.sent = append(s.sent, f)
	answer := s.Answer
	s.mu.Unlock()
	return answer(ctx, f, stream)
}

// Sent returns what reached the server.
func (s *Servers) Sent() []gateway.Forward {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

// EndTask implements gateway.Servers.
func (s *Servers) EndTask(_ context.Context, _, task string) gateway.LinkEnds {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = append(s.ended, task)
	if s.Ends != nil {
		return *s.Ends
	}
	return gateway.LinkEnds{Gone: []string{"files"}}
}

// EndSession implements gateway.Servers: one session of files was open for it.
func (s *Servers) EndSession(_ context.Context, session string) (gateway.Owner, gateway.LinkEnds) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = append(s.over, session)
	for _, f := range s.sent {
		if f.Session == session {
			return gateway.Owner{Tenant: f.Principal.Tenant, Task: f.Task.ID, Principal: f.Principal.ID}, *cmp.Or(s.Ends, &gateway.LinkEnds{Gone: []string{"files"}})
		}
	}
	return gateway.Owner{}, gateway.LinkEnds{}
}

// Hear implements gateway.Servers.
func (s *Servers) Hear(_ context.Context, n gateway.News) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, n)
}

// Heard returns what agents said in their sessions.
func (s *Servers) Heard() []gateway.News {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.heard)
}

// Over returns the sessions that ended.
func (s *Servers) Over() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.over)
}

// Operators are the humans of New; every password is the name.
type Operators struct{ list []gateway.Operator }

// Login implements gateway.Operators.
func (o *Operators) Login(_ context.Context, name string, password gateway.Secret, source string) (gateway.Secret, gateway.Operator, error) {
	for _, op := range o.list {
		if op.Name == name && password.Reveal() == name {
			op.Source = source
			return gateway.NewSecret("session-of-" + name), op, nil
		}
	}
	return gateway.Secret{}, gateway.Operator{}, gateway.ErrLogin
}

// Session implements gateway.Operators.
func (o *Operators) Session(_ context.Context, token gateway.Secret) (gateway.Operator, error) {
	name, _ := strings.CutPrefix(token.Reveal(), "session-of-")
	if op, ok := o.Human(name); ok {
		return op, nil
	}
	return gateway.Operator{}, gateway.ErrLogin
}

// Logout implements gateway.Operators.
func (o *Operators) Logout(context.Context, gateway.Secret) error { return nil }

// Human implements gateway.Operators.
func (o *Operators) Human(name string) (gateway.Operator, bool) {
	for _, op := range o.list {
		for _, known := range append([]string{op.Name}, op.Identities...) {
			if gateway.HumanName(known) == gateway.HumanName(name) {
				return op, true
			}
		}
	}
	return gateway.Operator{}, false
}

// Answers implements gateway.Operators.
func (o *Operators) Answers(tenant, approver string) bool {
	return slices.ContainsFunc(o.list, func(op gateway.Operator) bool { return op.Answers(tenant, approver) })
}

// Op returns an operator by name.
func (o *Operators) Op(name string) gateway.Operator {
	op, ok := o.Human(name)
	if !ok {
		panic("no operator " + name)
	}
	return op
}
