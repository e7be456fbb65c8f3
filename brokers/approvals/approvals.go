// Package approvals puts requests to humans and hands over their answers: a
// state machine in Redis, of which every transition is one atomic script.
//
// It counts votes but does not say who may vote, and hands out a grant but does
// not say whether it is still enough; both are the gateway's. It emits the facts
// approval.granted, denied, expired, cancelled and voided, through the outbox.
// The gateway records approval.requested, vote and consumed itself, durably and
// around the transition; they are not sent twice.
package approvals

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A Config is what the approvals are made of.
type Config struct {
	Store    *redis.Store
	Recorder gateway.Recorder

	UseWindow   time.Duration // how long a grant can be used, never past the request's expiry; 0 for 5 min
	Reservation time.Duration // how long a call may hold a grant without using it up; 0 for 2 min
	MaxPerTask  int           // open requests of one task; 0 for 32

	Log *slog.Logger // nil for slog's default
}

const (
	remembered = 24 * time.Hour   // how long an ended request can be read
	lately     = 15 * time.Minute // how long it is listed
	listed     = 200              // how many are listed
	maxReason  = 4 << 10          // bytes
	timeout    = 2 * time.Second  // of a round trip that no caller's context bounds
	topic      = "approvals"
)

// safetyNet is how often a waiter looks by itself, about: hints can be lost.
const safetyNet = 5 * time.Second

// Approvals implements [gateway.Approvals]. It is safe for concurrent use.
// [Approvals.Run] must be running: it expires, wakes and records.
type Approvals struct {
	Config
	outbox *redis.Outbox
	bell   bell

	mu   sync.Mutex
	seen map[ref]version
}

// A ref names a request.
type ref struct{ tenant, id string }

// A version is how far this replica has seen a request go. Redis can lose what
// it acknowledged, or have an old record put back into it; a request that went
// back is not believed until it would have expired.
type version struct {
	seq   int64
	until time.Time
}

// New makes the approvals. It does not wait for Redis.
func New(c Config) (*Approvals, error) {
	if c.Store == nil || c.Recorder == nil {
		return nil, errors.New("approvals: no store or no recorder")
	}
	if c.UseWindow < 0 || c.Reservation < 0 || c.MaxPerTask < 0 {
		return nil, errors.New("approvals: a negative limit")
	}
	c.UseWindow = cmp.Or(c.UseWindow, 5*time.Minute)
	c.Reservation = cmp.Or(c.Reservation, 2*time.Minute)
	c.MaxPerTask = cmp.Or(c.MaxPerTask, 32)
	c.Log = cmp.Or(c.Log, slog.Default())
	return &Approvals{Config: c, outbox: c.Store.Outbox("approvals"), seen: map[ref]version{}}, nil
}

// Run expires what is due, wakes whoever waits, and sends facts to the record,
// until ctx ends.
func (a *Approvals) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { a.outbox.Run(ctx, a.send) })
	parts.Go(func() { a.listen(ctx) })
	a.tend(ctx)
	parts.Wait()
	return ctx.Err()
}

// Get implements [gateway.Approvals].
func (a *Approvals) Get(ctx context.Context, tenant, id string) (gateway.ApprovalRequest, error) {
	rec, err := a.settled(ctx, ref{tenant, id})
	return rec.Request, err
}

// Wait implements [gateway.Approvals].
func (a *Approvals) Wait(ctx context.Context, tenant, id string) (gateway.ApprovalRequest, error) {
	which := ref{tenant, id}
	rung, stop := a.bell.wait(which)
	defer stop()
	for {
		read, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		r, err := a.Get(read, tenant, id)
		cancel()
		if err != nil || r.State != gateway.ApprovalPending {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-rung:
		case <-time.After(redis.Jitter(safetyNet)):
		}
	}
}

// Changes implements [gateway.Approvals].
func (a *Approvals) Changes(ctx context.Context) <-chan struct{} {
	rung, stop := a.bell.wait(ref{})
	context.AfterFunc(ctx, stop)
	return rung
}

// List implements [gateway.Approvals]: at most 200, open ones first to be kept,
// ended ones for 15 minutes.
func (a *Approvals) List(ctx context.Context, tenant string) ([]gateway.ApprovalRequest, error) {
	due, err := a.Store.Key(tenant, redis.ApprovalsDue)
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	ended, err := a.Store.Key(tenant, redis.ApprovalsLately)
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	ids, err := a.Store.Between(ctx, due, time.Time{}, time.Time{}, listed)
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	more, err := a.Store.Latest(ctx, ended, listed)
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	for _, id := range more { // one may have ended between the two reads
		if !slices.Contains(ids, id) && len(ids) < listed {
			ids = append(ids, id)
		}
	}
	var keys []redis.Key
	for _, id := range ids {
		k, err := a.Store.Key(tenant, redis.Approval, id)
		if err != nil {
			return nil, fmt.Errorf("list approvals: %w", err)
		}
		keys = append(keys, k)
	}
	found, now, err := a.Store.Fields(ctx, keys, "seq", "request")
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	all := []gateway.ApprovalRequest{}
	for i, f := range found {
		rec, err := a.open(keys[i], ref{tenant, ids[i]}, f)
		if err != nil {
			if !errors.Is(err, gateway.ErrNotFound) {
				a.Log.ErrorContext(ctx, "an approval request's stored record is not usable", "tenant", tenant, "approval", ids[i], "error", err)
			}
			continue
		}
		for rec.open() && !now.Before(rec.Until) {
			rec.tick() // as the sweeper is about to write
		}
		if rec.open() || now.Sub(rec.Ended) <= lately {
			all = append(all, rec.Request)
		}
	}
	slices.SortFunc(all, func(x, y gateway.ApprovalRequest) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
	})
	return all, nil
}
