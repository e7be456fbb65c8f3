package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
)

// Once returns a memory of what was used, shared by the replicas through Redis:
// the func for [Config]. What this replica has seen it knows without asking;
// what is new to it, only Redis can say is new. An error says neither, and
// whoever asked must refuse.
func Once(store *redis.Store, now func() time.Time) func(ctx context.Context, id [sha256.Size]byte, until time.Time) (fresh bool, err error) {
	if now == nil {
		now = time.Now
	}
	o := &once{store: store, now: now, seen: map[[sha256.Size]byte]time.Time{}}
	return o.do
}

type once struct {
	store *redis.Store
	now   func() time.Time

	mu    sync.Mutex
	seen  map[[sha256.Size]byte]time.Time
	older map[[sha256.Size]byte]time.Time
}

const mostSeen = 100_000 // twice: then the older half is left to Redis

func (o *once) do(ctx context.Context, id [sha256.Size]byte, until time.Time) (bool, error) {
	ttl := until.Sub(o.now())
	if ttl <= 0 {
		return false, errors.New("replay memory: nothing to remember until then")
	}
	o.mu.Lock()
	_, now := o.seen[id]
	_, before := o.older[id]
	o.mu.Unlock()
	if now || before {
		return false, nil
	}
	k, err := o.store.Key(redis.Shared, redis.Proof, hex.EncodeToString(id[:]))
	if err != nil {
		return false, fmt.Errorf("replay memory: %w", err)
	}
	fresh, err := o.store.Add(ctx, k, ttl)
	if err != nil {
		return false, fmt.Errorf("replay memory: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) >= mostSeen {
		o.older, o.seen = o.seen, map[[sha256.Size]byte]time.Time{}
	}
	o.seen[id] = until
	return fresh, nil
}
