package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// How ended tasks are refused within 100 ms on every replica, without a round
// trip per call: every end is an entry in a tenant's stream. Each replica reads
// on from the entry it saw last, that entry included, every 25 ms. What it has
// cached is as good as the beginning of the last such read. When that entry does
// not come back, Redis lost something (a failover, a wipe), and nothing cached
// counts any more.
const (
	every   = 25 * time.Millisecond
	fresh   = 100 * time.Millisecond
	skew    = 2 * time.Second // how far our clock may be from Redis's
	perRead = 1000            // entries
	cached  = 10_000          // tasks
)

// A watch waits for one task's end.
type watch struct {
	done    chan struct{}
	timer   *time.Timer // at the task's expiry; nil while nobody knows it
	checked bool        // known to be running
}

// Running implements [gateway.Tasks]. A task seen before costs no round trip.
func (r *Tasks) Running(ctx context.Context, tenant, id string) (gateway.Task, error) {
	which := ref{tenant, id}
	if _, err := r.Store.Key(tenant, redis.Task, id); err != nil {
		return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrNoTask, err)
	}
	if !r.Fresh() {
		return gateway.Task{}, gateway.ErrStale
	}
	r.mu.Lock()
	t, known := r.cache[which]
	r.mu.Unlock()
	if !known {
		var err error
		if t, err = r.load(ctx, which); errors.Is(err, gateway.ErrNoTask) {
			return gateway.Task{}, err
		} else if err != nil {
			return gateway.Task{}, fmt.Errorf("%w: %w", gateway.ErrStale, err)
		}
	}
	if t.State != gateway.TaskRunning || !r.Now().Before(t.Expires) {
		return gateway.Task{}, gateway.ErrNoTask
	}
	if !r.Fresh() { // the read may have taken long
		return gateway.Task{}, gateway.ErrStale
	}
	return t, nil
}

// Fresh reports whether ended tasks were confirmed within the last 100 ms. While
// they are not, every call is refused.
func (r *Tasks) Fresh() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.confirmed.IsZero() && time.Since(r.confirmed) <= fresh
}

// load reads a task and caches it, unless something ended meanwhile: that may
// have been this one, after it was read.
func (r *Tasks) load(ctx context.Context, which ref) (gateway.Task, error) {
	for range 10 {
		r.mu.Lock()
		gen := r.gens[which.tenant]
		r.mu.Unlock()
		t, _, err := r.read(ctx, which)
		if err != nil {
			return t, err
		}
		r.mu.Lock()
		if r.gens[which.tenant] != gen {
			r.mu.Unlock()
			continue
		}
		r.keep(which, t)
		r.mu.Unlock()
		return t, nil
	}
	return gateway.Task{}, errors.New("tasks end faster than one can be read")
}

// keep caches a task; when there is no room, any other goes. Under r.mu.
func (r *Tasks) keep(which ref, t gateway.Task) {
	if _, ok := r.cache[which]; !ok && len(r.cache) >= cached {
		for other := range r.cache {
			delete(r.cache, other)
			break
		}
	}
	r.cache[which] = t
}

// over marks a task as ended here.
func (r *Tasks) over(which ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.overLocked(which)
}

func (r *Tasks) overLocked(which ref) {
	r.gens[which.tenant]++
	t := r.cache[which]
	t.State = gateway.TaskEnded
	r.keep(which, t)
	r.release(which)
}

// release tells whoever watches. Under r.mu.
func (r *Tasks) release(which ref) {
	if w := r.watches[which]; w != nil {
		delete(r.watches, which)
		if w.timer != nil {
			w.timer.Stop()
		}
		close(w.done)
	}
}

// Ended implements [gateway.Tasks]. An unknown task has ended.
func (r *Tasks) Ended(tenant, id string) <-chan struct{} {
	which := ref{tenant, id}
	_, err := r.Store.Key(tenant, redis.Task, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.watches[which]; w != nil {
		return w.done
	}
	w := &watch{done: make(chan struct{})}
	t, known := r.cache[which]
	if err != nil || known && (t.State != gateway.TaskRunning || !r.Now().Before(t.Expires)) {
		close(w.done)
		return w.done
	}
	r.watches[which] = w
	if known {
		r.arm(which, w, t)
	} else {
		go r.check(which)
	}
	return w.done
}

// arm ends a watch at the task's expiry, whether or not anyone sweeps. Under r.mu.
func (r *Tasks) arm(which ref, w *watch, t gateway.Task) {
	w.checked = true
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
	t, err := r.load(ctx, which)
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watches[which]
	switch {
	case w == nil:
	case errors.Is(err, gateway.ErrNoTask), err == nil && t.State != gateway.TaskRunning:
		r.release(which)
	case err == nil:
		r.arm(which, w, t)
	}
}

// checkAgain looks at every watch that nobody could check.
func (r *Tasks) checkAgain() {
	r.mu.Lock()
	var open []ref
	for which, w := range r.watches {
		if !w.checked {
			open = append(open, which)
		}
	}
	r.mu.Unlock()
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
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, tail := range tails {
		if len(tail) == 0 || tail[0].Entry != last[i] {
			r.forget(tenants[i])
			err = errors.Join(err, errors.New("ended tasks were lost in Redis; starting over"))
			continue
		}
		for _, e := range tail[1:] {
			r.overLocked(ref{tenants[i], e.ID})
		}
		r.anchors[tenants[i]] = tail[len(tail)-1].Entry
		more = more || len(tail) == perRead
	}
	if err == nil && !more {
		r.confirmed = began
	}
	return more, err
}

// forget drops what is cached of a tenant; its watches are checked again. Under r.mu.
func (r *Tasks) forget(tenant string) {
	r.gens[tenant]++
	delete(r.anchors, tenant)
	for which := range r.cache {
		if which.tenant == tenant {
			delete(r.cache, which)
		}
	}
	for which, w := range r.watches {
		if which.tenant == tenant {
			w.checked = false
		}
	}
}

// newest returns the last entry of a stream, and makes one where there is none:
// without an entry nobody would notice that a stream was lost.
var newest = redis.NewScript(`
local e = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #e == 0 then return {redis.call('XADD', KEYS[1], '*', 'id', '-')} end
return {e[1][1]}`)

// anchor returns the entry to read on from. One that is new is older than
// anything cached from now on.
func (r *Tasks) anchor(ctx context.Context, tenant string, stream redis.Key) (string, error) {
	r.mu.Lock()
	last := r.anchors[tenant]
	r.mu.Unlock()
	if last != "" {
		return last, nil
	}
	reply, err := r.Store.Run(ctx, newest, []redis.Key{stream})
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// What was cached before there was an anchor may have ended unseen.
	r.forget(tenant)
	r.anchors[tenant] = reply[0]
	return reply[0], nil
}
