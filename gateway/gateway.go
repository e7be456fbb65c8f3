// Package gateway decides, records and carries out tool calls: who asks, on
// which task, may they, must a human agree, with which credential, and what
// came of it. Start with call.go: it is the product.
//
// It leaves HTTP and MCP to gateway/edge, the operators' page to
// gateway/console, policy to authz, evidence to gateway/audit, and every outside
// system to a broker behind one of the seams below.
package gateway

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"toolbroker/authz"
)

// A Principal is a workload identity and on whose behalf it acts.
type Principal struct {
	ID         string   // the workload: "spiffe://corp/agent/triage-7", "agent:triage"
	Tenant     string   // whose world it is; "[a-z0-9-]{1,64}"
	OnBehalfOf string   // the human it acts for, or empty
	Owner      string   // the operator accountable for its credential
	Chain      []string // who delegated, outermost first; empty when nobody did
	Authn      string   // how it proved itself: one of the Authn words below
	Credential string   // the credential's public id (key id, token id, certificate's fingerprint), for the record
	Subject    string   // as its issuer names it; empty where somebody acts for another, and for task tokens and API keys
	Issuer     string   // who vouches for it, as the config names them; empty for task tokens and API keys
	Client     string   // the OAuth client that got the token, or empty
	Bound      string   // the key that its credential is bound to, proven with this request: "jkt:<thumbprint>" or "x5t#S256:<thumbprint>"; else empty
	Vouches    []string // which claims about a task its word proves: on_behalf_of, purpose, labels, reference, approvers
	MayAct     []string // who may act for it by exchange, as its token's may_act names them (RFC 8693): "SUBJECT" of the same issuer, or "ISSUER|SUBJECT"
	StartsFor  []string // whom else it may start tasks for, as patterns of policy's; a workload starts for itself
	Standing   string   // the kind of task it is on where it names none; empty: it must name one
	Task       string   // the task its credential is bound to; empty for a credential of its own
	Expires    time.Time
}

// How a principal proved itself.
const (
	AuthnAPIKey     = "api_key"
	AuthnTaskToken  = "task_token"
	AuthnOIDC       = "oidc"
	AuthnKubernetes = "kubernetes"
	AuthnJWTSVID    = "spiffe_jwt"
	AuthnX509SVID   = "spiffe_x509"
	AuthnMTLS       = "mtls"
)

// A Credential is what a caller presented; it names at most one task.
type Credential struct {
	Bearer  Secret // the Authorization header's token; empty where a certificate is all there is
	DPoP    bool   // the header's scheme was DPoP, not Bearer (RFC 9449)
	Proof   Proof
	Task    string // the Toolbroker-Task header, or what _meta says; or empty
	Session string // the MCP session it claims, or empty
	Source  string // the address it came from, for the record and for counting
}

// A Proof is what shows that a token is its presenter's own.
type Proof struct {
	DPoP   string              // the DPoP header, or empty
	Method string              // of the HTTP request; empty on stdio
	URL    string              // of the HTTP request as agents write it, without query and fragment
	Peer   []*x509.Certificate // the client's certificates of this connection, its own first; their chain is not verified yet
	Proven string              // what [Identity.Proven] found of this request, where the token is in its body; never a caller's to set
}

// TaskState is where a task is in its life.
type TaskState string

// running → ending → ended, revoked or expired; only a running task is let do
// anything, and the last three are final. A task is ending until what hung on it
// is proven gone.
const (
	TaskRunning TaskState = "running"
	TaskEnding  TaskState = "ending"
	TaskEnded   TaskState = "ended"
	TaskRevoked TaskState = "revoked"
	TaskExpired TaskState = "expired"
)

// Final reports whether nothing can follow s.
func (s TaskState) Final() bool { return s != TaskRunning && s != TaskEnding }

