package secrets

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// longest is how long a credential lives where neither config nor task says.
const longest = time.Hour

// A live lease is one that this process issued and that has not ended here.
type live struct {
	record  record
	since   time.Time // of its issue or last renewal
	gen     int       // the login that its token hangs from
	last    time.Time // its token's end, which no renewal goes beyond
	renewAt time.Time // zero when it cannot be, or has been often enough
	renews  bool      // a renewal is under way
}

type sharedKey struct{ tenant, task, server string }

// A shared lease is one that a task's calls use one after the other.
type shared struct {
	made  chan struct{} // closed when lease or err is there
	lease gateway.Lease
	err   error
	fresh bool // nobody was told that it is new; under Broker.mu
}

// Lease returns the credential for a call to a server; see [gateway.Leases].
func (b *Broker) Lease(ctx context.Context, tenant, task, call, server string) (gateway.Lease, error) {
	d := b.binding(tenant, server)
	if d == nil {
		return gateway.Lease{}, nil
	}
	var l gateway.Lease
	var err error
	if d.Mode == PerTask && task != "" {
		l, err = b.sharedLease(ctx, sharedKey{tenant, task, server}, d, call)
	} else {
		l, err = b.abandonable(ctx, d, tenant, task, call, true)
	}
	if err != nil {
		return gateway.Lease{}, fmt.Errorf("%w: %w", gateway.ErrNoCredential, err)
	}
	return l, nil
}

// sharedLease hands out the task's lease, or makes it; those who come while it
// is being made wait for the same one.
func (b *Broker) sharedLease(ctx context.Context, k sharedKey, d *Binding, call string) (gateway.Lease, error) {
	for range 3 {
		b.mu.Lock()
		s := b.shared[k]
		if s == nil {
			s = &shared{made: make(chan struct{}), fresh: true}
			b.shared[k] = s
			go func() { // not the first caller's to cancel: others wait for it
				defer close(s.made)
				if s.lease, s.err = b.issue(context.WithoutCancel(ctx), d, k.tenant, k.task, call, false); s.err != nil {
					b.forget(k, s)
				}
			}()
		}
		b.mu.Unlock()
		select {
		case <-s.made:
		case <-ctx.Done():
			return gateway.Lease{}, ctx.Err()
		}
		if s.err != nil {
			return gateway.Lease{}, s.err
		}
		ok, err := b.usable(ctx, k.tenant, s.lease.ID)
		if err != nil {
			return gateway.Lease{}, err
		}
		if ok {
			l := s.lease
			b.mu.Lock()
			defer b.mu.Unlock()
			if v := b.live[l.ID]; v != nil {
				l.Expires = v.record.lease(b).Expires // it may have been renewed
			}
			l.Fresh, s.fresh = s.fresh, false
			return l, nil
		}
		b.forget(k, s)
	}
	return gateway.Lease{}, errors.New("the task's credentials end as fast as they are issued")
}

// usable says whether a shared lease is good for another call: it has some life
// left, its login stands, and the ledger says that nobody has ended it.
func (b *Broker) usable(ctx context.Context, tenant, id string) (bool, error) {
	b.mu.Lock()
	v, closed, young := b.live[id], b.closed, false
	if v != nil {
		life := v.record.Expires.Sub(v.since)
		young = time.Until(v.record.Expires) > min(life/3, 30*time.Second)
	}
	b.mu.Unlock()
	if closed {
		return false, errClosed
	}
	if !young {
		return false, nil
	}
	return b.ledger.stands(ctx, tenant, id)
}

func (b *Broker) forget(k sharedKey, s *shared) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shared[k] == s {
		delete(b.shared, k)
	}
}

var errClosed = errors.New("shutting down")

// abandonable issues a lease that ends at once if the caller has gone before it
// is there. The request to Vault itself is never cut short, or we would not
// learn what came of it.
func (b *Broker) abandonable(ctx context.Context, d *Binding, tenant, task, call string, perCall bool) (gateway.Lease, error) {
	type result struct {
		lease gateway.Lease
		err   error
	}
	made := make(chan result)
	go func() {
		l, err := b.issue(context.WithoutCancel(ctx), d, tenant, task, call, perCall)
		select {
		case made <- result{l, err}:
		case <-ctx.Done():
			if err == nil {
				_ = b.endNow(context.WithoutCancel(ctx), tenant, l.ID)
			}
		}
	}()
	select {
	case r := <-made:
		return r.lease, r.err
	case <-ctx.Done():
		return gateway.Lease{}, ctx.Err()
	}
}

