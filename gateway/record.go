package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// A Fact is one thing that happened, in the gateway's nouns. Everything but
// Type and Tenant may be left out; what an event must say and a fact does not
// is recorded as unknown.
type Fact struct {
	Type   audit.Type
	Tenant string
	Key    string    // facts with the same non-empty key are one event, even across restarts
	At     time.Time // when it happened, if not now

	Principal *Principal
	Task      *Task
	Call      *CallRef
	Tool      *Tool
	Args      *ArgsRef
	Decision  *authz.Decision
	Code      Code // the refusal, if it is one
	Approval  *ApprovalRequest
	Vote      *Vote
	Lease     *Lease
	LeaseEnd  *LeaseEnd
	Operator  *Operator
	Outcome   *Outcome
	Policy    *audit.PolicyRef
	Closing   *Closing
	Stop      *Stop
	Count     int64
	Unbound   string // why there is no task
	Detail    string // ours, in words; never an argument, a result or a secret
}

// A CallRef names a call.
type CallRef struct {
	ID, JSONRPCID, Method, Protocol, Session, Source, Trace string
}

// An ArgsRef says what the arguments were without holding them.
type ArgsRef struct {
	Bytes          int
	Canonical, Raw string // "sha256:<hex>"
	Target         string // the object touched, where the server's config names the argument that says it
}

// A LeaseEnd is how a lease ended.
type LeaseEnd struct {
	Kind      string // revoked, expired, disclosed, failed
	Confirmed bool   // a lookup afterwards said it is gone
}

// An Outcome is how a dispatched call ended.
type Outcome struct {
	Status   string // ok, tool_error, downstream_error, timeout, in_doubt, cancelled
	Latency  time.Duration
	Bytes    int
	Digest   string
	Redacted int
}

// A Log is what a Recorder writes to; [*audit.Log] is one.
type Log interface {
	Append(ctx context.Context, events ...audit.Event) error
	Write(ctx context.Context, events ...audit.Event) error
	Fault() error
}

type recorder struct{ log Log }

// NewRecorder returns the Recorder that writes to log.
func NewRecorder(log Log) Recorder { return recorder{log} }

func (r recorder) Record(ctx context.Context, f ...Fact) error {
	return r.log.Write(ctx, events(f)...)
}

func (r recorder) Durable(ctx context.Context, f ...Fact) error {
	return r.log.Append(ctx, events(f)...)
}

func (r recorder) Fault() error { return r.log.Fault() }

// fact is what the record says of a call, whatever happened to it.
func (c *life) fact(t audit.Type) Fact {
	if c.session == "" && c.Credential.Session != "" {
		c.session = sessionRef(c.Credential.Session)
	}
	f := Fact{
		Type: t, Tenant: c.Principal.Tenant,
		Call: &CallRef{
			ID: c.ID, JSONRPCID: c.JSONRPCID, Method: c.Method, Protocol: c.Protocol,
			Session: c.session, Source: c.Credential.Source, Trace: c.Args.trace.id(),
		},
		Unbound: "no running task",
	}
	if c.Principal.ID != "" {
		f.Principal = &c.Principal
	}
	if c.Task.ID != "" {
		f.Task = &c.Task
	}
	if c.Tool.Name != "" {
		f.Tool = &c.Tool
	}
	if c.Args.raw != nil {
		f.Args = &ArgsRef{Bytes: len(c.Args.raw), Canonical: c.Args.canonDigest, Raw: c.Args.rawDigest, Target: c.Args.target}
	}
	if c.Decision.Reason != "" {
		f.Decision = &c.Decision
	}
	if c.Request != nil {
		f.Approval = c.Request
	}
	if c.Lease.ID != "" {
		f.Lease = &c.Lease
	}
	return f
}

// deniedFact is the fact of a call that was refused. One that never came to its
// task says which it was kept from, and what it was to call.
func (g *Gateway) deniedFact(ctx context.Context, c *life, r *Refusal) Fact {
	f := c.fact(audit.CallDenied)
	if f.Task != nil || f.Principal == nil {
		return f
	}
	if f.Task = g.tried(ctx, &c.Principal, c.Credential, r); f.Task == nil && errors.Is(r, ErrStale) {
		f.Unbound = "whether its task runs could not be confirmed"
	}
	if t, ok := g.Servers.Resolve(c.Principal.Tenant, c.way().sort, c.Name); ok && f.Tool == nil {
		f.Tool = &t
	}
	return f
}

