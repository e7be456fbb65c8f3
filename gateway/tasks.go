package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// A TaskSpec is what somebody wants a task to be.
type TaskSpec struct {
	Tenant     string // an operator's; a caller's own tenant otherwise
	Kind       string
	Purpose    string // untrusted text, at most 500 characters
	Principal  string // the workload that will act on it; empty for the caller itself
	OnBehalfOf string // the human it is for, if any
	TTL        time.Duration
	Scope      []authz.ScopeRow // narrows the kind's scope; empty for all of it
}

// StartTask starts a task for a caller with a credential of its own, and returns
// the token that is the task. A task token starts nothing.
func (g *Gateway) StartTask(ctx context.Context, cred Credential, spec TaskSpec) (Task, Secret, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return Task{}, Secret{}, err
	}
	if err := g.limit(p); err != nil {
		return Task{}, Secret{}, err
	}
	spec.Tenant = p.Tenant
	if spec.Principal == "" {
		spec.Principal = p.ID
	}
	// The human behind the caller's credential is behind whatever it starts: a
	// caller that could name another could choose who may approve.
	if p.OnBehalfOf != "" {
		if spec.OnBehalfOf != "" && HumanName(spec.OnBehalfOf) != HumanName(p.OnBehalfOf) {
			return g.notStarted(ctx, Fact{Principal: &p}, spec, refuse(BadArguments, errors.New("another human than the credential's")).
				say("on_behalf_of names another human than the one this credential acts for"))
		}
		spec.OnBehalfOf = p.OnBehalfOf
	}
	if p.Task != "" {
		return g.notStarted(ctx, Fact{Principal: &p}, spec, refuse(Denied, errors.New("a task token starts nothing")))
	}
	return g.start(ctx, p.ID, p.Owner, Fact{Principal: &p}, spec)
}

// TaskStart starts a task for an operator, who becomes its owner.
func (g *Gateway) TaskStart(ctx context.Context, op Operator, spec TaskSpec) (Task, Secret, error) {
	if err := g.may(ctx, op, MayStart, spec.Tenant); err != nil {
		return Task{}, Secret{}, err
	}
	if spec.Principal == "" {
		return Task{}, Secret{}, &Forbidden{Why: "Name the principal that will act on the task."}
	}
	t, token, err := g.start(ctx, "operator:"+op.Name, op.Name, Fact{Operator: &op}, spec)
	if r, ok := errors.AsType[*Refusal](err); ok && r.Code != Internal {
		err = &Forbidden{Why: r.Say}
	}
	return t, token, err
}

// start asks policy, records, and registers; in that order, so that no task runs
// that is not on record.
func (g *Gateway) start(ctx context.Context, starter, owner string, who Fact, spec TaskSpec) (Task, Secret, error) {
	t, err := g.newTask(starter, owner, spec)
	if err != nil {
		return g.notStarted(ctx, who, spec, err)
	}
	args, err := json.Marshal(map[string]string{"principal": t.Principal, "on_behalf_of": t.OnBehalfOf})
	if err != nil {
		return g.notStarted(ctx, who, spec, refuse(Internal, err))
	}
	d := g.Policy.Decide(authz.Request{
		Subject: authz.Subject{Principal: starter, Tenant: t.Tenant},
		Task:    t.Kind, Tool: "task:" + t.Kind, Action: authz.Start, Args: args, Time: g.now(),
	})
	who.Decision = &d
	switch d.Verdict {
	case authz.Deny:
		return g.notStarted(ctx, who, spec, refuse(Denied, nil).say("policy does not let you start a task of this kind"))
	case authz.Approve: // nobody is asked about a start in this version
		return g.notStarted(ctx, who, spec, refuse(Denied, errors.New("a start that needs approval")).say("a task of this kind needs approval to start, which cannot be given here"))
	}
	f := who
	f.Type, f.Tenant, f.Task = audit.TaskStarted, t.Tenant, &t
	if err := g.Recorder.Durable(ctx, f); err != nil {
		return Task{}, Secret{}, refuse(Internal, fmt.Errorf("record start: %w", err))
	}
	token, err := g.Tasks.Start(ctx, t)
	if err != nil {
		f.Type, f.Code, f.Detail = audit.TaskStartRefused, Internal, "the task could not be registered after its start was recorded"
		g.recordOperator(ctx, f)
		return Task{}, Secret{}, refuse(Internal, fmt.Errorf("start task: %w", err))
	}
	return t, token, nil
}

