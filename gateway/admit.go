package gateway

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"strings"

	"toolbroker/authz"
)

// Identify says who presented a credential, and refuses a session that was
// opened by someone else. Refusals are counted per source and second, not
// recorded one by one: they are anybody's to cause.
func (g *Gateway) Identify(ctx context.Context, cred Credential) (Principal, error) {
	p, err := g.Identity.Identify(ctx, cred.Bearer)
	if err == nil && cred.Session != "" {
		err = g.sameSession(ctx, p, cred)
	}
	if err != nil {
		if CodeOf(err) == Internal && !errors.Is(err, ErrUnidentified) && !errors.Is(err, ErrNotFound) {
			return Principal{}, refuse(Internal, fmt.Errorf("identify: %w", err))
		}
		g.mu.Lock()
		g.count(count{kind: noIdent, who: sourceOf(cred.Source)})
		g.mu.Unlock()
		return Principal{}, refuse(Unidentified, err)
	}
	return p, nil
}

// sourceOf reduces an address to what is counted: the host, and of an IPv6
// address its /64.
func sourceOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String() + "/64"
	}
	return host
}

// binding is what a session is opened under: any other principal, human or task
// that claims the session is refused.
func binding(p Principal, cred Credential) string {
	task := p.Task
	if task == "" {
		task = cred.Task
	}
	return strings.Join([]string{p.Tenant, p.ID, p.OnBehalfOf, task}, "\n")
}

func (g *Gateway) sameSession(ctx context.Context, p Principal, cred Credential) error {
	owner, err := g.Sessions.Owner(ctx, cred.Session)
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(owner), []byte(binding(p, cred))) != 1 {
		return fmt.Errorf("another's session: %w", ErrNotFound)
	}
	return nil
}

// OpenSession binds a new legacy session to the credential's principal and task.
func (g *Gateway) OpenSession(ctx context.Context, cred Credential, session string) error {
	cred.Session = ""
	p, _, err := g.Admit(ctx, cred)
	if err != nil {
		return err
	}
	if err := g.limit(p); err != nil {
		return err
	}
	if err := g.Sessions.Open(ctx, session, binding(p, cred)); err != nil {
		return refuse(Internal, fmt.Errorf("open session: %w", err))
	}
	return nil
}

// CloseSession ends cred.Session, for its owner only.
func (g *Gateway) CloseSession(ctx context.Context, cred Credential) error {
	if _, err := g.Identify(ctx, cred); err != nil {
		return err
	}
	if err := g.Sessions.Close(ctx, cred.Session); err != nil {
		return refuse(Internal, fmt.Errorf("close session: %w", err))
	}
	return nil
}

// Admit identifies the caller and finds its running task.
func (g *Gateway) Admit(ctx context.Context, cred Credential) (Principal, Task, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return Principal{}, Task{}, err
	}
	t, err := g.running(ctx, p, cred)
	return p, t, err
}

// running returns the one task the credential and the header agree on.
func (g *Gateway) running(ctx context.Context, p Principal, cred Credential) (Task, error) {
	id := p.Task
	switch {
	case id == "":
		id = cred.Task
	case cred.Task != "" && cred.Task != id:
		return Task{}, refuse(NoTask, errors.New("the header names another task than the token"))
	}
	if id == "" {
		return Task{}, refuse(NoTask, errors.New("no task named")).
			say("no task was named; use a task token, or name a running task in the Toolbroker-Task header")
	}
	t, err := g.Tasks.Running(ctx, p.Tenant, id)
	switch {
	case errors.Is(err, ErrStale):
		return Task{}, refuse(Internal, err).say("it cannot be confirmed right now that the task is still running, so nothing was done; try again in a moment")
	case err != nil:
		return Task{}, refuse(NoTask, err)
	case t.Tenant != p.Tenant, t.Principal != p.ID:
		return Task{}, refuse(NoTask, errors.New("another workload's task"))
	}
	if _, ok := g.kinds[t.Kind]; !ok {
		return Task{}, refuse(NoTask, fmt.Errorf("task kind %q is no longer configured", t.Kind))
	}
	g.watch(t)
	return t, nil
}

// question is what authz is asked about a tool: the policy, the most a task of
// this kind may ever do, and this task's own scope must each grant it.
func (g *Gateway) question(p Principal, t Task, tool Tool, a authz.Action, args []byte) authz.Request {
	return authz.Request{
		Subject: authz.Subject{Principal: p.ID, Tenant: p.Tenant},
		Task:    t.Kind, Tool: tool.ID(), Action: a, Args: args, Time: g.now(),
		Scopes: []*authz.Scope{g.kinds[t.Kind].Scope, t.Scope.Named("task " + t.ID)},
	}
}

// untilEnded returns a context that ends with the task.
func (g *Gateway) untilEnded(ctx context.Context, t Task) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended, done := g.Tasks.Ended(t.Tenant, t.ID), make(chan struct{})
	go func() {
		select {
		case <-ended:
			cancel(errTaskEnded)
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}

var errTaskEnded = fmt.Errorf("%w: it ended while the call was under way", ErrNoTask)

// Tools lists what the task may be granted, sorted by alias.
func (g *Gateway) Tools(ctx context.Context, cred Credential, ref CallRef) ([]Tool, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return nil, err
	}
	if err := g.limit(p); err != nil {
		return nil, err
	}
	t, err := g.running(ctx, p, cred)
	if err != nil {
		return nil, err
	}
	all := g.Servers.Tools(p.Tenant)
	seen := make([]Tool, 0, len(all))
	for _, tool := range all {
		if g.Policy.Decide(g.question(p, t, tool, authz.List, nil)).Verdict != authz.Deny {
			seen = append(seen, tool)
		}
	}
	ref.Source = cred.Source
	if err := g.Recorder.Record(ctx, listFact(p, t, ref, len(seen), len(all))); err != nil {
		return nil, refuse(Internal, fmt.Errorf("record: %w", err))
	}
	return seen, nil
}
