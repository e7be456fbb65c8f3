package sessions

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
)

// An answer finds who waits for it by a hint alone, and without any.
func TestBothWaysToBeWoken(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		for name, c := range map[string]struct {
			look  time.Duration
			hears bool
		}{"hints": {time.Hour, true}, "looks": {10 * time.Millisecond, false}} {
			t.Run(name, func(t *testing.T) {
				defer func(was time.Duration) { askLook = was }(askLook)
				askLook = c.look
				open := func() *Sessions {
					one, err := New(Config{Store: s.Open(t, "acme")})
					if err != nil {
						t.Fatal(err)
					}
					return one
				}
				a, b := open(), open()
				if c.hears {
					running(t, a)
				}
				wait, done, err := a.Expect(t.Context(), "s1", "ask-1")
				if err != nil {
					t.Fatal(err)
				}
				defer done()
				if c.hears {
					redistest.Await(t, "it listens", func() bool { return subscribed(t, s, a.topic) })
				}
				var all sync.WaitGroup
				defer all.Wait()
				got := make(chan gateway.Result, 1)
				all.Go(func() {
					r, err := wait(t.Context())
					if err != nil {
						t.Error(err)
					}
					got <- r
				})
				if err := b.Answer(t.Context(), "s1", "ask-1", gateway.Result{Raw: json.RawMessage(`{}`)}); err != nil {
					t.Fatal(err)
				}
				if r := <-got; string(r.Raw) != `{}` {
					t.Errorf("got %s", r.Raw)
				}
			})
		}
	})
}

// A letter whose hint was lost is found.
func TestMailWithoutAHint(t *testing.T) {
	s := redistest.Embedded(t)
	one, err := New(Config{Store: s.Open(t, "acme")})
	if err != nil {
		t.Fatal(err)
	}
	running(t, one)
	heard := make(chan string, 8)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go one.Watch(ctx, func(n gateway.News) { heard <- n.Cancelled })
	redistest.Await(t, "it watches", func() bool {
		return one.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "awake"}) == nil && len(heard) > 0
	})
	letter, err := one.write(one.mail, letter{Session: "s1", Request: "quietly"})
	if err != nil {
		t.Fatal(err)
	}
	s.Do(t, "XADD", one.mail.String(), "*", "what", letter)
	for <-heard != "quietly" {
	}
}

// Whoever listens for hints has its connection cut, and hears later ones.
func TestACutConnection(t *testing.T) {
	s := redistest.Real(t)
	one, err := New(Config{Store: s.Open(t, "acme")})
	if err != nil {
		t.Fatal(err)
	}
	running(t, one)
	for range 3 {
		redistest.Await(t, "it listens", func() bool { return subscribed(t, s, one.topic) })
		s.Do(t, "CLIENT", "KILL", "TYPE", "pubsub")
	}
	redistest.Await(t, "it listens again", func() bool { return subscribed(t, s, one.topic) })
}

func running(t *testing.T, s *Sessions) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
}

func subscribed(t *testing.T, s *redistest.Server, topic redis.Key) bool {
	all := s.Do(t, "PUBSUB", "NUMSUB", topic.String()).([]any)
	return all[1] != int64(0)
}