// sessionRef names a session without being it.
func sessionRef(id string) string {
	if id == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(id))
	var out [16]byte
	hex.Encode(out[:], sum[:8])
	return string(out[:])
}

// recordDecision makes the decision durable before anything comes of it.
func (g *Gateway) recordDecision(ctx context.Context, c *life) error {
	t := audit.CallAllowed
	if c.Decision.Verdict == authz.Approve {
		t = audit.CallHeld
	}
	if err := g.Recorder.Durable(ctx, c.fact(t)); err != nil {
		return refuse(Internal, fmt.Errorf("record decision: %w", err))
	}
	return nil
}

// recordUse uses the grant up and makes that, the decision it completes and the
// credential's issue durable, together. From here on the grant cannot come back:
// a crash or a failed record costs the operators a second look, never a second
// run.
func (g *Gateway) recordUse(ctx context.Context, c *life) error {
	var facts []Fact
	if c.Grant != nil {
		if err := g.once(c.Request); err != nil {
			f := c.fact(audit.ApprovalConsumeRefused)
			f.Detail = err.Error()
			_ = g.Recorder.Record(context.WithoutCancel(ctx), f)
			return refuse(Internal, err)
		}
		if err := g.Approvals.Consume(ctx, *c.Grant); err != nil {
			p := c.Principal
			if _, ended := g.running(ctx, &p, c.Credential); CodeOf(ended) == NoTask && ended != nil {
				return ended // its end cancelled the grant
			}
			f := c.fact(audit.ApprovalConsumeRefused)
			f.Detail = "the grant could not be used up"
			_ = g.Recorder.Record(context.WithoutCancel(ctx), f)
			return refuse(Internal, fmt.Errorf("consume grant: %w", err))
		}
		c.Grant = nil
		c.Request.State = ApprovalConsumed
		c.Request.Seq++
		facts = append(facts, c.fact(audit.ApprovalConsumed), c.fact(audit.CallAllowed))
	}
	if c.Lease.Fresh {
		facts = append(facts, c.fact(audit.SecretIssued))
	}
	if len(facts) == 0 {
		return nil
	}
	// The grant is gone: its record must not depend on the agent's patience.
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := g.Recorder.Durable(wait, facts...); err != nil {
		return refuse(Internal, fmt.Errorf("record use: %w", err))
	}
	c.Lease.Fresh = false
	return nil
}

// recordOutcome is written before the agent reads the answer. An outcome that
// cannot be recorded withholds the answer.
func (g *Gateway) recordOutcome(ctx context.Context, c *life, r Result, blanked int) error {
	f, body := c.fact(audit.CallCompleted), r.Raw
	f.Outcome = &Outcome{Status: "ok", Redacted: blanked, Latency: g.now().Sub(c.Sent)}
	switch {
	case r.Error != nil:
		f.Type, f.Outcome.Status, body = audit.CallFailed, "downstream_error", r.Error
	case r.Type == ResultInput, r.Type == ResultTask:
		f.Outcome.Status = r.Type
	case r.Failed():
		f.Outcome.Status = "tool_error"
	}
	f.Outcome.Bytes, f.Outcome.Digest = len(body), sha(body)
	facts := []Fact{f}
	if blanked > 0 {
		facts = append(facts, c.fact(audit.ResponseRedacted))
		facts[1].Count = int64(blanked)
	}
	record := g.Recorder.Record
	if g.SyncOutcomes {
		record = g.Recorder.Durable
	}
	if err := record(context.WithoutCancel(ctx), facts...); err != nil {
		refused := refuse(Internal, fmt.Errorf("record outcome: %w", err)).
			say("the call ran, but its outcome could not be recorded and is withheld; do not repeat it; give the call id to whoever runs the gateway")
		refused.InDoubt, refused.recorded = true, true
		return refused
	}
	return nil
}

