// Package sessions remembers which legacy MCP session is whose, so that any
// replica can take a session's next request.
//
// A session's id is its agent's secret: Redis has a digest of it only.
package sessions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
	sealed   = "session"
	fresh    = time.Second
	mostSeen = 50_000 // forgetting them all costs a round trip each
)

// A kept session is what Redis has of one, sealed.
type kept struct {
	Binding string `json:"binding"`
	Tenant  string `json:"tenant"`
	Task    string `json:"task"`
}

// keep lets a session live on, and its task's index with it. KEYS: session, index.
var keep = redis.NewScript(`
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return {'gone'} end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return {'ok'}`)

// open keeps a session and lists it with its task. KEYS: session, index. ARGV:
// sealed session, how long it lives, digest.
var open = redis.NewScript(`
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {'ok'}`)

// end forgets sessions and strikes them off their task's index, and counts them.
// KEYS: index, sessions. ARGV: their digests.
var end = redis.NewScript(`
local n = 0
for i, digest in ipairs(ARGV) do
  n = n + redis.call('DEL', KEYS[i+1])
  redis.call('SREM', KEYS[1], digest)
end
return {n}`)

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

func (s *Sessions) key(session string) (k redis.Key, digest string, err error) {
	sum := sha256.Sum256([]byte(session))
	digest = hex.EncodeToString(sum[:])
	k, err = s.store.Key(redis.Shared, redis.AgentSession, digest)
	return k, digest, err
}

func (s *Sessions) index(tenant, task string) (redis.Key, error) {
	return s.store.Key(redis.Shared, redis.SessionsTask, tenant, task)
}

// read returns a session as Redis has it, or ErrNotFound.
func (s *Sessions) read(ctx context.Context, k redis.Key) (one kept, err error) {
	raw, err := s.store.Get(ctx, k)
	if err != nil {
		return one, err
	}
	if raw == nil {
		return one, gateway.ErrNotFound
	}
	text, err := s.store.Unseal(k, sealed, raw)
	if err == nil {
		err = json.Unmarshal(text, &one)
	}
	if err != nil {
		return one, fmt.Errorf("session: %w", err)
	}
	return one, nil
}

// Owner implements [gateway.Sessions].
func (s *Sessions) Owner(ctx context.Context, session string) (string, error) {
	k, _, err := s.key(session)
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
	one, err := s.read(ctx, k)
	if errors.Is(err, gateway.ErrNotFound) {
		s.forget(k)
	}
	if err != nil {
		return "", err
	}
	index, err := s.index(one.Tenant, one.Task)
	if err != nil {
		return "", err
	}
	// A request keeps its session alive; at most once a second, that is. One
	// that was closed since we looked stays closed.
	still, err := s.store.Run(ctx, keep, []redis.Key{k, index}, s.ttl.Milliseconds())
	if err != nil {
		return "", err
	}
	if still[0] != "ok" {
		s.forget(k)
		return "", gateway.ErrNotFound
	}
	s.remember(k, one.Binding, now)
	return one.Binding, nil
}

// Open implements [gateway.Sessions].
func (s *Sessions) Open(ctx context.Context, session, binding, tenant, task string) error {
	k, digest, err := s.key(session)
	if err != nil {
		return err
	}
	index, err := s.index(tenant, task)
	if err != nil {
		return err
	}
	text, err := json.Marshal(kept{binding, tenant, task})
	if err != nil {
		return err
	}
	_, err = s.store.Run(ctx, open, []redis.Key{k, index}, s.store.Seal(k, sealed, text), s.ttl.Milliseconds(), digest)
	return err
}

// Close implements [gateway.Sessions].
func (s *Sessions) Close(ctx context.Context, session string) error {
	k, digest, err := s.key(session)
	if err != nil {
		return err
	}
	s.forget(k)
	one, err := s.read(ctx, k)
	if errors.Is(err, gateway.ErrNotFound) {
		return nil
	}
	if err != nil { // not ours, or nobody can say: it goes all the same
		return s.store.Del(ctx, k)
	}
	index, err := s.index(one.Tenant, one.Task)
	if err != nil {
		return err
	}
	_, err = s.store.Run(ctx, end, []redis.Key{index, k}, digest)
	return err
}

// EndTask implements [gateway.Sessions]. One that is opened meanwhile may stay;
// it opens nothing, because its task is over.
func (s *Sessions) EndTask(ctx context.Context, tenant, task string) (int, error) {
	index, err := s.index(tenant, task)
	if err != nil {
		return 0, err
	}
	digests, err := s.store.Members(ctx, index)
	if err != nil {
		return 0, err
	}
	total := 0
	for part := range slices.Chunk(digests, 500) {
		keys, args := []redis.Key{index}, []any{}
		for _, d := range part {
			k, err := s.store.Key(redis.Shared, redis.AgentSession, d)
			if err != nil {
				continue // nothing that we put there
			}
			s.forget(k)
			keys, args = append(keys, k), append(args, d)
		}
		reply, err := s.store.Run(ctx, end, keys, args...)
		if err != nil {
			return total, err
		}
		n, _ := strconv.Atoi(reply[0])
		total += n
	}
	return total, nil
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
