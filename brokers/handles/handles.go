// Package handles keeps what agents of the MCP tasks extension come back for: a
// state machine in Redis, of which every transition is one atomic script.
//
// A handle holds arguments and results, so all of it but its id, its task's id and
// its version is encrypted. What the states mean is the gateway's business; this
// package sees to it that each follows the one that its mover saw.
package handles

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A Config is what the handles are made of.
type Config struct {
	Store      *redis.Store
	MaxPerTask int          // handles of one task that are kept, final ones too; 0 for 128
	MaxBytes   int          // of one handle, its call and its result; 0 for 6 MiB
	Log        *slog.Logger // nil for slog's default
}

// Handles implements [gateway.Handles]. It is safe for concurrent use.
type Handles struct {
	Config

	mu   sync.Mutex
	seen map[ref]int64
}

// A ref names a handle. How far this replica has seen one go it remembers: one that
// went back, because Redis lost something or an old record was put into it, is not
// believed.
type ref struct{ tenant, id string }

const (
	over     = 24 * time.Hour // how long nothing can be kept for an ended task; its credentials end before
	mostSeen = 50_000         // versions in memory
)

// keep stores a new handle, unless its task is over or has too many. KEYS: handle,
// task, over. ARGV: id, sealed handle, expiry, how many a task may have.
var keep = redis.NewScript(redis.Clock + `
local handle, task, over = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', over) == 1 then return {'over'} end
if now >= tonumber(ARGV[3]) then return {'late'} end
redis.call('ZREMRANGEBYSCORE', task, '-inf', now)
if redis.call('ZCARD', task) >= tonumber(ARGV[4]) then return {'many'} end
if redis.call('EXISTS', handle) == 1 then return {'exists'} end
redis.call('HSET', handle, 'seq', '1', 'handle', ARGV[2])
redis.call('PEXPIREAT', handle, ARGV[3])
redis.call('ZADD', task, ARGV[3], ARGV[1])
if redis.call('PTTL', task) < tonumber(ARGV[3]) - now then redis.call('PEXPIREAT', task, ARGV[3]) end
return {'ok'}`)

// move takes a handle from one version to the next, if it is at that version. KEYS:
// handle, task. ARGV: id, version, next version, sealed handle, expiry.
var move = redis.NewScript(redis.Clock + `
local handle, task = KEYS[1], KEYS[2]
local seq = redis.call('HGET', handle, 'seq')
if not seq then return {'none'} end
if seq ~= ARGV[2] then return {'moved'} end
redis.call('HSET', handle, 'seq', ARGV[3], 'handle', ARGV[4])
redis.call('PEXPIREAT', handle, ARGV[5])
redis.call('ZADD', task, ARGV[5], ARGV[1])
if redis.call('PTTL', task) < tonumber(ARGV[5]) - now then redis.call('PEXPIREAT', task, ARGV[5]) end
return {'ok'}`)

// finish says that a task is over and returns its handles. Nothing can be kept for
// the task after it, so none slips in behind.
var finish = redis.NewScript(`
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
local out = {'ok'}
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do out[#out+1] = id end
return out`)

// New makes Handles. It does not wait for Redis.
func New(c Config) (*Handles, error) {
	if c.Store == nil {
		return nil, errors.New("handles: no store")
	}
	if c.MaxPerTask < 0 || c.MaxBytes < 0 {
		return nil, errors.New("handles: a negative limit")
	}
	c.MaxPerTask = cmp.Or(c.MaxPerTask, 128)
	c.MaxBytes = cmp.Or(c.MaxBytes, 6<<20)
	c.Log = cmp.Or(c.Log, slog.Default())
	return &Handles{Config: c, seen: map[ref]int64{}}, nil
}

// Keep implements [gateway.Handles]. It is ErrNotNow for a task that is over, and
// ErrTooMany for one with too many, or where the handle is too large.
func (h *Handles) Keep(ctx context.Context, one gateway.Handle) error {
	p, err := h.places(one.Tenant, one.ID, one.Task)
	if err != nil {
		return fmt.Errorf("keep a handle: %w", err)
	}
	one.Seq = 1
	sealed, err := h.seal(p.handle, one)
	if err != nil {
		return fmt.Errorf("keep a handle: %w", err)
	}
	reply, err := h.Store.Run(ctx, keep, []redis.Key{p.handle, p.task, p.over}, one.ID, sealed, redis.Millis(one.Expires), h.MaxPerTask)
	switch {
	case err != nil:
		return fmt.Errorf("keep a handle: %w", err)
	case reply[0] == "many":
		return fmt.Errorf("keep a handle: its task's: %w", gateway.ErrTooMany)
	case reply[0] != "ok":
		return fmt.Errorf("keep a handle: %s: %w", reply[0], gateway.ErrNotNow)
	}
	h.saw(one)
	return nil
}

