package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// tend does each second what is not urgent.
func (r *Tasks) tend(ctx context.Context) {
	for {
		r.sweep(ctx)
		r.checkAgain()
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

// sweep writes down what has expired. Running refuses it without that; the sweep
// is for the record, and for what hangs on the task.
func (r *Tasks) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, tenant := range r.Store.Tenants() {
		if err := r.sweepTenant(ctx, tenant); err != nil && ctx.Err() == nil {
			r.Log.WarnContext(ctx, "expired tasks not written down, will be tried again", "tenant", tenant, "error", err)
		}
	}
}

func (r *Tasks) sweepTenant(ctx context.Context, tenant string) error {
	k, err := r.Store.Key(tenant, redis.TasksDue)
	if err != nil {
		return err
	}
	ids, err := r.Store.Due(ctx, k, 200)
	if err != nil {
		return err
	}
	for _, id := range ids {
		switch _, err := r.finish(ctx, ref{tenant, id}, gateway.TaskExpired, ""); {
		case errors.Is(err, redis.ErrSeal), errors.Is(err, redis.ErrKey):
			r.Log.ErrorContext(ctx, "a task's stored record was changed by someone else", "tenant", tenant, "task", id)
			fallthrough
		case err == nil, errors.Is(err, gateway.ErrNoTask):
			// Nothing is due here any more, whoever listed it.
			if _, err := r.Store.Run(ctx, unlist, []redis.Key{k}, id); err != nil {
				return err
			}
		case err != nil && !errors.Is(err, gateway.ErrNotNow):
			return err
		}
	}
	return nil
}

// unlist forgets an id that has no task behind it.
var unlist = redis.NewScript(`redis.call('ZREM', KEYS[1], ARGV[1]) return {'ok'}`)

// send is the outbox's way to the record. What cannot be ours is not sent.
func (r *Tasks) send(ctx context.Context, e redis.Entry) error {
	k, err := r.outbox.Key(e.Tenant)
	if err != nil {
		return err
	}
	var t gateway.Task
	record, err := r.Store.Unseal(k, e.Fields["state"]+":"+e.Fields["id"], []byte(e.Fields["task"]))
	if err == nil {
		err = json.Unmarshal(record, &t)
	}
	if err != nil {
		r.Log.ErrorContext(ctx, "an entry in the outbox was not made by us, and is dropped", "tenant", e.Tenant)
		return nil
	}
	if t.State == gateway.TaskExpired {
		f := gateway.Fact{Type: audit.TaskExpired, Tenant: t.Tenant, Key: t.ID + ":expired", At: t.Expires, Task: &t}
		if err := r.Recorder.Durable(ctx, f); err != nil {
			return fmt.Errorf("record expiry: %w", err)
		}
	}
	if r.Over == nil {
		return nil
	}
	return r.Over(ctx, t)
}
