package approvals

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// ask stores a new request, unless its fingerprint has one already or its task is
// over, or a human denied some of it for another task. ARGV: id, sealed request,
// sealed arguments, expiry, when to forget, how many a task may have, an id behind
// the fingerprint that is no request any more, those behind denials that are no
// denials any more, between spaces. The denials' keys are last.
var ask = redis.NewScript(redis.Clock + `
local request, finger, task, over, due, moves, topic = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
if redis.call('EXISTS', over) == 1 then return {'over'} end
if now >= tonumber(ARGV[4]) then return {'late'} end
for i = 8, #KEYS do
  local denied = redis.call('GET', KEYS[i])
  if denied and not string.find(ARGV[8], ' ' .. denied .. ' ', 1, true) then return {'denied', denied} end
end
local was = redis.call('GET', finger)
if was and was ~= ARGV[7] then return {'attach', was} end
if redis.call('EXISTS', request) == 1 then return {'exists'} end
if redis.call('SCARD', task) >= tonumber(ARGV[6]) then return {'many'} end
redis.call('HSET', request, 'seq', '1', 'request', ARGV[2], 'args', ARGV[3])
redis.call('PEXPIREAT', request, ARGV[5])
redis.call('SET', finger, ARGV[1])
redis.call('PEXPIREAT', finger, ARGV[4])
redis.call('SADD', task, ARGV[1])
if redis.call('PTTL', task) < tonumber(ARGV[5]) - now then redis.call('PEXPIREAT', task, ARGV[5]) end
redis.call('ZADD', due, ARGV[4], ARGV[1])
redis.call('HINCRBY', moves, 'n', 1)
redis.call('PUBLISH', topic, ARGV[1])
return {'ok'}`)

// move takes a request from one version to the next, if it is at that version
// and Redis's clock is within bounds. What the next version is was worked out
// from the sealed record, so a script has nothing to believe. ARGV: id, version,
// next version, sealed request, not before, not after, 'open' or 'final', when
// the next thing is due, when to forget, 'keep' or 'free' the fingerprint, a
// fact's type, the sealed fact, when a denial is forgotten; the denials' keys are
// last, where this is one that other tasks are told of.
var move = redis.NewScript(redis.Clock + `
local request, finger, task, due, lately, moves, outbox, topic = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local seq = redis.call('HGET', request, 'seq')
if not seq then return {'none'} end
if seq ~= ARGV[2] then return {'moved'} end
if now < tonumber(ARGV[5]) then return {'early'} end
if now >= tonumber(ARGV[6]) then return {'late'} end
redis.call('HSET', request, 'seq', ARGV[3], 'request', ARGV[4])
if ARGV[7] == 'final' then
  redis.call('HDEL', request, 'args')
  redis.call('PEXPIREAT', request, ARGV[9])
  redis.call('SREM', task, ARGV[1])
  redis.call('ZREM', due, ARGV[1])
  redis.call('ZADD', lately, now, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', lately, '-inf', now - 86400000)
else
  redis.call('ZADD', due, ARGV[8], ARGV[1])
end
if ARGV[10] == 'free' and redis.call('GET', finger) == ARGV[1] then redis.call('DEL', finger) end
for i = 9, #KEYS do
  redis.call('SET', KEYS[i], ARGV[1])
  redis.call('PEXPIREAT', KEYS[i], ARGV[13])
end
redis.call('HINCRBY', moves, 'n', 1)
if ARGV[11] ~= '' then
  redis.call('XADD', outbox, '*', 'state', ARGV[11], 'id', ARGV[1], 'request', ARGV[12])
end
redis.call('PUBLISH', topic, ARGV[1])
return {'ok'}`)

// finish says that a task is over and returns its open requests. Nothing can be
// asked for the task after it, so none slips in behind.
var finish = redis.NewScript(`
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
local out = {'ok'}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do out[#out+1] = id end
return out`)

