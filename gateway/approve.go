package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// approve returns a grant reserved for this call, or the refusal that says
// where its request stands. The grant counts only after task, policy and tool
// were asked again.
func (g *Gateway) approve(ctx context.Context, c *life) (*Grant, error) {
	release, err := g.hold(c.Principal)
	if err != nil {
		return nil, err
	}
	defer release()

	r, fresh, err := g.requestApproval(ctx, c)
	if err != nil {
		return nil, err
	}
	if r.State == ApprovalPending && !c.Later && !c.Args.refused && !g.sentFirst(c, r, fresh) {
		if r, err = g.waitForHumans(ctx, c, r); err != nil {
			return nil, err
		}
	}
	switch r.State {
	case ApprovalGranted:
	case ApprovalDenied:
		return nil, refuse(DeniedByOperator, nil)
	case ApprovalExpired:
		return nil, refuse(ApprovalExpires, nil)
	case ApprovalCancelled:
		return nil, refuse(NoTask, errTaskEnded)
	default: // pending, or an identical call is using the grant right now
		return nil, pending(r)
	}

	grant, err := g.Approvals.Claim(ctx, r.Tenant, r.ID, c.ID)
	if errors.Is(err, ErrNotNow) || errors.Is(err, ErrNotFound) {
		return nil, pending(r) // an identical call was quicker, or the grant ran out
	} else if err != nil {
		return nil, refuse(Internal, fmt.Errorf("claim: %w", err))
	}
	c.Request = &grant.Request
	err = c.takeApproved(grant.Request)
	if err == nil {
		err = g.decideAgain(ctx, c, grant)
	}
	if err != nil {
		g.unclaim(ctx, c, grant, err)
		return nil, err
	}
	return &grant, nil
}

