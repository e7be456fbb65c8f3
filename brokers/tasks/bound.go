package tasks

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// bind puts a task in the place of its workload, if that is held by whom we
// think it is. KEYS: the place, the task. ARGV: id, who holds it, when to forget.
var bind = redis.NewScript(`
if redis.call('HGET', KEYS[2], 'state') ~= 'running' then return {'gone'} end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return {'moved'} end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
return {'ok'}`)

// Bind implements [gateway.Tasks]. A parallel task neither takes nor minds its
// workload's place, so the place is always held by a task that is not. One of the
// same root leaves the place as it is.
func (r *Tasks) Bind(ctx context.Context, t gateway.Task, principal, human string) error {
	if t.Parallel {
		return nil
	}
	at := place{t.Tenant, principal, human}
	r.mu.RLock()
	e := r.cache[ref{t.Tenant, r.bound[at]}]
	known := e != nil && !e.over && e.task.Root() == t.Root()
	r.mu.RUnlock()
	if known { // and nobody takes the place of a task that runs
		return nil
	}
	task, err := r.Store.Key(t.Tenant, redis.Task, t.ID)
	if err != nil {
		return fmt.Errorf("bind task: %w: %w", gateway.ErrNoTask, err)
	}
	for range 8 {
		k, holder, err := r.holder(ctx, t, redis.TaskBound, workload(principal, human))
		if err != nil {
			return fmt.Errorf("bind task: %w", err)
		}
		switch root, err := r.busy(ctx, t, at, holder); {
		case err != nil:
			return fmt.Errorf("bind task: %w", err)
		case root == t.Root():
			return nil
		case root != "":
			return fmt.Errorf("bind task: %w", gateway.ErrBusy)
		}
		reply, err := r.Store.Run(ctx, bind, []redis.Key{k, task}, t.ID, holder, redis.Millis(t.Expires.Add(unswept)))
		if err != nil {
			return fmt.Errorf("bind task: %w", err)
		}
		switch reply[0] {
		case "ok":
			r.mu.Lock()
			remember(r.bound, at, t.ID)
			r.mu.Unlock()
			return nil
		case "gone":
			return fmt.Errorf("bind task: %w", gateway.ErrNoTask)
		}
	}
	return fmt.Errorf("bind task: it keeps changing: %w", gateway.ErrNotNow)
}

// busy returns the root of the task that t's workload is on already, if it is on
// one: the one that Redis says, or the one we remember, for Redis may have been
// made to forget it. One of another root counts before one of t's.
func (r *Tasks) busy(ctx context.Context, t gateway.Task, at place, holder string) (root string, err error) {
	r.mu.RLock()
	ours := r.bound[at]
	r.mu.RUnlock()
	for _, id := range []string{holder, ours} {
		if id == "" || id == t.ID {
			continue
		}
		rec, now, err := r.read(ctx, ref{t.Tenant, id})
		switch {
		case errors.Is(err, gateway.ErrNoTask):
		case err != nil:
			return "", err
		case rec.State == gateway.TaskRunning && now.Before(rec.Expires) && rec.Acts(at.principal):
			if root = rec.Root(); root != t.Root() {
				return root, nil
			}
		}
	}
	return root, nil
}

// standingOf names whose standing task it is, and of which kind.
func standingOf(t gateway.Task) string {
	return standingFor(t.Principal, t.OnBehalfOf, t.Kind)
}

// names are those of a standing task, as they were written: what is remembered by
// them needs no digest.
type names struct{ tenant, principal, human, kind string }

func standingNames(t gateway.Task) names { return names{t.Tenant, t.Principal, t.OnBehalfOf, t.Kind} }

func standingFor(principal, human, kind string) string {
	return hashed(principal, gateway.HumanName(human), kind)
}

// Standing implements [gateway.Tasks].
func (r *Tasks) Standing(ctx context.Context, tenant, principal, human, kind string) (gateway.Task, error) {
	name := names{tenant, principal, human, kind}
	r.mu.RLock()
	id := r.standing[name]
	r.mu.RUnlock()
	if id != "" {
		t, err := r.Running(ctx, tenant, id)
		if !errors.Is(err, gateway.ErrNoTask) || errors.Is(err, gateway.ErrStopped) {
			return t, err
		}
	}
	return r.findStanding(ctx, name)
}

// findStanding asks Redis which task is standing.
func (r *Tasks) findStanding(ctx context.Context, name names) (gateway.Task, error) {
	tenant := name.tenant
	want := gateway.Task{Tenant: tenant, Principal: name.principal, OnBehalfOf: name.human, Kind: name.kind, Implicit: true}
	if !r.awaitFresh(ctx) {
		return gateway.Task{}, gateway.ErrStale
	}
	if _, ok := r.stops[tenant]; ok && r.stopped(&want) {
		return gateway.Task{}, errStopped
	}
	k, err := r.Store.Key(tenant, redis.TaskStanding, standingOf(want))
	if err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	stops, err := r.Store.Key(tenant, redis.TasksStops)
	if err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	// A stop that was set a moment ago may not be known here yet.
	reply, err := r.Store.Run(ctx, stand, []redis.Key{k, stops}, stopField(gateway.StopStanding, standingOf(want)))
	if err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrStale, err)
	}
	switch reply[0] {
	case "stopped":
		return gateway.Task{}, errStopped
	case "none":
		return gateway.Task{}, gateway.ErrNoTask
	}
	t, err := r.Running(ctx, tenant, reply[1])
	if err != nil {
		return gateway.Task{}, err
	}
	if !t.Implicit || standingOf(t) != standingOf(want) {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, redis.ErrSeal)
	}
	r.mu.Lock()
	remember(r.standing, name, t.ID)
	r.mu.Unlock()
	return t, nil
}

