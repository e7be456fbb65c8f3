package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// start registers a task. KEYS: task, due, stops, the workload's bound task, its
// standing one, the parent's children, then every task above it. ARGV: sealed
// task, expiry, when to forget, id, the parent's version, how many children it
// may have ("-" for a root task), 'own' or not and which task is bound now,
// 'implicit' or not and which is standing now, then every stop that would be
// about it. What is bound and standing was worked out from sealed records.
var start = redis.NewScript(redis.Clock + `
if tonumber(ARGV[2]) <= now then return {'late'} end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'exists'} end
for i = 11, #ARGV do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 1 then return {'stopped'} end
end
for i = 7, #KEYS do
  if redis.call('HGET', KEYS[i], 'state') ~= 'running' then return {'gone'} end
end
if ARGV[6] ~= '-' then
  if redis.call('HGET', KEYS[#KEYS], 'v') ~= ARGV[5] then return {'moved'} end
  if redis.call('SCARD', KEYS[6]) >= tonumber(ARGV[6]) then return {'many'} end
end
if ARGV[7] == 'own' and (redis.call('GET', KEYS[4]) or '') ~= ARGV[8] then return {'moved'} end
if ARGV[9] == 'implicit' and (redis.call('GET', KEYS[5]) or '') ~= ARGV[10] then return {'moved'} end
redis.call('HSET', KEYS[1], 'v', '1', 'state', 'running', 'task', ARGV[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[4])
if ARGV[7] == 'own' then redis.call('SET', KEYS[4], ARGV[4]) redis.call('PEXPIREAT', KEYS[4], ARGV[3]) end
if ARGV[9] == 'implicit' then redis.call('SET', KEYS[5], ARGV[4]) redis.call('PEXPIREAT', KEYS[5], ARGV[3]) end
if ARGV[6] ~= '-' then
  redis.call('SADD', KEYS[6], ARGV[4])
  if redis.call('PTTL', KEYS[6]) < tonumber(ARGV[3]) - now then redis.call('PEXPIREAT', KEYS[6], ARGV[3]) end
end
return {'ok'}`)

// Start implements [gateway.Tasks]. t needs an id of its own, an owner, a
// principal and an expiry in Redis's future; a child needs its parent's
// ancestors and its parent above it, and no later end than its parent's. A crash
// after it leaves a task that nobody holds the token of; it expires.
func (r *Tasks) Start(ctx context.Context, t gateway.Task) (gateway.Secret, error) {
	token, err := r.register(ctx, t)
	if err != nil {
		return gateway.Secret{}, fmt.Errorf("start task: %w", err)
	}
	return token, nil
}

func (r *Tasks) register(ctx context.Context, t gateway.Task) (token gateway.Secret, err error) {
	switch {
	case t.Owner == "" || t.Principal == "":
		return token, errors.New("no owner or no principal")
	case len(t.Purpose)+len(t.Principal)+len(t.Owner)+len(t.OnBehalfOf)+len(t.Reference)+len(t.Kind) > maxText:
		return token, errors.New("too much text")
	case (t.Parent == "") != (len(t.Ancestors) == 0) || len(t.Ancestors) > maxDepth:
		return token, errors.New("its ancestors do not fit its parent")
	case t.Parent != "" && (t.Implicit || t.Own):
		return token, errors.New("only a root task can be implicit or its workload's own")
	}
	k, err := r.places(t.Tenant, t.ID)
	if err != nil {
		return token, err
	}
	// Redis keeps milliseconds; nothing may run for the rest of one.
	t.State, t.Expires, t.Widened = gateway.TaskRunning, t.Expires.UTC().Truncate(time.Millisecond), nil
	t.Ended, t.EndedBy, t.Outcome, t.Why, t.Closed = time.Time{}, "", "", "", time.Time{}
	sealed, err := r.seal(k.task, t, "1")
	if err != nil {
		return token, err
	}
	if token, err = r.sign(t); err != nil {
		return token, err
	}
	if err := r.publish(ctx); err != nil { // or other replicas would not know the token
		return gateway.Secret{}, err
	}
	for range 8 {
		ok, err := r.tryStart(ctx, k, t, sealed)
		if err != nil {
			return gateway.Secret{}, err
		}
		if ok {
			r.began(t)
			return token, nil
		}
	}
	return gateway.Secret{}, fmt.Errorf("what it depends on keeps changing: %w", gateway.ErrNotNow)
}

var errStopped = fmt.Errorf("%w: %w", gateway.ErrNoTask, gateway.ErrStopped)

