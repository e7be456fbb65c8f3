package secrets

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

const (
	prompt  = 2 * time.Second // an end that somebody waits for; then it is alerted and the worker's
	patient = callTimeout     // the worker's
	slowest = time.Minute     // between two tries of the worker
)

var errBusy = errors.New("another is ending the lease")

// GiveBack ends a per-call lease; see [gateway.Leases]. An error means that its
// end is not proven yet: that is on record, and the worker goes on with it.
func (b *Broker) GiveBack(ctx context.Context, l gateway.Lease) error {
	if l.ID == "" || !l.PerCall {
		return nil
	}
	b.mu.Lock()
	v := b.live[l.ID]
	b.mu.Unlock()
	if v == nil { // ended, whoever did it
		return nil
	}
	return b.endNow(ctx, v.record.Tenant, l.ID)
}

// EndTask ends all leases of a task, whichever replica issued them, lets no more
// be issued for it, and returns the binding of each that it saw end. An error means that some end is
// not proven yet: that is on record, and the worker goes on with it.
func (b *Broker) EndTask(ctx context.Context, tenant, task string) ([]string, error) {
	if b.ledger == nil || task == "" {
		return nil, nil
	}
	ids, err := b.ledger.over(ctx, tenant, task)
	if err != nil { // no ledger: then at least ours
		b.mu.Lock()
		for id, v := range b.live {
			if v.record.Tenant == tenant && v.record.Task.ID == task {
				ids = append(ids, id)
			}
		}
		b.mu.Unlock()
	}
	var mu sync.Mutex
	var ended []string
	failed := endAll(ids, 8, func(id string) error {
		of := b.bindingOf(ctx, tenant, id)
		err := b.endNow(ctx, tenant, id)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, of)
		}
		return err
	})
	return ended, errors.Join(err, failed)
}

// bindingOf says which binding a lease is of, if that can still be read.
func (b *Broker) bindingOf(ctx context.Context, tenant, id string) string {
	b.mu.Lock()
	v := b.live[id]
	b.mu.Unlock()
	if v != nil {
		return v.record.Binding
	}
	if r, err := b.ledger.get(ctx, tenant, id); err == nil && r != nil {
		return r.Binding
	}
	return "unknown"
}

// endNow ends a lease while somebody waits, who need not wait to its end.
func (b *Broker) endNow(ctx context.Context, tenant, id string) error {
	for {
		done := b.ends.DoChan(tenant+"/"+id, func() (any, error) {
			return nil, b.end(context.WithoutCancel(ctx), tenant, id, prompt)
		})
		select {
		case r := <-done:
			if !errors.Is(r.Err, errBusy) {
				return r.Err
			}
		case <-ctx.Done():
			return fmt.Errorf("lease %s: end not proven yet: %w", id, ctx.Err())
		}
		select { // another replica is at it: see what comes of it
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("lease %s: %w", id, errBusy)
		}
	}
}

