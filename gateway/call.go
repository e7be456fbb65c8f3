package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// A life is one call on its way through the gateway: what each step made, for
// the steps after it and for the record.
type life struct {
	Call
	ID        string
	Stream    Stream
	Principal Principal
	Task      Task
	Tool      Tool
	Args      arguments
	Decision  authz.Decision
	Request   *ApprovalRequest // what was asked of operators, if anything was
	Grant     *Grant           // what they granted, reserved for this call
	Lease     Lease
	Sent      time.Time    // when it left for the server; zero while nothing did
	asked     atomic.Int32 // by the server
	session   string       // its session, named without being it, once it was asked for
	handle    string       // of an agent that takes one: what it comes back for
	kept      bool         // it is carried out for that handle
}

// Handle takes one request for a server from the door to its end. Its error is always a
// [*Refusal]. It holds a call that needs approval for at most Config.Hold.
//
// Order is safety here: each line may rely on every line above it, and a retry
// walks the whole line again.
func (g *Gateway) Handle(ctx context.Context, in Call, s Stream) (Result, error) {
	in.Method = cmp.Or(in.Method, MethodCall)
	c := &life{Call: in, ID: newID("call"), Stream: s}
	if in.Later {
		c.handle = newHandle()
	}
	result, err := g.carry(ctx, c)
	if r, ok := errors.AsType[*Refusal](err); ok && r.Code == PendingApproval {
		if in.Later {
			result, err = g.keepHeld(ctx, c)
		} else {
			r.State = g.sendToHuman(c)
		}
	}
	if err != nil {
		return Result{}, g.refused(ctx, c, err)
	}
	return result, nil
}

func (g *Gateway) carry(ctx context.Context, c *life) (_ Result, err error) {
	// Who asks, what were they asked to do, and is that still so?
	if c.Principal, err = g.Identify(ctx, c.Credential); err != nil {
		return Result{}, err
	}
	if err = g.limit(c.Principal); err != nil {
		return Result{}, err
	}
	if c.Task, err = g.running(ctx, &c.Principal, c.Credential); err != nil {
		return Result{}, err
	}
	ctx, land, err := g.takeOff(ctx, c.seated(), &c.Task)
	if err != nil {
		return Result{}, err
	}
	defer land()

	// What is it? Whatever this task may not see answers like what is not there.
	if err = g.unwrap(c); err != nil {
		return Result{}, err
	}
	if c.Tool, err = g.resolve(c); err != nil {
		return Result{}, err
	}
	if c.Agrees != nil {
		if err = c.Agrees(c.Tool); err != nil {
			return Result{}, err
		}
	}
	if c.Args, err = g.read(c); err != nil {
		return Result{}, err
	}
	if err = c.keepsItsToken(); err != nil {
		return Result{}, err
	}

	// May they? The answer is durable before anything comes of it.
	if c.Decision, err = g.decide(c); err != nil {
		return Result{}, err
	}
	begun := c.begin() // takes as long as the record, beside it
	if err = g.recordDecision(ctx, c); err != nil {
		return Result{}, err
	}
	if c.Method == MethodSubscribe { // whether it may; Follow does it
		c.Sent = g.now()
		yes := Result{Raw: json.RawMessage("{}")}
		return yes, g.recordOutcome(ctx, c, yes, 0)
	}
	defer g.giveBack(ctx, c)

	// Was it sent before? From here on every replica knows of it.
	if err = begun(ctx); err != nil {
		return Result{}, err
	}

	// Must a human agree? An approval can outlive the task or the policy, so
	// approve asks both again before a grant counts.
	if c.Decision.Verdict == authz.Approve {
		if c.Grant, err = g.approve(ctx, c); err != nil {
			return Result{}, err
		}
	}

	if err = g.Tasks.Spend(ctx, c.Task); err != nil {
		return Result{}, overBudget(err)
	}
	if c.Lease, err = g.lease(ctx, c); err != nil {
		return Result{}, err
	}
	// A queue for a lease can take seconds.
	if err = g.stillStands(ctx, c); err != nil {
		return Result{}, err
	}
	if err = g.recordUse(ctx, c); err != nil {
		return Result{}, err
	}
	return g.forward(ctx, c)
}