// issue makes a lease: each step is in the ledger before the next, so a crash
// after any line leaves something that can be ended.
func (b *Broker) issue(ctx context.Context, d *Binding, tenant, task, call string, perCall bool) (_ gateway.Lease, err error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return gateway.Lease{}, errClosed
	}
	b.issues.Add(1)
	b.mu.Unlock()
	defer b.issues.Done()
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()

	r := &record{
		ID: "lease-" + strings.ToLower(rand.Text()), Tenant: tenant, Call: call, Server: d.Server, Binding: d.name(), Engine: d.Engine,
		Class: d.Class, PerCall: perCall, Replica: b.Replica, Boot: b.Boot, Began: time.Now(),
	}
	defer func() {
		if err != nil {
			err = b.refused(context.WithoutCancel(ctx), r, err)
		}
	}()
	life, err := b.life(ctx, r, d, task)
	if err != nil {
		return gateway.Lease{}, err
	}
	r.Bound = r.Began.Add(callTimeout + life)

	// Without a beat nobody would know of our death.
	if !b.beaten.Load() {
		if err := b.beat(ctx); err != nil {
			return gateway.Lease{}, err
		}
	}
	if err := b.Recorder.Record(ctx, r.fact(b, audit.SecretRequested)); err != nil {
		return gateway.Lease{}, fmt.Errorf("record request: %w", err)
	}
	// A crash from here on leaves at most a token that nobody has and nothing hangs from.
	if err := b.ledger.begin(ctx, r); err != nil {
		return gateway.Lease{}, err
	}
	c, err := b.vault.child(ctx, r.ID, map[string]any{"task": task, "server": d.Server, "lease": r.ID}, life)
	r.Accessor = c.accessor
	if err != nil {
		return gateway.Lease{}, err
	}
	// A crash from here on leaves a token that can be revoked, and whatever hangs from it with it.
	r.Bound = c.expires
	if err := b.ledger.move(ctx, r, token, r.Bound.Add(grace)); err != nil {
		return gateway.Lease{}, err
	}
	got, err := b.vault.read(ctx, c, r.ID, d)
	if err != nil {
		r.Lost = d.Engine == Leased && lost(err)
		return gateway.Lease{}, err
	}
	if d.Class == Revocable && got.lease == "" {
		return gateway.Lease{}, &vaultError{op: d.path(), reason: reasonAnswer, said: "no lease, where the config says revocable"}
	}
	// A crash from here on leaves a lease that can be revoked and looked up.
	r.LeaseID, r.Issued, r.Expires, r.Request, r.Version = got.lease, time.Now(), got.expires, got.request, got.version
	if err := b.ledger.move(ctx, r, open, r.Expires.Add(grace)); err != nil {
		r.Issued = time.Time{}
		return gateway.Lease{}, err
	}
	l := r.lease(b)
	l.Fresh = true
	if l.Headers, err = fill(d.headers, got.data, &l.Values); err != nil {
		return gateway.Lease{}, err
	}
	if l.Env, err = fill(d.env, got.data, &l.Values); err != nil {
		return gateway.Lease{}, err
	}
	v := &live{record: *r, since: r.Issued, gen: c.gen, last: c.expires}
	if got.renew && r.Expires.Before(c.expires.Add(-time.Second)) {
		v.renewAt = r.Issued.Add(r.Expires.Sub(r.Issued) * 2 / 3)
	}
	b.mu.Lock()
	b.live[r.ID] = v
	b.mu.Unlock()
	return l, nil
}

// life is how long the lease's token lives: what the binding says, and no
// longer than the task.
func (b *Broker) life(ctx context.Context, r *record, d *Binding, task string) (time.Duration, error) {
	life := d.TTL
	r.Task.ID = task
	if task != "" && b.Tasks != nil {
		t, err := b.Tasks.Running(ctx, r.Tenant, task)
		if err != nil {
			return 0, err
		}
		t.Scope = nil
		r.Task = t
		if left := time.Until(t.Expires); life == 0 || left < life {
			life = left
		}
		if life < time.Second {
			return 0, errOver
		}
	}
	if life == 0 {
		life = longest
	}
	return life, nil
}

// lost says whether what was asked may have been done all the same.
func lost(err error) bool {
	e, ok := errors.AsType[*vaultError](err)
	return ok && !e.answered && !errors.Is(err, errLogin)
}

// refused records that nothing came of a lease, and ends what did. It returns
// the error that stopped it.
func (b *Broker) refused(ctx context.Context, r *record, err error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	f := r.fact(b, audit.SecretRefused)
	f.Key, f.Detail = r.ID+":refused", reasonWord(err)+": "+err.Error()
	switch {
	case r.Lost:
		f.Detail += "; what may have been issued hangs from a token that is being ended"
	case r.Accessor == "" && r.version > 0 && lost(err):
		f.Detail += "; at most a token that nobody has, until " + r.Bound.UTC().Format(time.RFC3339)
	}
	r.Refused = b.Recorder.Durable(ctx, f) == nil
	if r.version == 0 { // never in the ledger
		return err
	}
	again := b.ledger.move(ctx, r, due, time.Now())
	if errors.Is(again, errTaken) && r.Accessor == "" {
		return err
	}
	if errors.Is(again, errTaken) {
		// Whoever took it to end it knew less than we do now.
		again = b.ledger.restore(ctx, r)
	}
	if again == nil {
		again = b.endNow(ctx, r.Tenant, r.ID)
	} else if r.Accessor != "" {
		// The ledger cannot be reached. What it has of this lease it gives to the
		// worker in time; what only we know ends here.
		again = errors.Join(again, b.kill(ctx, r))
	}
	if again != nil {
		b.Logger.Error("a refused lease is not ended yet", "lease", r.ID, "bound", r.Bound, "error", again)
	}
	return err
}

