package tasks

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// How a task that is ending comes to be over. One replica at a time holds its
// closing: the one that ended it, or whoever finds it among those to be closed
// when nobody has looked after it for a while. It ends the children, closes what
// replicas share, and waits: for the children to be closed, and for a report of
// every replica that registered with the task. When nothing is left unproven the
// task is over, in one step with its fact and with all that Redis had of it but
// its record. A crash anywhere leaves it among those to be closed.

// A pace is how long things take.
type pace struct {
	beat    time.Duration // between signs of life of a replica
	silent  time.Duration // without one: a replica is not heard of
	giveUp  time.Duration // and after this much more its report is not waited for
	prove   time.Duration // how long after its end everything of a task must be proven gone
	held    time.Duration // how long a closing is held without a sign of its holder
	attempt time.Duration // of one call of Here or Shared
	blind   time.Duration // beyond which calls end where nobody can say what has ended, after they began to be refused
}

var usual = pace{blind: time.Second, beat: time.Second, silent: 5 * time.Second, giveUp: time.Minute, prove: 2 * time.Second, held: 5 * time.Second, attempt: 10 * time.Second}

// A closer is a closing that is held here.
type closer struct{ woken chan struct{} }

func (c *closer) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// nudge makes a closing that is held here look at once.
func (r *Tasks) nudge(which ref) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c := r.closers[which]; c != nil {
		c.wake()
	}
}

// closeSoon takes care of a closing, unless this replica does already.
func (r *Tasks) closeSoon(which ref) {
	c := &closer{make(chan struct{}, 1)}
	r.mu.Lock()
	busy := r.closers[which] != nil
	if !busy {
		r.closers[which] = c
	}
	r.mu.Unlock()
	if busy {
		return
	}
	done := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.closers, which)
	}
	if !r.spawn(func(ctx context.Context) {
		defer done()
		if err := r.closeTask(ctx, which, c); err != nil && ctx.Err() == nil {
			r.Log.WarnContext(ctx, "a task's closing will be taken up again", "tenant", which.tenant, "task", which.id, "error", err)
		}
	}) {
		done()
	}
}

// look holds a closing and says how far it is. KEYS: task, closing, users,
// reports, children. ARGV: id, who looks (empty: only to see), for how long it is held. Returns the
// version, the sealed task, now, and three lists with their lengths before them.
var look = redis.NewScript(redis.Clock + `
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'ending' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'over'}
end
if ARGV[2] ~= '' then
  local holder, til = redis.call('HGET', KEYS[1], 'holder'), tonumber(redis.call('HGET', KEYS[1], 'until')) or 0
  if holder and holder ~= ARGV[2] and til > now then return {'held'} end
  til = now + tonumber(ARGV[3])
  redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'until', string.format('%d', til))
  redis.call('ZADD', KEYS[2], til, ARGV[1])
end
local out = {'ok', redis.call('HGET', KEYS[1], 'v'), redis.call('HGET', KEYS[1], 'task'), now}
for _, l in ipairs({redis.call('SMEMBERS', KEYS[3]), redis.call('HGETALL', KEYS[4]), redis.call('SMEMBERS', KEYS[5])}) do
  out[#out+1] = #l
  for _, v in ipairs(l) do out[#out+1] = v end
end
return out`)

// letGo makes a closing that we held anybody's, at once.
var letGo = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[2] then return {'held'} end
redis.call('HDEL', KEYS[1], 'holder', 'until')
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return {'ok'}`)

// shut ends a closing. KEYS: task, closing, users, reports, children, spent,
// outbox, stream, the workload's place, the standing one's, the children of the
// parent. ARGV: id, version, next version, sealed task, when to forget, sealed
// fact, who holds it.
var shut = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'state') ~= 'ending' or redis.call('HGET', KEYS[1], 'v') ~= ARGV[2] then return {'moved'} end
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[7] then return {'held'} end
if redis.call('SCARD', KEYS[5]) > 0 then return {'children'} end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'state', 'over', 'task', ARGV[4])
redis.call('PEXPIREAT', KEYS[1], ARGV[5])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[9], ARGV[1])
for i = 10, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('DEL', KEYS[i]) end
end
redis.call('XADD', KEYS[7], '*', 'kind', 'closed', 'id', ARGV[1], 'fact', ARGV[6])
return {'ok'}`)

// A view is what a look saw.
type view struct {
	record
	now      time.Time
	users    []string
	reports  map[string]gateway.Closing
	children []string
}

// sharedReport is where the closing of what is shared is reported; no replica is
// called so.
const sharedReport = "shared"

