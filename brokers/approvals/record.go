package approvals

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A record is one request as Redis holds it: whole, sealed under its key and its
// version. What lies beside it in the clear (version, deadlines, indexes) finds
// records; nothing is believed but what opens.
type record struct {
	Request gateway.ApprovalRequest `json:"request"`        // without Args and Meta, whose bytes JSON would change
	Meta    []byte                  `json:"meta,omitempty"` //
	Until   time.Time               `json:"until"`          // when the state it is in is over by itself
	Window  time.Time               `json:"window,omitzero"`
	Call    string                  `json:"call,omitempty"` // that the grant is reserved for
	Ended   time.Time               `json:"ended,omitzero"`
	Holders []string                `json:"holders,omitempty"` // who wait for it, by name
	Loose   bool                    `json:"loose,omitempty"`   // others do, or may, whom nobody counts
	Taken   bool                    `json:"taken,omitempty"`   // it was cancelled because nobody waits any more
}

// waits reports whether a holder, or somebody without a name, is noted to wait.
func (r *record) waits(holder string) bool {
	if holder == "" {
		return r.Loose
	}
	return slices.Contains(r.Holders, holder)
}

func (r *record) hold(holder string) {
	switch {
	case r.waits(holder):
	case holder == "":
		r.Loose = true
	default:
		r.Holders = append(slices.Clone(r.Holders), holder)
	}
}

func (r *record) open() bool { return !r.Request.State.Final() }

// tick is what time alone does to a record that is due. A reservation that its
// call neither used nor gave back goes back: using up comes before anything is
// sent, so nothing was.
func (r *record) tick() {
	if r.Request.State == gateway.ApprovalReserved && r.Until.Before(r.Window) {
		r.Request.State, r.Until, r.Call = gateway.ApprovalGranted, r.Window, ""
		return
	}
	r.end(gateway.ApprovalExpired, r.Until)
}

func (r *record) end(state gateway.ApprovalState, at time.Time) {
	r.Request.State, r.Ended, r.Call = state, at, ""
}

// enough reports whether the votes grant the request: every requirement has its
// number of distinct operators, a vote counts wherever its operator had the
// group, and one denial denies. No requirement is never enough.
func enough(r gateway.ApprovalRequest) bool {
	if len(r.Need) == 0 {
		return false
	}
	for _, v := range r.Votes {
		if !v.Approve || v.Digest != r.Digest || v.By == "" {
			return false
		}
	}
	for _, n := range r.Need {
		agreed := map[string]bool{}
		for _, v := range r.Votes {
			if n.Group == "" || slices.Contains(v.Groups, n.Group) {
				agreed[v.By] = true
			}
		}
		if len(agreed) < max(n.N, 1) {
			return false
		}
	}
	return true
}

// places are the keys that a request's transitions touch.
type places struct {
	request, finger, task, over, due, lately, moves, outbox, topic redis.Key
	denials                                                        []redis.Key
}

func (a *Approvals) places(tenant, id, finger, task string) (p places, err error) {
	for _, k := range []struct {
		to   *redis.Key
		kind redis.Kind
		ids  []string
	}{
		{&p.request, redis.Approval, []string{id}},
		{&p.finger, redis.ApprovalsFinger, []string{finger}},
		{&p.task, redis.ApprovalsTask, []string{task}},
		{&p.over, redis.ApprovalsOver, []string{task}},
		{&p.due, redis.ApprovalsDue, nil},
		{&p.lately, redis.ApprovalsLately, nil},
		{&p.moves, redis.ApprovalsMoves, nil},
	} {
		if *k.to, err = a.Store.Key(tenant, k.kind, k.ids...); err != nil {
			return places{}, err
		}
	}
	if p.outbox, err = a.outbox.Key(tenant); err != nil {
		return places{}, err
	}
	p.topic, err = a.Store.Topic(tenant, topic)
	return p, err
}

// seal writes a record down, for its key and its version.
func (a *Approvals) seal(k redis.Key, r record) ([]byte, error) {
	r.Meta, r.Request.Meta = r.Request.Meta, nil
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return a.Store.Seal(k, versioned(r.Request.Seq), text), nil
}

func versioned(seq int64) string { return "request " + strconv.FormatInt(seq, 10) }

// open reads a record back, without arguments, and refuses one that is not ours
// or older than one this replica has seen.
func (a *Approvals) open(k redis.Key, which ref, fields map[string]string) (r record, err error) {
	if fields["seq"] == "" && fields["request"] == "" {
		return r, gateway.ErrNotFound
	}
	text, err := a.Store.Unseal(k, "request "+fields["seq"], []byte(fields["request"]))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && (r.Request.ID != which.id || r.Request.Tenant != which.tenant || versioned(r.Request.Seq) != "request "+fields["seq"]) {
		err = redis.ErrSeal
	}
	if err != nil {
		return record{}, fmt.Errorf("approval request: %w", err)
	}
	r.Request.Meta, r.Meta = r.Meta, nil
	return r, nil
}

// errBack says that Redis shows an older state than it did.
var errBack = errors.New("the stored approval request went back to an older state")

// load returns a record, with its arguments while it is not final, and Redis's
// time.
func (a *Approvals) load(ctx context.Context, which ref) (record, time.Time, error) {
	k, err := a.Store.Key(which.tenant, redis.Approval, which.id)
	if err != nil {
		return record{}, time.Time{}, fmt.Errorf("%w: %w", gateway.ErrNotFound, err)
	}
	a.mu.Lock()
	least := a.seen[which].seq // before the read, which is at least as new
	a.mu.Unlock()
	found, now, err := a.Store.Fields(ctx, []redis.Key{k}, "seq", "request", "args")
	if err != nil {
		return record{}, time.Time{}, fmt.Errorf("read approval request: %w", err)
	}
	r, err := a.open(k, which, found[0])
	if err != nil {
		return record{}, time.Time{}, err
	}
	if r.Request.Seq < least {
		return record{}, time.Time{}, errBack
	}
	a.saw(which, r)
	if r.open() {
		if r.Request.Args, err = a.Store.Unseal(k, "args", []byte(found[0]["args"])); err != nil {
			return record{}, time.Time{}, fmt.Errorf("arguments of an approval request: %w", err)
		}
	}
	return r, now, nil
}

// mostSeen bounds the memory of versions.
const mostSeen = 50_000

func (a *Approvals) saw(which ref, r record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.seen[which]; !ok && len(a.seen) >= mostSeen {
		for other := range a.seen {
			delete(a.seen, other)
			break
		}
	}
	if r.Request.Seq >= a.seen[which].seq {
		a.seen[which] = version{r.Request.Seq, r.Request.Expires}
	}
}

// forget drops versions of requests that expired long enough ago for every clock.
func (a *Approvals) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for which, v := range a.seen {
		if time.Since(v.until) > time.Hour {
			delete(a.seen, which)
		}
	}
}