// A Task is the unit of authority: what a workload was asked to do.
type Task struct {
	ID         string       `json:"id"`
	Tenant     string       `json:"tenant"`
	Kind       string       `json:"kind"`
	Purpose    string       `json:"purpose"` // what its starter said it is for; untrusted text
	Owner      string       `json:"owner"`   // the operator accountable for it
	OnBehalfOf string       `json:"on_behalf_of,omitempty"`
	Principal  string       `json:"principal"`            // the workload that may act on it, and that its token stands for
	Principals []string     `json:"principals,omitempty"` // further ones, each by a credential of its own
	StartedBy  string       `json:"started_by"`
	Reference  string       `json:"reference,omitempty"` // the ticket or prompt behind it: "hmac-sha256:<hex>", or as given where the config says so
	Labels     []string     `json:"labels,omitempty"`    // what its starter said it is about, sorted
	Approvers  []string     `json:"approvers,omitempty"` // who alone may approve its calls: operators, or "group:NAME"; empty for whomever policy asks
	Claims     Claims       `json:"claims,omitzero"`
	Bound      string       `json:"bound,omitempty"`    // the key its token is bound to, as in Principal; empty: a bearer's
	Implicit   bool         `json:"implicit,omitempty"` // nobody declared it: it stands for a client that can only set a URL
	Own        bool         `json:"own,omitempty"`      // its workload started it by a credential of its own
	OwnFor     string       `json:"own_for,omitempty"`  // with Own: the human whom that credential acts for, or none
	Parallel   bool         `json:"parallel,omitempty"` // its workload may be on other root tasks meanwhile
	Budget     Budget       `json:"budget,omitzero"`
	Chain      []string     `json:"chain,omitempty"` // who had delegated to the credential that started its root, outermost first
	Parent     string       `json:"parent,omitempty"`
	Ancestors  []Ancestor   `json:"ancestors,omitempty"` // outermost first; the last is the parent
	Limits     Limits       `json:"limits,omitzero"`     // on its descendants
	Scope      *authz.Scope `json:"scope"`               // its widest reach
	Widened    []Widening   `json:"widened,omitempty"`   // what was added to it
	State      TaskState    `json:"state"`
	Started    time.Time    `json:"started"`
	Expires    time.Time    `json:"expires"`
	Ended      time.Time    `json:"ended,omitzero"` // when its end began: calls are refused from then on
	EndedBy    string       `json:"ended_by,omitempty"`
	Outcome    TaskState    `json:"outcome,omitempty"` // the final state that an ending task comes to
	Why        string       `json:"why,omitempty"`     // of its end, in words
	Closed     time.Time    `json:"closed,omitzero"`   // when everything of it was gone
}

// Human is whom the task is for, as far as somebody's word proves it: budgets and
// denials of a workload and human are counted by it, so that naming another human
// washes nothing off.
func (t Task) Human() string {
	if t.Claims.OnBehalfOf == Proven {
		return t.OnBehalfOf
	}
	return ""
}

// Acts reports whether a workload may act on the task.
func (t Task) Acts(principal string) bool {
	return principal == t.Principal || slices.Contains(t.Principals, principal)
}

// Root returns the outermost task of its chain.
func (t Task) Root() string {
	if len(t.Ancestors) > 0 {
		return t.Ancestors[0].ID
	}
	return t.ID
}

// An Ancestor is a task above another, as it was when the other started: what a
// descendant may reach never grows with it.
type Ancestor struct {
	ID         string       `json:"id"`
	Kind       string       `json:"kind"`
	Principal  string       `json:"principal"`
	StartedBy  string       `json:"started_by,omitempty"`
	Human      string       `json:"human,omitempty"` // as [Task.Human] says
	Owner      string       `json:"owner,omitempty"`
	OnBehalfOf string       `json:"on_behalf_of,omitempty"`
	Implicit   bool         `json:"implicit,omitempty"`
	Own        bool         `json:"own,omitempty"`
	OwnFor     string       `json:"own_for,omitempty"`
	PerDay     int64        `json:"per_day,omitempty"` // its budget of a day
	Scope      *authz.Scope `json:"scope"`
}