func (g *Gateway) notStarted(ctx context.Context, who Fact, spec TaskSpec, err error) (Task, Secret, error) {
	r := asRefusal(err)
	who.Type, who.Tenant, who.Code, who.Detail = audit.TaskStartRefused, spec.Tenant, r.Code, r.detail()
	who.Unbound = "the task was not started"
	g.recordOperator(ctx, who)
	return Task{}, Secret{}, r
}

func (g *Gateway) newTask(starter, owner string, spec TaskSpec) (Task, error) {
	bad := func(format string, args ...any) error {
		return refuse(BadArguments, nil).say(fmt.Sprintf(format, args...))
	}
	kind, ok := g.kinds[spec.Kind]
	if !ok || len(kind.Tenants) > 0 && !slices.Contains(kind.Tenants, spec.Tenant) || !slices.Contains(g.Config.Tenants, spec.Tenant) {
		return Task{}, bad("unknown task kind")
	}
	if owner == "" {
		return Task{}, bad("the credential has no accountable owner, so it cannot start a task")
	}
	if spec.TTL < 0 || spec.TTL > kind.TTL {
		return Task{}, bad("a task of this kind can run for at most %s", kind.TTL)
	}
	if spec.TTL == 0 {
		spec.TTL = kind.TTL
	}
	for what, s := range map[string]string{"The purpose": spec.Purpose, "on_behalf_of": spec.OnBehalfOf, "The principal": spec.Principal} {
		if err := plainText(what, s, 500); err != nil {
			return Task{}, bad("%v", err)
		}
	}
	scope := kind.Scope
	id := newID("task")
	if len(spec.Scope) > 0 {
		var err error
		if scope, err = authz.NewScope(spec.Scope); err != nil {
			return Task{}, bad("scope: %v", err)
		}
	}
	now := g.now().UTC().Truncate(time.Millisecond)
	return Task{
		ID: id, Tenant: spec.Tenant, Kind: spec.Kind, Purpose: spec.Purpose, Owner: owner, OnBehalfOf: spec.OnBehalfOf, Principal: spec.Principal,
		StartedBy: starter, Scope: scope, State: TaskRunning, Started: now, Expires: now.Add(spec.TTL),
	}, nil
}

// ShowTask shows a task to whoever started it or acts on it.
func (g *Gateway) ShowTask(ctx context.Context, cred Credential, id string) (Task, error) {
	_, t, err := g.ownTask(ctx, cred, id)
	return t, err
}

// ownTask finds a task that the caller started or acts on; any other is unknown
// to it.
func (g *Gateway) ownTask(ctx context.Context, cred Credential, id string) (Principal, Task, error) {
	p, err := g.Identify(ctx, cred)
	if err != nil {
		return p, Task{}, err
	}
	if err := g.limit(p); err != nil {
		return p, Task{}, err
	}
	t, err := g.Tasks.Get(ctx, p.Tenant, id)
	switch {
	case errors.Is(err, ErrNoTask):
		return p, Task{}, refuse(NoTask, err).say("no such task")
	case err != nil:
		return p, Task{}, refuse(Internal, fmt.Errorf("get task: %w", err))
	case p.Task != "" && p.Task != id, p.ID != t.Principal && p.ID != t.StartedBy:
		return p, Task{}, refuse(NoTask, errors.New("another's task")).say("no such task")
	}
	return p, t, nil
}