// seated is the workload that a call needs a seat of; nil where it has one: a handle's
// call has it before it runs.
func (c *life) seated() *Principal {
	if c.kept {
		return nil
	}
	return &c.Principal
}

// begin begins to make known that the call is under way, so that its repetition is
// not sent as well. A crash afterwards leaves it in doubt.
func (c *life) begin() (wait func(context.Context) error) {
	if c.Begin == nil {
		return func(context.Context) error { return nil }
	}
	return c.Begin()
}

// decide asks the policy and every scope about these arguments, now.
func (g *Gateway) decide(c *life) (authz.Decision, error) {
	if c.Tool.ours != nil {
		return c.Tool.ours.decide(g, c)
	}
	d := g.ask(c.Task, g.question(c.Principal, c.Task, c.Tool.ID(), c.way().action, c.Args.raw))
	if d.Verdict == authz.Deny {
		return d, refuse(Denied, nil)
	}
	if d.Verdict == authz.Approve && c.Method == MethodSubscribe {
		return d, refuse(Denied, errors.New("a subscription cannot wait for a human")).
			say("following this resource needs human approval, which a subscription cannot wait for")
	}
	// What no schema declares could mean to the server what no condition and no
	// operator reads.
	if undeclared := c.Args.undeclared; undeclared != "" && (d.Conditional || d.Verdict == authz.Approve) {
		return d, refuse(BadArguments, errors.New("undeclared property where a condition or an approval applies")).
			say("the tool does not declare the property " + quoteName(undeclared) + ", and this call is subject to a condition or an approval; leave it out")
	}
	return d, nil
}

// stillStands compares the task and the policy once more, just before the call
// leaves. Only a changed policy is asked again.
func (g *Gateway) stillStands(ctx context.Context, c *life) error {
	p := c.Principal
	if _, err := g.running(ctx, &p, c.Credential); err != nil {
		return err
	}
	if !g.stillThere(c, c.Tool.Server, c.Tool.Name, c.Tool.Hash) {
		return refuse(UnknownTool, errors.New("definition changed while the call was under way"))
	}
	if g.Policy.Revision() == c.Decision.Revision {
		return nil
	}
	d, err := g.decide(c)
	if err != nil {
		return err
	}
	if d.Verdict == authz.Approve && !(c.Grant != nil && g.satisfied(d.Need, c.Grant.Request)) {
		return refuse(Denied, errors.New("policy changed and asks for more agreement"))
	}
	c.Decision = d
	return nil
}

// stillThere reports whether the name that the agent called still means this
// tool, as it was defined.
func (g *Gateway) stillThere(c *life, server, name, hash string) bool {
	if c.Tool.ours != nil {
		return server == c.Tool.Server && name == c.Tool.Name && hash == c.Tool.Hash
	}
	t, ok := g.Servers.Resolve(c.Principal.Tenant, c.way().sort, c.Name)
	return ok && t.Server == server && t.Name == name && t.Hash == hash
}

// keepsItsToken refuses a call that would send the caller's own credential: no tool
// gets that, whoever asked the agent to send it.
func (c *life) keepsItsToken() error {
	return c.keeps(c.Args.raw, c.Args.outgoing(), c.Args.answers)
}

func (c *life) keeps(texts ...json.RawMessage) error {
	own := []Secret{c.Credential.Bearer}
	for _, text := range texts {
		switch {
		case len(text) < len(c.Credential.Bearer.value):
			continue
		case slices.ContainsFunc(forms(own), func(form []byte) bool { return bytes.Contains(text, form) }):
		case bytes.ContainsAny(text, `\%&`) && Holds(text, own): // a mesh costs much, and only escapes need one
		case !encodes(text, c.Credential.Bearer):
			continue
		}
		return refuse(Denied, errors.New("the call holds the caller's own credential")).
			say("the call holds your own credential; no tool may have it")
	}
	return nil
}

func overBudget(err error) error {
	if errors.Is(err, ErrTooMany) {
		return refuse(OverBudget, err)
	}
	return refuse(Internal, fmt.Errorf("spend: %w", err))
}