// sentFirst reports whether the agent's side is shown the page before its call waits
// for anyone: the one who could agree may be sitting there. A modern agent says by
// its state that it has been, a legacy one by asking again in its session.
func (g *Gateway) sentFirst(c *life, r ApprovalRequest, fresh bool) bool {
	if !c.Page || c.Protocol >= modern {
		return c.Page && c.Args.state.Round == 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	maps.DeleteFunc(g.shown, func(_ [2]string, until time.Time) bool { return now.After(until) })
	key := [2]string{r.ID, c.Credential.Session}
	_, before := g.shown[key]
	g.shown[key] = r.Expires
	return fresh || !before
}

// requestApproval asks operators, or finds that it has been asked already.
func (g *Gateway) requestApproval(ctx context.Context, c *life) (_ ApprovalRequest, fresh bool, _ error) {
	want, err := g.newRequest(c)
	if err != nil {
		return ApprovalRequest{}, false, refuse(Internal, err)
	}
	r, fresh, err := g.Approvals.Request(ctx, want)
	switch {
	case errors.Is(err, ErrNotNow):
		return ApprovalRequest{}, false, refuse(NoTask, errTaskEnded)
	case errors.Is(err, ErrTooMany):
		return ApprovalRequest{}, false, refuse(TooMany, err).say("too many requests of this task wait for a human already")
	case err != nil:
		return ApprovalRequest{}, false, refuse(Internal, fmt.Errorf("request approval: %w", err))
	}
	c.Request = &r
	// Said again for a request that is still open: whoever made it may have died
	// before it was on record. The key makes it one event.
	if fresh || r.State == ApprovalPending {
		f := c.fact(audit.ApprovalRequested)
		f.Key = r.ID + ":requested"
		facts := []Fact{f}
		if r.Kind == RequestEscalation {
			e := c.fact(audit.EscalationRequested)
			e.Key = r.ID + ":escalation"
			facts = append(facts, e)
		}
		if err := g.Recorder.Durable(ctx, facts...); err != nil {
			return ApprovalRequest{}, false, refuse(Internal, fmt.Errorf("record: %w", err))
		}
	}
	return r, fresh, nil
}

// waitForHumans holds the call until the request is decided or Hold is over,
// and tells the agent every few seconds that it is still waiting.
func (g *Gateway) waitForHumans(ctx context.Context, c *life, r ApprovalRequest) (ApprovalRequest, error) {
	const notice = 5 * time.Second
	wait, cancel := context.WithTimeout(ctx, g.Hold)
	defer cancel()
	if id := r.ID; c.Stream != nil && c.Args.progress {
		go func() {
			tick := time.NewTicker(notice)
			defer tick.Stop()
			for n := 1; ; n++ {
				say := fmt.Sprintf(`{"progress":%d,"message":"Waiting for human approval (%s)"}`, n, id)
				if c.Stream.Notify(wait, "notifications/progress", []byte(say)) != nil {
					return
				}
				select {
				case <-tick.C:
				case <-wait.Done():
					return
				}
			}
		}()
	}
	r, err := g.Approvals.Wait(wait, r.Tenant, r.ID)
	switch {
	case errors.Is(context.Cause(ctx), errTaskEnded):
		return r, refuse(NoTask, errTaskEnded)
	case errors.Is(context.Cause(ctx), errUnconfirmed):
		return r, refuse(Internal, errUnconfirmed) // the request stays
	case ctx.Err() != nil:
		return r, refuse(Cancelled, ctx.Err()) // the request stays: the agent may come back
	case err != nil && wait.Err() == nil:
		return r, refuse(Internal, fmt.Errorf("wait for approval: %w", err))
	}
	return r, nil
}

// decideAgain asks task, tool and policy once more with the grant in hand.
func (g *Gateway) decideAgain(ctx context.Context, c *life, grant Grant) error {
	p := c.Principal
	if _, err := g.running(ctx, &p, c.Credential); err != nil {
		return err
	}
	if !g.stillThere(c, grant.Request.Server, grant.Request.Tool, grant.Request.Definition) {
		return refuse(Denied, errors.New("the tool is not the one that was approved"))
	}
	d, err := g.decide(c)
	if err != nil {
		return err
	}
	if d.Verdict == authz.Approve && !g.satisfied(d.Need, grant.Request) {
		return refuse(Denied, errors.New("more agreement is needed now than was given"))
	}
	c.Decision = d
	return nil
}

// takeApproved puts the bytes the operators saw in the place of the repeat's
// own: the two mean the same, but only one of them was shown.
func (c *life) takeApproved(r ApprovalRequest) error {
	digest, err := ApprovalDigest(r)
	if err != nil || digest != r.Digest || sha(r.Args) != r.ArgsDigest || r.ArgsCanon != c.Args.canonDigest {
		return refuse(Internal, errors.New("the stored request is not the one that was approved"))
	}
	if err := c.Args.asShown(r.Args); err != nil {
		return refuse(Internal, err)
	}
	c.Args.rawDigest, c.Args.meta = r.ArgsDigest, r.Meta
	return nil
}

// satisfied reports whether every requirement has its votes, from people who
// are still operators, still in that group and not behind the request.
func (g *Gateway) satisfied(need []authz.Requirement, r ApprovalRequest) bool {
	for _, n := range need {
		voters := map[string]bool{}
		for _, v := range r.Votes {
			op, known := g.Operators.Human(v.By)
			if v.Approve && v.Digest == r.Digest && known && !op.Disabled && op.Name == v.By && behind(op, r) == "" && r.mayAnswer(op) &&
				(n.Group == "" || slices.Contains(op.Groups, n.Group) && slices.Contains(v.Groups, n.Group)) {
				voters[v.By] = true
			}
		}
		if len(voters) < max(1, n.N) {
			return false
		}
	}
	return true
}

// unclaim gives the grant back, or voids it when it is no longer enough.
func (g *Gateway) unclaim(ctx context.Context, c *life, grant Grant, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.GiveBack)
	defer cancel()
	end := g.Approvals.Release
	if code := CodeOf(why); code == Denied || code == BadArguments {
		end = g.Approvals.Void
	}
	if err := end(ctx, grant); err != nil {
		g.Logger.Error("grant neither given back nor voided; its reservation will lapse", "approval", grant.Request.ID, "call", c.ID, "err", err)
	}
}

// pending is the final, resumable answer of a call that waited long enough.
func pending(r ApprovalRequest) *Refusal {
	out := refuse(PendingApproval, nil)
	out.Approval = &r
	return out
}

// hold counts the calls that wait for a human: each costs a connection.
func (g *Gateway) hold(p Principal) (release func(), err error) {
	who, tenant := p.Tenant+"/"+p.ID, p.Tenant+"/"
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held[who] >= g.Held || g.held[tenant] >= g.HeldTenant {
		g.count(count{kind: overLimit, tenant: p.Tenant, who: p.ID})
		return nil, refuse(TooMany, errors.New("too many held calls")).
			say("too many calls are waiting for a human already; wait for those before you call again")
	}
	g.held[who]++
	g.held[tenant]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, k := range []string{who, tenant} {
			if g.held[k]--; g.held[k] == 0 {
				delete(g.held, k)
			}
		}
	}, nil
}
