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
	Source  string // the address it came from, for the record and for counting; or SourceStdio
}

// SourceStdio is where an agent is that has us for a child.
const SourceStdio = "stdio"

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
	StopStanding  StopKind = "standing"  // every task of one workload, human and kind, whoever starts it: made where an implicit one is ended before it expires
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
	Names     Names    `json:"names"`     // of what is counted above
	Unproven  []string `json:"unproven,omitempty"`
	Lost      []string `json:"lost,omitempty"` // unproven too, and no longer tried
}

// Names say what ended with a task, each at most once and of each sort at most 20.
type Names struct {
	Approvals []string `json:"approvals,omitempty"` // their ids
	Leases    []string `json:"leases,omitempty"`    // their bindings
	Links     []string `json:"links,omitempty"`     // their servers
	Children  []string `json:"children,omitempty"`  // their ids
}

// mostNames bounds what a closing lists beside its counts.
const mostNames = 20

// Add puts two closings together.
func (c Closing) Add(d Closing) Closing {
	return Closing{
		Calls: c.Calls + d.Calls, Approvals: c.Approvals + d.Approvals, Leases: c.Leases + d.Leases, Links: c.Links + d.Links,
		Sessions: c.Sessions + d.Sessions, Children: c.Children + d.Children, Names: c.Names.add(d.Names),
		Unproven: once(c.Unproven, d.Unproven), Lost: once(c.Lost, d.Lost),
	}
}

func (n Names) add(m Names) Names {
	few := func(a, b []string) []string {
		all := slices.Concat(a, b)
		slices.Sort(all)
		all = slices.Compact(all)
		return all[:min(len(all), mostNames)]
	}
	return Names{few(n.Approvals, m.Approvals), few(n.Leases, m.Leases), few(n.Links, m.Links), few(n.Children, m.Children)}
}

