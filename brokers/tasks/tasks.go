// Package tasks knows what each workload is doing: it keeps tasks in Redis,
// makes the tokens that are tasks, and refuses ended ones on every replica
// within 100 ms.
//
// What a task may reach is the policy's business, and whether one may start the
// gateway's. It emits one fact, task.expired; start and end are recorded by the
// gateway, around [Tasks.Start] and [Tasks.End].
package tasks

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A Config is what the task registry is made of.
type Config struct {
	Store      *redis.Store
	Recorder   gateway.Recorder
	SigningKey ed25519.PrivateKey // this replica's; see [LoadKey]
	Issuer     string             // "iss" of the tokens: the deployment, the same on every replica
	Audience   string             // "aud" of the tokens: likewise

	// Over is told of every task that ended or expired, at least once, on some
	// replica, until it returns nil; so that what hangs on a task ends even
	// where the replica that served it died. May be nil.
	Over func(ctx context.Context, t gateway.Task) error

	Log *slog.Logger     // nil for slog's default
	Now func() time.Time // nil for time.Now
}

const (
	remembered = 24 * time.Hour  // how long an ended task can be read
	lately     = time.Hour       // how long it is listed
	listed     = 500             // how many are listed
	maxPurpose = 8 << 10         // of text in a task; the gateway's own limits are tighter
	timeout    = 2 * time.Second // of a round trip that no caller's context bounds
)

// Tasks implements [gateway.Tasks]. It is safe for concurrent use. [Tasks.Run]
// must be running, or every task is stale.
type Tasks struct {
	Config
	signer signer
	outbox *redis.Outbox
	lookup *rate.Limiter // of unknown signing keys

	mu        sync.Mutex
	confirmed time.Time                    // when the last confirmed read of ended tasks began
	anchors   map[string]string            // by tenant: the last entry seen, which must still be there
	gens      map[string]int               // by tenant: counts what made cached tasks wrong
	cache     map[ref]gateway.Task         // as last seen; ended ones too
	watches   map[ref]*watch               // whoever waits for an end
	keys      map[string]ed25519.PublicKey // by kid
	published time.Time                    // when this replica last told the others its key
}

// A ref names a task.
type ref struct{ tenant, id string }

// New makes a registry. It does not wait for Redis.
func New(c Config) (*Tasks, error) {
	if c.Store == nil || c.Recorder == nil {
		return nil, errors.New("tasks: no store or no recorder")
	}
	if c.Issuer == "" || c.Audience == "" {
		return nil, errors.New("tasks: tokens need an issuer and an audience")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s, err := newSigner(c.SigningKey)
	if err != nil {
		return nil, err
	}
	return &Tasks{
		Config: c, signer: s, outbox: c.Store.Outbox("tasks"), lookup: rate.NewLimiter(50, 50),
		anchors: map[string]string{}, gens: map[string]int{},
		cache: map[ref]gateway.Task{}, watches: map[ref]*watch{},
		keys: map[string]ed25519.PublicKey{s.kid: s.public},
	}, nil
}

// NewID makes a task id.
func NewID() string { return "task-" + strings.ToLower(rand.Text()) }

// Run keeps the registry fresh, expires what is due, and sends facts to the
// record, until ctx ends.
func (r *Tasks) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { r.outbox.Run(ctx, r.send) })
	parts.Go(func() { r.tend(ctx) })
	r.follow(ctx)
	parts.Wait()
	return ctx.Err()
}

// A record is in Redis as a version and a sealed task: version 1 is running,
// version 2 ended or expired. The seal covers the version, so neither can be
// changed there without the other.
const (
	running = "1"
	over    = "2"
)

var start = redis.NewScript(redis.Clock + `
if tonumber(ARGV[2]) <= now then return {'late'} end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'exists'} end
redis.call('HSET', KEYS[1], 'v', '1', 'task', ARGV[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[4])
return {'ok'}`)