// EndTask ends a task for whoever started it or acts on it.
func (g *Gateway) EndTask(ctx context.Context, cred Credential, id string) (Task, error) {
	p, t, err := g.ownTask(ctx, cred, id)
	if err != nil {
		return Task{}, err
	}
	return g.end(ctx, t, p.ID, Fact{Principal: &p})
}

// TaskList lists a tenant's tasks.
func (g *Gateway) TaskList(ctx context.Context, op Operator, tenant string) ([]Task, error) {
	if err := g.may(ctx, op, MaySee, tenant); err != nil {
		return nil, err
	}
	return g.Tasks.List(ctx, tenant)
}

// TaskShow shows one task, or ErrNotFound.
func (g *Gateway) TaskShow(ctx context.Context, op Operator, tenant, id string) (Task, error) {
	if err := g.may(ctx, op, MaySee, tenant); err != nil {
		return Task{}, err
	}
	t, err := g.Tasks.Get(ctx, tenant, id)
	if errors.Is(err, ErrNoTask) {
		err = ErrNotFound
	}
	return t, err
}

// TaskEnd ends a task for an operator.
func (g *Gateway) TaskEnd(ctx context.Context, op Operator, tenant, id string) (Task, error) {
	if err := g.may(ctx, op, MayEnd, tenant); err != nil {
		return Task{}, err
	}
	t, err := g.Tasks.Get(ctx, tenant, id)
	if errors.Is(err, ErrNoTask) {
		return Task{}, ErrNotFound
	} else if err != nil {
		return Task{}, err
	}
	return g.end(ctx, t, "operator:"+op.Name, Fact{Operator: &op})
}

// end refuses the task's calls first, everywhere, and records that; what hung on
// the task is then ended on every replica that used it. Ending is never undone
// by a record that fails.
func (g *Gateway) end(ctx context.Context, t Task, by string, who Fact) (Task, error) {
	was := t.State
	t, err := g.Tasks.End(ctx, t.Tenant, t.ID, by)
	if err != nil {
		return Task{}, refuse(Internal, fmt.Errorf("end task: %w", err))
	}
	if was == TaskRunning && t.EndedBy == by {
		who.Type, who.Tenant, who.Task, who.Key = audit.TaskEnded, t.Tenant, &t, t.ID+":ended"
		if err := g.Recorder.Durable(context.WithoutCancel(ctx), who); err != nil {
			g.Logger.Error("end of task not recorded", "task", t.ID, "err", err)
			err = refuse(Internal, fmt.Errorf("record end: %w", err)).say("the task has ended, but that could not be recorded")
			g.cleanUp(t)
			return t, err
		}
	}
	g.cleanUp(t)
	return t, nil
}

// watch makes this replica clean up after a task it has served, whoever ends it.
func (g *Gateway) watch(t Task) {
	key := t.Tenant + "/" + t.ID
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.watched[key]; ok {
		return
	}
	g.watched[key] = struct{}{}
	ended := g.Tasks.Ended(t.Tenant, t.ID)
	g.closing.Go(func() {
		select {
		case <-ended:
			g.cleanUp(t)
		case <-g.stopped:
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.watched, key)
	})
}

// TaskOver ends what hung on a task on this replica and in what replicas share:
// requests, downstream sessions and children, then the credentials they held.
// Each room records what it ended; asking again is harmless.
func (g *Gateway) TaskOver(ctx context.Context, t Task) error {
	defer g.unguardTask(t)
	return errors.Join(
		g.Approvals.Cancel(ctx, t.Tenant, t.ID),
		g.Servers.EndTask(ctx, t.Tenant, t.ID),
		g.Leases.EndTask(ctx, t.Tenant, t.ID),
	)
}

// cleanUp is TaskOver in the time that a task's end may take; what is left then
// is ended by its owners.
func (g *Gateway) cleanUp(t Task) {
	ctx, cancel := context.WithTimeout(context.Background(), g.GiveBack)
	defer cancel()
	if err := g.TaskOver(ctx, t); err != nil {
		g.Logger.Error("task ended, but not everything of it yet", "task", t.ID, "err", err)
	}
}
