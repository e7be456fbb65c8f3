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
	Authn      string   // how it proved itself: "api_key" or "task_token"
	Credential string   // the credential's public id (key id or token id), for the record
	Task       string   // the task its credential is bound to; empty for a credential of its own
	Expires    time.Time
}

// A Credential is what a caller presented; it names at most one task.
type Credential struct {
	Bearer  Secret // the Authorization header's token
	Task    string // the Toolbroker-Task header, or empty
	Session string // the MCP session it claims, or empty
	Source  string // the address it came from, for the record and for counting
}

// TaskState is where a task is in its life.
type TaskState string

// A task runs until it is ended or expires; both are final.
const (
	TaskRunning TaskState = "running"
	TaskEnded   TaskState = "ended"
	TaskExpired TaskState = "expired"
)

// A Task is the unit of authority: what a workload was asked to do.
type Task struct {
	ID         string       `json:"id"`
	Tenant     string       `json:"tenant"`
	Kind       string       `json:"kind"`
	Purpose    string       `json:"purpose"` // what its starter said it is for; untrusted text
	Owner      string       `json:"owner"`   // the operator accountable for it
	OnBehalfOf string       `json:"on_behalf_of,omitempty"`
	Principal  string       `json:"principal"` // the workload that may act on it
	StartedBy  string       `json:"started_by"`
	Parent     string       `json:"parent,omitempty"`
	Scope      *authz.Scope `json:"scope"` // its widest reach
	State      TaskState    `json:"state"`
	Started    time.Time    `json:"started"`
	Expires    time.Time    `json:"expires"`
	Ended      time.Time    `json:"ended,omitzero"`
	EndedBy    string       `json:"ended_by,omitempty"`
}

// A TaskKind is declared in the config: the most a task of it can be.
type TaskKind struct {
	Name    string
	Purpose string        // what it is for, shown to operators
	TTL     time.Duration // how long a task of it runs, at most
	Scope   *authz.Scope  // its maximum scope
	Tenants []string      // who may have one; empty for every tenant
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

// An ApprovalRequest is what is asked of operators: these bytes, once.
// Everything but State, Votes and Seq is fixed when it is made.
type ApprovalRequest struct {
	ID          string              `json:"id"`
	Tenant      string              `json:"tenant"`
	Fingerprint string              `json:"fingerprint"` // identical repeats attach by it
	Digest      string              `json:"digest"`      // what an operator answers to
	Principal   string              `json:"principal"`
	OnBehalfOf  string              `json:"on_behalf_of,omitempty"`
	Owner       string              `json:"owner"` // of the credential
	Chain       []string            `json:"chain,omitempty"`
	TaskID      string              `json:"task"`
	TaskKind    string              `json:"task_kind"`
	TaskOwner   string              `json:"task_owner"`
	TaskFor     string              `json:"task_for,omitempty"` // the human the task is for
	StartedBy   string              `json:"started_by,omitempty"`
	Purpose     string              `json:"purpose"` // untrusted text
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
	Source     string   // the address of this session
	CSRF       Secret   // binds the page's forms to this session; empty for the API
}

// Identity says who is asking.
type Identity interface {
	// Identify returns the principal behind a bearer token, or an error that
	// wraps ErrUnidentified. A token it verified before costs no round trip.
	Identify(ctx context.Context, bearer Secret) (Principal, error)
}

// Tasks knows what each workload is doing.
type Tasks interface {
	// Running returns the task if it is running as far as anyone has said in
	// the last 100 ms, and ErrNoTask otherwise: unknown, another tenant's,
	// ended, expired. Where that cannot be confirmed it returns ErrStale.
	Running(ctx context.Context, tenant, id string) (Task, error)
	// Ended is closed when the task is known to have ended or expired here.
	Ended(tenant, id string) <-chan struct{}
	// Start registers t as running and returns the bearer token that is it.
	Start(ctx context.Context, t Task) (Secret, error)
	// End ends the task, and says with what it ended; ending one that has
	// ended already is no error and returns it unchanged.
	End(ctx context.Context, tenant, id, by string) (Task, error)
	// Get returns a task in any state while it is remembered, else ErrNoTask.
	Get(ctx context.Context, tenant, id string) (Task, error)
	// List returns a tenant's running tasks and those that ended lately, newest first.
	List(ctx context.Context, tenant string) ([]Task, error)
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
	// Cancel ends every open request of a task.
	Cancel(ctx context.Context, tenant, task string) error
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
	// EndTask ends all leases of a task.
	EndTask(ctx context.Context, tenant, task string) error
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
	// EndTask closes a task's downstream sessions and ends its children.
	EndTask(ctx context.Context, tenant, task string) error
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
	// Open remembers a session under a binding.
	Open(ctx context.Context, session, binding string) error
	// Close forgets it; closing an unknown one is no error.
	Close(ctx context.Context, session string) error
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
)