// Start implements [gateway.Tasks]. t needs an id of its own, an owner, a
// principal and an expiry in Redis's future. A crash after it leaves a task
// that nobody holds the token of; it expires.
func (r *Tasks) Start(ctx context.Context, t gateway.Task) (gateway.Secret, error) {
	var none gateway.Secret
	switch {
	case t.Parent != "":
		return none, errors.New("start task: a task of a task cannot be started yet")
	case t.Owner == "" || t.Principal == "":
		return none, errors.New("start task: no owner or no principal")
	case len(t.Purpose)+len(t.Principal)+len(t.Owner)+len(t.OnBehalfOf) > maxPurpose:
		return none, errors.New("start task: too much text")
	}
	k, err := r.places(t.Tenant, t.ID)
	if err != nil {
		return none, fmt.Errorf("start task: %w", err)
	}
	// Redis keeps milliseconds; nothing may run for the rest of one.
	t.State, t.Expires = gateway.TaskRunning, t.Expires.UTC().Truncate(time.Millisecond)
	record, err := json.Marshal(t)
	if err != nil {
		return none, fmt.Errorf("start task: %w", err)
	}
	token, err := r.sign(t)
	if err != nil {
		return none, fmt.Errorf("start task: %w", err)
	}
	if err := r.publish(ctx); err != nil { // or other replicas would not know the token
		return none, fmt.Errorf("start task: %w", err)
	}
	reply, err := r.Store.Run(ctx, start, []redis.Key{k.task, k.due},
		r.Store.Seal(k.task, running, record), redis.Millis(t.Expires), redis.Millis(t.Expires.Add(remembered)), t.ID)
	if err != nil {
		return none, fmt.Errorf("start task: %w", err)
	}
	if reply[0] != "ok" {
		return none, fmt.Errorf("start task: %s: %w", reply[0], gateway.ErrNotNow)
	}
	return token, nil
}

// end moves a running task to its end. Only the clock of Redis decides whether
// that is an end or an expiry.
var end = redis.NewScript(redis.Clock + `
local v = redis.call('HGET', KEYS[1], 'v')
if not v then
  redis.call('ZREM', KEYS[2], ARGV[2])
  return {'none'}
end
if v ~= '1' then return {'was'} end
local due = now >= tonumber(ARGV[4])
if ARGV[3] == 'expired' and not due then return {'early'} end
if ARGV[3] == 'ended' and due then return {'late'} end
redis.call('HSET', KEYS[1], 'v', '2', 'task', ARGV[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[5])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 86400000)
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'id', ARGV[2])
redis.call('XADD', KEYS[5], '*', 'state', ARGV[3], 'id', ARGV[2], 'task', ARGV[6])
return {'ok'}`)

// End implements [gateway.Tasks]. One past its expiry is returned as expired.
func (r *Tasks) End(ctx context.Context, tenant, id, by string) (gateway.Task, error) {
	return r.finish(ctx, ref{tenant, id}, gateway.TaskEnded, by)
}

// finish ends or expires a task; whoever comes second returns what the first
// made of it. A crash after the script leaves the task ended for everybody,
// with its entry in the outbox.
func (r *Tasks) finish(ctx context.Context, which ref, state gateway.TaskState, by string) (gateway.Task, error) {
	k, err := r.places(which.tenant, which.id)
	if err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	for range 3 {
		t, now, err := r.read(ctx, which)
		if err != nil || t.State != gateway.TaskRunning {
			return t, err
		}
		if !now.Before(t.Expires) {
			state = gateway.TaskExpired
		}
		t.State, t.Ended, t.EndedBy = state, now.UTC(), by
		if state == gateway.TaskExpired {
			t.Ended, t.EndedBy = t.Expires, ""
		}
		record, err := json.Marshal(t)
		if err != nil {
			return t, fmt.Errorf("end task: %w", err)
		}
		reply, err := r.Store.Run(ctx, end, []redis.Key{k.task, k.due, k.lately, k.ended, k.outbox},
			r.Store.Seal(k.task, over, record), t.ID, string(state), redis.Millis(t.Expires), redis.Millis(now.Add(remembered)),
			r.Store.Seal(k.outbox, string(state)+":"+t.ID, record))
		if err != nil {
			return t, fmt.Errorf("end task: %w", err)
		}
		switch reply[0] {
		case "ok":
			r.over(which)
			r.outbox.Wake()
			return t, nil
		case "early":
			return t, fmt.Errorf("end task: not due: %w", gateway.ErrNotNow)
		}
		// Somebody was quicker, or it became due between the two clocks.
	}
	return gateway.Task{}, fmt.Errorf("end task: it keeps changing: %w", gateway.ErrNotNow)
}