// reasonWord is the class of a refusal: one of Vault's reasons or ours.
func reasonWord(err error) string {
	if r := reasonOf(err); r != "" {
		return r
	}
	switch {
	case errors.Is(err, errOver), errors.Is(err, errTaken), errors.Is(err, gateway.ErrNoTask):
		return "task over"
	case errors.Is(err, errField):
		return "secret unusable"
	}
	return "not possible"
}

func fill(all map[string]template, data map[string]string, values *[]gateway.Secret) (map[string]gateway.Secret, error) {
	if len(all) == 0 {
		return nil, nil
	}
	out := map[string]gateway.Secret{}
	for name, t := range all {
		s, err := t.fill(data)
		if err != nil {
			return nil, err
		}
		out[name] = s
		for _, f := range t.fields() {
			*values = append(*values, gateway.NewSecret(data[f]))
		}
	}
	return out, nil
}

// lease is the record as the gateway knows it, without values.
func (r *record) lease(b *Broker) gateway.Lease {
	l := gateway.Lease{
		ID: r.ID, Binding: r.Binding, Class: b.class(r.Class), Engine: r.Engine, Server: r.Server, PerCall: r.PerCall,
		Issued: r.Issued, Expires: r.Expires, RequestID: r.Request, Version: r.Version,
	}
	if r.Engine == KV {
		l.Expires = time.Time{} // our token ends; the secret does not
	}
	if r.LeaseID != "" {
		sum := sha256.Sum256([]byte(r.LeaseID))
		l.LeaseHash = "sha256:" + hex.EncodeToString(sum[:])
	}
	return l
}

// fact is what the record says of a lease.
func (r *record) fact(b *Broker, t audit.Type) gateway.Fact {
	l := r.lease(b)
	f := gateway.Fact{Type: t, Tenant: r.Tenant, Lease: &l, Unbound: "not for a task"}
	if r.Task.ID != "" {
		f.Task = &r.Task
	}
	if r.Call != "" {
		f.Call = &gateway.CallRef{ID: r.Call}
	}
	return f
}

// supersede takes the leases of a login out of use: at a time they fall with
// its token, or have fallen by now.
func (b *Broker) supersede(gen int, at time.Time) {
	if at.IsZero() {
		at = time.Now()
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	b.mu.Lock()
	var ids []record
	for _, v := range b.live {
		if v.gen == gen {
			v.renewAt = time.Time{}
			ids = append(ids, v.record)
		}
	}
	for k, s := range b.shared {
		select {
		case <-s.made:
			if v := b.live[s.lease.ID]; v != nil && v.gen == gen {
				delete(b.shared, k)
			}
		default:
		}
	}
	b.mu.Unlock()
	for _, r := range ids {
		if at.Before(r.Expires) {
			if err := b.ledger.move(ctx, &r, open, at); err == nil {
				b.mu.Lock()
				if v := b.live[r.ID]; v != nil {
					v.record = r
				}
				b.mu.Unlock()
			}
		}
	}
	b.Logger.Warn("the gateway's own Vault token was replaced; leases under the old one end with it", "leases", len(ids))
}

// renewDue asks for more of every lease that has used up two thirds of its
// life, up to the end of its token.
func (b *Broker) renewDue(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.live {
		if v.renewAt.IsZero() || v.renews || time.Now().Before(v.renewAt) {
			continue
		}
		v.renews = true
		go b.renew(ctx, v, v.record, v.record.Expires.Sub(v.since))
	}
}

func (b *Broker) renew(ctx context.Context, v *live, r record, life time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	asked := time.Now()
	until, err := b.vault.renew(ctx, r.ID, r.LeaseID, min(life, time.Until(v.last)))
	longer := false
	if err == nil {
		if until = earliest(until, v.last); until.After(r.Expires) {
			longer, r.Expires = true, until
			err = b.ledger.move(ctx, &r, open, r.Expires.Add(grace))
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v.renews = false
	switch {
	case err != nil && lost(err) && time.Until(r.Expires) > time.Second:
		v.renewAt = time.Now().Add(time.Until(r.Expires) / 4)
	case err != nil || !longer:
		v.renewAt = time.Time{} // the next call gets a new one
	default:
		v.record, v.since = r, asked
		v.renewAt = time.Now().Add(time.Until(r.Expires) * 2 / 3)
		if !r.Expires.Before(v.last.Add(-time.Second)) {
			v.renewAt = time.Time{}
		}
	}
}
