// Package attempts remembers, for two minutes, calls whose answers did not reach
// their agents, so that an agent that repeats one is told what became of the
// first, on whatever replica.
//
// That almost every call is no repeat costs it nothing: each replica has the keys
// of those that broke lately in memory, and asks Redis only about one of them, or
// when it cannot be sure of what it has.
package attempts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// A Config is what Attempts is made of.
type Config struct {
	Store     *redis.Store
	Window    time.Duration // how long one is remembered; 0 for 2 min
	MaxAnswer int           // bytes of an answer that is kept; 0 for 256 KiB
	MaxKept   int           // answers that are kept of one tenant at a time; 0 for 256
	Log       *slog.Logger  // nil for slog's default
}

// Attempts implements [gateway.Attempts]. It is safe for concurrent use.
// [Attempts.Run] must be running; without it every Broken asks Redis.
//
// What broke is known on the replica that says so at once, and on another as
// soon as it is told, at the latest 250 ms later. An answer that is too large, or
// one too many, is not kept: its call is remembered as in doubt, so it is not made
// twice all the same.
type Attempts struct {
	Config
	lately, topic redis.Key

	mu    sync.Mutex
	keys  map[string]time.Time // what broke, until it is forgotten
	as    time.Time            // when the read began that keys is as new as; zero: there was none
	whole bool                 // keys holds all of them
}

// Window is how long an attempt is remembered, where the config says nothing.
const Window = 2 * time.Minute

const (
	poll      = 100 * time.Millisecond
	stale     = 250 * time.Millisecond // what was read longer ago is not relied on
	timeout   = 2 * time.Second
	mostKeys  = 200_000 // in memory; with more, Redis is asked every time
	mostLines = 100_000 // of the stream, about; older ones are cut off
	batch     = 1000
	topic     = "attempts"
)

// broke keeps an attempt and tells of it. KEYS: attempt, lately, kept, topic.
// ARGV: sealed attempt, the same without its answer or ”, tenant and key,
// window, when it is forgotten, how many answers a tenant may have kept, lines of
// the stream.
var broke = redis.NewScript(redis.Clock + `
local attempt = ARGV[1]
if ARGV[2] ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[6]) then
    attempt = ARGV[2]
  else
    redis.call('ZADD', KEYS[3], ARGV[5], ARGV[3])
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
  end
end
redis.call('HSET', KEYS[1], 'attempt', attempt)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'id', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('PUBLISH', KEYS[4], 'broke')
return {'ok'}`)

// A record is an attempt as Redis holds it, sealed under its key. One that is put
// back after its time is no attempt.
type record struct {
	gateway.Attempt
	Until time.Time `json:"until"` // by Redis's clock
}

// New makes Attempts. It does not wait for Redis.
func New(c Config) (*Attempts, error) {
	if c.Store == nil {
		return nil, errors.New("attempts: no store")
	}
	c.Window = cmp.Or(c.Window, Window)
	c.MaxAnswer = cmp.Or(c.MaxAnswer, 256<<10)
	c.MaxKept = cmp.Or(c.MaxKept, 256)
	c.Log = cmp.Or(c.Log, slog.Default())
	a := &Attempts{Config: c, keys: map[string]time.Time{}}
	var err, terr error
	a.lately, err = c.Store.Key(redis.Shared, redis.AttemptsLately)
	a.topic, terr = c.Store.Topic(redis.Shared, topic)
	return a, errors.Join(err, terr)
}

// Broke implements [gateway.Attempts]. A later one by the same key takes the
// place of an earlier one.
func (a *Attempts) Broke(ctx context.Context, tenant, key string, one gateway.Attempt) error {
	k, err := a.Store.Key(redis.Shared, redis.Attempt, tenant, key)
	if err != nil {
		return fmt.Errorf("remember an attempt: %w", err)
	}
	kept, err := a.Store.Key(redis.Shared, redis.AttemptsKept, tenant)
	if err != nil {
		return fmt.Errorf("remember an attempt: %w", err)
	}
	now, err := a.Store.Now(ctx)
	if err != nil {
		return fmt.Errorf("remember an attempt: %w", err)
	}
	until := now.Add(a.Window)
	doubt := gateway.Attempt{Call: one.Call, Doubt: true}
	if len(one.Answer) > a.MaxAnswer {
		one = doubt
	}
	sealed, err := a.seal(k, one, until)
	if err != nil {
		return fmt.Errorf("remember an attempt: %w", err)
	}
	var instead []byte
	if len(one.Answer) > 0 {
		if instead, err = a.seal(k, doubt, until); err != nil {
			return fmt.Errorf("remember an attempt: %w", err)
		}
	}
	a.add(tenant+":"+key, time.Now().Add(a.Window)) // also if nobody can say whether it was kept
	_, err = a.Store.Run(ctx, broke, []redis.Key{k, a.lately, kept, a.topic},
		sealed, instead, tenant+":"+key, a.Window.Milliseconds(), redis.Millis(until), a.MaxKept, mostLines)
	if err != nil {
		return fmt.Errorf("remember an attempt: %w", err)
	}
	return nil
}

func (a *Attempts) seal(k redis.Key, one gateway.Attempt, until time.Time) ([]byte, error) {
	text, err := json.Marshal(record{one, until})
	if err != nil {
		return nil, err
	}
	return a.Store.Seal(k, "attempt", text), nil
}

// Broken implements [gateway.Attempts]. Its error leaves open whether there is one.
func (a *Attempts) Broken(ctx context.Context, tenant, key string) (gateway.Attempt, bool, error) {
	if a.none(tenant + ":" + key) {
		return gateway.Attempt{}, false, nil
	}
	k, err := a.Store.Key(redis.Shared, redis.Attempt, tenant, key)
	if err != nil {
		return gateway.Attempt{}, false, fmt.Errorf("look for an attempt: %w", err)
	}
	found, now, err := a.Store.Fields(ctx, []redis.Key{k}, "attempt")
	if err != nil {
		return gateway.Attempt{}, false, fmt.Errorf("look for an attempt: %w", err)
	}
	if found[0]["attempt"] == "" {
		return gateway.Attempt{}, false, nil
	}
	var r record
	text, err := a.Store.Unseal(k, "attempt", []byte(found[0]["attempt"]))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return gateway.Attempt{}, false, fmt.Errorf("attempt: %w", err)
	}
	if !now.Before(r.Until) {
		return gateway.Attempt{}, false, nil
	}
	return r.Attempt, true, nil
}

// none reports whether it is certain, without asking, that there is no such attempt.
func (a *Attempts) none(key string) bool {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	_, there := a.keys[key]
	return !there && a.whole && now.Sub(a.as) <= stale
}

func (a *Attempts) add(key string, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.keys) >= mostKeys {
		a.whole = false // until some are forgotten and all are read again
		return
	}
	a.keys[key] = until
}