// tryStart looks at what t depends on and registers it if that is still so; false
// means that it was not.
func (r *Tasks) tryStart(ctx context.Context, k places, t gateway.Task, sealed []byte) (bool, error) {
	// What we know of stops counts too, whatever became of them in Redis.
	if r.stopped(&t) {
		return false, errStopped
	}
	keys := []redis.Key{k.task, k.due, k.stops, k.task, k.task, k.task}
	parent, room := "", "-"
	if t.Parent != "" {
		p, err := r.parent(ctx, t)
		if err != nil {
			return false, err
		}
		parent, room = p.v, fmt.Sprint(p.Limits.FanOut)
		if keys[5], err = r.Store.Key(t.Tenant, redis.TaskChildren, t.Parent); err != nil {
			return false, err
		}
		for _, a := range t.Ancestors {
			above, err := r.Store.Key(t.Tenant, redis.Task, a.ID)
			if err != nil {
				return false, err
			}
			keys = append(keys, above)
		}
	}
	var own, bound, implicit, standing string
	var err error
	// A parallel task neither takes nor minds the place that others are bound to.
	if t.Own && !t.Parallel {
		own = "own"
		if keys[3], bound, err = r.holder(ctx, t, redis.TaskBound, workload(t.Principal, t.OwnFor)); err != nil {
			return false, err
		}
		if root, err := r.busy(ctx, t, place{t.Tenant, t.Principal, t.OwnFor}, bound); err != nil {
			return false, err
		} else if root != "" {
			return false, gateway.ErrBusy
		}
	}
	if t.Implicit {
		implicit = "implicit"
		if keys[4], standing, err = r.holder(ctx, t, redis.TaskStanding, standingOf(t)); err != nil {
			return false, err
		}
		if standing != "" {
			if runs, err := r.runs(ctx, ref{t.Tenant, standing}); err != nil {
				return false, err
			} else if runs {
				return false, fmt.Errorf("the standing task runs: %w", gateway.ErrNotNow)
			}
		}
	}
	args := []any{sealed, redis.Millis(t.Expires), redis.Millis(t.Expires.Add(unswept)), t.ID, parent, room, own, bound, implicit, standing}
	for _, f := range stopFields(&t) {
		args = append(args, f)
	}
	reply, err := r.Store.Run(ctx, start, keys, args...)
	if err != nil {
		return false, err
	}
	switch reply[0] {
	case "ok":
		return true, nil
	case "moved":
		return false, nil
	case "stopped":
		return false, errStopped
	case "gone":
		return false, fmt.Errorf("a task above it does not run: %w", gateway.ErrNoTask)
	case "many":
		return false, fmt.Errorf("its parent's children: %w", gateway.ErrTooMany)
	default:
		return false, fmt.Errorf("%s: %w", reply[0], gateway.ErrNotNow)
	}
}

// parent returns the record of t's parent, if it and all above it run and t says
// of them what they are.
func (r *Tasks) parent(ctx context.Context, t gateway.Task) (record, error) {
	var ids []string
	for _, a := range t.Ancestors {
		ids = append(ids, a.ID)
	}
	if ids[len(ids)-1] != t.Parent {
		return record{}, errors.New("the last of its ancestors is not its parent")
	}
	found, now, err := r.readAll(ctx, t.Tenant, ids)
	if err != nil {
		return record{}, err
	}
	if len(found) != len(ids) {
		return record{}, fmt.Errorf("a task above it is not there: %w", gateway.ErrNoTask)
	}
	for _, above := range found {
		if above.State != gateway.TaskRunning || !now.Before(above.Expires) {
			return record{}, fmt.Errorf("a task above it does not run: %w", gateway.ErrNoTask)
		}
	}
	p := found[len(found)-1]
	want := append(slices.Clone(p.Ancestors), p.Ancestor())
	if !slices.EqualFunc(t.Ancestors, want, func(a, b gateway.Ancestor) bool {
		x, y := a, b
		x.Scope, y.Scope = nil, nil
		return x == y && (a.Scope == nil) == (b.Scope == nil) && a.Scope.Hash() == b.Scope.Hash()
	}) {
		return record{}, errors.New("its ancestors are not its parent's and its parent")
	}
	if t.Expires.After(p.Expires) {
		return record{}, fmt.Errorf("it would outlive its parent: %w", gateway.ErrNotNow)
	}
	return p, nil
}

// holder reads which task holds a place that one at a time can have.
func (r *Tasks) holder(ctx context.Context, t gateway.Task, kind redis.Kind, place string) (redis.Key, string, error) {
	k, err := r.Store.Key(t.Tenant, kind, place)
	if err != nil {
		return k, "", err
	}
	id, err := r.Store.Get(ctx, k)
	return k, string(id), err
}

