package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// tend does each second what is not urgent.
func (r *Tasks) tend(ctx context.Context) {
	for swept := (time.Time{}); ; {
		r.sweep(ctx)
		r.checkAgain()
		r.unsure(ctx)
		if len(r.disabled) > 0 && time.Since(swept) > 30*time.Second && r.sweepDisabled(ctx) {
			swept = time.Now()
		}
		if err := r.publish(ctx); err != nil && ctx.Err() == nil {
			r.Log.WarnContext(ctx, "cannot publish the public key of this replica's task tokens", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(redis.Jitter(time.Second)):
		}
	}
}

// sweep writes down what has expired, and takes up what a crash left: stops whose
// tasks still run, and closings that nobody holds.
func (r *Tasks) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, tenant := range r.Store.Tenants() {
		if err := errors.Join(r.sweepDue(ctx, tenant), r.sweepClosing(ctx, tenant), r.sweepStops(ctx, tenant)); err != nil && ctx.Err() == nil {
			r.Log.WarnContext(ctx, "not everything of tasks is written down, will be tried again", "tenant", tenant, "error", err)
		}
	}
}

func (r *Tasks) sweepDue(ctx context.Context, tenant string) error {
	k, err := r.Store.Key(tenant, redis.TasksDue)
	if err != nil {
		return err
	}
	const page = 200
	for {
		ids, err := r.Store.Due(ctx, k, page)
		if err != nil {
			return err
		}
		var work sync.WaitGroup
		errs := make([]error, len(ids))
		for i, id := range ids {
			work.Go(func() {
				errs[i] = r.inSlot(ctx, func(ctx context.Context) error { return r.expire(ctx, k, ref{tenant, id}) })
			})
		}
		work.Wait()
		if err := errors.Join(errs...); err != nil || len(ids) < page {
			return err
		}
	}
}

func (r *Tasks) expire(ctx context.Context, due redis.Key, which ref) error {
	t, err := r.finish(ctx, which, gateway.Ending{As: gateway.TaskExpired})
	switch {
	case errors.Is(err, redis.ErrSeal), errors.Is(err, redis.ErrKey):
		r.Log.ErrorContext(ctx, "a task's stored record was changed by someone else", "tenant", which.tenant, "task", which.id)
	case errors.Is(err, gateway.ErrNotNow):
		return nil
	case err != nil && !errors.Is(err, gateway.ErrNoTask):
		return err
	}
	if err == nil && t.State == gateway.TaskRunning {
		return nil
	}
	// Nothing is due here any more, whoever listed it.
	_, err = r.Store.Run(ctx, unlist, []redis.Key{due}, which.id)
	return err
}

// unlist forgets an id that has nothing due behind it.
var unlist = redis.NewScript(`redis.call('ZREM', KEYS[1], ARGV[1]) return {'ok'}`)

// sweepClosing takes up closings that nobody has looked after for a while.
func (r *Tasks) sweepClosing(ctx context.Context, tenant string) error {
	k, err := r.Store.Key(tenant, redis.TasksClosing)
	if err != nil {
		return err
	}
	ids, err := r.Store.Due(ctx, k, 1000)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !redis.ValidID(id) {
			if _, err := r.Store.Run(ctx, unlist, []redis.Key{k}, id); err != nil {
				return err
			}
			continue
		}
		r.closeSoon(ref{tenant, id})
	}
	return nil
}

// sweepStops ends what runs although a stop is about it, because somebody crashed
// between setting the stop and ending it all.
func (r *Tasks) sweepStops(ctx context.Context, tenant string) error {
	var errs []error
	for field := range r.stops[tenant].Load().byField {
		errs = append(errs, r.sweepStop(ctx, tenant, field))
	}
	return errors.Join(errs...)
}

// sweepDisabled ends what runs for owners that the config has disabled, and
// whatever another replica with an older config starts.
func (r *Tasks) sweepDisabled(ctx context.Context) bool {
	for _, tenant := range r.Store.Tenants() {
		err := r.endAll(ctx, tenant, r.disowned,
			gateway.Ending{As: gateway.TaskRevoked, By: "stop", Why: ownerDisabled})
		if err != nil {
			return false
		}
	}
	return true
}

// outcomes are the facts that say how a task ended, once it is closed.
var outcomes = map[gateway.TaskState]audit.Type{
	gateway.TaskEnded:   audit.TaskEnded,
	gateway.TaskExpired: audit.TaskExpired,
	gateway.TaskRevoked: audit.TaskRevoked,
}

// send is the outbox's way to the record. What cannot be ours is not sent.
func (r *Tasks) send(ctx context.Context, e redis.Entry) error {
	k, err := r.outbox.Key(e.Tenant)
	if err != nil {
		return err
	}
	var f fact
	kind := e.Fields["kind"]
	text, err := r.Store.Unseal(k, kind+":"+e.Fields["id"], []byte(e.Fields["fact"]))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	t := f.Task
	what, at := audit.TaskEnding, t.Ended
	if kind == "closed" {
		what, at = outcomes[t.State], t.Closed
	}
	if err != nil || what == "" || kind != "ending" && kind != "closed" {
		r.Log.ErrorContext(ctx, "an entry in the outbox was not made by us, and is dropped", "tenant", e.Tenant)
		return nil
	}
	if err := r.Recorder.Durable(ctx, gateway.Fact{Type: what, Tenant: t.Tenant, Key: t.ID + ":" + kind, At: at, Task: &t, Closing: f.Closing}); err != nil {
		return fmt.Errorf("record that a task is %s: %w", kind, err)
	}
	return nil
}