// Handle implements [gateway.Handles].
func (h *Handles) Handle(ctx context.Context, tenant, id string) (gateway.Handle, error) {
	one, err := h.load(ctx, tenant, id)
	if err != nil {
		return gateway.Handle{}, fmt.Errorf("handle: %w", err)
	}
	return one, nil
}

// Moved implements [gateway.Handles]. The version in the clear is a hint: one that
// was forged, or kept from changing, makes somebody look too often, or too late.
func (h *Handles) Moved(ctx context.Context, tenant, id string, seq int64) (bool, error) {
	k, err := h.Store.Key(tenant, redis.Handle, id)
	if err != nil {
		return false, fmt.Errorf("handle: %w: %w", gateway.ErrNotFound, err)
	}
	found, _, err := h.Store.Fields(ctx, []redis.Key{k}, "seq")
	switch {
	case err != nil:
		return false, fmt.Errorf("handle: %w", err)
	case found[0]["seq"] == "":
		return false, fmt.Errorf("handle: %w", gateway.ErrNotFound)
	}
	return found[0]["seq"] != strconv.FormatInt(seq, 10), nil
}

// Move implements [gateway.Handles]. Of what cannot move, what is stored stays; a
// final handle is ErrNotNow, and one that grew too large ErrTooMany.
func (h *Handles) Move(ctx context.Context, one gateway.Handle) (gateway.Handle, error) {
	was, err := h.load(ctx, one.Tenant, one.ID)
	if err != nil {
		return gateway.Handle{}, fmt.Errorf("move a handle: %w", err)
	}
	if was.Seq != one.Seq || was.Final() {
		return gateway.Handle{}, fmt.Errorf("move a handle: it is %s: %w", was.Status, gateway.ErrNotNow)
	}
	one.Binding, one.Task, one.Call, one.Created = was.Binding, was.Task, was.Call, was.Created
	one.Seq++
	if err := h.write(ctx, was, one); err != nil {
		return gateway.Handle{}, fmt.Errorf("move a handle: %w", err)
	}
	return one, nil
}

// write takes a handle from one version to the next, or is ErrNotNow.
func (h *Handles) write(ctx context.Context, from, to gateway.Handle) error {
	p, err := h.places(to.Tenant, to.ID, to.Task)
	if err != nil {
		return err
	}
	sealed, err := h.seal(p.handle, to)
	if err != nil {
		return err
	}
	reply, err := h.Store.Run(ctx, move, []redis.Key{p.handle, p.task}, to.ID, from.Seq, to.Seq, sealed, redis.Millis(to.Expires))
	switch {
	case err != nil:
		return err
	case reply[0] == "none":
		return gateway.ErrNotFound
	case reply[0] != "ok":
		return fmt.Errorf("it %s: %w", reply[0], gateway.ErrNotNow)
	}
	h.saw(to)
	return nil
}

// EndTask implements [gateway.Handles]. A crash in between leaves handles that
// expire; a repeat cancels the rest. A record that is not usable is nobody's, and
// does not hold up the others.
func (h *Handles) EndTask(ctx context.Context, tenant, task string) (int, error) {
	p, err := h.places(tenant, "none", task)
	if err != nil {
		return 0, fmt.Errorf("cancel handles: %w", err)
	}
	reply, err := h.Store.Run(ctx, finish, []redis.Key{p.over, p.task}, over.Milliseconds())
	if err != nil {
		return 0, fmt.Errorf("cancel handles: %w", err)
	}
	n := 0
	var failed error
	for _, id := range reply[1:] {
		cancelled, err := h.cancel(ctx, tenant, task, id)
		switch {
		case cancelled:
			n++
		case err == nil, errors.Is(err, gateway.ErrNotFound):
		case errors.Is(err, redis.ErrSeal), errors.Is(err, errBack):
			h.Log.ErrorContext(ctx, "a handle's stored record is not usable", "tenant", tenant, "task", task, "error", err)
		default:
			failed = errors.Join(failed, err)
		}
	}
	return n, failed
}

// cancel makes a handle of an ended task final, however often others move it.
func (h *Handles) cancel(ctx context.Context, tenant, task, id string) (bool, error) {
	for {
		was, err := h.load(ctx, tenant, id)
		if err != nil || was.Final() || was.Task != task {
			return false, err
		}
		to := was
		to.Status, to.Seq = gateway.HandleCancelled, was.Seq+1
		if err = h.write(ctx, was, to); err == nil {
			return true, nil
		}
		if !errors.Is(err, gateway.ErrNotNow) || ctx.Err() != nil {
			return false, err
		}
	}
}