// recordFailure says what is known of a call that brought no answer back.
func (g *Gateway) recordFailure(ctx context.Context, c *life, err error) error {
	f := c.fact(audit.CallFailed)
	f.Code = Downstream
	f.Outcome = &Outcome{Latency: g.now().Sub(c.Sent)}
	r := refuse(Downstream, err)
	r.recorded, r.InDoubt = true, true
	refused, decided := errors.AsType[*Refusal](err)
	switch {
	case decided: // the server asked for what it may not have
		f.Code, f.Outcome.Status, f.Detail = refused.Code, "downstream_error", refused.detail()
		r.Code, r.Say, r.Err = refused.Code, refused.Say, refused.Err
	case errors.Is(context.Cause(ctx), errTaskEnded) && errors.Is(err, ErrNotSent):
		r.InDoubt, r.Code, r.Say = false, NoTask, words[NoTask]
		f.Type, f.Code, f.Outcome.Status, f.Detail = audit.CallCancelled, NoTask, "cancelled", "the task ended; nothing reached the server"
	case errors.Is(context.Cause(ctx), errUnconfirmed):
		f.Type, f.Code, f.Outcome.Status = audit.CallCancelled, Internal, "cancelled"
		f.Detail = "it cannot be confirmed that the task is running, and the call was cancelled; it may have run"
		if r.InDoubt = !errors.Is(err, ErrNotSent); !r.InDoubt {
			f.Detail = "it cannot be confirmed that the task is running; nothing reached the server"
		}
		r.Code = Internal
		r.say(f.Detail + "; try again in a moment")
		if r.InDoubt {
			r.say(f.Detail + "; check before you repeat it")
		}
	case errors.Is(err, ErrWithheld): // it answers as what does not exist
		f.Type, f.Code, f.Outcome, f.Detail = audit.CallDenied, UnknownTool, nil, err.Error()
		r.InDoubt, r.Code, r.Say = false, UnknownTool, words[UnknownTool]
	case errors.Is(err, ErrNotSent):
		r.InDoubt = false
		f.Outcome.Status, f.Detail = "downstream_error", "nothing reached the server"
		if errors.Is(err, ErrTooMany) {
			f.Detail = "nothing reached the server: there are too many sessions at it"
			r.say("too many sessions are open at the tool's server, most likely your own; nothing was done; end those that you need no more, and try again")
			break
		}
		r.say("the tool's server cannot be reached; nothing was done; try again later")
	case errors.Is(context.Cause(ctx), errTaskEnded):
		f.Type, f.Code, f.Outcome.Status = audit.CallCancelled, NoTask, "cancelled"
		f.Detail = "the task ended while the call was running; it may have run"
		r.Code = NoTask
		r.say("the task ended while the call was running; it may have run")
	case errors.Is(context.Cause(ctx), ErrGoingDown):
		f.Type, f.Code, f.Outcome.Status = audit.CallInDoubt, InDoubt, "in_doubt"
		f.Detail = "the gateway stopped while the call was running; it may have run"
		r.Code = InDoubt
		r.say("the gateway was stopped while this call was running, and it is not known whether it was done; look before you repeat it")
	case errors.Is(context.Cause(ctx), errTakenBack):
		f.Type, f.Code, f.Outcome.Status = audit.CallCancelled, Cancelled, "cancelled"
		f.Detail = "the agent cancelled its handle while the call was running; it may have run"
		r.Code = Cancelled
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		f.Type, f.Code, f.Outcome.Status = audit.CallCancelled, Cancelled, "cancelled"
		f.Detail = "the agent went away while the call was running; it may have run"
		r.Code = Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		f.Outcome.Status, f.Detail = "timeout", "no answer in time; it may have run"
		r.say("the tool's server did not answer in time; the call may have run; check before you repeat it")
	case errors.Is(err, ErrTooLong):
		f.Outcome.Status, f.Detail = "downstream_error", "the answer is longer than the server's max_response; it may have run"
		r.say("the tool's server answered with more than is passed on (max_response in the gateway's config); the call may have run; check before you repeat it, and ask for less at once")
	case errors.Is(err, ErrBadAnswer), errors.Is(err, errUnblankable):
		f.Outcome.Status, f.Detail = "downstream_error", "the answer could not be used; it may have run"
		r.say("the tool's server gave an answer that could not be used; the call may have run; check before you repeat it")
	default:
		f.Type, f.Outcome.Status = audit.CallInDoubt, "in_doubt"
		f.Detail = "the connection broke after the call was sent; it may have run"
		r.say("the connection to the tool's server broke; the call may have run; check before you repeat it")
	}
	if rerr := g.Recorder.Record(context.WithoutCancel(ctx), f); rerr != nil {
		g.Logger.Error("failed call not recorded", "call", c.ID, "err", rerr)
	}
	return r
}

