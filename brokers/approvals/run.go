package approvals

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

// facts are the states whose beginning is a fact of ours. Where the gateway makes
// the transition on an agent's or an operator's behalf, it records that itself.
var facts = map[gateway.ApprovalState]audit.Type{
	gateway.ApprovalGranted:   audit.ApprovalGranted,
	gateway.ApprovalDenied:    audit.ApprovalDenied,
	gateway.ApprovalExpired:   audit.ApprovalExpired,
	gateway.ApprovalCancelled: audit.ApprovalCancelled,
	gateway.ApprovalVoided:    audit.ApprovalVoided,
}

// A fact is what an entry of the outbox holds, sealed.
type fact struct {
	Request gateway.ApprovalRequest `json:"request"` // without Args and Meta
	At      time.Time               `json:"at"`
	Taken   bool                    `json:"taken,omitempty"` // cancelled by who asked, not by the end of the task
}

func (a *Approvals) sealFact(outbox redis.Key, r record) ([]byte, error) {
	f := fact{Request: r.Request, At: r.Ended, Taken: r.Taken}
	f.Request.Meta = nil
	if f.At.IsZero() && len(r.Request.Votes) > 0 {
		f.At = r.Request.Votes[len(r.Request.Votes)-1].At
	}
	text, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return a.Store.Seal(outbox, string(r.Request.State)+":"+r.Request.ID, text), nil
}

// send is the outbox's way to the record. What cannot be ours is not sent.
func (a *Approvals) send(ctx context.Context, e redis.Entry) error {
	k, err := a.outbox.Key(e.Tenant)
	if err != nil {
		return err
	}
	var f fact
	state := gateway.ApprovalState(e.Fields["state"])
	text, err := a.Store.Unseal(k, string(state)+":"+e.Fields["id"], []byte(e.Fields["request"]))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil || facts[state] == "" {
		a.Log.ErrorContext(ctx, "an entry in the outbox was not made by us, and is dropped", "tenant", e.Tenant)
		return nil
	}
	r, task, detail := f.Request, f.Request.AskedOn(), ""
	switch {
	case f.Taken:
		detail = "the agent withdrew it"
	case state == gateway.ApprovalCancelled:
		task.State = gateway.TaskEnding // that is what cancels
	}
	err = a.Recorder.Durable(ctx, gateway.Fact{
		Type: facts[state], Tenant: r.Tenant, Key: r.ID + ":" + string(state), At: f.At, Approval: &r,
		Principal: &gateway.Principal{ID: r.Principal, Tenant: r.Tenant, OnBehalfOf: r.OnBehalfOf, Owner: r.Owner, Chain: r.Chain},
		Task:      &task,
		Tool:      &gateway.Tool{Server: r.Server, Name: r.Tool, Hash: r.Definition},
		Detail:    detail,
	})
	if err != nil {
		return fmt.Errorf("record that approval is %s: %w", state, err)
	}
	return nil
}

// tend expires what is due and looks for changes that no hint told of, each
// second.
func (a *Approvals) tend(ctx context.Context) {
	moves := map[string]string{}
	for {
		for _, tenant := range a.Store.Tenants() {
			if err := a.sweep(ctx, tenant); err != nil && ctx.Err() == nil {
				a.Log.WarnContext(ctx, "expired approvals not written down, will be tried again", "tenant", tenant, "error", err)
			}
			a.lookForMoves(ctx, tenant, moves)
		}
		a.forget()
		select {
		case <-ctx.Done():
			return
		case <-time.After(redis.Jitter(time.Second)):
		}
	}
}

func (a *Approvals) sweep(ctx context.Context, tenant string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	k, err := a.Store.Key(tenant, redis.ApprovalsDue)
	if err != nil {
		return err
	}
	ids, err := a.Store.Due(ctx, k, listed)
	if err != nil {
		return err
	}
	for _, id := range ids {
		rec, err := a.settled(ctx, ref{tenant, id})
		switch {
		case err == nil && rec.open(), errors.Is(err, gateway.ErrNotNow):
		case err == nil, errors.Is(err, gateway.ErrNotFound), errors.Is(err, redis.ErrSeal), errors.Is(err, errBack):
			// Nothing is due here any more, whoever listed it.
			if _, err := a.Store.Run(ctx, unlist, []redis.Key{k}, id); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

// unlist forgets an id that nothing can become due for.
var unlist = redis.NewScript(`redis.call('ZREM', KEYS[1], ARGV[1]) return {'ok'}`)

// lookForMoves wakes everybody of a tenant where something moved since last time.
func (a *Approvals) lookForMoves(ctx context.Context, tenant string, last map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	k, err := a.Store.Key(tenant, redis.ApprovalsMoves)
	if err != nil {
		return
	}
	found, _, err := a.Store.Fields(ctx, []redis.Key{k}, "n")
	if err != nil {
		return
	}
	if n := found[0]["n"]; n != last[tenant] {
		last[tenant] = n
		a.bell.ringAll(tenant)
	}
}

// listen passes on hints from every replica.
func (a *Approvals) listen(ctx context.Context) {
	hints, err := a.Store.Listen(ctx, topic)
	if err != nil {
		a.Log.WarnContext(ctx, "no wake-ups from other replicas; waiters look each second", "error", err)
		return
	}
	for h := range hints {
		a.bell.ring(ref{h.Tenant, h.ID})
	}
}

// A bell wakes who waits for one request, or, under the zero ref, for any. Rings
// that nobody has heard yet are one.
type bell struct {
	mu      sync.Mutex
	waiting map[ref]map[chan struct{}]bool
}

// wait registers; whoever then looks misses nothing. stop closes the channel.
func (b *bell) wait(which ref) (rung <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting == nil {
		b.waiting = map[ref]map[chan struct{}]bool{}
	}
	if b.waiting[which] == nil {
		b.waiting[which] = map[chan struct{}]bool{}
	}
	b.waiting[which][ch] = true
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.waiting[which][ch] {
			return
		}
		if delete(b.waiting[which], ch); len(b.waiting[which]) == 0 {
			delete(b.waiting, which)
		}
		close(ch)
	}
}

func (b *bell) ring(which ref) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.strike(which)
	b.strike(ref{})
}

func (b *bell) ringAll(tenant string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for which := range b.waiting {
		if which.tenant == tenant {
			b.strike(which)
		}
	}
	b.strike(ref{})
}

// strike fills each channel that is empty. Under b.mu.
func (b *bell) strike(which ref) {
	for ch := range b.waiting[which] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