// lease gets the credential that the call's server needs, if it needs one. From
// here on it is looked for in whatever comes back.
func (g *Gateway) lease(ctx context.Context, c *life) (Lease, error) {
	if c.Tool.ours != nil {
		return Lease{}, nil
	}
	l, err := g.Leases.Lease(ctx, c.Principal.Tenant, c.Task.ID, c.ID, c.Tool.Server)
	if err != nil {
		return Lease{}, refuse(NoCredential, err)
	}
	g.guard(l, c.Task)
	return l, nil
}

// forward sends what was decided and records what came of it before the agent
// reads it.
func (g *Gateway) forward(ctx context.Context, c *life) (Result, error) {
	c.Sent = g.now()
	if c.Tool.ours != nil {
		return g.serve(ctx, c)
	}
	result, err := g.converse(ctx, c)
	if err != nil {
		return Result{}, g.recordFailure(ctx, c, err)
	}
	result, blanked, err := g.mesh.result(result)
	if err != nil {
		return Result{}, g.recordFailure(ctx, c, err)
	}
	if result, err = g.finish(ctx, c, result); err != nil {
		return Result{}, g.recordFailure(ctx, c, err)
	}
	if err := g.recordOutcome(ctx, c, result, blanked); err != nil {
		return Result{}, err
	}
	return result, nil
}

// giveBack ends a per-call lease and returns a grant that was not used, on a
// context of its own: neither depends on the agent still being there. A crash
// before it leaves the lease to its ledger and the grant to its deadline.
func (g *Gateway) giveBack(ctx context.Context, c *life) {
	if !c.Lease.PerCall && !c.Lease.Fresh && c.Grant == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.GiveBack)
	defer cancel()
	if c.Lease.Fresh { // issued, but the call never came to use it
		if err := g.Recorder.Record(ctx, c.fact(audit.SecretIssued)); err != nil {
			g.Logger.Error("issue not recorded; the ledger has it", "lease", c.Lease.ID, "call", c.ID, "err", err)
		}
	}
	if c.Lease.PerCall {
		defer g.unguard(c.Lease)
		if err := g.Leases.GiveBack(ctx, c.Lease); err != nil {
			g.Logger.Error("lease not given back; the ledger will end it", "lease", c.Lease.ID, "call", c.ID, "err", err)
		}
	}
	if c.Grant != nil {
		if err := g.Approvals.Release(ctx, *c.Grant); err != nil {
			g.Logger.Error("grant not given back; its reservation will lapse", "approval", c.Grant.Request.ID, "call", c.ID, "err", err)
		}
	}
}

// refused turns the end of a call that was not carried out into the one thing an
// agent may read, and records it once.
func (g *Gateway) refused(ctx context.Context, c *life, err error) *Refusal {
	r := asRefusal(err)
	r.CallID = c.ID
	if r.recorded || r.Code == Unidentified || r.Code == TooMany {
		return r // on record already, or counted
	}
	f := g.deniedFact(ctx, c, r)
	switch {
	case r.Code == PendingApproval:
		return r // tool.call.held and approval.requested said it
	case r.Code == Internal && errors.Is(err, errUnconfirmed): // whatever was waiting when that was so
		r.Say = sayStale
	case ctx.Err() != nil && c.Sent.IsZero():
		r.Code, f.Type = Cancelled, audit.CallCancelled
		if errors.Is(context.Cause(ctx), ErrGoingDown) {
			r.Say = "the gateway was stopped before this call was sent; nothing was done; make it again"
		}
	case r.Code == Cancelled:
		f.Type = audit.CallCancelled
	case r.Code == Internal && errors.Is(err, errTaskEnded): // whatever was waiting when it did
		r.Code, r.Say = NoTask, words[NoTask]
	}
	f.Code, f.Detail = r.Code, r.detail()
	if rerr := g.Recorder.Record(context.WithoutCancel(ctx), f); rerr != nil {
		g.Logger.Error("refusal not recorded", "call", c.ID, "code", r.Code, "err", rerr)
	}
	return r
}