// once refuses a grant that the log says is used up, whatever its store says.
func (g *Gateway) once(r *ApprovalRequest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	maps.DeleteFunc(g.used, func(_ string, until time.Time) bool { return now.After(until) })
	if _, used := g.used[r.ID]; used {
		return errors.New("the grant was used up before, and its store has forgotten that")
	}
	g.used[r.ID] = r.Expires
	return nil
}

func listFact(p Principal, t Task, s Sort, ref CallRef, shown, all int) Fact {
	ref.Method = lists[s]
	ref.Session = sessionRef(ref.Session)
	return Fact{
		Type: audit.ListFiltered, Tenant: p.Tenant, Principal: &p, Task: &t, Call: &ref, Count: int64(shown),
		Detail: fmt.Sprintf("%d of %d shown", shown, all),
	}
}

func countedFact(c count, n int64) Fact {
	f := Fact{
		Type: audit.IdentityRejected, Tenant: orUnknown(c.tenant), Count: n, Unbound: "refused before a task was known",
		Call: &CallRef{Source: c.who}, Detail: c.kind, Code: Unidentified,
	}
	switch c.kind {
	case overLimit, overDay, overSeats:
		f.Type, f.Code = audit.RateLimited, TooMany
	case malformed:
		f.Type, f.Code = audit.RequestRejected, BadArguments
	case unheard:
		f.Type, f.Code = audit.CallDenied, Denied
	case noStanding:
		f.Type, f.Code = audit.TaskStartRefused, Denied
	case hopped:
		f.Type, f.Code = audit.TaskNotNamed, NoTask
	default:
		return f
	}
	f.Call, f.Principal = &CallRef{}, &Principal{ID: c.who, Tenant: c.tenant}
	return f
}

func events(facts []Fact) []audit.Event {
	if len(facts) == 1 { // nearly always: in one piece of memory
		var only struct {
			parts
			event [1]audit.Event
		}
		facts[0].event(&only.event[0], &only.parts)
		return only.event[:]
	}
	out := make([]audit.Event, len(facts))
	for i := range facts {
		facts[i].event(&out[i], &parts{})
	}
	return out
}

// parts are what nearly every event has.
type parts struct {
	workload audit.Workload
	call     audit.Call
	task     audit.Task
	tool     audit.Tool
	target   audit.Target
	args     audit.Args
	decision audit.Decision
	outcome  audit.Outcome
}