// closeTask holds a closing until the task is over, or somebody else holds it.
func (r *Tasks) closeTask(ctx context.Context, which ref, c *closer) error {
	k, err := r.places(which.tenant, which.id)
	if err != nil {
		return err
	}
	me := r.self + "/" + rand.Text()
	ours, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer func() {
		cancel()
		parts.Wait()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = r.Store.Run(ctx, letGo, []redis.Key{k.task, k.closing}, which.id, me)
	}()

	var asked map[string]bool // children that were told to end
	for wait := 20 * time.Millisecond; ; wait = min(wait*3/2, 250*time.Millisecond) {
		began := time.Now()
		v, ok, err := r.look(ctx, k, which, me)
		if err != nil || !ok {
			return err
		}
		if asked == nil {
			asked = map[string]bool{}
			r.toProve(which, v.Task, time.Now().Add(v.Ended.Sub(v.now)))
			so := v.reports[sharedReport]
			so.Children, so.Unproven = max(so.Children, len(v.children)), []string{notYetShared}
			so = so.Add(gateway.Closing{Names: gateway.Names{Children: v.children}})
			if so.Children > 0 { // counted before any is gone, so that a crash forgets none
				if err := r.report(ctx, k, which, sharedReport, so); err != nil {
					return err
				}
			}
			v.reports[sharedReport] = so // to be closed again, whoever closed it before
			parts.Go(func() { r.closeShared(ours, k, v.Task, so, c) })
		}
		for _, child := range v.children {
			if !asked[child] {
				asked[child] = true
				parts.Go(func() { r.endChild(ours, k, which, child, c) })
			}
		}
		sum, waiting := r.sum(ctx, v)
		if !waiting && len(v.children) == 0 {
			switch done, err := r.shut(ctx, k, v, sum, me); {
			case err != nil:
				return err
			case done:
				return nil
			}
			continue
		}
		// Where looking takes long, because so many are closed at once, looks must not
		// be what the rest waits for. What happens on this replica wakes us anyway.
		pace := min(max(wait, 8*time.Since(began)), r.pace.held/3)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.woken:
			wait = min(wait, 20*time.Millisecond)
		case <-time.After(pace):
		}
	}
}

const notYetShared = "what replicas share is not proven gone yet"

func (r *Tasks) look(ctx context.Context, k places, which ref, me string) (v view, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := r.slot(ctx, look, []redis.Key{k.task, k.closing, k.users, k.reports, k.children}, which.id, me, r.pace.held.Milliseconds())
	if err != nil || reply[0] != "ok" {
		return v, false, err
	}
	if v.record, err = r.open(k.task, which, map[string]string{"v": reply[1], "state": ending, "task": reply[2]}); err != nil {
		return v, false, fmt.Errorf("a task's stored record was changed by someone else: %w", err)
	}
	v.now = time.UnixMilli(number(reply[3]))
	var lists [3][]string
	rest := reply[4:]
	for i := range lists {
		n := int(number(rest[0]))
		lists[i], rest = rest[1:1+n], rest[1+n:]
	}
	v.users, v.children, v.reports = lists[0], lists[2], map[string]gateway.Closing{}
	for i := 0; i+1 < len(lists[1]); i += 2 {
		who := lists[1][i]
		var c gateway.Closing
		text, err := r.Store.Unseal(k.reports, "report "+who, []byte(lists[1][i+1]))
		if err == nil && json.Unmarshal(text, &c) == nil {
			v.reports[who] = c
		}
	}
	return v, true, nil
}