// endAll ends leases, some at once.
func endAll(ids []string, atOnce int, end func(id string) error) error {
	errs := make([]error, len(ids))
	room := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, id := range ids {
		room <- struct{}{}
		all.Go(func() {
			errs[i] = end(id)
			<-room
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// end takes a lease, revokes it and its token, makes sure that Vault knows them
// no more, records that and forgets it, in this order: a crash after any line
// leaves it in the ledger, and doing it again harms nothing.
func (b *Broker) end(ctx context.Context, tenant, id string, within time.Duration) error {
	keep, cancel := context.WithTimeout(ctx, within+callTimeout) // for ledger and record, when Vault took all the time
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, within)
	defer cancel()

	r, err := b.take(ctx, tenant, id, within)
	if err != nil || r == nil {
		return err
	}
	if err := b.kill(ctx, r); err != nil {
		return b.later(keep, r, err)
	}
	if r.Class == TTLBound && !r.Issued.IsZero() && time.Now().Before(r.Expires) {
		// Vault has let go of it, its target has not: it ends when it expires.
		r.By = ""
		b.drop(r.ID)
		return b.ledger.move(keep, r, due, r.Expires)
	}
	if f, ok := b.endFact(r); ok {
		if err := b.Recorder.Durable(keep, f); err != nil {
			return b.later(keep, r, fmt.Errorf("record end: %w", err))
		}
	}
	if err := b.ledger.finish(keep, r); err != nil {
		return err
	}
	b.drop(r.ID)
	return nil
}

// take claims a lease for its end, so that no two replicas do it at once and it
// is handed out no more. It returns nil where it has ended already.
func (b *Broker) take(ctx context.Context, tenant, id string, within time.Duration) (*record, error) {
	r, err := b.ledger.get(ctx, tenant, id)
	if err != nil {
		return nil, b.blind(ctx, tenant, id, err)
	}
	if r == nil {
		b.drop(id)
		return nil, nil
	}
	me := b.Replica + "/" + b.Boot
	replica, _, _ := strings.Cut(r.By, "/")
	if r.By != "" && replica != b.Replica && time.Now().Before(r.Until) {
		return nil, errBusy // an earlier boot of our own is at nothing any more
	}
	r.Lost = r.Lost || r.unlearnt()
	r.By, r.Until = me, time.Now().Add(within+callTimeout)
	if err := b.ledger.move(ctx, r, due, r.Until); err != nil {
		if errors.Is(err, errTaken) {
			err = errBusy
		}
		return nil, err
	}
	return r, nil
}

// blind ends what this process still knows of a lease when the ledger cannot be
// read. The ledger keeps it until then, so its end is recorded later.
func (b *Broker) blind(ctx context.Context, tenant, id string, err error) error {
	b.mu.Lock()
	v := b.live[id]
	b.mu.Unlock()
	if v == nil {
		return err
	}
	r := v.record
	if again := b.kill(ctx, &r); again != nil {
		return errors.Join(err, again)
	}
	return fmt.Errorf("revoked, and not on record while the ledger cannot be read: %w", err)
}

// kill revokes a lease and its token and asks Vault whether they are gone.
func (b *Broker) kill(ctx context.Context, r *record) error {
	if r.LeaseID != "" {
		if err := b.killLease(ctx, r); err != nil {
			return err
		}
	}
	if r.Accessor == "" {
		return nil
	}
	if err := b.vault.revokeToken(ctx, r.ID, r.Accessor); err != nil {
		return err
	}
	return gone(ctx, func() (bool, error) { return b.vault.tokenGone(ctx, r.ID, r.Accessor) })
}

func (b *Broker) killLease(ctx context.Context, r *record) error {
	err := b.vault.revokeLease(ctx, r.ID, r.LeaseID, true)
	if err != nil && reasonOf(err) != reasonNoLease {
		// Vault forgets a synchronous revoke that failed, but goes on with one it
		// queued, even when we are gone.
		queue, cancel := context.WithTimeout(context.WithoutCancel(ctx), prompt)
		defer cancel()
		if b.vault.revokeLease(queue, r.ID, r.LeaseID, false) != nil {
			return err
		}
		if ok, _ := b.vault.leaseGone(queue, r.ID, r.LeaseID); !ok {
			return err
		}
		return nil
	}
	return gone(ctx, func() (bool, error) { return b.vault.leaseGone(ctx, r.ID, r.LeaseID) })
}

// gone asks until Vault says so, for what it revokes may be gone a moment later.
func gone(ctx context.Context, ask func() (bool, error)) error {
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		ok, err := ask()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("revoked, but Vault still knows it")
		case <-time.After(wait):
		}
	}
}

// later alerts, once, that a lease has not ended, and leaves it to the worker.
func (b *Broker) later(ctx context.Context, r *record, why error) error {
	if !r.Alerted {
		f := r.fact(b, audit.SecretRevokeFailed)
		f.Key, f.LeaseEnd = r.ID+":revoke_failed", &gateway.LeaseEnd{Kind: "failed"}
		f.Detail = why.Error() + "; it is tried again, and its token ends it by " + r.Bound.UTC().Format(time.RFC3339)
		r.Alerted = b.Recorder.Durable(ctx, f) == nil
	}
	r.Tries++
	r.By = ""
	err := b.ledger.move(ctx, r, due, time.Now().Add(backoff(r.Tries, slowest)))
	b.Logger.Error("lease not ended yet", "lease", r.ID, "tries", r.Tries, "bound", r.Bound, "error", errors.Join(why, err))
	return errors.Join(fmt.Errorf("lease %s: %w", r.ID, why), err)
}

// endFact is the one record of how a lease ended, where there was one.
func (b *Broker) endFact(r *record) (gateway.Fact, bool) {
	f := r.fact(b, audit.SecretRevoked)
	f.Key, f.LeaseEnd = r.ID+":end", &gateway.LeaseEnd{Kind: "revoked", Confirmed: true}
	expired := !time.Now().Before(r.ends())
	switch unused := r.Issued.IsZero() || r.Refused; {
	case r.Lost && r.LeaseID == "":
		f.LeaseEnd.Confirmed = false
		f.Detail = "Vault's answer was lost; the token that whatever it issued hangs from is gone"
	case r.LeaseID == "" && unused && !r.Refused:
		f.Type, f.LeaseEnd, f.Key = audit.SecretRefused, nil, r.ID+":refused"
		f.Detail = "given up before anything was handed out; its token, if there was one, is gone or was never used"
		return f, true
	case r.LeaseID == "" && unused:
		// That nothing came of it is on record; so is that its token would not end.
		f.Type, f.LeaseEnd = audit.SecretRefused, nil
		f.Detail = "nothing was handed out, and its token is gone now"
		return f, r.Alerted
	case r.Engine == KV:
		f.Type, f.LeaseEnd = audit.SecretDisclosed, &gateway.LeaseEnd{Kind: "disclosed"}
		f.Detail = "a static secret: nothing to revoke"
		return f, true
	case r.Class == TTLBound:
		f.LeaseEnd.Confirmed, expired = false, true
		f.Detail = "by its own expiry, which nothing was asked to confirm"
	}
	if expired {
		f.Type, f.LeaseEnd.Kind = audit.SecretExpired, "expired"
	}
	return f, true
}

// drop forgets what this process knows of a lease, values and all.
func (b *Broker) drop(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.live, id)
	for k, s := range b.shared {
		select {
		case <-s.made:
			if s.lease.ID == id {
				delete(b.shared, k)
			}
		default:
		}
	}
}