// Ancestor is what a task below t keeps of it.
func (t Task) Ancestor() Ancestor {
	return Ancestor{
		ID: t.ID, Kind: t.Kind, Principal: t.Principal, StartedBy: t.StartedBy, Human: t.Human(), Owner: t.Owner, OnBehalfOf: t.OnBehalfOf,
		Implicit: t.Implicit, Own: t.Own, OwnFor: t.OwnFor, PerDay: t.Budget.PerDay, Scope: t.Scope,
	}
}

// Delegators are the principals who delegated the task, outermost first.
func (t Task) Delegators() []string {
	all := slices.Clone(t.Chain)
	for _, a := range t.Ancestors {
		all = append(all, a.Principal)
	}
	return all
}

// Shown is the task as its own workload may read it: what the tasks above it may
// do is not its business.
func (t Task) Shown() Task {
	t.Ancestors = slices.Clone(t.Ancestors)
	for i := range t.Ancestors {
		t.Ancestors[i].Scope = nil
	}
	return t
}

// Claims says of what a task's starter claimed whether its word proves it; what
// it does not prove is asserted, shown as untrusted, and grants nothing.
type Claims struct {
	Owner      Claim `json:"owner,omitempty"`
	OnBehalfOf Claim `json:"on_behalf_of,omitempty"`
	Purpose    Claim `json:"purpose,omitempty"`
	Reference  Claim `json:"reference,omitempty"`
	Labels     Claim `json:"labels,omitempty"`
	Approvers  Claim `json:"approvers,omitempty"`
}

// A Claim is proven, asserted, or was not made.
type Claim string

// The worth of a claim.
const (
	Proven   Claim = "proven"
	Asserted Claim = "asserted"
)

// A Budget is how much may be done; zero is no limit.
type Budget struct {
	Calls  int64 `json:"calls,omitempty"`   // by a task and its descendants together
	PerDay int64 `json:"per_day,omitempty"` // by one workload for one human, on tasks of one kind, per UTC day
}

// Limits is how far a task may delegate; zero is not at all.
type Limits struct {
	Depth  int `json:"depth,omitempty"`   // generations below it
	FanOut int `json:"fan_out,omitempty"` // running children of one task
}

// A Widening is scope that an approval added to a task, until it lapses.
type Widening struct {
	Approval string           `json:"approval"`
	Rows     []authz.ScopeRow `json:"rows"`
	Until    time.Time        `json:"until"`
	By       []string         `json:"by"` // the operators who agreed
}

// A TaskKind is declared in the config: the most a task of it can be.
type TaskKind struct {
	Name     string
	Purpose  string        // what it is for, shown to operators
	TTL      time.Duration // how long a task of it runs, at most
	Scope    *authz.Scope  // its maximum scope
	Initial  *authz.Scope  // what a task has that asks for no less; nil for Scope
	Tenants  []string      // who may have one; empty for every tenant
	Own      bool          // a workload may start one for itself
	Parallel bool          // a workload on another root task may name or start one by a credential of its own, and the other way round
	Bound    bool          // its tasks' tokens, and credentials that name its tasks, must be bound to a key of their holder
	Plain    bool          // keep references as given, not as a keyed hash
	Budget   Budget
	Limits   Limits
	Escalate time.Duration // how long scope that is granted on request lasts, at most; zero: none is
}

// A StopKind says what a stop holds.
type StopKind string

// What can be stopped. A stop refuses calls and starts until it is lifted, and
// ends the tasks that it is about.
const (
	StopTenant    StopKind = "tenant"    // all of a tenant
	StopPrincipal StopKind = "principal" // a workload, as Principal.ID names it
	StopOwner     StopKind = "owner"     // everything an operator is accountable for
	StopHuman     StopKind = "human"     // everything on behalf of one
	StopStanding  StopKind = "standing"  // the implicit task of one workload, human and kind: made where one is ended before it expires
)