// runs asks Redis whether a task runs by itself. One that is not ours does not.
func (r *Tasks) runs(ctx context.Context, which ref) (bool, error) {
	rec, now, err := r.read(ctx, which)
	if errors.Is(err, gateway.ErrNoTask) {
		return false, nil
	}
	return err == nil && rec.State == gateway.TaskRunning && now.Before(rec.Expires), err
}

// began remembers what a task that started here holds.
func (r *Tasks) began(t gateway.Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.Own && !t.Parallel {
		remember(r.bound, place{t.Tenant, t.Principal, t.OwnFor}, t.ID)
	}
	if t.Implicit {
		remember(r.standing, standingNames(t), t.ID)
	}
}

// remember keeps one more in a memory that may forget any.
func remember[K comparable, V any](m map[K]V, key K, v V) {
	if _, ok := m[key]; !ok && len(m) >= cached {
		for other := range m {
			delete(m, other)
			break
		}
	}
	m[key] = v
}

// change puts a new version of a running task in the place of the last one, and
// tells every replica. KEYS: task, stream, then every task above it. ARGV: id, version, next version, sealed task, expiry.
var change = redis.NewScript(redis.Clock + `
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return {'gone'} end
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[2] then return {'moved'} end
if now >= tonumber(ARGV[5]) then return {'gone'} end
for i = 3, #KEYS do
  if redis.call('HGET', KEYS[i], 'state') ~= 'running' then return {'gone'} end
end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'task', ARGV[4])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'id', ARGV[1], 'what', 'changed')
return {'ok'}`)

// maxWidenings is how often one task can be widened.
const maxWidenings = 64

// Widen implements [gateway.Tasks]. What has lapsed stays in the record; whoever
// reads it goes by Until.
func (r *Tasks) Widen(ctx context.Context, tenant, id string, w gateway.Widening) (gateway.Task, error) {
	which := ref{tenant, id}
	k, err := r.places(tenant, id)
	if err != nil {
		return gateway.Task{}, fmt.Errorf("widen task: %w: %w", gateway.ErrNoTask, err)
	}
	if w.Approval == "" || len(w.Rows) == 0 {
		return gateway.Task{}, errors.New("widen task: no approval or no rows")
	}
	for range 8 {
		rec, now, err := r.read(ctx, which)
		if err != nil {
			return gateway.Task{}, fmt.Errorf("widen task: %w", err)
		}
		t := rec.Task
		switch {
		case t.State != gateway.TaskRunning || !now.Before(t.Expires):
			return gateway.Task{}, fmt.Errorf("widen task: %w", gateway.ErrNoTask)
		case slices.ContainsFunc(t.Widened, func(o gateway.Widening) bool { return o.Approval == w.Approval }):
			return t, nil
		case !w.Until.After(now):
			return gateway.Task{}, fmt.Errorf("widen task: it has lapsed: %w", gateway.ErrNotNow)
		case len(t.Widened) >= maxWidenings:
			return gateway.Task{}, fmt.Errorf("widen task: %w", gateway.ErrTooMany)
		}
		t.Widened = append(slices.Clone(t.Widened), w)
		v := next(rec.v)
		sealed, err := r.seal(k.task, t, v)
		if err != nil {
			return gateway.Task{}, fmt.Errorf("widen task: %w", err)
		}
		keys := []redis.Key{k.task, k.stream}
		for _, a := range t.Ancestors {
			above, err := r.Store.Key(tenant, redis.Task, a.ID)
			if err != nil {
				return gateway.Task{}, fmt.Errorf("widen task: %w", err)
			}
			keys = append(keys, above)
		}
		reply, err := r.Store.Run(ctx, change, keys, id, rec.v, v, sealed, redis.Millis(t.Expires))
		if err != nil {
			return gateway.Task{}, fmt.Errorf("widen task: %w", err)
		}
		switch reply[0] {
		case "ok":
			r.mu.Lock()
			r.changedLocked(which)
			r.mu.Unlock()
			return t, nil
		case "gone":
			return gateway.Task{}, fmt.Errorf("widen task: %w", gateway.ErrNoTask)
		}
	}
	return gateway.Task{}, fmt.Errorf("widen task: it keeps changing: %w", gateway.ErrNotNow)
}

// next is the version after v, which is ours, for it opened.
func next(v string) string {
	var n int64
	_ = json.Unmarshal([]byte(v), &n)
	return fmt.Sprint(n + 1)
}
