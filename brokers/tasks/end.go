package tasks

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// end begins the end of a running task. Only the clock of Redis decides whether
// that is an end or an expiry. KEYS: task, due, lately, stream, outbox, closing,
// stops, users, reports, children. ARGV: id, version, next version, sealed task,
// expiry, when to forget, 'expired' or 'ended', the sealed fact, the field of a
// stop to set, that sealed stop; the last three may be empty.
var end = redis.NewScript(redis.Clock + `
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'none'}
end
if state ~= 'running' or redis.call('HGET', KEYS[1], 'v') ~= ARGV[2] then return {'moved'} end
local due = now >= tonumber(ARGV[5])
if ARGV[7] == 'expired' and not due then return {'early'} end
if ARGV[7] == 'ended' and due then return {'late'} end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'state', 'ending', 'task', ARGV[4])
for _, k in ipairs({1, 8, 10}) do redis.call('PEXPIREAT', KEYS[k], ARGV[6]) end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 86400000)
redis.call('ZADD', KEYS[6], now + 1000, ARGV[1])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'id', ARGV[1], 'what', 'ended')
if ARGV[8] ~= '' then redis.call('XADD', KEYS[5], '*', 'kind', 'ending', 'id', ARGV[1], 'fact', ARGV[8]) end
if ARGV[9] ~= '' and redis.call('HSETNX', KEYS[7], ARGV[9], ARGV[10]) == 1 then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'id', '-', 'what', 'stops')
end
return {'ok'}`)

// End implements [gateway.Tasks]. One past its expiry is returned as expired.
func (r *Tasks) End(ctx context.Context, tenant, id string, e gateway.Ending) (gateway.Task, error) {
	if e.As != gateway.TaskEnded && e.As != gateway.TaskRevoked {
		return gateway.Task{}, fmt.Errorf("end task: nothing ends as %q", e.As)
	}
	if len(e.By)+len(e.Why) > maxText {
		return gateway.Task{}, fmt.Errorf("end task: too much text")
	}
	t, err := r.finish(ctx, ref{tenant, id}, e)
	if err == nil && t.Implicit && e.As == gateway.TaskEnded {
		// What its stop is about ends with it. It is set, so should this fail a sweep does it.
		if err := r.readStops(ctx, tenant); err == nil {
			_ = r.sweepStop(ctx, tenant, stopField(gateway.StopStanding, standingOf(t)))
		}
	}
	return t, err
}

// finish begins the end or the expiry of a task; whoever comes second returns
// what the first made of it. A crash after the script leaves the task refused
// everywhere, with its entries in the outbox and among those to be closed.
func (r *Tasks) finish(ctx context.Context, which ref, e gateway.Ending) (gateway.Task, error) {
	k, err := r.places(which.tenant, which.id)
	if err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	for try := range 100 {
		if try > 4 { // others keep changing it; one of us is next
			select {
			case <-ctx.Done():
				return gateway.Task{}, fmt.Errorf("end task: %w", ctx.Err())
			case <-time.After(redis.Jitter(time.Millisecond)):
			}
		}
		rec, now, err := r.read(ctx, which)
		if err == nil && rec.State != gateway.TaskRunning && rec.Implicit && e.As == gateway.TaskEnded && rec.Outcome == gateway.TaskExpired {
			// It was quicker to expire than somebody was to end it; it is to stay ended all the same.
			err = r.Stop(ctx, gateway.Stop{Tenant: rec.Tenant, Kind: gateway.StopStanding, Name: standingName(rec.Task), By: e.By, Reason: e.Why})
		}
		if err != nil || rec.State != gateway.TaskRunning {
			return rec.Task, err
		}
		asked := e
		t, e := rec.Task, e
		mode := "ended"
		at := now.UTC().Truncate(time.Millisecond)
		if !now.Before(t.Expires) {
			mode, at, e = "expired", t.Expires, gateway.Ending{As: gateway.TaskExpired, By: "expiry", Why: expiry}
		} else if e.As == gateway.TaskExpired {
			return t, fmt.Errorf("end task: not due: %w", gateway.ErrNotNow)
		}
		t.State, t.Outcome, t.Ended, t.EndedBy, t.Why = gateway.TaskEnding, e.As, at, e.By, e.Why
		v := next(rec.v)
		sealed, err := r.seal(k.task, t, v)
		if err != nil {
			return t, fmt.Errorf("end task: %w", err)
		}
		var said, stop []byte
		field := ""
		if !e.Said {
			if said, err = r.sealFact(k.outbox, "ending", t, nil); err != nil {
				return t, fmt.Errorf("end task: %w", err)
			}
		}
		if t.Implicit && asked.As == gateway.TaskEnded {
			var s storedStop
			field, s = r.newStop(gateway.Stop{Tenant: t.Tenant, Kind: gateway.StopStanding, Name: standingName(t), By: asked.By, Reason: asked.Why, At: at})
			if stop, err = r.sealStop(k.stops, field, s); err != nil {
				return t, fmt.Errorf("end task: %w", err)
			}
		}
		reply, err := r.Store.Run(ctx, end,
			[]redis.Key{k.task, k.due, k.lately, k.stream, k.outbox, k.closing, k.stops, k.users, k.reports, k.children},
			t.ID, rec.v, v, sealed, redis.Millis(t.Expires), redis.Millis(now.Add(unclosed)), mode, said, field, stop)
		if err != nil {
			return t, fmt.Errorf("end task: %w", err)
		}
		switch reply[0] {
		case "ok":
			r.toProve(which, t, time.Now())
			r.overHere(which)
			if !e.Said {
				r.outbox.Wake()
			}
			r.closeSoon(which)
			return t, nil
		case "none":
			return gateway.Task{}, gateway.ErrNoTask
		}
		// Somebody was quicker, or it became due between the two clocks.
	}
	return gateway.Task{}, fmt.Errorf("end task: it keeps changing: %w", gateway.ErrNotNow)
}

// endSoon ends a task that no call is let do anything on any more, because of
// what is above it. It is no matter if that fails: sweeps and expiry come later.
// How is asked at the last moment, and may say that it is not to end after all.
func (r *Tasks) endSoon(which ref, how func(context.Context) (gateway.Ending, bool)) {
	r.mu.Lock()
	busy := r.ending[which] || len(r.ending) >= 64
	if !busy {
		r.ending[which] = true
	}
	r.mu.Unlock()
	if busy {
		return
	}
	done := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.ending, which)
	}
	if !r.spawn(func(ctx context.Context) {
		defer done()
		r.slots <- struct{}{}
		defer func() { <-r.slots }()
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if e, ok := how(ctx); ok {
			_, _ = r.finish(ctx, which, e)
		}
	}) {
		done()
	}
}

// A fact is what an entry of the outbox holds, sealed.
type fact struct {
	Task    gateway.Task     `json:"task"`
	Closing *gateway.Closing `json:"closing,omitempty"`
}

func (r *Tasks) sealFact(outbox redis.Key, kind string, t gateway.Task, c *gateway.Closing) ([]byte, error) {
	text, err := json.Marshal(fact{t, c})
	if err != nil {
		return nil, err
	}
	return r.Store.Seal(outbox, kind+":"+t.ID, text), nil
}