// sum puts together what was reported, and says whether it is waited for more.
func (r *Tasks) sum(ctx context.Context, v view) (total gateway.Closing, waiting bool) {
	var late []string
	for _, u := range slices.Sorted(slices.Values(v.users)) {
		if _, ok := v.reports[u]; !ok {
			late = append(late, u)
		}
	}
	if _, ok := v.reports[sharedReport]; !ok {
		total.Unproven, waiting = append(total.Unproven, notYetShared), true
	}
	for _, who := range slices.Sorted(maps.Keys(v.reports)) {
		one := v.reports[who]
		switch {
		case who == sharedReport:
			waiting = waiting || len(one.Unproven) > 0
		case len(one.Unproven) > 0:
			late = append(late, who) // its last word counts only while it lives
			fallthrough
		default:
			name, _, _ := strings.Cut(who, "/")
			one.Unproven, one.Lost = on(name, one.Unproven), on(name, one.Lost)
		}
		total = total.Add(one)
	}
	for _, child := range slices.Sorted(slices.Values(v.children)) {
		total.Unproven = append(total.Unproven, "child "+child+" is not closed")
		waiting = true
	}
	if len(late) == 0 {
		return total, waiting
	}
	heard, err := r.heardOf(ctx, late)
	for i, who := range late {
		name, _, _ := strings.Cut(who, "/")
		unreported := "replica " + name + " has not reported"
		if len(v.reports[who].Unproven) > 0 {
			unreported = "replica " + name + " has not closed all of it"
		}
		switch {
		case err != nil:
			total.Unproven = append(total.Unproven, unreported)
			waiting = true
		case heard[i].bye: // it ended in order, and all that it had with it
		default:
			since := heard[i].at
			if since.IsZero() || since.Before(v.Ended.Add(-r.pace.silent)) {
				since = v.Ended.Add(-r.pace.silent)
			}
			if heard[i].again.Sub(since) >= r.pace.silent {
				total.Unproven = append(total.Unproven, "not known: what replica "+name+" had of it when it restarted; its calls and children ended then")
				continue
			}
			if v.now.Sub(since) < r.pace.silent {
				total.Unproven = append(total.Unproven, unreported)
				waiting = true
				continue
			}
			total.Unproven = append(total.Unproven, "replica "+name+" has not been heard of")
			waiting = waiting || v.now.Sub(since) < r.pace.silent+r.pace.giveUp
		}
	}
	return total, waiting
}

// on says where something is.
func on(replica string, what []string) []string {
	var all []string
	for _, w := range what {
		all = append(all, "on replica "+replica+": "+w)
	}
	return all
}