var stand = redis.NewScript(`
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return {'stopped'} end
local id = redis.call('GET', KEYS[1])
if not id then return {'none'} end
return {'ok', id}`)

// A budget is one task's, as those below it have to keep to.
type budget struct {
	id    string
	calls int64
	until int64 // ms, when the counter goes
}

// spend takes one from every counter or from none. A counter that was set back
// is not believed: it stands at least where we saw it. KEYS: the task, then the
// counters. ARGV: for each counter its limit, where it stands at least, and when
// it goes.
var spend = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return {'gone'} end
local out = {'ok'}
for i = 2, #KEYS do
  local a = (i - 2) * 3
  local n = math.max(tonumber(redis.call('GET', KEYS[i])) or 0, tonumber(ARGV[a+2]))
  if n >= tonumber(ARGV[a+1]) then return {'many', i - 2, n} end
  out[i] = n + 1
end
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], string.format('%d', out[i]))
  redis.call('PEXPIREAT', KEYS[i], ARGV[(i - 2) * 3 + 3])
end
return out`)

// Spend implements [gateway.Tasks].
func (r *Tasks) Spend(ctx context.Context, t gateway.Task) error {
	budgets, err := r.budgets(ctx, t)
	if err != nil {
		return fmt.Errorf("spend: %w", err)
	}
	days := daysOf(t)
	if len(budgets) == 0 && len(days) == 0 {
		return nil
	}
	task, err := r.Store.Key(t.Tenant, redis.Task, t.ID)
	if err != nil {
		return fmt.Errorf("spend: %w: %w", gateway.ErrNoTask, err)
	}
	keys, args, says := []redis.Key{task}, []any{}, []string{}
	count := func(k redis.Key, limit, until int64, what string) {
		r.mu.RLock()
		least := r.floors[k.String()]
		r.mu.RUnlock()
		keys, args, says = append(keys, k), append(args, limit, least, until), append(says, what)
	}
	for _, b := range budgets {
		k, err := r.Store.Key(t.Tenant, redis.TaskSpent, b.id)
		if err != nil {
			return fmt.Errorf("spend: %w", err)
		}
		what := "the calls of a task above it are used up"
		if b.id == t.ID {
			what = "the calls of this task are used up"
		}
		count(k, b.calls, b.until, what)
	}
	now := r.Now().UTC()
	for _, d := range days {
		k, err := r.Store.Key(t.Tenant, redis.TaskDay, d.of, now.Format("20060102"))
		if err != nil {
			return fmt.Errorf("spend: %w", err)
		}
		count(k, d.calls, now.AddDate(0, 0, 2).UnixMilli(), "today's calls of a workload on tasks of this kind are used up")
	}
	reply, err := r.Store.Run(ctx, spend, keys, args...)
	if err != nil {
		return fmt.Errorf("spend: %w", err)
	}
	switch reply[0] {
	case "ok":
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, n := range reply[1:] {
			name := keys[i+1].String()
			if n := number(n); n > r.floors[name] {
				remember(r.floors, name, n)
			}
		}
		return nil
	case "many":
		return fmt.Errorf("spend: %s: %w", says[number(reply[1])], gateway.ErrTooMany)
	}
	return fmt.Errorf("spend: %w", gateway.ErrNoTask)
}

// A day is a budget of one workload, human and kind.
type day struct {
	of    string
	calls int64
}

// daysOf are the budgets of a day that a call of t takes from: its own and those
// of the tasks above it, each once. A human whom nobody proved is none.
func daysOf(t gateway.Task) (all []day) {
	if t.Budget.PerDay == 0 && len(t.Ancestors) == 0 {
		return nil
	}
	for _, a := range append(slices.Clip(t.Ancestors), t.Ancestor()) {
		if a.PerDay <= 0 {
			continue
		}
		d := day{hashed(a.Principal, gateway.HumanName(a.Human), a.Kind), a.PerDay}
		if i := slices.IndexFunc(all, func(o day) bool { return o.of == d.of }); i >= 0 {
			all[i].calls = min(all[i].calls, d.calls)
		} else {
			all = append(all, d)
		}
	}
	return all
}

// budgets are those that t has to keep to, its own first.
func (r *Tasks) budgets(ctx context.Context, t gateway.Task) ([]budget, error) {
	which := ref{t.Tenant, t.ID}
	r.mu.RLock()
	e := r.cache[which]
	r.mu.RUnlock()
	if e == nil {
		if _, err := r.load(ctx, which); err != nil {
			return nil, err
		}
		r.mu.RLock()
		e = r.cache[which]
		r.mu.RUnlock()
	}
	if e == nil || e.over {
		return nil, gateway.ErrNoTask
	}
	return e.budgets, nil
}
