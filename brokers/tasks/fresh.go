package tasks

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// How ended and stopped tasks are refused within 100 ms on every replica,
// without a round trip per call: every end, change and stop is an entry in a
// tenant's stream. Each replica reads on from the entry it saw last, that entry
// included, every 25 ms. What it has cached is as good as the beginning of the
// last such read. When that entry does not come back, Redis lost something (a
// failover, a wipe), and nothing cached counts any more.
//
// What a replica once knew to have ended stays ended there, whatever Redis says
// later. Somebody who deletes each entry of the stream before a replica reads it
// can keep the end from that replica, until the task expires or Redis is asked
// again; the closing then misses the replica's report, which is an alert.
const (
	every   = 25 * time.Millisecond
	fresh   = 100 * time.Millisecond
	skew    = 2 * time.Second // how far our clock may be from Redis's
	perRead = 1000            // entries
	cached  = 200_000         // tasks
)

// An entry is what this replica knows of a task.
type entry struct {
	task    gateway.Task
	over    bool // it runs no longer, or one above it does not; nothing else is set
	budgets []budget
	clear   atomic.Pointer[stopSet] // the stops that are known not to be about it
}

// gone is what is known of a task that is over.
var gone = &entry{over: true}

// A watch waits for one task's end.
type watch struct {
	done    chan struct{}
	timer   *time.Timer // at the task's expiry; nil while nobody knows it
	checked bool        // known to be running
	above   []gateway.Ancestor
}

// News is what made cached tasks wrong lately, so that a read which is on its
// way knows whether it was one of them.
type news struct {
	first uint64 // the number of the first of last
	last  []ref
	lost  uint64 // counts the times that nothing cached counted any more
}

const mostNews = 20_000

func (n *news) add(which ref) {
	if len(n.last) >= mostNews {
		n.first += uint64(len(n.last) / 2)
		n.last = append([]ref(nil), n.last[len(n.last)/2:]...)
	}
	n.last = append(n.last, which)
}

func (n *news) next() uint64 { return n.first + uint64(len(n.last)) }

// touches reports whether there was anything since a number about one of them.
func (n *news) touches(since, lost uint64, these map[ref]struct{}) bool {
	if since < n.first || lost != n.lost {
		return true
	}
	for _, which := range n.last[since-n.first:] {
		if _, ok := these[which]; ok {
			return true
		}
	}
	return false
}

// Running implements [gateway.Tasks]. A task seen before costs no round trip.
func (r *Tasks) Running(ctx context.Context, tenant, id string) (gateway.Task, error) {
	which := ref{tenant, id}
	if !r.awaitFresh(ctx) {
		return r.lastKnown(which), gateway.ErrStale
	}
	r.mu.RLock()
	e := r.cache[which]
	r.mu.RUnlock()
	if e == nil {
		var err error
		if e, err = r.load(ctx, which); errors.Is(err, gateway.ErrNoTask) {
			return gateway.Task{}, err
		} else if err != nil {
			return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrStale, err)
		}
		if !r.awaitFresh(ctx) { // the read may have taken long
			return gateway.Task{}, gateway.ErrStale
		}
	}
	if e.over || !r.Now().Before(e.task.Expires) {
		return gateway.Task{}, gateway.ErrNoTask
	}
	if set := r.stops[tenant].Load(); e.clear.Load() != set {
		if r.stopped(&e.task) {
			r.endSoon(which, func(ctx context.Context) (gateway.Ending, bool) {
				// It may have been lifted a moment ago, and this task started after that.
				if r.readStops(ctx, tenant) != nil || !r.stopped(&e.task) {
					return gateway.Ending{}, false
				}
				return gateway.Ending{As: gateway.TaskRevoked, By: "stop", Why: r.whyStopped(&e.task)}, true
			})
			return gateway.Task{}, errStopped
		}
		e.clear.Store(set)
	}
	return e.task, nil
}

// lastKnown is a task as this replica last knew it to run, or none.
func (r *Tasks) lastKnown(which ref) gateway.Task {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.cache[which]; e != nil && !e.over {
		return e.task
	}
	return gateway.Task{}
}

// Fresh reports whether ended tasks were confirmed within the last 100 ms. While
// they are not, no call is let through: it waits a moment, and is refused.
func (r *Tasks) Fresh() bool {
	at := r.confirmed.Load()
	return at != nil && time.Since(*at) <= fresh
}

// patience is how long a call waits for what has ended to be confirmed. A busy
// machine looks late now and then; one that has lost Redis refuses.
const patience = time.Second