// A Stop is a standing no.
type Stop struct {
	Tenant string    `json:"tenant"`
	Kind   StopKind  `json:"kind"`
	Name   string    `json:"name"`             // what Kind says; empty for a tenant
	Global bool      `json:"global,omitempty"` // of a tenant: every other tenant was stopped with it
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// A Closing is what ended with a task, and what could not be proven to.
type Closing struct {
	Calls     int      `json:"calls"`     // that were under way
	Approvals int      `json:"approvals"` // pending or granted
	Leases    int      `json:"leases"`    // revoked or expired, and looked up
	Links     int      `json:"links"`     // downstream sessions and stdio children
	Sessions  int      `json:"sessions"`  // the agent's own MCP sessions
	Children  int      `json:"children"`  // tasks
	Unproven  []string `json:"unproven,omitempty"`
}

// Add puts two closings together.
func (c Closing) Add(d Closing) Closing {
	return Closing{
		Calls: c.Calls + d.Calls, Approvals: c.Approvals + d.Approvals, Leases: c.Leases + d.Leases, Links: c.Links + d.Links,
		Sessions: c.Sessions + d.Sessions, Children: c.Children + d.Children, Unproven: slices.Concat(c.Unproven, d.Unproven),
	}
}

// A Tool is one tool of one server as its definition was last seen.
type Tool struct {
	Server     string          // the server's name in the config
	Name       string          // the tool's own name there
	Alias      string          // the name agents see; unique within a tenant
	Definition json.RawMessage // the definition's bytes, with Name replaced by Alias
	Schema     json.RawMessage // its inputSchema
	Hash       string          // "sha256:<hex>" of the canonical definition, under its own name
	Check      func(args json.RawMessage) error
	Meta       []string // _meta keys of the agent's that this server's config lets through
	Kind       string   // "http" or "stdio"
	Addr       string   // where it is, for the record; never with credentials
	Class      string   // class of the credential its server needs; empty when none
	Target     string   // argument that names the object touched, from the config; empty when none does

	ours ours // of a tool that the gateway itself offers, and carries out; else nil
}

// ID is the tool's name in policy: "server/tool".
func (t Tool) ID() string { return t.Server + "/" + t.Name }

// A Call is one tools/call as it came through the door.
type Call struct {
	Credential Credential
	Name       string          // the tool as the agent named it
	Args       json.RawMessage // the agent's bytes; an object
	Meta       json.RawMessage // the agent's _meta; an object, or nil
	JSONRPCID  string          // as the agent wrote it
	Protocol   string          // the MCP revision it speaks

	// Agrees holds what the transport says of the arguments against the tool,
	// once the caller may see it; its error refuses the call. Nil for nothing.
	Agrees func(Tool) error
}

// A Stream is the way back to the agent while its call is running.
type Stream interface {
	// Notify sends a notification. Its failure means the agent is gone; the
	// call's context says so too.
	Notify(ctx context.Context, method string, params json.RawMessage) error
}

// A Result is what goes back: a tool's result, or a downstream's JSON-RPC
// error, each with the server's own bytes.
type Result struct {
	Raw   json.RawMessage // the result object, when Error is nil
	Error json.RawMessage // the JSON-RPC error object
}

// Failed reports whether the tool says of itself that it failed.
func (r Result) Failed() bool {
	var body struct {
		IsError bool `json:"isError"`
	}
	return r.Error != nil || json.Unmarshal(r.Raw, &body) != nil || body.IsError
}

// A Forward is a decided call on its way downstream. The envelope is built from
// it, never from what the agent sent.
type Forward struct {
	CallID    string
	Tool      Tool
	Args      json.RawMessage // the bytes that were decided on
	Meta      json.RawMessage // an object of the allowed keys, or nil; holds no progress token
	Progress  bool            // the agent asked for progress
	Principal Principal
	Task      Task
	Session   string // the agent's session, "" without one
	Lease     Lease
}

// ApprovalState is where an approval request is in its life.
type ApprovalState string

// pending → granted → reserved → consumed; pending, granted → one of the ends.
// A reserved grant that is given back is granted again. Every state but
// pending, granted and reserved is final.
const (
	ApprovalPending   ApprovalState = "pending"
	ApprovalGranted   ApprovalState = "granted"
	ApprovalReserved  ApprovalState = "reserved"
	ApprovalConsumed  ApprovalState = "consumed"
	ApprovalDenied    ApprovalState = "denied"
	ApprovalExpired   ApprovalState = "expired"
	ApprovalCancelled ApprovalState = "cancelled"
	ApprovalVoided    ApprovalState = "voided"
)

// Final reports whether nothing can follow s.
func (s ApprovalState) Final() bool {
	return s != ApprovalPending && s != ApprovalGranted && s != ApprovalReserved
}

// A RequestKind says what an approval is asked for.
type RequestKind string

// A call runs once it is granted; an escalation widens its task.
const (
	RequestCall       RequestKind = "call"
	RequestEscalation RequestKind = "escalation"
)

// An ApprovalRequest is what is asked of operators: these bytes, once.
// Everything but State, Votes and Seq is fixed when it is made.
type ApprovalRequest struct {
	ID          string              `json:"id"`
	Kind        RequestKind         `json:"kind"`
	Tenant      string              `json:"tenant"`
	Fingerprint string              `json:"fingerprint"`       // identical repeats attach by it
	Denials     []string            `json:"denials,omitempty"` // what it asks for, whatever the task: a human's no to any of it outlives the task it was said in
	Digest      string              `json:"digest"`            // what an operator answers to
	Principal   string              `json:"principal"`
	OnBehalfOf  string              `json:"on_behalf_of,omitempty"`
	Owner       string              `json:"owner"` // of the credential
	Chain       []string            `json:"chain,omitempty"`
	TaskID      string              `json:"task"`
	TaskKind    string              `json:"task_kind"`
	TaskOwner   string              `json:"task_owner"`
	TaskFor     string              `json:"task_for,omitempty"` // the human the task is for
	StartedBy   string              `json:"started_by,omitempty"`
	TaskChain   []string            `json:"task_chain,omitempty"` // the tasks above it, outermost first
	Starters    []string            `json:"starters,omitempty"`   // who started those
	Purpose     string              `json:"purpose"`              // untrusted text
	Asserted    []string            `json:"asserted,omitempty"`   // the task's claims that nobody proved
	Implicit    bool                `json:"implicit,omitempty"`   // the task is nobody's declared one
	Approvers   []string            `json:"approvers,omitempty"`  // who alone may answer, as the task says; narrows Need
	Server      string              `json:"server"`
	Tool        string              `json:"tool"`
	Alias       string              `json:"alias"`
	Definition  string              `json:"definition"` // the tool's hash
	Args        json.RawMessage     `json:"-"`          // the agent's bytes: shown = hashed = sent; sealed at rest, gone at the end
	ArgsDigest  string              `json:"args_digest"`
	ArgsCanon   string              `json:"args_canon"` // digest of the canonical arguments
	Meta        json.RawMessage     `json:"meta,omitempty"`
	Need        []authz.Requirement `json:"need"`
	Rules       []authz.Rule        `json:"rules"`
	Class       string              `json:"class,omitempty"` // of the credential it will use
	Revision    string              `json:"revision"`        // of the policy that asked
	FourEyes    bool                `json:"four_eyes"`       // every human behind it is known here, so that a voter is known to be another
	Created     time.Time           `json:"created"`
	Expires     time.Time           `json:"expires"` // of the request; a grant's own window may end earlier

	State ApprovalState `json:"state"`
	Votes []Vote        `json:"votes,omitempty"`
	Seq   int64         `json:"seq"` // transitions so far
}

// A Vote is one operator's answer to one approval request.
type Vote struct {
	By      string    `json:"by"`
	Groups  []string  `json:"groups,omitempty"` // the operator's, when voting
	Approve bool      `json:"approve"`
	Reason  string    `json:"reason,omitempty"`
	Digest  string    `json:"digest"` // the approval digest it answers
	At      time.Time `json:"at"`
}

// A Grant is a granted request, reserved for one call.
type Grant struct {
	Request ApprovalRequest
	Call    string // the call it is reserved for
}

// A Lease is a credential for one call or one task, and what to do with it.
// The zero Lease is for a server that needs none.
type Lease struct {
	ID        string // ours; empty for the zero Lease
	Binding   string
	Class     string // revocable, ttl-bound, static, none-disclosed, stand-in
	Engine    string // "kv", "database", ...
	Server    string
	PerCall   bool
	Fresh     bool              // issued for this call, so its issue is not on record yet
	Headers   map[string]Secret // for an HTTP server, as sent
	Env       map[string]Secret // for a stdio child, as set
	Values    []Secret          // the secret parts of Headers and Env; what is blanked out of what goes back
	Issued    time.Time
	Expires   time.Time // zero when it does not
	LeaseHash string    // "sha256:<hex>" of Vault's lease id, or empty
	RequestID string    // Vault's
	Version   string    // of a static secret, or empty
}

// Secrets lists the values to keep out of what goes back.
func (l Lease) Secrets() []Secret {
	all := slices.Clone(l.Values)
	for _, s := range l.Headers {
		all = append(all, s)
	}
	for _, s := range l.Env {
		all = append(all, s)
	}
	return all
}

// An Operator is a human who answers, starts, ends or reads.
type Operator struct {
	Name       string
	Groups     []string
	Roles      []string // viewer, approver, admin, auditor
	Tenants    []string // "*" for all
	Identities []string // principals' owners and on-behalf-of names that are this same human
	Disabled   bool     // may do nothing, and nothing runs that it is accountable for
	Source     string   // the address of this session
	CSRF       Secret   // binds the page's forms to this session; empty for the API
}

// Identity says who is asking.
type Identity interface {
	// Identify returns the principal behind what a caller presented, or an
	// [*NotIdentified]. A bearer token it verified before costs no round trip;
	// a proof of possession is checked each time.
	Identify(ctx context.Context, cred Credential) (Principal, error)
	// Proven returns the key that the request proves by itself, as in
	// Principal.Bound: by a DPoP proof, which it uses up, or else by a client
	// certificate; or "" where it brings neither. It is for requests that carry
	// their token in the body: put it into Proof.Proven and then identify.
	Proven(ctx context.Context, cred Credential) (string, error)
}

// Tasks knows what each workload is doing. Every transition is one atomic step.
type Tasks interface {
	// Running returns the task if it, and every task above it, is running as far
	// as anyone has said in the last 100 ms and no stop is about it: else
	// ErrNoTask (and ErrStopped where a stop is why), or ErrStale where that
	// cannot be confirmed. The first use of a task on a replica registers the
	// replica with it: its closing waits for that replica.
	Running(ctx context.Context, tenant, id string) (Task, error)
	// Ended is closed when the task, or one above it, is known here to run no longer.
	Ended(tenant, id string) <-chan struct{}
	// Start registers t as running and returns the bearer token that is it. In one
	// step it refuses what a stop is about (ErrStopped and ErrNoTask); a child
	// whose parent does not run (ErrNoTask) or has as many running children as its
	// limits allow (ErrTooMany); one with Own whose workload is on another root
	// task, unless either is Parallel (ErrBusy), and else binds it to t; and an
	// implicit one that runs already (ErrNotNow).
	Start(ctx context.Context, t Task) (Secret, error)
	// Standing returns the implicit task of a workload, human and kind: ErrNoTask
	// where none runs, ErrStopped as well where one was ended. A known one costs no
	// round trip.
	Standing(ctx context.Context, tenant, principal, human, kind string) (Task, error)
	// Bind makes t the task that one of its principals is on by a credential of its
	// own, which acts for a human or for none (""): ErrBusy while it is on one of
	// another root that runs, unless either is Parallel. What is bound already costs
	// no round trip.
	Bind(ctx context.Context, t Task, principal, human string) error
	// Spend takes one call from the budgets of t and of the tasks above it, and
	// from its workload's day; ErrTooMany where one is used up, and then nothing is
	// taken. It costs no round trip where there is no budget.
	Spend(ctx context.Context, t Task) error
	// Widen adds scope to a running task until w lapses; the same approval twice
	// changes nothing. Every replica sees it within 100 ms.
	Widen(ctx context.Context, tenant, id string, w Widening) (Task, error)
	// End begins the end of a task, and of all below it; one whose end began before
	// it returns as it is. Calls are refused from here on, and its closing follows
	// by itself.
	End(ctx context.Context, tenant, id string, e Ending) (Task, error)
	// Get returns a task in any state while it is remembered, else ErrNoTask.
	Get(ctx context.Context, tenant, id string) (Task, error)
	// List returns a tenant's running tasks and those that ended lately, newest first.
	List(ctx context.Context, tenant string) ([]Task, error)
	// Stop sets a stop and begins the end of every running task that it is about,
	// as revoked. Setting it again changes nothing.
	Stop(ctx context.Context, s Stop) error
	// Lift removes a stop and returns it, or ErrNotFound.
	Lift(ctx context.Context, tenant string, kind StopKind, name string) (Stop, error)
	// Stops lists a tenant's, newest first.
	Stops(ctx context.Context, tenant string) ([]Stop, error)
}

// An Ending is how a task's end begins.
type Ending struct {
	As   TaskState // TaskEnded, which for an implicit task also sets a StopStanding; or TaskRevoked
	By   string    // "operator:alice", a principal; "parent", "stop", "expiry" where nobody in person did it
	Why  string
	Said bool // whoever ends it records task.ending itself
}

// Approvals puts a request to humans and hands over the answer. Every
// transition is atomic; what it cannot do it refuses with ErrNotNow.
type Approvals interface {
	// Request stores r, or returns the stored request with r's fingerprint
	// that is pending, granted, reserved or denied and not expired.
	Request(ctx context.Context, r ApprovalRequest) (stored ApprovalRequest, fresh bool, err error)
	// Wait returns the request once it is not pending, or as it is when ctx ends.
	Wait(ctx context.Context, tenant, id string) (ApprovalRequest, error)
	// Claim reserves a granted request for one call; the grant's request holds
	// the arguments.
	Claim(ctx context.Context, tenant, id, call string) (Grant, error)
	// Consume uses the reserved grant up. After it the grant can never be claimed.
	Consume(ctx context.Context, g Grant) error
	// Release gives a reserved grant back.
	Release(ctx context.Context, g Grant) error
	// Void ends a reserved grant that is no longer enough.
	Void(ctx context.Context, g Grant) error
	// Vote adds one operator's answer. One denial denies; enough approvals for
	// every requirement grant. An operator votes once.
	Vote(ctx context.Context, tenant, id string, v Vote) (ApprovalRequest, error)
	// Get returns a request, with its arguments while it is not final, else ErrNotFound.
	Get(ctx context.Context, tenant, id string) (ApprovalRequest, error)
	// List returns a tenant's open requests and those that ended lately, oldest first, without arguments.
	List(ctx context.Context, tenant string) ([]ApprovalRequest, error)
	// Cancel ends every open request of a task and says how many there were;
	// nothing can be asked for it afterwards.
	Cancel(ctx context.Context, tenant, task string) (int, error)
	// Changes sends whenever some request changed, on this replica or another;
	// it may merge changes. It stops when ctx ends.
	Changes(ctx context.Context) <-chan struct{}
}

// Leases gets credentials and makes sure that they end.
type Leases interface {
	// Lease returns the credential for a call to a server, the zero Lease where
	// the server needs none, or an error that wraps ErrNoCredential. What it
	// issues is in the ledger before it returns.
	Lease(ctx context.Context, tenant, task, call, server string) (Lease, error)
	// GiveBack ends a per-call lease: revoked and looked up, on record either way.
	GiveBack(ctx context.Context, l Lease) error
	// EndTask ends all leases of a task and says how many it saw end. An error
	// means that some end is not proven yet.
	EndTask(ctx context.Context, tenant, task string) (int, error)
}

// Servers is the way downstream.
type Servers interface {
	// Tools returns a tenant's catalogue, sorted by alias. The slice and what
	// it holds are not to be changed.
	Tools(tenant string) []Tool
	// Resolve finds a tool by the name agents see.
	Resolve(tenant, alias string) (Tool, bool)
	// Forward sends the call and returns the answer. An error that wraps
	// ErrNotSent means that nothing reached the server; any other error leaves
	// that open.
	Forward(ctx context.Context, f Forward, s Stream) (Result, error)
	// EndTask closes a task's downstream sessions and ends its children on this
	// replica, and says how many it saw end.
	EndTask(ctx context.Context, tenant, task string) (int, error)
}

// Operators knows the humans.
type Operators interface {
	// Login checks a password and opens a session. A wrong one, an unknown name
	// and too many tries are told apart by ErrLogin and ErrTooMany only.
	Login(ctx context.Context, name string, password Secret, source string) (token Secret, op Operator, err error)
	// Session returns the operator behind a session token, or ErrLogin.
	Session(ctx context.Context, token Secret) (Operator, error)
	// Logout ends the session.
	Logout(ctx context.Context, token Secret) error
	// Human returns the operator that a name stands for, as a name or as one of its identities.
	Human(name string) (Operator, bool)
}

// Sessions are the agents' legacy MCP sessions.
type Sessions interface {
	// Owner returns the binding a session was opened with, or ErrNotFound.
	Owner(ctx context.Context, session string) (string, error)
	// Open remembers a session under a binding, as one of a task's.
	Open(ctx context.Context, session, binding, tenant, task string) error
	// Close forgets it; closing an unknown one is no error.
	Close(ctx context.Context, session string) error
	// EndTask forgets all of a task's and says how many there were.
	EndTask(ctx context.Context, tenant, task string) (int, error)
}

// A Recorder keeps facts. It is safe for concurrent use.
type Recorder interface {
	// Record writes facts in order; they are durable with the next group.
	Record(ctx context.Context, f ...Fact) error
	// Durable writes facts in order and returns when they are durable.
	Durable(ctx context.Context, f ...Fact) error
}

// What the seams say when they say no.
var (
	ErrUnidentified = errors.New("unidentified")
	ErrNoTask       = errors.New("no such running task")
	ErrStale        = errors.New("cannot confirm that the task is running")
	ErrNotNow       = errors.New("not possible in this state")
	ErrNotFound     = errors.New("not found")
	ErrNoCredential = errors.New("no credential")
	ErrNotSent      = errors.New("not sent")
	ErrBadAnswer    = errors.New("unusable answer") // a server answered, but not with what can be passed on
	ErrLogin        = errors.New("name or password is wrong")
	ErrTooMany      = errors.New("too many tries")
	ErrBusy         = errors.New("the workload is on another root task")
	ErrStopped      = errors.New("stopped by an operator") // wraps nothing; whoever returns it wraps ErrNoTask as well
)