func (r *Tasks) shut(ctx context.Context, k places, v view, sum gateway.Closing, me string) (bool, error) {
	t := v.Task
	t.State, t.Closed = t.Outcome, v.now.UTC()
	version := next(v.v)
	sealed, err := r.seal(k.task, t, version)
	if err != nil {
		return false, err
	}
	said, err := r.sealFact(k.outbox, "closed", t, &sum)
	if err != nil {
		return false, err
	}
	siblings := k.children // its own, which are gone by then
	if t.Parent != "" {
		if siblings, err = r.Store.Key(t.Tenant, redis.TaskChildren, t.Parent); err != nil {
			return false, err
		}
	}
	standing, err := r.Store.Key(t.Tenant, redis.TaskStanding, standingOf(t))
	if err != nil {
		return false, err
	}
	keys := []redis.Key{k.task, k.closing, k.users, k.reports, k.children, k.spent, k.outbox, k.stream, siblings, standing}
	for _, principal := range append([]string{t.Principal}, t.Principals...) {
		// Whoever acts on it by a credential of their own does so for its human, or for none.
		for _, human := range []string{t.OnBehalfOf, ""} {
			bound, err := r.Store.Key(t.Tenant, redis.TaskBound, workload(principal, human))
			if err != nil {
				return false, err
			}
			keys = append(keys, bound)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := r.slot(ctx, shut, keys, t.ID, v.v, version, sealed, redis.Millis(v.now.Add(remembered)), said, me)
	if err != nil || reply[0] != "ok" {
		return false, err
	}
	r.outbox.Wake()
	r.proven(ref{t.Tenant, t.ID})
	if t.Parent != "" {
		r.nudge(ref{t.Tenant, t.Parent})
	}
	return true, nil
}

// endChild ends a task that was among another's children. What is not its child,
// or is over, is struck off.
func (r *Tasks) endChild(ctx context.Context, k places, parent ref, id string, c *closer) {
	defer c.wake()
	which := ref{parent.tenant, id}
	for wait := 50 * time.Millisecond; ctx.Err() == nil; wait = min(wait*2, time.Second) {
		err := r.inSlot(ctx, func(ctx context.Context) error {
			rec, _, err := r.read(ctx, which)
			switch {
			case errors.Is(err, gateway.ErrNoTask), err == nil && (rec.Parent != parent.id || rec.State.Final()):
				_, err = r.Store.Run(ctx, strike, []redis.Key{k.children}, id)
			case err == nil && rec.State == gateway.TaskRunning:
				_, err = r.finish(ctx, which, gateway.Ending{As: gateway.TaskRevoked, By: "parent", Why: parentEnded})
			}
			return err
		})
		if err == nil {
			return
		}
		pause(ctx, wait)
	}
}

var strike = redis.NewScript(`redis.call('SREM', KEYS[1], ARGV[1]) return {'ok'}`)

// closeShared closes what replicas share, again while something is left, and
// reports it.
func (r *Tasks) closeShared(ctx context.Context, k places, t gateway.Task, before gateway.Closing, c *closer) {
	defer c.wake()
	before.Unproven = nil
	r.until(ctx, r.shared, r.Shared, t, func(ctx context.Context, so gateway.Closing) error {
		return r.report(ctx, k, ref{t.Tenant, t.ID}, sharedReport, before.Add(so))
	})
}

// until calls something that closes until it leaves nothing unproven, and reports
// all of it together each time. That many calls at once are made as there is room.
func (r *Tasks) until(ctx context.Context, room chan struct{}, do func(context.Context, gateway.Task) gateway.Closing, t gateway.Task, report func(context.Context, gateway.Closing) error) {
	var so gateway.Closing
	again := true
	limit := r.pace.prove / 2 // the first says what is left before anybody must be alerted to it
	for wait := 50 * time.Millisecond; ctx.Err() == nil; wait = min(wait*2, time.Second) {
		if again && do != nil {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return
			}
			attempt, cancel := context.WithTimeout(ctx, limit)
			limit = r.pace.attempt
			c := do(attempt, t)
			cancel()
			<-room
			so.Unproven = nil
			so = so.Add(c)
		}
		again = len(so.Unproven) > 0
		err := r.inSlot(ctx, func(ctx context.Context) error { return report(ctx, so) })
		if errors.Is(err, errOver) || err == nil && !again {
			return
		}
		pause(ctx, wait)
	}
}

// errOver says that nobody waits for a report any more.
var errOver = errors.New("the task is over")

// put keeps a report while its task is ending.
var put = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'state') ~= 'ending' then return {'over'} end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return {'ok'}`)

func (r *Tasks) report(ctx context.Context, k places, which ref, who string, c gateway.Closing) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	reply, err := r.Store.Run(ctx, put, []redis.Key{k.task, k.reports}, who, r.Store.Seal(k.reports, "report "+who, text))
	if err != nil {
		return err
	}
	if reply[0] != "ok" {
		return errOver
	}
	r.nudge(which)
	return nil
}

// A use is a task that this replica registered with.
type use struct {
	unsure  bool // its end may have gone by unheard
	closing bool
	here    *gateway.Closing // what the last call of Here said; nil before there is one
}

// uses remembers that this replica may have something of a task.
func (r *Tasks) uses(which ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used[which] == nil {
		r.used[which] = &use{}
	}
}

func (r *Tasks) closeHere(which ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeHereLocked(which)
}

// closeHereLocked closes what a task has here, and reports it. Under r.mu.
func (r *Tasks) closeHereLocked(which ref) {
	u := r.used[which]
	if u == nil || u.closing || r.life == nil || r.life.Err() != nil {
		return
	}
	u.closing = true
	ctx := r.life
	r.work.Go(func() {
		err := r.reportHere(ctx, which)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil {
			delete(r.used, which)
		} else {
			u.closing, u.unsure = false, true
		}
	})
}

func (r *Tasks) reportHere(ctx context.Context, which ref) error {
	k, err := r.places(which.tenant, which.id)
	if err != nil {
		return err
	}
	var t gateway.Task
	for wait := 20 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		var rec record
		short, cancel := context.WithTimeout(ctx, timeout/4)
		err := r.inSlot(short, func(ctx context.Context) (err error) { rec, _, err = r.read(ctx, which); return err })
		cancel()
		if errors.Is(err, gateway.ErrNoTask) {
			// Whatever it was, it runs no more.
			t = gateway.Task{ID: which.id, Tenant: which.tenant, State: gateway.TaskRevoked}
			break
		}
		if t = rec.Task; err == nil && t.State != gateway.TaskRunning {
			break
		}
		// What is here can be closed although Redis is away: that it ended is known.
		if known := r.knownEnding(which); err != nil && known.ID != "" {
			t = known
			break
		}
		// An entry of the stream that was not ours, or one of an end that Redis lost.
		if err == nil && wait > 500*time.Millisecond {
			return errors.New("it runs")
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	here := func(ctx context.Context, t gateway.Task) (c gateway.Closing) {
		if r.Here != nil {
			c = r.Here(ctx, t)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if u := r.used[which]; u != nil {
			u.here = &c
		}
		return c
	}
	r.until(ctx, r.here, here, t, func(ctx context.Context, so gateway.Closing) error {
		if err := r.report(ctx, k, which, r.self, so); !errors.Is(err, errOver) || len(so.Unproven) == 0 {
			return err
		}
		return nil // nobody waits, but something is left here
	})
	return ctx.Err()
}

// unsure closes what ended while nothing could be heard.
func (r *Tasks) unsure(ctx context.Context) {
	r.mu.RLock()
	by := map[string][]string{}
	for which, u := range r.used {
		if u.unsure && !u.closing {
			by[which.tenant] = append(by[which.tenant], which.id)
		}
	}
	r.mu.RUnlock()
	for tenant, ids := range by {
		for part := range slices.Chunk(ids, 500) {
			found, now, err := r.readAll(ctx, tenant, part)
			if err != nil {
				return
			}
			runs := map[string]bool{}
			for _, rec := range found {
				runs[rec.ID] = rec.State == gateway.TaskRunning && now.Before(rec.Expires)
			}
			for _, id := range part {
				which := ref{tenant, id}
				if !runs[id] {
					r.closeHere(which)
					continue
				}
				r.mu.Lock()
				if u := r.used[which]; u != nil {
					u.unsure = false
				}
				r.mu.Unlock()
			}
		}
	}
}

// A heard is when a replica was last heard of, whether it ended in order, and when
// a later process of its name was last heard of: started again means that the old
// one is dead, and its children and calls with it.
type heard struct {
	at    time.Time
	bye   bool
	again time.Time
}

var score = redis.NewScript(`
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
table.insert(all, 1, 'ok')
return all`)

func (r *Tasks) heardOf(ctx context.Context, who []string) ([]heard, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	k, err := r.Store.Key(redis.Shared, redis.ReplicasAlive)
	if err != nil {
		return nil, err
	}
	reply, err := r.slot(ctx, score, []redis.Key{k})
	if err != nil {
		return nil, err
	}
	beats, last := map[string]time.Time{}, map[string]time.Time{} // by replica and boot, by replica
	for i := 1; i+1 < len(reply); i += 2 {
		at := time.UnixMilli(number(reply[i+1]))
		name, _, _ := strings.Cut(reply[i], "/")
		if beats[reply[i]] = at; at.After(last[name]) {
			last[name] = at
		}
	}
	all := make([]heard, len(who))
	for i, w := range who {
		name, _, _ := strings.Cut(w, "/")
		if all[i].again = last[name]; !beats[w].IsZero() {
			all[i].at = beats[w]
			continue
		}
		b, err := r.Store.Key(redis.Shared, redis.ReplicaBye, hashed(who[i]))
		if err != nil {
			return nil, err
		}
		sealed, err := r.Store.Get(ctx, b)
		if err != nil {
			return nil, err
		}
		text, err := r.Store.Unseal(b, "bye", sealed)
		all[i].bye = err == nil && string(text) == who[i]
	}
	return all, nil
}

// alive says that a replica is there. One that was silent for a day is struck off.
var alive = redis.NewScript(redis.Clock + `
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 86400000)
return {'ok'}`)

// beat says that this replica is there.
func (r *Tasks) beat(ctx context.Context) {
	k, err := r.Store.Key(redis.Shared, redis.ReplicasAlive)
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, timeout)
		_, _ = r.Store.Run(one, alive, []redis.Key{k}, r.self) // or we are not heard of, which is so
		cancel()
		pause(ctx, r.pace.beat)
	}
}

var leave = redis.NewScript(`redis.call('ZREM', KEYS[1], ARGV[1]) return {'ok'}`)

// bye says that this replica ended in order: what tasks had here has ended with
// it, or is written down where others find it. A crash says no such thing.
func (r *Tasks) bye() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	k, err := r.Store.Key(redis.Shared, redis.ReplicaBye, hashed(r.self))
	if err != nil {
		return
	}
	if r.Store.Set(ctx, k, r.Store.Seal(k, "bye", []byte(r.self)), unclosed) != nil {
		return
	}
	if k, err = r.Store.Key(redis.Shared, redis.ReplicasAlive); err == nil {
		_, _ = r.Store.Run(ctx, leave, []redis.Key{k}, r.self)
	}
}

// slot runs a script that no caller waits for; a few at a time, so that those
// that somebody waits for find a connection.
func (r *Tasks) slot(ctx context.Context, sc *redis.Script, keys []redis.Key, args ...any) (reply []string, err error) {
	err = r.inSlot(ctx, func(ctx context.Context) (err error) { reply, err = r.Store.Run(ctx, sc, keys, args...); return err })
	return reply, err
}

func (r *Tasks) inSlot(ctx context.Context, do func(context.Context) error) error {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.slots }()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return do(ctx)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// number reads a number that a script of ours returned.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, _ := strconv.ParseFloat(s, 64)
		n = int64(f)
	}
	return n
}