// awaitFresh waits until Fresh, and reports whether it is. It does not wait where
// nothing was ever confirmed, nor once calls under way are being cancelled for the
// lack of it.
func (r *Tasks) awaitFresh(ctx context.Context) bool {
	if r.Fresh() {
		return true
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		r.mu.RLock()
		seen, blind := r.seen, r.blind
		r.mu.RUnlock()
		switch { // only now: what is seen later closes seen
		case r.Fresh():
			return true
		case r.confirmed.Load() == nil:
			return false
		}
		select {
		case <-seen:
		case <-blind:
			return false
		case <-ctx.Done():
			return false
		case <-timeout.C:
			return false
		}
	}
}

// enlist registers a replica with a task and makes sure that it and all above it
// run at that very moment. KEYS: users, the task, those above it. ARGV: replica,
// the task's version.
var enlist = redis.NewScript(`
for i = 2, #KEYS do
  if redis.call('HGET', KEYS[i], 'state') ~= 'running' then return {'gone', i - 2} end
end
if redis.call('HGET', KEYS[2], 'v') ~= ARGV[2] then return {'moved'} end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[2]))
return {'ok'}`)

// load reads a task and those above it, registers this replica with it where it
// runs, and caches it, unless something was said of them meanwhile: that may have
// been after they were read.
func (r *Tasks) load(ctx context.Context, which ref) (*entry, error) {
	if _, err := r.Store.Key(which.tenant, redis.Task, which.id); err != nil {
		return nil, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	for range 10 {
		r.mu.RLock()
		since, lost := r.news[which.tenant].next(), r.news[which.tenant].lost
		r.mu.RUnlock()
		e, all, err := r.fetch(ctx, which)
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		r.mu.Lock()
		if r.news[which.tenant].touches(since, lost, all) {
			r.mu.Unlock()
			continue
		}
		if known := r.cache[which]; known != nil && known.over {
			e = known
		} else {
			r.keep(which, e)
		}
		r.mu.Unlock()
		return e, nil
	}
	return nil, errors.New("a task changes faster than it can be read")
}

// fetch reads a task for load; nil means that it changed meanwhile.
func (r *Tasks) fetch(ctx context.Context, which ref) (*entry, map[ref]struct{}, error) {
	rec, now, err := r.read(ctx, which)
	if err != nil {
		return nil, nil, err
	}
	all := map[ref]struct{}{which: {}}
	if rec.State != gateway.TaskRunning || !now.Before(rec.Expires) || r.past[which] {
		return gone, all, nil
	}
	k, err := r.places(which.tenant, which.id)
	if err != nil {
		return nil, nil, err
	}
	keys := []redis.Key{k.users, k.task}
	e := &entry{task: rec.Task}
	e.budget(rec.Task)
	if len(rec.Ancestors) > 0 {
		var ids []string
		for _, a := range rec.Ancestors {
			above, err := r.Store.Key(which.tenant, redis.Task, a.ID)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
			}
			ids, keys = append(ids, a.ID), append(keys, above)
			all[ref{which.tenant, a.ID}] = struct{}{}
		}
		found, _, err := r.readAll(ctx, which.tenant, ids)
		if err != nil {
			return nil, nil, err
		}
		if len(found) != len(ids) || r.anyOver(all) {
			return r.orphan(which), all, nil
		}
		for _, a := range found {
			if a.State != gateway.TaskRunning || !now.Before(a.Expires) {
				return r.orphan(which), all, nil
			}
			e.budget(a.Task)
		}
	}
	r.uses(which)
	reply, err := r.Store.Run(ctx, enlist, keys, r.self, rec.v)
	if err != nil {
		return nil, nil, err
	}
	switch reply[0] {
	case "ok":
		return e, all, nil
	case "gone":
		if reply[1] != "0" {
			return r.orphan(which), all, nil
		}
		r.closeHere(which)
		return gone, all, nil
	}
	return nil, nil, nil
}

// orphan is a task that runs while one above it does not: it is about to end.
func (r *Tasks) orphan(which ref) *entry {
	r.endSoon(which, func(context.Context) (gateway.Ending, bool) {
		return gateway.Ending{As: gateway.TaskRevoked, By: "parent", Why: parentEnded}, true
	})
	return gone
}

const parentEnded = "the task above it ended"

func (r *Tasks) anyOver(these map[ref]struct{}) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for which := range these {
		if e := r.cache[which]; e != nil && e.over {
			return true
		}
	}
	return false
}

func (e *entry) budget(t gateway.Task) {
	if t.Budget.Calls > 0 {
		e.budgets = append(e.budgets, budget{t.ID, t.Budget.Calls, t.Expires.UnixMilli()})
	}
}

