package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"toolbroker/authz"
)

// Follow subscribes the caller to a resource, c.Name, and calls updated at each
// change that the caller may still hear of then: each is decided again. It returns
// when ctx, the task or the subscription ends; its error is always a [*Refusal].
func (g *Gateway) Follow(ctx context.Context, in Call, updated func()) error {
	in.Method = MethodSubscribe
	c := &life{Call: in, ID: newID("call")}
	if err := g.follow(ctx, c, updated); err != nil {
		return g.refused(ctx, c, err)
	}
	return nil
}

func (g *Gateway) follow(ctx context.Context, c *life, updated func()) (err error) {
	if c.Principal, err = g.Identify(ctx, c.Credential); err != nil {
		return err
	}
	if err = g.limit(c.Principal); err != nil {
		return err
	}
	if c.Task, err = g.running(ctx, &c.Principal, c.Credential); err != nil {
		return err
	}
	ctx, land, err := g.takeOff(ctx, nil, &c.Task) // streams and what they follow are bounded where they come in
	if err != nil {
		return err
	}
	defer land()
	if c.Tool, err = g.resolve(c); err != nil {
		return err
	}
	if c.Args, err = g.read(c); err != nil {
		return err
	}
	if c.Decision, err = g.decide(c); err != nil {
		return err
	}
	if err = g.recordDecision(ctx, c); err != nil {
		return err
	}
	defer g.giveBack(ctx, c)
	if c.Lease, err = g.lease(ctx, c); err != nil {
		return err
	}
	if err = g.stillStands(ctx, c); err != nil {
		return err
	}
	if err = g.recordUse(ctx, c); err != nil {
		return err
	}
	c.Sent = g.now()
	f := Forward{
		CallID: c.ID, Method: c.Method, Tool: c.Tool, Args: c.Args.raw, LogLevel: c.LogLevel, Protocol: c.Protocol,
		Principal: c.Principal, Task: c.Task, Session: c.Credential.Session, Lease: c.Lease,
	}
	g.tie(c, &f)
	err = g.Servers.Follow(ctx, f, func() {
		if g.mayHear(ctx, c) {
			updated()
		}
	})
	if err != nil && ctx.Err() == nil {
		return g.recordFailure(ctx, c, fmt.Errorf("follow: %w", err))
	}
	return g.recordOutcome(ctx, c, Result{Raw: json.RawMessage("{}")}, 0)
}

// mayHear decides one delivery. What it refuses is counted: a server says how often
// something changes.
func (g *Gateway) mayHear(ctx context.Context, c *life) bool {
	p := c.Principal
	t, err := g.running(ctx, &p, c.Credential)
	if err == nil && g.ask(t, g.question(p, t, c.Tool.ID(), authz.Subscribe, c.Args.raw)).Verdict == authz.Allow {
		return true
	}
	g.notHeard(p)
	return false
}

// Hears decides one message that a server has for a session's agent beside all calls:
// it is for who may use something of that server's now, a resource that is in no list
// included. What it refuses is counted.
func (g *Gateway) Hears(ctx context.Context, cred Credential, n Note) bool {
	p, t, err := g.Admit(ctx, cred)
	if err != nil {
		return false
	}
	for _, s := range everySort {
		seen, _ := g.seen(p, t, s)
		if slices.ContainsFunc(seen, func(tool Tool) bool { return tool.Server == n.Server }) {
			return true
		}
	}
	q := g.question(p, t, n.Used, authz.Read, nil)
	if q.Could = true; n.Used != "" && g.ask(t, q).Verdict != authz.Deny {
		return true
	}
	g.notHeard(p)
	return false
}

func (g *Gateway) notHeard(p Principal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count(count{kind: unheard, tenant: p.Tenant, who: p.ID})
}

// Shown is a digest of what List would show, without a record of it: a notice that
// a list changed is only sent to those for whom it did.
func (g *Gateway) Shown(ctx context.Context, cred Credential, s Sort) (string, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return "", err
	}
	t, err := g.running(ctx, &p, cred)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	seen, _ := g.seen(p, t, s)
	if seen, err = g.usable(ctx, &life{Call: Call{Credential: cred}, Principal: p, Task: t}, seen); err != nil {
		return "", err
	}
	for _, tool := range seen {
		fmt.Fprintf(sum, "%q %q\n", tool.Alias, tool.Hash)
	}
	if s == SortTool {
		for _, tool := range g.offers(p, t) {
			fmt.Fprintf(sum, "%q %q\n", tool.Alias, sha(tool.Definition))
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
