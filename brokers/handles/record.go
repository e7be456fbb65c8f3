package handles

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A record is one handle as Redis holds it, sealed under its key and its version.
// JSON would change the bytes of what others wrote, so those lie beside it.
type record struct {
	Handle gateway.Handle `json:"handle"`
	Bytes  [][]byte       `json:"bytes"` // in the order of theirs
}

// theirs are the parts of a handle that are somebody's own bytes.
func theirs(h *gateway.Handle) []*json.RawMessage {
	return []*json.RawMessage{&h.Call.Args, &h.Call.Meta, &h.Call.Caps, &h.Result.Raw, &h.Result.Error, &h.Wants, &h.Answers}
}

// places are the keys that a handle's transitions touch.
type places struct{ handle, task, over redis.Key }

func (h *Handles) places(tenant, id, task string) (p places, err error) {
	if p.handle, err = h.Store.Key(tenant, redis.Handle, id); err != nil {
		return p, err
	}
	if p.task, err = h.Store.Key(tenant, redis.HandlesTask, task); err != nil {
		return p, err
	}
	p.over, err = h.Store.Key(tenant, redis.HandlesOver, task)
	return p, err
}

func versioned(seq int64) string { return "handle " + strconv.FormatInt(seq, 10) }

// seal writes a handle down, for its key and its version.
func (h *Handles) seal(k redis.Key, one gateway.Handle) ([]byte, error) {
	if one.Result.Handle != nil {
		return nil, errors.New("a handle within a handle")
	}
	r := record{Handle: one}
	for _, b := range theirs(&r.Handle) {
		r.Bytes, *b = append(r.Bytes, *b), nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(text) > h.MaxBytes*4/3 { // as the bytes are written
		return nil, fmt.Errorf("of some %d bytes: %w", len(text)*3/4, gateway.ErrTooMany)
	}
	return h.Store.Seal(k, versioned(one.Seq), text), nil
}

// unseal reads a handle back, and refuses what is not ours.
func (h *Handles) unseal(k redis.Key, which ref, fields map[string]string) (gateway.Handle, error) {
	if fields["seq"] == "" && fields["handle"] == "" {
		return gateway.Handle{}, gateway.ErrNotFound
	}
	var r record
	text, err := h.Store.Unseal(k, "handle "+fields["seq"], []byte(fields["handle"]))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	to := theirs(&r.Handle)
	if err == nil && (r.Handle.ID != which.id || r.Handle.Tenant != which.tenant || versioned(r.Handle.Seq) != "handle "+fields["seq"] || len(r.Bytes) != len(to)) {
		err = redis.ErrSeal
	}
	if err != nil {
		return gateway.Handle{}, err
	}
	for i, b := range to {
		*b = r.Bytes[i]
	}
	return r.Handle, nil
}

// errBack says that Redis shows an older state than it did.
var errBack = errors.New("the stored handle went back to an older state")

// load returns a handle that has not expired.
func (h *Handles) load(ctx context.Context, tenant, id string) (gateway.Handle, error) {
	k, err := h.Store.Key(tenant, redis.Handle, id)
	if err != nil {
		return gateway.Handle{}, fmt.Errorf("%w: %w", gateway.ErrNotFound, err)
	}
	which := ref{tenant, id}
	h.mu.Lock()
	least := h.seen[which] // before the read, which is at least as new
	h.mu.Unlock()
	found, now, err := h.Store.Fields(ctx, []redis.Key{k}, "seq", "handle")
	if err != nil {
		return gateway.Handle{}, err
	}
	one, err := h.unseal(k, which, found[0])
	switch {
	case err != nil:
		return gateway.Handle{}, err
	case one.Seq < least:
		return gateway.Handle{}, errBack
	case !now.Before(one.Expires): // put back, perhaps
		return gateway.Handle{}, gateway.ErrNotFound
	}
	h.saw(one)
	return one, nil
}

func (h *Handles) saw(one gateway.Handle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	which := ref{one.Tenant, one.ID}
	if _, ok := h.seen[which]; !ok && len(h.seen) >= mostSeen {
		for other := range h.seen {
			delete(h.seen, other)
			break
		}
	}
	h.seen[which] = max(h.seen[which], one.Seq)
}