// event is the only place where the gateway's nouns become the log's.
func (f *Fact) event(e *audit.Event, parts *parts) {
	*e = audit.Event{
		Type: f.Type, Tenant: orUnknown(f.Tenant), Key: f.Key, Count: f.Count, Detail: f.Detail, Unbound: f.Unbound, Policy: f.Policy,
	}
	if !f.At.IsZero() {
		e.At = stamp(f.At)
	}
	if f.Task != nil {
		parts.task = taskEvent(f.Task)
		e.Task, e.Unbound = &parts.task, ""
	} else if e.Unbound == "" {
		e.Unbound = "not about a task"
	}
	if p := f.Principal; p != nil {
		e.Workload, parts.workload = &parts.workload, audit.Workload{
			Authn: orUnknown(p.Authn), Bound: orNone(p.Bound), Credential: orUnknown(p.Credential), Delegation: orEmpty(p.Chain), ID: p.ID, Owner: orUnknown(p.Owner),
			OnBehalfOf: orNone(p.OnBehalfOf),
		}
	}
	if c := f.Call; c != nil {
		e.Call, parts.call = &parts.call, audit.Call{
			ID: orUnknown(c.ID), JSONRPCID: orUnknown(c.JSONRPCID), Method: orUnknown(c.Method), Protocol: orUnknown(c.Protocol),
			Session: orNone(c.Session), Source: orUnknown(c.Source), TraceID: orUnknown(c.Trace),
		}
	}
	if t := f.Tool; t != nil {
		e.Tool, parts.tool = &parts.tool, audit.Tool{Definition: orUnknown(t.Hash), Name: t.Name, Server: t.Server}
		e.Target, parts.target = &parts.target, audit.Target{Addr: orUnknown(t.Addr), Kind: orUnknown(t.Kind), Object: audit.Unknown}
	}
	if a := f.Args; a != nil {
		e.Args, parts.args = &parts.args, audit.Args{Bytes: a.Bytes, Digest: a.Canonical, RawDigest: a.Raw}
		if e.Target != nil {
			e.Target.Object = orUnknown(a.Target)
		}
	}
	if d := f.Decision; d != nil {
		e.Decision, parts.decision = &parts.decision, audit.Decision{
			Effect: d.Verdict.String(), Engine: engine, Need: needs(d.Need), PolicyRev: orUnknown(d.Revision), Reason: d.Reason,
			ReasonCode: string(f.Code), Rules: orEmpty(d.Cited),
		}
		if f.Code == "" {
			e.Decision.ReasonCode = "ok"
		}
	} else if f.Code != "" {
		e.Decision = &audit.Decision{
			Effect: authz.Deny.String(), Engine: engine, Need: []audit.Need{}, PolicyRev: audit.Unknown, Reason: "refused before policy was asked",
			ReasonCode: string(f.Code), Rules: []string{},
		}
	}
	if r := f.Approval; r != nil {
		e.Approval = approvalEvent(*r, f.Vote)
	}
	if l := f.Lease; l != nil {
		e.Secret = secretEvent(*l, f.LeaseEnd)
		e.Corr = corrEvent(f.Principal, *l)
	} else if p := f.Principal; p != nil && p.Issuer != "" {
		e.Corr = corrEvent(p, Lease{RequestID: "none"})
	}
	if c := f.Closing; c != nil {
		e.Closing = &audit.Closing{
			Approvals: c.Approvals, Calls: c.Calls, Children: c.Children, Leases: c.Leases, Links: c.Links, Sessions: c.Sessions,
			Names: audit.ClosingNames{
				Approvals: orEmpty(c.Names.Approvals), Children: orEmpty(c.Names.Children), Leases: orEmpty(c.Names.Leases), Links: orEmpty(c.Names.Links),
			},
			Unproven: orEmpty(once(c.Unproven, c.Lost)), Why: audit.Unknown,
		}
		if t := f.Task; t != nil {
			e.Closing.Why = orNone(t.Why)
			if !t.Closed.IsZero() {
				e.Closing.TookMS = t.Closed.Sub(t.Ended).Milliseconds()
			}
		}
	}
	if s := f.Stop; s != nil {
		e.Stop = &audit.Stop{Kind: string(s.Kind), Name: s.Name, Reason: s.Reason}
	}
	if o := f.Operator; o != nil {
		e.Operator = &audit.Operator{Name: o.Name, Groups: orEmpty(o.Groups), Source: orUnknown(o.Source)}
	}
	if o := f.Outcome; o != nil {
		code := string(f.Code)
		e.Outcome, parts.outcome = &parts.outcome, audit.Outcome{
			Code: orNone(code), LatencyUS: o.Latency.Microseconds(), Redacted: o.Redacted, ResultBytes: o.Bytes,
			ResultDigest: orUnknown(o.Digest), Status: o.Status,
		}
	}
}

func fourEyes(known bool) string {
	if known {
		return "proven"
	}
	return "unproven"
}

// engine names what decided, for a reader years from now.
const engine = "casbin/2 model toolbroker/1"

