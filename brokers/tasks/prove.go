package tasks

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// Each replica that knows that a task's end began alerts by itself where that end
// is not proven in time, whoever holds the closing and whether or not Redis
// answers: the holder may have died, or be cut off. And each ends what runs here
// once nobody could say for long which tasks have ended.

// A proof is what a replica waits for about an end that it knows of.
type proof struct {
	task  gateway.Task // as it was known here last, or only its id
	since time.Time
	next  time.Time // when it is looked at
	busy  bool
}

func (r *Tasks) toProve(which ref, t gateway.Task, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.toProveLocked(which, t, since)
}

func (r *Tasks) toProveLocked(which ref, t gateway.Task, since time.Time) {
	p := r.proofs[which]
	if p == nil {
		if len(r.proofs) >= cached {
			return // whoever closes it says so
		}
		p = &proof{since: since, next: since.Add(r.pace.prove)}
		r.proofs[which] = p
	}
	if since.Before(p.since) {
		p.since, p.next = since, since.Add(r.pace.prove)
	}
	if p.task.ID == "" || p.task.EndedBy == "" && t.Principal != "" {
		p.task = t
		p.task.State = gateway.TaskEnding // how is not always known here
	}
}

func (r *Tasks) proven(which ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.proofs, which)
}

// knownEnding is a task that is known here to be ending; the zero Task where no
// more than its id is.
func (r *Tasks) knownEnding(which ref) (t gateway.Task) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.proofs[which]; p != nil && p.task.Principal != "" {
		t = p.task
	}
	return t
}

// prove alerts to each end that is not proven in time, until ctx ends.
func (r *Tasks) prove(ctx context.Context) {
	room := make(chan struct{}, 8)
	var work sync.WaitGroup
	defer work.Wait()
	for {
		pause(ctx, r.pace.prove/40)
		if ctx.Err() != nil {
			return
		}
		var due []ref
		r.mu.Lock()
		for which, p := range r.proofs {
			if !p.busy && !time.Now().Before(p.next) {
				p.busy = true
				due = append(due, which)
			}
		}
		r.mu.Unlock()
		for _, which := range due {
			room <- struct{}{}
			work.Go(func() {
				defer func() { <-room }()
				done := r.alert(ctx, which)
				r.mu.Lock()
				defer r.mu.Unlock()
				if p := r.proofs[which]; done {
					delete(r.proofs, which)
				} else if p != nil {
					p.busy, p.next = false, time.Now().Add(r.pace.prove/4)
				}
			})
		}
	}
}

// alert puts on record that an end is not proven, unless it is by now, and reports
// whether nothing more is to be said of it here.
func (r *Tasks) alert(ctx context.Context, which ref) bool {
	r.mu.RLock()
	p := r.proofs[which]
	var t gateway.Task
	var since time.Time
	if p != nil {
		t, since = p.task, p.since
	}
	r.mu.RUnlock()
	if p == nil {
		return true
	}
	var sum gateway.Closing
	short, cancel := context.WithTimeout(ctx, timeout/4)
	v, ok, err := r.peek(short, which)
	switch {
	case errors.Is(err, gateway.ErrNoTask), err == nil && !ok:
		cancel()
		return true
	case err == nil:
		sum, _ = r.sum(short, v)
		t = v.Task
	case r.Fresh() && time.Since(since) < 2*r.pace.prove: // Redis answers, but is busy
		cancel()
		return false
	default:
		sum.Unproven = []string{"what others have of it is not known to replica " + r.Replica + ", for which Redis does not answer"}
	}
	cancel()
	sum = sum.Add(r.openHere(which))
	fact := gateway.Fact{Type: audit.TaskEndUnproven, Tenant: which.tenant, Key: which.id + ":unproven:" + r.Replica, At: r.Now(), Task: &t, Closing: &sum}
	if err := r.Recorder.Durable(ctx, fact); err != nil {
		if ctx.Err() == nil {
			r.Log.ErrorContext(ctx, "a task's end is not proven, and that could not be recorded", "tenant", which.tenant, "task", which.id, "error", err)
		}
		return false
	}
	return true
}

// peek looks at a closing without holding it.
func (r *Tasks) peek(ctx context.Context, which ref) (view, bool, error) {
	k, err := r.places(which.tenant, which.id)
	if err != nil {
		return view{}, false, err
	}
	return r.look(ctx, k, which, "")
}

// openHere says what of a task is not closed on this replica.
func (r *Tasks) openHere(which ref) (c gateway.Closing) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	u := r.used[which]
	switch {
	case u == nil:
	case u.here == nil:
		c.Unproven = []string{"its calls, sessions and children, which are being closed"}
	default:
		c.Unproven = slices.Clone(u.here.Unproven)
	}
	c.Unproven = on(r.Replica, c.Unproven)
	return c
}

// Blind implements [gateway.Tasks].
func (r *Tasks) Blind() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.blind
}

// guard closes Blind when it is time to, until ctx ends.
func (r *Tasks) guard(ctx context.Context) {
	for ; ctx.Err() == nil; pause(ctx, every) {
		r.mu.Lock()
		at := r.confirmed.Load()
		// While there is none nothing was let run.
		now := at != nil && !r.isBlind && time.Since(*at) > fresh+r.pace.blind
		if now {
			r.isBlind = true
			close(r.blind)
		}
		r.mu.Unlock()
		if now {
			r.Log.ErrorContext(ctx, "cannot confirm which tasks have ended; the calls under way are cancelled")
		}
	}
}

// sees notes when a confirmed read began. Nobody is let run by it who would then
// be cancelled because of what was before.
func (r *Tasks) sees(began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isBlind {
		r.isBlind, r.blind = false, make(chan struct{})
	}
	r.confirmed.Store(&began)
	close(r.seen)
	r.seen = make(chan struct{})
}
