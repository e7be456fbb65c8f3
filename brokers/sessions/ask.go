package sessions

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// An ask that is open lies in Redis as long as somebody waits for its answer, and
// a little longer; the answer lies beside it, sealed, until it was fetched.

// askLife is how long an ask lives that nobody waits for.
const askLife = time.Minute

// askLook is how often a waiter looks by itself, about: hints can be lost.
var askLook = 5 * time.Second

// expect opens an ask. KEYS: ask. ARGV: who waits, how long it lives.
var expect = redis.NewScript(`
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'by', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'ok'}`)

// answer answers an open ask, once. KEYS: ask, topic. ARGV: sealed answer, the
// ask's digest.
var answer = redis.NewScript(`
if redis.call('HEXISTS', KEYS[1], 'by') == 0 then return {'none'} end
if redis.call('HSETNX', KEYS[1], 'answer', ARGV[1]) == 0 then return {'none'} end
redis.call('PUBLISH', KEYS[2], ARGV[2])
return {'ok'}`)

// look returns an answer, and else lets the ask live on. KEYS: ask. ARGV: who
// waits, how long it lives.
var look = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'by') ~= ARGV[1] then return {'none'} end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local a = redis.call('HGET', KEYS[1], 'answer')
if a then return {'ok', a} end
return {'open'}`)

// drop forgets an ask. KEYS: ask. ARGV: who waited.
var drop = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'by') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {'ok'}`)

// An answered is an answer's bytes as they came.
type answered struct {
	Type  string `json:"type,omitempty"`
	Raw   []byte `json:"raw,omitempty"`
	Error []byte `json:"error,omitempty"`
}

func (s *Sessions) askKey(session, ask string) (redis.Key, string, error) {
	of := sha256.Sum256([]byte(session))
	sum := sha256.Sum256(append(of[:], ask...))
	digest := hex.EncodeToString(sum[:])
	k, err := s.Store.Key(redis.Shared, redis.AgentAsk, digest)
	return k, digest, err
}

// Expect implements [gateway.Sessions]. An ask that Redis lost is ErrNotFound to
// whoever waits for it. A crash leaves it open for a minute.
func (s *Sessions) Expect(ctx context.Context, session, ask string) (func(context.Context) (gateway.Result, error), func(), error) {
	k, digest, err := s.askKey(session, ask)
	if err != nil {
		return nil, nil, fmt.Errorf("expect: %w", err)
	}
	me, rung := rand.Text(), make(chan struct{}, 1)
	s.mu.Lock()
	s.expected[digest] = rung
	s.mu.Unlock()
	done := sync.OnceFunc(func() {
		s.mu.Lock()
		if s.expected[digest] == rung {
			delete(s.expected, digest)
		}
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		_, _ = s.Store.Run(ctx, drop, []redis.Key{k}, me) // else it expires
	})
	if _, err := s.Store.Run(ctx, expect, []redis.Key{k}, me, askLife.Milliseconds()); err != nil {
		done()
		return nil, nil, fmt.Errorf("expect: %w", err)
	}
	return func(ctx context.Context) (gateway.Result, error) { return s.await(ctx, k, me, rung) }, done, nil
}

// await waits for an answer, also through times when Redis is away.
func (s *Sessions) await(ctx context.Context, k redis.Key, me string, rung <-chan struct{}) (gateway.Result, error) {
	for {
		reply, err := s.Store.Run(ctx, look, []redis.Key{k}, me, askLife.Milliseconds())
		switch {
		case err != nil: // it may come back
		case reply[0] == "ok":
			return s.unsealAnswer(k, []byte(reply[1]))
		case reply[0] == "none":
			return gateway.Result{}, fmt.Errorf("an ask that is open no more: %w", gateway.ErrNotFound)
		}
		select {
		case <-ctx.Done():
			return gateway.Result{}, ctx.Err()
		case <-rung:
		case <-time.After(redis.Jitter(askLook)):
		}
	}
}

func (s *Sessions) unsealAnswer(k redis.Key, sealed []byte) (gateway.Result, error) {
	var a answered
	text, err := s.Store.Unseal(k, "answer", sealed)
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	if err != nil {
		return gateway.Result{}, fmt.Errorf("answer: %w", err)
	}
	return gateway.Result{Type: a.Type, Raw: a.Raw, Error: a.Error}, nil
}

// Answer implements [gateway.Sessions]. One that is larger than allowed is
// ErrBadAnswer, and the ask stays open.
func (s *Sessions) Answer(ctx context.Context, session, ask string, r gateway.Result) error {
	k, digest, err := s.askKey(session, ask)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if r.Handle != nil {
		return errors.New("answer: an agent has no handles")
	}
	if n := len(r.Raw) + len(r.Error); n > s.MaxAnswer {
		return fmt.Errorf("answer of %d bytes: %w", n, gateway.ErrBadAnswer)
	}
	text, err := json.Marshal(answered{r.Type, r.Raw, r.Error})
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	reply, err := s.Store.Run(ctx, answer, []redis.Key{k, s.topic}, s.Store.Seal(k, "answer", text), digest)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if reply[0] != "ok" {
		return gateway.ErrNotFound
	}
	return nil
}

// ring wakes who waits for the answer to an ask.
func (s *Sessions) ring(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.expected[digest] <- struct{}{}:
	default: // nobody here, or rung already
	}
}