// keep caches a task; when there is no room, any other goes. Under r.mu.
func (r *Tasks) keep(which ref, e *entry) {
	old, ok := r.cache[which]
	if !ok && len(r.cache) >= cached {
		for other := range r.cache {
			r.drop(other)
			break
		}
	}
	r.cache[which] = e
	if ok && !old.over && r.watches[which] == nil {
		r.unlink(which, old.task.Ancestors)
	}
	if !e.over {
		r.link(which, e.task.Ancestors)
	}
}

// drop forgets a cached task. Under r.mu.
func (r *Tasks) drop(which ref) {
	e := r.cache[which]
	delete(r.cache, which)
	if e != nil && !e.over && r.watches[which] == nil {
		r.unlink(which, e.task.Ancestors)
	}
}

// link lets the end of a task above find which. Under r.mu.
func (r *Tasks) link(which ref, above []gateway.Ancestor) {
	for _, a := range above {
		up := ref{which.tenant, a.ID}
		if r.below[up] == nil {
			r.below[up] = map[ref]struct{}{}
		}
		r.below[up][which] = struct{}{}
	}
}

func (r *Tasks) unlink(which ref, above []gateway.Ancestor) {
	for _, a := range above {
		up := ref{which.tenant, a.ID}
		if delete(r.below[up], which); len(r.below[up]) == 0 {
			delete(r.below, up)
		}
	}
}

// overHere marks a task as over here, before the stream says so.
func (r *Tasks) overHere(which ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.overLocked(which)
}

// overLocked marks a task and all below it as over. Under r.mu.
func (r *Tasks) overLocked(which ref) {
	t := gateway.Task{ID: which.id, Tenant: which.tenant}
	if e := r.cache[which]; e != nil && !e.over {
		t = e.task
	}
	r.toProveLocked(which, t, time.Now())
	r.news[which.tenant].add(which)
	for child := range r.below[which] {
		r.finishHere(child)
	}
	r.finishHere(which)
	if k, err := r.Store.Key(which.tenant, redis.TaskSpent, which.id); err == nil {
		delete(r.floors, k.String())
	}
	if r.used[which] != nil {
		r.closeHereLocked(which)
	}
}

func (r *Tasks) finishHere(which ref) {
	r.news[which.tenant].add(which)
	r.keep(which, gone)
	r.release(which)
}

// changedLocked makes the next call read a task again. Under r.mu.
func (r *Tasks) changedLocked(which ref) {
	r.news[which.tenant].add(which)
	if e := r.cache[which]; e != nil && !e.over {
		r.drop(which)
	}
}

// release tells whoever watches. Under r.mu.
func (r *Tasks) release(which ref) {
	w := r.watches[which]
	if w == nil {
		return
	}
	delete(r.watches, which)
	if e := r.cache[which]; e == nil || e.over {
		r.unlink(which, w.above)
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	close(w.done)
}

// Ended implements [gateway.Tasks]. An unknown task has ended.
func (r *Tasks) Ended(tenant, id string) <-chan struct{} {
	which := ref{tenant, id}
	r.mu.RLock()
	w := r.watches[which]
	r.mu.RUnlock()
	if w != nil {
		return w.done
	}
	_, err := r.Store.Key(tenant, redis.Task, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.watches[which]; w != nil {
		return w.done
	}
	w = &watch{done: make(chan struct{})}
	e := r.cache[which]
	if err != nil || e != nil && (e.over || !r.Now().Before(e.task.Expires)) {
		close(w.done)
		return w.done
	}
	r.watches[which] = w
	if e != nil {
		r.arm(which, w, e.task)
	} else {
		go r.check(which)
	}
	return w.done
}

// arm ends a watch at the task's expiry, whether or not anyone sweeps. Under r.mu.
func (r *Tasks) arm(which ref, w *watch, t gateway.Task) {
	w.checked, w.above = true, t.Ancestors
	r.link(which, w.above)
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = time.AfterFunc(max(t.Expires.Sub(r.Now()), time.Millisecond), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case r.watches[which] != w:
		case r.Now().Before(t.Expires):
			r.arm(which, w, t)
		default:
			r.release(which)
		}
	})
}

// check finds out what a watched task is. While Redis does not say, the watch
// waits for the next check.
func (r *Tasks) check(which ref) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	e, err := r.load(ctx, which)
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watches[which]
	if w == nil {
		return
	}
	// It may have ended since it was read: then the watch was released, or will
	// be by what is cached.
	if now := r.cache[which]; err == nil && now != nil {
		e = now
	}
	switch {
	case errors.Is(err, gateway.ErrNoTask), err == nil && e.over:
		r.release(which)
	case err == nil:
		r.arm(which, w, e.task)
	}
}

