package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"toolbroker/gateway/audit"
)

// ShowTask shows a task to whoever started it or acts on it, or on one above it.
func (g *Gateway) ShowTask(ctx context.Context, cred Credential, id string) (Task, error) {
	_, t, err := g.ownTask(ctx, cred, id)
	return t, err
}

// ownTask finds a task that the caller started or acts on, or that was delegated
// from its own; any other is unknown to it.
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
	case !p.has(t):
		return p, Task{}, refuse(NoTask, errors.New("another's task")).say("no such task")
	case g.kinds[t.Kind].Bound && p.Bound == "":
		return p, Task{}, g.noTask(p, errUnbound)
	}
	return p, t, nil
}

// has reports whether a task is one of p's.
func (p Principal) has(t Task) bool {
	if p.Task != "" {
		return p.Task == t.ID || slices.ContainsFunc(t.Ancestors, func(a Ancestor) bool { return a.ID == p.Task })
	}
	return (t.Acts(p.ID) || p.ID == t.StartedBy) && (p.OnBehalfOf == "" || HumanName(p.OnBehalfOf) == HumanName(t.OnBehalfOf))
}

// EndTask ends a task for whoever started it or acts on it, or on one above it.
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

// TaskEnd ends a task for an operator. An implicit one stays ended until somebody
// lifts that.
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
// the task is closed by every replica that used it. Ending is never undone by a
// record that fails.
func (g *Gateway) end(ctx context.Context, t Task, by string, who Fact) (Task, error) {
	was := t.State
	t, err := g.Tasks.End(ctx, t.Tenant, t.ID, Ending{As: TaskEnded, By: by, Why: "it was ended", Said: true})
	if err != nil {
		return Task{}, refuse(Internal, fmt.Errorf("end task: %w", err))
	}
	if was != TaskRunning || t.EndedBy != by {
		return t, nil
	}
	who.Type, who.Tenant, who.Task, who.Key = audit.TaskEnding, t.Tenant, &t, t.ID+":ending"
	if err := g.Recorder.Durable(context.WithoutCancel(ctx), who); err != nil {
		g.Logger.Error("end of task not recorded", "task", t.ID, "err", err)
		return t, refuse(Internal, fmt.Errorf("record end: %w", err)).say("the task has ended, but that could not be recorded")
	}
	return t, nil
}

// CloseHere closes what a task has on this replica: it waits for its calls, whose
// contexts ended with it, and ends its downstream sessions and children. Asking
// again is harmless.
func (g *Gateway) CloseHere(ctx context.Context, t Task) Closing {
	defer g.unguardTask(t)
	defer g.forgetReach(t)
	c := closed(g.Servers.EndTask(ctx, t.Tenant, t.ID))
	left := g.landed(ctx, t)
	if c.Calls = max(0, g.cut(t)-left); left > 0 {
		c.Unproven = append(c.Unproven, fmt.Sprintf("%d calls under way", left))
	}
	return c
}

// CloseShared closes what a task has in what replicas share: what waits for
// humans, its credentials, and the agent's own sessions. Each room records what it
// ended; asking again is harmless.
func (g *Gateway) CloseShared(ctx context.Context, t Task) Closing {
	var c Closing
	var err error
	unproven := func(what string, err error) {
		if err != nil {
			g.Logger.Error("task ended, but not everything of it yet", "task", t.ID, "what", what, "err", err)
			c.Unproven = append(c.Unproven, what)
		}
	}
	c.Names.Approvals, err = g.Approvals.Cancel(ctx, t.Tenant, t.ID)
	unproven("approval requests", err)
	c.Names.Leases, err = g.Leases.EndTask(ctx, t.Tenant, t.ID)
	unproven("credentials", err)
	c.Approvals, c.Leases = len(c.Names.Approvals), len(c.Names.Leases)
	c.Sessions, err = g.Sessions.EndTask(ctx, t.Tenant, t.ID)
	unproven("the agent's sessions", err)
	_, err = g.Handles.EndTask(ctx, t.Tenant, t.ID)
	unproven("calls kept for later", err)
	return Closing{}.Add(c)
}

// flights are a task's calls under way on this replica.
type flights struct {
	flying map[*flight]struct{}
	watch  chan struct{} // closed when nothing is left to watch over; nil: nobody watches
	ended  int           // of calls that the task's end found under way, until somebody asks
	empty  chan struct{} // closed when there are none; nil while nobody waits
}

// A flight is one of them.
type flight struct {
	cancel context.CancelCauseFunc
	found  bool // by the task's end
}

// takeOff counts a call of a task in, until it lands: of a workload p, unless that is
// nil, where there is a seat for it. Its context ends with the task, or when nobody
// can say any more whether the task has ended.
func (g *Gateway) takeOff(ctx context.Context, p *Principal, t *Task) (_ context.Context, land func(), err error) {
	key := taskKey{t.Tenant, t.ID}
	g.mu.Lock()
	var sits *seats
	if p != nil {
		if sits, err = g.sit(p); err != nil {
			g.mu.Unlock()
			return ctx, nil, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	me := &flight{cancel: cancel}
	f := g.flights[key]
	if f == nil {
		f = &flights{flying: map[*flight]struct{}{}}
		g.flights[key] = f
	}
	f.flying[me] = struct{}{}
	alone := f.watch == nil
	if alone {
		f.watch = make(chan struct{})
	}
	watch := f.watch
	g.mu.Unlock()
	if alone {
		go g.watchOver(f, watch, g.Tasks.Ended(t.Tenant, t.ID), g.Tasks.Blind())
	}
	return ctx, func() {
		cancel(nil)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.rise(sits, p)
		if delete(f.flying, me); len(f.flying) > 0 {
			return
		}
		if f.watch != nil {
			close(f.watch)
			f.watch = nil
		}
		if f.empty != nil {
			close(f.empty)
			f.empty = nil
		}
		if f.ended == 0 {
			delete(g.flights, key)
		}
	}, nil
}

// watchOver cancels a task's calls when it ends, or nobody can say whether it has.
// The next call has the next look.
func (g *Gateway) watchOver(f *flights, watch, ended, blind <-chan struct{}) {
	why := errTaskEnded
	select {
	case <-watch:
		return
	case <-ended:
	case <-blind:
		why = errUnconfirmed
	}
	g.mu.Lock()
	if (<-chan struct{})(f.watch) == watch {
		f.watch = nil
	}
	cut := slices.Collect(maps.Keys(f.flying))
	for _, one := range cut {
		if why == errTaskEnded && !one.found {
			one.found = true
			f.ended++
		}
	}
	g.mu.Unlock()
	for _, one := range cut {
		one.cancel(why)
	}
}

// cut says how many calls a task's end found under way here, once.
func (g *Gateway) cut(t Task) int {
	key := taskKey{t.Tenant, t.ID}
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flights[key]
	if f == nil {
		return 0
	}
	n := f.ended
	f.ended = len(f.flying) // those that are still under way are counted when they land
	if len(f.flying) == 0 {
		delete(g.flights, key)
	}
	return n
}

// landed waits until none of a task's calls is under way here, or ctx ends, and
// says how many are.
func (g *Gateway) landed(ctx context.Context, t Task) int {
	g.mu.Lock()
	f := g.flights[taskKey{t.Tenant, t.ID}]
	if f == nil || len(f.flying) == 0 {
		g.mu.Unlock()
		return 0
	}
	if f.empty == nil {
		f.empty = make(chan struct{})
	}
	empty := f.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return 0
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(f.flying)
	}
}
