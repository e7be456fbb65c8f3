package secrets

import (
	"context"
	"errors"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// Run keeps the gateway's token alive, ends what earlier boots of this replica
// and dead replicas left behind, tries again what would not end, and renews,
// until ctx ends. Close comes after it.
func (b *Broker) Run(ctx context.Context) error {
	if b.vault == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	var parts sync.WaitGroup
	parts.Go(func() { b.vault.keep(ctx, b.Logger) })
	parts.Go(func() { b.every(ctx, beatEvery, b.beat) })
	parts.Go(func() { b.every(ctx, beatEvery, b.reap) })
	parts.Go(func() { b.every(ctx, time.Second, b.work) })
	parts.Go(func() {
		b.every(ctx, time.Second/4, func(ctx context.Context) error { b.renewDue(ctx); return nil })
	})
	parts.Wait()
	return ctx.Err()
}

// every does something now and then until ctx ends, the next time sooner where
// it failed. It logs a failure once, until it is another.
func (b *Broker) every(ctx context.Context, d time.Duration, do func(context.Context) error) {
	said := ""
	for {
		wait, err := redis.Jitter(d), do(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			said = ""
		default:
			wait = redis.Jitter(time.Second)
			if err.Error() != said {
				said = err.Error()
				b.Logger.Error("leases are not looked after", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (b *Broker) beat(ctx context.Context) error {
	err := b.ledger.beat(ctx)
	if err == nil {
		b.beaten.Store(true)
	}
	return err
}

// reap ends the leases of those who died with the values: the boots before this
// one, by journal where the ledger died too, and replicas not heard of.
func (b *Broker) reap(ctx context.Context) error {
	for _, r := range b.ledger.journal.leftovers() {
		if err := b.ledger.restore(ctx, r); err != nil {
			return err
		}
		b.ledger.journal.restored(r.ID)
	}
	dead, err := b.ledger.dead(ctx)
	if err != nil {
		return err
	}
	for _, boot := range dead {
		if boot == b.Replica+"/"+b.Boot {
			continue // we are late, not dead
		}
		var left error
		for _, tenant := range b.Store.Tenants() {
			ids, err := b.ledger.of(ctx, tenant, boot)
			if errors.Is(err, redis.ErrKey) {
				break // no boot of ours has such a name
			} else if err != nil {
				return err
			}
			if len(ids) > 0 {
				b.Logger.Warn("ending the leases of a gateway that died", "gateway", boot, "tenant", tenant, "leases", len(ids))
			}
			left = errors.Join(left, endAll(ids, 4, func(id string) error { return b.endLater(ctx, tenant, id) }))
		}
		if left != nil {
			continue // each is in the worker's hands now
		}
		if err := b.ledger.bury(ctx, boot); err != nil {
			return err
		}
	}
	return nil
}

// work ends what is due: revokes that failed, leases that expired or whose
// ending was cut short.
func (b *Broker) work(ctx context.Context) error {
	for _, tenant := range b.Store.Tenants() {
		ids, err := b.ledger.due(ctx, tenant, 64)
		if err != nil {
			return err
		}
		err = endAll(ids, 4, func(id string) error {
			err := b.endLater(ctx, tenant, id)
			if errors.Is(err, redis.ErrSeal) {
				return b.unreadable(ctx, tenant, id)
			}
			return nil // it is on record, and due again
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// unreadable alerts that somebody changed a lease's record: it ends with its
// token, and nobody will be able to say that it did.
func (b *Broker) unreadable(ctx context.Context, tenant, id string) error {
	f := gateway.Fact{
		Type: audit.SecretRevokeFailed, Tenant: tenant, Key: id + ":unreadable", Lease: &gateway.Lease{ID: id},
		LeaseEnd: &gateway.LeaseEnd{Kind: "failed"}, Unbound: "the ledger's record cannot be read",
		Detail: "the ledger's record was changed by somebody else; the lease ends with its token",
	}
	if err := b.Recorder.Durable(ctx, f); err != nil {
		return err
	}
	return b.ledger.postpone(ctx, tenant, id, time.Now().Add(slowest))
}

// endLater ends a lease that nobody waits for.
func (b *Broker) endLater(ctx context.Context, tenant, id string) error {
	_, err, _ := b.ends.Do(tenant+"/"+id, func() (any, error) {
		return nil, b.end(context.WithoutCancel(ctx), tenant, id, patient)
	})
	return err
}

// Close issues no more, ends every lease of this process, and logs out of
// Vault, as far as ctx lasts. What it could not end stays in the ledger for the
// other replicas and the next start, and is returned as an error.
func (b *Broker) Close(ctx context.Context) error {
	if b.vault == nil {
		return nil
	}
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	idle := make(chan struct{})
	go func() { b.issues.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done():
	}
	byTenant := map[string][]string{}
	b.mu.Lock()
	for id, v := range b.live {
		byTenant[v.record.Tenant] = append(byTenant[v.record.Tenant], id)
	}
	b.mu.Unlock()
	var left error
	for tenant, ids := range byTenant {
		left = errors.Join(left, endAll(ids, 8, func(id string) error { return b.endNow(ctx, tenant, id) }))
	}
	if left == nil {
		left = b.vault.logout(ctx)
	}
	return errors.Join(left, b.ledger.journal.close())
}