func taskEvent(t *Task) audit.Task {
	e := audit.Task{
		Approvers: t.Approvers, Asserted: t.Claims.asserted(), Chain: make([]string, len(t.Ancestors)),
		Expires: audit.Unknown, ID: t.ID, Implicit: t.Implicit, Kind: orUnknown(t.Kind), Labels: t.Labels, OnBehalf: orNone(t.OnBehalfOf),
		Owner: orUnknown(t.Owner), Parent: orNone(t.Parent), Purpose: t.Purpose, Reference: t.Reference,
		ScopeHash: scopeHash(t.Scope), State: orUnknown(string(t.State)),
	}
	if !t.Expires.IsZero() {
		e.Expires = stamp(t.Expires)
	}
	for i, a := range t.Ancestors {
		e.Chain[i] = a.ID
	}
	for _, w := range t.Widened {
		e.Widened = append(e.Widened, w.Approval)
	}
	return e
}

// asserted lists the claims whose worth is their starter's word.
func (c Claims) asserted() []string {
	out := []string{}
	for _, one := range []struct {
		name  string
		claim Claim
	}{
		{"approvers", c.Approvers}, {"labels", c.Labels}, {"on_behalf_of", c.OnBehalfOf}, {"owner", c.Owner},
		{"purpose", c.Purpose}, {"reference", c.Reference},
	} {
		if one.claim == Asserted {
			out = append(out, one.name)
		}
	}
	return out
}

func corrEvent(p *Principal, l Lease) *audit.Corr {
	c := &audit.Corr{OAuthClient: "none", OAuthIssuer: "none", VaultRequestID: orUnknown(l.RequestID)}
	if p != nil {
		c.OAuthClient, c.OAuthIssuer = orNone(p.Client), orNone(p.Issuer)
	}
	return c
}

func scopeHash(s *authz.Scope) string {
	if s == nil {
		return audit.Unknown
	}
	return s.Hash()
}

func approvalEvent(r ApprovalRequest, v *Vote) *audit.Approval {
	a := &audit.Approval{
		Digest: r.Digest, Expires: stamp(r.Expires), Fingerprint: r.Fingerprint, FourEyes: fourEyes(r.FourEyes), ID: r.ID, Need: needs(r.Need),
		Seq: r.Seq, State: string(r.State), Votes: make([]audit.Vote, 0, len(r.Votes)+1),
	}
	votes := r.Votes
	if v != nil {
		votes, a.Reason = []Vote{*v}, v.Reason
	}
	for _, v := range votes {
		d := "deny"
		if v.Approve {
			d = "approve"
		}
		a.Votes = append(a.Votes, audit.Vote{At: stamp(v.At), By: v.By, Decision: d, Digest: v.Digest})
	}
	return a
}

func secretEvent(l Lease, end *LeaseEnd) *audit.Secret {
	s := &audit.Secret{
		Binding: l.Binding, Class: orUnknown(l.Class), EndKind: "open", Engine: orUnknown(l.Engine), Expires: audit.Unknown, ID: l.ID,
		LeaseHash: orUnknown(l.LeaseHash), Server: l.Server, Version: orUnknown(l.Version),
	}
	if !l.Expires.IsZero() {
		s.Expires = stamp(l.Expires)
		s.TTLS = int64(l.Expires.Sub(l.Issued) / time.Second)
	}
	if end != nil {
		s.EndKind, s.Confirmed = end.Kind, end.Confirmed
	}
	return s
}

func needs(need []authz.Requirement) []audit.Need {
	out := make([]audit.Need, len(need))
	for i, n := range need {
		out[i] = audit.Need{Group: orNone(n.Group), N: n.N, Rule: n.Rule.String()}
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

func orUnknown(s string) string {
	if s == "" {
		return audit.Unknown
	}
	return s
}

// orNone is for what can be absent without being unknown.
func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// lists are the methods that list each sort.
var lists = map[Sort]string{
	SortTool: "tools/list", SortResource: "resources/list", SortTemplate: "resources/templates/list", SortPrompt: "prompts/list",
}