// Get implements [gateway.Tasks]. It always asks Redis.
func (r *Tasks) Get(ctx context.Context, tenant, id string) (gateway.Task, error) {
	t, now, err := r.read(ctx, ref{tenant, id})
	if err == nil && t.State == gateway.TaskRunning && !now.Before(t.Expires) {
		t.State, t.Ended = gateway.TaskExpired, t.Expires // as the sweeper is about to write
	}
	return t, err
}

// List implements [gateway.Tasks]: at most 500, ended ones for an hour.
func (r *Tasks) List(ctx context.Context, tenant string) ([]gateway.Task, error) {
	due, err := r.Store.Key(tenant, redis.TasksDue)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	ended, err := r.Store.Key(tenant, redis.TasksLately)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	now, err := r.Store.Now(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	ids, err := r.Store.Latest(ctx, due, listed)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	more, err := r.Store.Between(ctx, ended, now.Add(-lately), time.Time{}, listed)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	// One may have ended between the two reads.
	all, err := r.readAll(ctx, tenant, slices.Compact(slices.Sorted(slices.Values(append(ids, more...)))))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b gateway.Task) int {
		return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.ID, b.ID))
	})
	return all[:min(len(all), listed)], nil
}

// places are the keys of one task.
type places struct{ task, due, lately, ended, outbox redis.Key }

func (r *Tasks) places(tenant, id string) (p places, err error) {
	for _, k := range []struct {
		to   *redis.Key
		kind redis.Kind
		ids  []string
	}{
		{&p.task, redis.Task, []string{id}}, {&p.due, redis.TasksDue, nil},
		{&p.lately, redis.TasksLately, nil}, {&p.ended, redis.TasksEnded, nil},
	} {
		if *k.to, err = r.Store.Key(tenant, k.kind, k.ids...); err != nil {
			return places{}, err
		}
	}
	p.outbox, err = r.outbox.Key(tenant)
	return p, err
}

// read returns a task as it is in Redis, and Redis's time.
func (r *Tasks) read(ctx context.Context, which ref) (gateway.Task, time.Time, error) {
	k, err := r.Store.Key(which.tenant, redis.Task, which.id)
	if err != nil {
		return gateway.Task{}, time.Time{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	found, now, err := r.Store.Fields(ctx, []redis.Key{k}, "v", "task")
	if err != nil {
		return gateway.Task{}, time.Time{}, fmt.Errorf("read task: %w", err)
	}
	t, err := r.open(k, which, found[0])
	return t, now, err
}

// readAll leaves out what is gone, and what does not open.
func (r *Tasks) readAll(ctx context.Context, tenant string, ids []string) ([]gateway.Task, error) {
	var keys []redis.Key
	var known []string
	for _, id := range ids {
		if k, err := r.Store.Key(tenant, redis.Task, id); err == nil {
			keys, known = append(keys, k), append(known, id)
		}
	}
	found, now, err := r.Store.Fields(ctx, keys, "v", "task")
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	all := []gateway.Task{}
	for i, f := range found {
		t, err := r.open(keys[i], ref{tenant, known[i]}, f)
		if errors.Is(err, redis.ErrSeal) {
			r.Log.ErrorContext(ctx, "a task's stored record was changed by someone else", "tenant", tenant, "task", known[i])
		}
		if err != nil {
			continue
		}
		if t.State == gateway.TaskRunning && !now.Before(t.Expires) {
			t.State, t.Ended = gateway.TaskExpired, t.Expires
		}
		all = append(all, t)
	}
	return all, nil
}

// open checks a record. One that is not ours is no task.
func (r *Tasks) open(k redis.Key, which ref, fields map[string]string) (t gateway.Task, err error) {
	if fields["v"] == "" && fields["task"] == "" {
		return t, gateway.ErrNoTask
	}
	record, err := r.Store.Unseal(k, fields["v"], []byte(fields["task"]))
	if err == nil {
		err = json.Unmarshal(record, &t)
	}
	if err == nil && (t.ID != which.id || t.Tenant != which.tenant || (t.State == gateway.TaskRunning) != (fields["v"] == running)) {
		err = redis.ErrSeal
	}
	if err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	return t, nil
}