// checkAgain looks at every watch that nobody could check.
func (r *Tasks) checkAgain() {
	r.mu.RLock()
	var open []ref
	for which, w := range r.watches {
		if !w.checked {
			open = append(open, which)
		}
	}
	r.mu.RUnlock()
	for _, which := range open {
		r.check(which)
	}
}

// follow reads what ended, until ctx ends.
func (r *Tasks) follow(ctx context.Context) {
	said := false
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		more, err := r.confirm(ctx)
		if err != nil && !said && ctx.Err() == nil {
			r.Log.WarnContext(ctx, "cannot confirm which tasks have ended; calls are refused meanwhile", "error", err)
		} else if err == nil && said {
			r.Log.InfoContext(ctx, "ended tasks are confirmed again")
		}
		said = err != nil
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// confirm makes one read. When it returns nil and false, the cache is as good as
// when the read began.
func (r *Tasks) confirm(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now() // not r.Now: this must be monotonic
	wall := r.Now()
	tenants := r.Store.Tenants()
	keys, last := make([]redis.Key, len(tenants)), make([]string, len(tenants))
	for i, t := range tenants {
		if keys[i], err = r.Store.Key(t, redis.TasksEnded); err != nil {
			return false, err
		}
		if last[i], err = r.anchor(ctx, t, keys[i]); err != nil {
			return false, err
		}
	}
	tails, clock, err := r.Store.Tail(ctx, keys, last, perRead)
	if err != nil {
		return false, err
	}
	took := time.Since(began)
	if off := clock.Sub(wall); off > skew+took || off < -skew {
		return false, fmt.Errorf("our clock and Redis's differ by %v", off.Round(time.Millisecond))
	}
	for i, tail := range tails {
		if len(tail) == 0 || tail[0].Entry != last[i] {
			r.forget(tenants[i])
			err = errors.Join(err, errors.New("what ended was lost in Redis; starting over"))
			continue
		}
		if e := r.hear(ctx, tenants[i], tail[1:]); e != nil {
			err = errors.Join(err, e) // and the same is read again
			continue
		}
		r.mu.Lock()
		r.anchors[tenants[i]] = tail[len(tail)-1].Entry
		r.mu.Unlock()
		more = more || len(tail) == perRead
	}
	if err == nil && !more {
		r.sees(began)
	}
	return more, err
}

// hear acts on what a stream says. What it does not understand has ended.
func (r *Tasks) hear(ctx context.Context, tenant string, said []redis.Tailed) error {
	stops := false
	r.mu.Lock()
	for _, e := range said {
		switch e.What {
		case "stops":
			stops = true
		case "changed":
			r.changedLocked(ref{tenant, e.ID})
		default:
			r.overLocked(ref{tenant, e.ID})
		}
	}
	r.mu.Unlock()
	if stops {
		return r.readStops(ctx, tenant)
	}
	return nil
}

// forget drops what is cached of a tenant, but for what is over; its watches and
// what was used here are checked again.
func (r *Tasks) forget(tenant string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.news[tenant].lost++
	delete(r.anchors, tenant)
	for which, e := range r.cache {
		if which.tenant == tenant && !e.over {
			r.drop(which)
		}
	}
	for which, w := range r.watches {
		if which.tenant == tenant {
			w.checked = false
		}
	}
	for which, u := range r.used {
		if which.tenant == tenant {
			u.unsure = true
		}
	}
}

// newest returns the last entry of a stream, and makes one where there is none:
// without an entry nobody would notice that a stream was lost.
var newest = redis.NewScript(`
local e = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #e == 0 then return {redis.call('XADD', KEYS[1], '*', 'id', '-', 'what', 'changed')} end
return {e[1][1]}`)

// anchor returns the entry to read on from. One that is new is older than
// anything cached, and any stop read, from now on.
func (r *Tasks) anchor(ctx context.Context, tenant string, stream redis.Key) (string, error) {
	r.mu.RLock()
	last := r.anchors[tenant]
	r.mu.RUnlock()
	if last != "" {
		return last, nil
	}
	reply, err := r.Store.Run(ctx, newest, []redis.Key{stream})
	if err != nil {
		return "", err
	}
	// What was cached before there was an anchor may have ended unseen.
	r.forget(tenant)
	if err := r.readStops(ctx, tenant); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.anchors[tenant] = reply[0]
	return reply[0], nil
}