// Request implements [gateway.Approvals]. A task that Cancel was called for gets
// [gateway.ErrNotNow], one with too many open requests [gateway.ErrTooMany].
func (a *Approvals) Request(ctx context.Context, r gateway.ApprovalRequest) (gateway.ApprovalRequest, bool, error) {
	none := gateway.ApprovalRequest{}
	if r.Fingerprint == "" || r.Digest == "" || len(r.Need) == 0 {
		return none, false, errors.New("request approval: no fingerprint, no digest or nobody to ask")
	}
	r.State, r.Seq, r.Votes = gateway.ApprovalPending, 1, nil
	holder := r.Holder
	r.Holder = ""
	rec := record{Request: r, Until: r.Expires.Truncate(time.Millisecond)}
	rec.hold(holder)
	k, err := a.placesOf(r)
	if err != nil {
		return none, false, fmt.Errorf("request approval: %w", err)
	}
	sealed, err := a.seal(k.request, rec)
	if err != nil {
		return none, false, fmt.Errorf("request approval: %w", err)
	}
	args := a.Store.Seal(k.request, "args", r.Args)
	keys := []redis.Key{k.request, k.finger, k.task, k.over, k.due, k.moves, k.topic}
	keys = append(keys, k.denials...)
	gone, undenied := "", " "
	for range 16 {
		reply, err := a.Store.Run(ctx, ask, keys,
			r.ID, sealed, args, redis.Millis(rec.Until), redis.Millis(r.Expires.Add(remembered)), a.MaxPerTask, gone, undenied)
		if err != nil {
			return none, false, fmt.Errorf("request approval: %w", err)
		}
		switch reply[0] {
		case "ok":
			a.saw(ref{r.Tenant, r.ID}, rec)
			a.bell.ring(ref{r.Tenant, r.ID})
			return r, true, nil
		case "many":
			return none, false, fmt.Errorf("request approval: open requests of this task: %w", gateway.ErrTooMany)
		case "denied":
			was, err := a.settled(ctx, ref{r.Tenant, reply[1]})
			switch {
			case err == nil && was.Request.State == gateway.ApprovalDenied && shares(was.Request.Denials, r.Denials):
				return was.Request, false, nil
			case err == nil, errors.Is(err, gateway.ErrNotFound):
				undenied += reply[1] + " " // Redis lost it, or it was never a denial of this
				continue
			}
			return none, false, fmt.Errorf("request approval: %w", err)
		case "attach":
		default:
			return none, false, fmt.Errorf("request approval: %s: %w", reply[0], gateway.ErrNotNow)
		}
		was, err := a.settled(ctx, ref{r.Tenant, reply[1]})
		switch {
		case errors.Is(err, gateway.ErrNotFound):
			gone = reply[1]
		case err != nil:
			return none, false, fmt.Errorf("request approval: %w", err)
		case was.Request.Fingerprint != r.Fingerprint:
			return none, false, fmt.Errorf("request approval: fingerprint: %w", redis.ErrSeal)
		case was.Request.State == gateway.ApprovalDenied, was.open() && was.waits(holder):
			return was.Request, false, nil
		case was.open():
			was, err = a.step(ctx, ref{r.Tenant, reply[1]}, "attach", func(r *record, _ time.Time) bool {
				r.hold(holder)
				return true
			})
			if err == nil {
				return was.Request, false, nil
			} else if !errors.Is(err, gateway.ErrNotNow) && !errors.Is(err, gateway.ErrNotFound) {
				return none, false, fmt.Errorf("request approval: %w", err)
			}
		}
		// It ended just now, and its fingerprint is free.
	}
	return none, false, fmt.Errorf("request approval: it keeps changing: %w", gateway.ErrNotNow)
}

// Vote implements [gateway.Approvals].
func (a *Approvals) Vote(ctx context.Context, tenant, id string, v gateway.Vote) (gateway.ApprovalRequest, error) {
	if v.By == "" || len(v.Reason) > maxReason {
		return gateway.ApprovalRequest{}, errors.New("vote: nobody's, or too long a reason")
	}
	rec, err := a.step(ctx, ref{tenant, id}, "vote", func(r *record, now time.Time) bool {
		if r.Request.State != gateway.ApprovalPending ||
			subtle.ConstantTimeCompare([]byte(v.Digest), []byte(r.Request.Digest)) != 1 ||
			slices.ContainsFunc(r.Request.Votes, func(o gateway.Vote) bool { return o.By == v.By }) {
			return false
		}
		if v.At.IsZero() {
			v.At = now.UTC()
		}
		r.Request.Votes = append(slices.Clone(r.Request.Votes), v)
		if !v.Approve {
			r.end(gateway.ApprovalDenied, now)
		} else if enough(r.Request) {
			r.Request.State = gateway.ApprovalGranted
			r.Window = earlier(now.Add(a.UseWindow), r.Until)
			r.Until = r.Window
		}
		return true
	})
	return rec.Request, err
}

