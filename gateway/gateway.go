// Package gateway decides, records and carries out tool calls: who asks, on
// which task, may they, must a human agree, with which credential, and what
// came of it. Start with call.go: it is the product.
//
// It leaves HTTP and MCP to gateway/edge, the operators' page to
// gateway/console, policy to authz, evidence to gateway/audit, and every outside
// system to a broker behind one of the seams in seams.go.
package gateway

import (
	"context"
	"crypto/x509"
	"encoding/json"
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
	URL    string              // of the HTTP request as agents write it, without query and fragment; may be empty where nothing is proven
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
func (t *Task) Human() string {
	if t.Claims.OnBehalfOf == Proven {
		return t.OnBehalfOf
	}
	return ""
}

// Acts reports whether a workload may act on the task.
func (t *Task) Acts(principal string) bool {
	return principal == t.Principal || slices.Contains(t.Principals, principal)
}

// Root returns the outermost task of its chain.
func (t *Task) Root() string {
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
func (t *Task) Ancestor() Ancestor {
	return Ancestor{
		ID: t.ID, Kind: t.Kind, Principal: t.Principal, StartedBy: t.StartedBy, Human: t.Human(), Owner: t.Owner, OnBehalfOf: t.OnBehalfOf,
		Implicit: t.Implicit, Own: t.Own, OwnFor: t.OwnFor, PerDay: t.Budget.PerDay, Scope: t.Scope,
	}
}

// Delegators are the principals who delegated the task, outermost first.
func (t *Task) Delegators() []string {
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
	Needs      []string                               // what a client must be able to be asked while it calls, one of these, or its server has no such tool for it: "elicitation.form", "elicitation.url", "sampling", "roots"; empty: nothing
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
func (t *Tool) ID() string { return t.Server + "/" + t.Name }

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

// A Joint is the Stream of a call that is one of several of its session's under way at
// one server.
type Joint interface {
	Stream
	// AskFor is Ask for what the server may be asking about any of these calls, this one
	// among them: it is let through only where it would be for each of them, is on
	// record for all, and put to the agent once. It may outlast some of the calls.
	AskFor(ctx context.Context, calls []Stream, method string, params json.RawMessage) (Result, error)
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

	failed failure
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
