// Package sessions remembers which legacy MCP session is whose, so that any
// replica can take a session's next request.
//
// A session's id is its agent's secret: Redis has a digest of it only.
package sessions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// Config is what Sessions is made of.
type Config struct {
	Store *redis.Store
	TTL   time.Duration    // how long a session lives without a request; default 24 h
	Now   func() time.Time // default time.Now
}

// Sessions implements [gateway.Sessions]. It is safe for concurrent use.
//
// What another replica closed is noticed within a second: that long a replica
// takes its own word for whose a session is.
type Sessions struct {
	store *redis.Store
	ttl   time.Duration
	now   func() time.Time

	mu   sync.Mutex
	seen map[string]seen
}

type seen struct {
	binding string
	until   time.Time
}

const (
	sealed   = "binding"
	fresh    = time.Second
	mostSeen = 50_000 // forgetting them all costs a round trip each
)

var keep = redis.NewScript(`return {redis.call('PEXPIRE', KEYS[1], ARGV[1])}`)

// New makes Sessions.
func New(c Config) (*Sessions, error) {
	if c.Store == nil {
		return nil, errors.New("sessions: no store")
	}
	if c.TTL == 0 {
		c.TTL = 24 * time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Sessions{store: c.Store, ttl: c.TTL, now: c.Now, seen: map[string]seen{}}, nil
}

func (s *Sessions) key(session string) (redis.Key, error) {
	sum := sha256.Sum256([]byte(session))
	return s.store.Key(redis.Shared, redis.AgentSession, hex.EncodeToString(sum[:]))
}

// Owner implements [gateway.Sessions].
func (s *Sessions) Owner(ctx context.Context, session string) (string, error) {
	k, err := s.key(session)
	if err != nil {
		return "", err
	}
	now := s.now()
	s.mu.Lock()
	known, ok := s.seen[k.String()]
	s.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.binding, nil
	}
	raw, err := s.store.Get(ctx, k)
	if err != nil {
		return "", err
	}
	if raw == nil {
		s.forget(k)
		return "", gateway.ErrNotFound
	}
	binding, err := s.store.Unseal(k, sealed, raw)
	if err != nil {
		return "", fmt.Errorf("session: %w", err)
	}
	// A request keeps its session alive; at most once a second, that is. One
	// that was closed since we looked stays closed.
	still, err := s.store.Run(ctx, keep, []redis.Key{k}, s.ttl.Milliseconds())
	if err != nil {
		return "", err
	}
	if still[0] != "1" {
		s.forget(k)
		return "", gateway.ErrNotFound
	}
	s.remember(k, string(binding), now)
	return string(binding), nil
}

// Open implements [gateway.Sessions].
func (s *Sessions) Open(ctx context.Context, session, binding string) error {
	k, err := s.key(session)
	if err != nil {
		return err
	}
	return s.store.Set(ctx, k, s.store.Seal(k, sealed, []byte(binding)), s.ttl)
}

// Close implements [gateway.Sessions].
func (s *Sessions) Close(ctx context.Context, session string) error {
	k, err := s.key(session)
	if err != nil {
		return err
	}
	s.forget(k)
	return s.store.Del(ctx, k)
}

func (s *Sessions) remember(k redis.Key, binding string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) >= mostSeen {
		clear(s.seen)
	}
	s.seen[k.String()] = seen{binding, now.Add(fresh)}
}

func (s *Sessions) forget(k redis.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, k.String())
}