// Claim implements [gateway.Approvals]. The votes are counted once more, from
// what the seals vouch for.
func (a *Approvals) Claim(ctx context.Context, tenant, id, call string) (gateway.Grant, error) {
	if call == "" {
		return gateway.Grant{}, errors.New("claim: no call")
	}
	rec, err := a.step(ctx, ref{tenant, id}, "claim", func(r *record, now time.Time) bool {
		if r.Request.State != gateway.ApprovalGranted || !enough(r.Request) {
			return false
		}
		r.Request.State, r.Call = gateway.ApprovalReserved, call
		r.Until = earlier(now.Add(a.Reservation), r.Window)
		return true
	})
	if err != nil {
		return gateway.Grant{}, err
	}
	return gateway.Grant{Request: rec.Request, Call: call}, nil
}

// Consume implements [gateway.Approvals]. A second one is refused, also the same
// call's: when the first reply was lost, nothing is known to have been sent, and
// nothing will be.
func (a *Approvals) Consume(ctx context.Context, g gateway.Grant) error {
	return a.reserved(ctx, g, "consume", func(r *record, now time.Time) { r.end(gateway.ApprovalConsumed, now) })
}

// Release implements [gateway.Approvals].
func (a *Approvals) Release(ctx context.Context, g gateway.Grant) error {
	return a.reserved(ctx, g, "release", func(r *record, _ time.Time) {
		r.Request.State, r.Until, r.Call = gateway.ApprovalGranted, r.Window, ""
	})
}

// Void implements [gateway.Approvals].
func (a *Approvals) Void(ctx context.Context, g gateway.Grant) error {
	return a.reserved(ctx, g, "void", func(r *record, now time.Time) { r.end(gateway.ApprovalVoided, now) })
}

// reserved is a step that only the call may make which holds the reservation.
func (a *Approvals) reserved(ctx context.Context, g gateway.Grant, what string, do func(*record, time.Time)) error {
	_, err := a.step(ctx, ref{g.Request.Tenant, g.Request.ID}, what, func(r *record, now time.Time) bool {
		if r.Request.State != gateway.ApprovalReserved || g.Call == "" || r.Call != g.Call {
			return false
		}
		do(r, now)
		return true
	})
	return err
}

// Cancel implements [gateway.Approvals], for a task that is over: nothing can be
// asked for it afterwards. It returns the ids of what it ended. A crash in between leaves requests that expire; a
// repeat cancels the rest.
func (a *Approvals) Cancel(ctx context.Context, tenant, task string) (ended []string, _ error) {
	over, err := a.Store.Key(tenant, redis.ApprovalsOver, task)
	if err != nil {
		return nil, fmt.Errorf("cancel approvals: %w", err)
	}
	open, err := a.Store.Key(tenant, redis.ApprovalsTask, task)
	if err != nil {
		return nil, fmt.Errorf("cancel approvals: %w", err)
	}
	reply, err := a.Store.Run(ctx, finish, []redis.Key{over, open}, remembered.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("cancel approvals: %w", err)
	}
	var failed error
	for _, id := range reply[1:] {
		_, err := a.step(ctx, ref{tenant, id}, "cancel", func(r *record, now time.Time) bool {
			r.end(gateway.ApprovalCancelled, now)
			return r.Request.TaskID == task
		})
		if err == nil {
			ended = append(ended, id)
		} else if !errors.Is(err, gateway.ErrNotNow) && !errors.Is(err, gateway.ErrNotFound) {
			failed = errors.Join(failed, err)
		}
	}
	return ended, failed
}

// Withdraw implements [gateway.Approvals].
func (a *Approvals) Withdraw(ctx context.Context, tenant, id, holder string) error {
	_, err := a.step(ctx, ref{tenant, id}, "withdraw", func(r *record, now time.Time) bool {
		if holder == "" || !r.waits(holder) {
			return false
		}
		r.Holders = slices.DeleteFunc(slices.Clone(r.Holders), func(h string) bool { return h == holder })
		if len(r.Holders) == 0 && !r.Loose && r.Request.State != gateway.ApprovalReserved {
			r.end(gateway.ApprovalCancelled, now)
			r.Taken = true
		}
		return true
	})
	if errors.Is(err, gateway.ErrNotNow) { // it has ended, or that holder waits no more
		return nil
	}
	return err
}