// once puts two lists together and leaves out what was there already.
func once(a, b []string) (all []string) {
	for _, s := range slices.Concat(a, b) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// A Sort is what kind of thing a server offers.
type Sort string

// What servers offer.
const (
	SortTool     Sort = "tool"
	SortResource Sort = "resource"
	SortTemplate Sort = "template" // of resources
	SortPrompt   Sort = "prompt"
)

// What an agent asks of a server, in MCP's words. Each walks the same line, and
// each is an action of its own in policy: call, read, get, complete, subscribe.
const (
	MethodCall      = "tools/call"
	MethodRead      = "resources/read"
	MethodGet       = "prompts/get"
	MethodComplete  = "completion/complete"
	MethodSubscribe = "resources/subscribe"
)

// What a server asks of an agent while it works on a call. Each is an action of
// its own: elicit, sample, roots.
const (
	MethodElicit = "elicitation/create"
	MethodSample = "sampling/createMessage"
	MethodRoots  = "roots/list"
)

// What an agent asks about a task of the MCP tasks extension that a server made.
const (
	MethodTaskGet    = "tasks/get"
	MethodTaskUpdate = "tasks/update"
	MethodTaskCancel = "tasks/cancel"
)

// A Tool is one thing of one server (a tool, a resource, a template of resources,
// a prompt) as its definition was last seen.
type Tool struct {
	Sort       Sort            // empty: a tool
	Server     string          // the server's name in the config
	Name       string          // its own name there; of a resource its URI, of a template its URI template
	Alias      string          // the name agents see; unique within a tenant and sort
	Definition json.RawMessage // the definition's bytes, with Name replaced by Alias
	Schema     json.RawMessage // a tool's inputSchema; of others nil
	Hash       string          // "sha256:<hex>" of the canonical definition, under its own name
	Check      func(args json.RawMessage) error
	Promise    func(structured json.RawMessage) error // holds structuredContent against the outputSchema; nil without one
	TaskOnly   bool                                   // its server runs it as a task of 2025-11-25 only; agents do not read that
	Meta       []string                               // _meta keys of the agent's that this server's config lets through
	Kind       string                                 // "http" or "stdio"
	Addr       string                                 // where it is, for the record; never with credentials
	Class      string                                 // class of the credential its server needs; empty when none
	Target     string                                 // argument that names the object touched, from the config; empty when none does

	// What agents read of it where that is not all of Definition, and agents of before
	// 2026-07-28 where that is less again; nil: what the others read.
	Shown, ShownBefore json.RawMessage

	ours ours // of a tool that the gateway itself offers, and carries out; else nil
}

// Listed is its definition as agents read it in a list.
func (t Tool) Listed(modern bool) json.RawMessage {
	switch {
	case !modern && t.ShownBefore != nil:
		return t.ShownBefore
	case t.Shown != nil:
		return t.Shown
	}
	return t.Definition
}

// ID is its name in policy: "server/tool", "server/<uri>", "server/prompt".
func (t Tool) ID() string { return t.Server + "/" + t.Name }

// A Call is one request for a server as it came through the door.
type Call struct {
	Credential Credential
	Method     string          // one of MethodCall to MethodSubscribe; empty: MethodCall
	Name       string          // as the agent named it: a tool or prompt, a resource's URI; of a completion, what its ref names
	Ref        Sort            // of a completion: SortPrompt or SortTemplate
	Args       json.RawMessage // the agent's bytes, an object: a tool's or prompt's arguments; of a completion {"argument":…,"context":…}
	Meta       json.RawMessage // the agent's _meta; an object, or nil
	JSONRPCID  string          // as the agent wrote it
	Protocol   string          // the MCP revision it speaks
	Caps       json.RawMessage // the client capabilities that hold for this request, an object; nil for none
	LogLevel   string          // of the log messages that it wants, in MCP's words; empty: it did not say
	Answers    json.RawMessage // inputResponses, an object, where it answers what a server asked; else nil
	State      string          // the requestState that came back with them, or empty

	// Later says that the agent takes a handle for what takes long (the MCP tasks
	// extension): a call that needs approval is then kept, not held.
	Later bool

	// Page says that the agent's side can be sent to a page of ours: a call that needs
	// approval sends it there at once, and waits when it comes back.
	Page bool

	// Agrees holds what the transport says of the arguments against the tool,
	// once the caller may see it; its error refuses the call. Nil for nothing.
	Agrees func(Tool) error

	// Begin begins to make known that the call is about to be sent. Nothing is before
	// what it returns has returned; that error refuses the call. Nil for nothing.
	Begin func() (wait func(context.Context) error)
	Once  string // the same for whatever can only be the same call made again; empty: nobody knows one
}

// A Stream is the way back to the agent while its call is running. It is safe for
// concurrent use.
type Stream interface {
	// Notify sends a notification: notifications/progress or notifications/message.
	// Its failure means the agent is gone; the call's context says so too.
	Notify(ctx context.Context, method string, params json.RawMessage) error
	// Ask puts a server's request to the agent and waits for the answer, a result
	// or a JSON-RPC error. It is ErrCannotAsk where the agent's era has no such
	// thing, or it never said that it can answer: nothing was sent then.
	Ask(ctx context.Context, method string, params json.RawMessage) (Result, error)
}

// What a result is, in the words of resultType.
const (
	ResultComplete = "complete"
	ResultInput    = "input_required" // the server needs answers first: inputRequests, requestState
	ResultTask     = "task"           // the server answers later: a handle of the MCP tasks extension
)

// A Result is what goes back: a tool's result, or a downstream's JSON-RPC
// error, each with the server's own bytes.
type Result struct {
	Type  string          // what Raw is; empty: ResultComplete
	Raw   json.RawMessage // the result object, read strictly, when Error and Handle are nil
	Error json.RawMessage // the JSON-RPC error object, read strictly

	Handle *Handle // what to come back for, where Type is ResultTask and the gateway says it; a server's own is in Raw
}

// A Forward is a decided call on its way downstream. The envelope is built from
// it, never from what the agent sent.
type Forward struct {
	CallID    string
	Method    string // as in Call, or one of MethodTaskGet to MethodTaskCancel; empty: MethodCall
	Tool      Tool
	Args      json.RawMessage // the bytes that were decided on
	Meta      json.RawMessage // an object of the allowed keys, or nil; holds no progress token
	Caps      json.RawMessage // what the server may ask of the agent about this, as client capabilities; an object, or nil for nothing
	LogLevel  string          // of the log messages that the agent wants; empty: it did not say
	Protocol  string          // the MCP revision that the agent speaks: from 2026-07-28 on it can be asked nothing while a call runs
	Answers   json.RawMessage // inputResponses, or nil
	State     string          // the server's own requestState, or empty
	Remote    string          // for MethodTaskGet to MethodTaskCancel: the server's own task id
	Progress  bool            // the agent asked for progress
	Principal Principal
	Task      Task
	Session   string // the agent's session, "" without one
	Once      string // as in Call: servers that know keys of idempotency get theirs made of it, or of CallID
	Lease     Lease

	// Of an agent's session: what the server could be let ask about anything in it,
	// which is the same for all its calls, and the way to its agent beside them. Both
	// are nil without one.
	Open   json.RawMessage
	Beside Stream
}

// A Handle is what an agent of the MCP tasks extension comes back for: a call that
// waits for a human, one that runs, or a task that a server made for a call. All of
// it but ID, Tenant, Binding, Task, Call and Created moves, and Seq with it.
type Handle struct {
	ID      string // 256 random bits, "[a-z0-9]+"; whoever has it must also be who got it
	Tenant  string
	Binding string // whose it is: principal, human and task
	Task    string
	Call    StoredCall

	Approval string // the request that it waits for, or empty
	Server   string // of a server's task, with Remote
	Remote   string // the server's own id
	Run      string // the call that runs it, or puts its end on record; or empty
	RunUntil time.Time

	Status  string // working, input_required, completed, failed, cancelled
	Message string
	Result  Result          // of a completed or failed one
	Refused bool            // it failed by a refusal of the gateway's, which is Result.Error
	Wants   json.RawMessage // inputRequests while input_required
	State   string          // the requestState that goes with them, and back with
	Answers json.RawMessage // what was answered
	Poll    time.Duration   // how long the agent should wait between two looks
	Created time.Time
	Updated time.Time
	Expires time.Time
	Seq     int64
}

// The states of a handle, in the words of the extension.
const (
	HandleWorking   = "working"
	HandleInput     = "input_required"
	HandleCompleted = "completed"
	HandleFailed    = "failed"
	HandleCancelled = "cancelled"
)

// Final reports whether nothing can follow.
func (h Handle) Final() bool {
	return h.Status == HandleCompleted || h.Status == HandleFailed || h.Status == HandleCancelled
}

// A StoredCall is a call that is kept for later, without who made it.
type StoredCall struct {
	Method   string          `json:"method"`
	Name     string          `json:"name"`
	Args     json.RawMessage `json:"args"`
	Meta     json.RawMessage `json:"meta,omitempty"`
	Caps     json.RawMessage `json:"caps,omitempty"`
	Protocol string          `json:"protocol"`
}

// A Definition is a thing as its server defines it, beside what an admin accepted.
type Definition struct {
	Tool     Tool            `json:"-"`
	Server   string          `json:"server"`
	Sort     Sort            `json:"sort"`
	Name     string          `json:"name"`
	Alias    string          `json:"alias"`
	Hash     string          `json:"hash"`               // of what the server says now; empty where it offers it no longer
	Seen     json.RawMessage `json:"seen,omitempty"`     // what it says now
	Pinned   string          `json:"pinned,omitempty"`   // the hash that was accepted
	Accepted json.RawMessage `json:"accepted,omitempty"` // what was accepted
	By       string          `json:"by,omitempty"`       // who accepted it: "operator:alice", or "first_use"
	At       time.Time       `json:"at,omitzero"`
	Held     string          `json:"held,omitempty"`  // why agents do not see it; empty: they do
	Unfit    bool            `json:"unfit,omitempty"` // it cannot be used as it is, so that nobody can accept it
	Flags    []string        `json:"flags,omitempty"` // what a human should look at: hidden characters, ...
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
	Was         *Task               `json:"was,omitempty"`        // the whole task, as it was when it asked; for the record
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
	Method      string              `json:"method,omitempty"`  // of MCP, where it is no tool's call
	Answers     string              `json:"answers,omitempty"` // digest of the server's state that Args answers, where it does: then Args is {"arguments", "inputRequests", "inputResponses"}
	Need        []authz.Requirement `json:"need"`
	Rules       []authz.Rule        `json:"rules"`
	Class       string              `json:"class,omitempty"` // of the credential it will use
	Revision    string              `json:"revision"`        // of the policy that asked
	FourEyes    bool                `json:"four_eyes"`       // every human behind it is known here, so that a voter is known to be another
	Created     time.Time           `json:"created"`
	Expires     time.Time           `json:"expires"` // of the request; a grant's own window may end earlier
	Holder      string              `json:"-"`       // the handle that it is asked for, of whoever asks; empty on what comes back

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
	// cannot be confirmed; with that comes the task as it was last known here, if
	// it was, for the record only. The first use of a task on a replica registers the
	// replica with it: its closing waits for that replica.
	Running(ctx context.Context, tenant, id string) (Task, error)
	// Ended is closed when the task, or one above it, is known here to run no longer.
	Ended(tenant, id string) <-chan struct{}
	// Blind is closed when it could not be confirmed here for a second longer than
	// Running bears (1.1 s in all) which tasks have ended: what runs must stop. Once
	// that can be confirmed again, Blind is a new channel.
	Blind() <-chan struct{}
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
	// that is pending, granted, reserved or denied and not expired. Either way r's
	// Holder waits for it from then on, or somebody who has none and comes back by
	// itself.
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
	// Withdraw takes back that a holder waits for a request. Where nobody else does,
	// and no call is using its grant, that cancels it.
	Withdraw(ctx context.Context, tenant, id, holder string) error
	// Get returns a request, with its arguments while it is not final, else ErrNotFound.
	Get(ctx context.Context, tenant, id string) (ApprovalRequest, error)
	// List returns a tenant's open requests and those that ended lately, oldest first, without arguments.
	List(ctx context.Context, tenant string) ([]ApprovalRequest, error)
	// Cancel ends every open request of a task and returns their ids; nothing can
	// be asked for it afterwards.
	Cancel(ctx context.Context, tenant, task string) ([]string, error)
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
	// EndTask ends all leases of a task and returns the binding of each that it saw
	// end. An error means that some end is not proven yet.
	EndTask(ctx context.Context, tenant, task string) ([]string, error)
}

// Servers is the way downstream.
type Servers interface {
	// Offered returns what a tenant's servers offer of one sort, sorted by alias,
	// without what is withheld. The slice and what it holds are not to be changed;
	// where something of it changes, the next answer is another slice.
	Offered(tenant string, s Sort) []Tool
	// Resolve finds a thing by the name agents see. A resource need not be listed:
	// one in a server's name space, or that one of its templates covers, is found.
	Resolve(tenant string, s Sort, alias string) (Tool, bool)
	// Forward sends the call and returns the answer, of whatever type. What the
	// server notifies or asks meanwhile goes to s; it asks only what f.Caps says. An
	// error that wraps ErrNotSent means that nothing reached the server; any other
	// error leaves that open.
	Forward(ctx context.Context, f Forward, s Stream) (Result, error)
	// Follow subscribes to a resource and calls updated at each notification that
	// it changed, until ctx ends, or the subscription does, with an error.
	Follow(ctx context.Context, f Forward, updated func()) error
	// EndTask closes a task's downstream sessions and ends its children on this
	// replica, and says what it saw of that since it was last asked.
	EndTask(ctx context.Context, tenant, task string) LinkEnds
	// EndSession does so for what belongs to one session of an agent's, and says
	// whose it was; nobody's where there was nothing.
	EndSession(ctx context.Context, session string) (of Owner, ends LinkEnds)
	// Hear passes on what an agent said in a session, its Level or that its Roots
	// changed, to the servers that have a session for it on this replica.
	Hear(ctx context.Context, n News)
}

// An Owner is whose a downstream session or child is.
type Owner struct{ Tenant, Task, Principal string }

// LinkEnds names the servers of downstream sessions and children, one name for
// each.
type LinkEnds struct {
	Gone []string // their end is proven
	Open []string // not yet; it is tried on
	Lost []string // the server did not confirm the end, and is asked no more
}

// Definitions is what admins accept: what servers say their tools are.
type Definitions interface {
	// Definitions lists a tenant's, sorted by server, sort and name; gone ones that
	// were accepted too.
	Definitions(ctx context.Context, tenant string) ([]Definition, error)
	// Accept takes the definition with this hash as good, on every replica. It is
	// ErrNotNow where the server says something else by now, and ErrNotFound where
	// it offers nothing of that name.
	Accept(ctx context.Context, tenant, server string, s Sort, name, hash, by string) (Definition, error)
}

// Handles keep what agents come back for. Every transition is one atomic step.
type Handles interface {
	// Keep stores a new handle, with its Seq at 1.
	Keep(ctx context.Context, h Handle) error
	// Handle returns one that has not expired, or ErrNotFound.
	Handle(ctx context.Context, tenant, id string) (Handle, error)
	// Moved says whether one has another Seq by now, without reading it, so that it is
	// cheap; who needs to be sure reads it. ErrNotFound as for Handle.
	Moved(ctx context.Context, tenant, id string, seq int64) (bool, error)
	// Move stores h, with its Seq one higher, if the stored one's Seq still is h's;
	// else it is ErrNotNow.
	Move(ctx context.Context, h Handle) (Handle, error)
	// EndTask cancels all of a task's that are not final, and says how many there
	// were; none can be kept for it afterwards.
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
	// Answers reports whether somebody may vote in a tenant who is called approver,
	// or is in the group that it names as "group:NAME".
	Answers(tenant, approver string) bool
}

// A Session is an agent's legacy MCP session. Caps is fixed when it opens.
type Session struct {
	Binding  string          `json:"binding"` // whose it is: principal, human and task
	Tenant   string          `json:"tenant"`
	Task     string          `json:"task"`
	Protocol string          `json:"protocol"`            // the revision that was agreed on
	Caps     json.RawMessage `json:"caps,omitempty"`      // what its client said that it can do
	LogLevel string          `json:"log_level,omitempty"` // of the log messages that it wants; empty: it did not say
	Follows  []string        `json:"follows,omitempty"`   // resources whose changes it wants to hear of, as agents name them
	Awaits   []string        `json:"awaits,omitempty"`    // approval requests to whose page its client was sent, until it hears that they are decided
}

// Sessions are the agents' legacy MCP sessions, and bring what agents send in them
// to the replica that waits for it.
type Sessions interface {
	// Session returns one as it is, or ErrNotFound. What another replica changed or
	// closed may be seen up to a second later.
	Session(ctx context.Context, id string) (Session, error)
	// Open remembers a new one.
	Open(ctx context.Context, id string, s Session) error
	// Change lets f change LogLevel, Follows and Awaits, in one step; ErrNotFound.
	Change(ctx context.Context, id string, f func(*Session)) (Session, error)
	// Close forgets it; closing an unknown one is no error. Every Watch is told.
	Close(ctx context.Context, id string) error
	// EndTask forgets all of a task's and says how many there were.
	EndTask(ctx context.Context, tenant, task string) (int, error)

	// Expect makes the answer to an ask of ours in a session find its way here. It
	// comes before the ask is sent. wait returns the answer, or ctx's error; done
	// forgets the ask, and an answer that comes later is nobody's.
	Expect(ctx context.Context, session, ask string) (wait func(context.Context) (Result, error), done func(), err error)
	// Answer hands an answer to whoever expects it, on any replica, once; ErrNotFound
	// where nobody does.
	Answer(ctx context.Context, session, ask string, r Result) error
	// Tell tells every replica's Watch, this one's too. What is not a Note is heard
	// once, and late rather than never; a note may be lost.
	Tell(ctx context.Context, n News) error
	// Watch hears what was told, and of sessions that were closed, on whatever
	// replica, until ctx ends. While Redis cannot be reached it hears nothing.
	Watch(ctx context.Context, f func(News))
}

// News is one thing that happened in a legacy session.
type News struct {
	Session   string
	Cancelled string // a request of its agent's own, by its id
	Roots     bool   // its agent's roots are others
	Level     string // of log messages, that its agent wants from here on
	Closed    bool   // it is over,
	WithTask  bool   // and so is its task, whose end is the end of all that belongs to it
	Note      *Note  // is for its agent
}

// A Note is what a server says to an agent beside all calls, for whichever replica
// has a stream of the session's. Of a question only the one that answers
// [Note.Taken] first puts it to the agent, whose answer is awaited under Ask.
type Note struct {
	Ask    string // the question's id, "ask-[a-z0-9]+"; empty for a notification
	Method string
	Params json.RawMessage
}

// Taken names what is expected of whoever puts the question to the agent.
func (n Note) Taken() string { return "taken-" + n.Ask }

// An Attempt is what became of a call, as far as its agent must know before it
// repeats it.
type Attempt struct {
	Call   string `json:"call"`             // its id; empty where nobody knows it any more
	Doubt  bool   `json:"doubt,omitempty"`  // it is not known whether it was done
	Answer []byte `json:"answer,omitempty"` // else what the agent would have read, without its envelope: a result, or
	Error  bool   `json:"error,omitempty"`  // a JSON-RPC error
}

// A Run is one try to carry a call out.
type Run struct {
	Tenant  string
	Key     string // whatever is a repetition of it has the same; "[a-z0-9-]{1,64}"
	Session string // in which an id is used once, so that an equal run is a repetition; empty: it may be another client's

	// Gone reports whether its client is known to have left without its answer, or, once
	// that is written, with it unread. It looks now, and does not wait.
	Gone func(answered bool) bool
}

// Attempts know each call that is under way on any replica, and for a window, which
// the implementation knows, those whose answers may not have reached their agents. A
// replica that dies leaves what it had under way in doubt.
type Attempts interface {
	// Begin begins to make a run known to every replica, and does not wait for it.
	Begin(Run) Try
}

// A Try is a run that [Attempts] were told of.
type Try interface {
	// Begun returns once every replica knows of the run: then it may be sent. Where it
	// is a repetition it must not be, and there is what became of the first one. It is
	// one if an equal run was lost, is on a replica that died, or belongs to the same
	// session or a client that is gone; for one that is still under way Begun waits. What
	// does not run has ended with that, and so has what Begun returns an error for.
	Begun(ctx context.Context) (first Attempt, again bool, err error)
	// End says how it ended. It does not wait: until every replica can know of the end,
	// it stays as it was for them. After EndWritten there is one more, if that is ever known.
	End(how RunEnd, a Attempt)
}

// A RunEnd is how a run ended, for whoever repeats it.
type RunEnd int

// EndNothing leaves nothing: the call can be made again. What is EndWritten is kept
// for a repetition within the same session; for any other only until it has EndArrived,
// or for some seconds. What is EndLost is kept for the window.
const (
	EndNothing RunEnd = iota // nothing was sent, or its agent took it back
	EndWritten               // its answer was handed to the connection
	EndArrived               // and was read
	EndLost                  // the agent does not have it
)

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
	ErrCannotAsk    = errors.New("the agent cannot be asked this")
	ErrBadAnswer    = errors.New("unusable answer") // a server answered, but not with what can be passed on
	ErrLogin        = errors.New("name or password is wrong")
	ErrTooMany      = errors.New("too many tries")
	ErrBusy         = errors.New("the workload is on another root task")
	ErrGoingDown    = errors.New("the gateway is going down") // a cause: of the end of a call's context
	ErrStopped      = errors.New("stopped by an operator")    // wraps nothing; whoever returns it wraps ErrNoTask as well
)