// settled returns a request as time has left it, and writes that down first.
func (a *Approvals) settled(ctx context.Context, which ref) (record, error) {
	return a.step(ctx, which, "read", nil)
}

// step makes one transition, tried again as long as others are quicker. do
// changes the record, or returns false where that is not possible now. What time
// alone has done is written down before, as a transition of its own. A crash
// leaves the request as it was or as it is now, its fact in the outbox.
func (a *Approvals) step(ctx context.Context, which ref, what string, do func(*record, time.Time) bool) (record, error) {
	for try := range 200 {
		if try > 3 { // so many at once: let one through
			select {
			case <-ctx.Done():
				return record{}, fmt.Errorf("%s: %w", what, ctx.Err())
			case <-time.After(rand.N(time.Duration(try) * time.Millisecond)):
			}
		}
		rec, now, err := a.load(ctx, which)
		if errors.Is(err, errBack) || errors.Is(err, redis.ErrSeal) {
			a.Log.ErrorContext(ctx, "an approval request's stored record is not usable", "tenant", which.tenant, "approval", which.id, "error", err)
		}
		if err != nil {
			return record{}, fmt.Errorf("%s: %w", what, err)
		}
		next, due := rec, rec.open() && !now.Before(rec.Until)
		switch {
		case due:
			next.tick()
		case do == nil:
			return rec, nil
		case !rec.open() || !do(&next, now):
			return rec, fmt.Errorf("%s: it is %s: %w", what, rec.Request.State, gateway.ErrNotNow)
		}
		next.Request.Seq++
		done, err := a.write(ctx, rec, next, due)
		if err != nil {
			return record{}, fmt.Errorf("%s: %w", what, err)
		}
		if done && !due {
			return next, nil
		}
	}
	return record{}, fmt.Errorf("%s: it keeps changing: %w", what, gateway.ErrNotNow)
}

// never is later than any time, and still exact as a number in Lua.
const never = "9007199254740991"

// write takes a request from one version to the next; false means that it was
// not at the first one any more, or that the time was not right.
func (a *Approvals) write(ctx context.Context, from, to record, due bool) (bool, error) {
	k, err := a.placesOf(to.Request)
	if err != nil {
		return false, err
	}
	sealed, err := a.seal(k.request, to)
	if err != nil {
		return false, err
	}
	before, after := "0", redis.Millis(from.Until)
	if due {
		before, after = after, never
	}
	state, free := "open", "keep"
	if !to.open() {
		if state = "final"; to.Request.State != gateway.ApprovalDenied {
			free = "free" // a denial stays attached until it expires: deny dominates
		}
	}
	kind, fact := "", []byte{}
	if _, ok := facts[to.Request.State]; ok && !(to.Request.State == gateway.ApprovalGranted && from.Request.State != gateway.ApprovalPending) {
		kind = string(to.Request.State)
		if fact, err = a.sealFact(k.outbox, to); err != nil {
			return false, err
		}
	}
	keys := []redis.Key{k.request, k.finger, k.task, k.due, k.lately, k.moves, k.outbox, k.topic}
	if to.Request.State == gateway.ApprovalDenied {
		keys = append(keys, k.denials...)
	}
	reply, err := a.Store.Run(ctx, move, keys,
		to.Request.ID, from.Request.Seq, to.Request.Seq, sealed, before, after, state,
		redis.Millis(to.Until), redis.Millis(latest(to.Request.Expires, to.Ended).Add(remembered)), free, kind, fact, redis.Millis(to.Request.Expires))
	if err != nil {
		return false, err
	}
	if reply[0] != "ok" {
		return false, nil
	}
	which := ref{to.Request.Tenant, to.Request.ID}
	a.saw(which, to)
	a.bell.ring(which)
	if kind != "" {
		a.outbox.Wake()
	}
	return true, nil
}

func (a *Approvals) placesOf(r gateway.ApprovalRequest) (places, error) {
	sum := sha256.Sum256([]byte(r.Fingerprint))
	p, err := a.places(r.Tenant, r.ID, hex.EncodeToString(sum[:]), r.TaskID)
	for _, d := range r.Denials {
		sum := sha256.Sum256([]byte(d))
		k, kerr := a.Store.Key(r.Tenant, redis.ApprovalsDenial, hex.EncodeToString(sum[:]))
		p.denials, err = append(p.denials, k), errors.Join(err, kerr)
	}
	return p, err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a.Truncate(time.Millisecond)
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func shares(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
