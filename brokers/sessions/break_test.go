package sessions_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/sessions"
	"toolbroker/gateway"
)

const (
	records = "tb:{_}:agent-session:*"
	asks    = "tb:{_}:agent-ask:*"
	mail    = "tb:{_}:sessions-mail"
)

var alice = gateway.Session{Binding: "alice", Tenant: "acme", Task: "task-1"}

func opened(t *testing.T, s *sessions.Sessions, id string, one gateway.Session) {
	t.Helper()
	if err := s.Open(t.Context(), id, one); err != nil {
		t.Fatal(err)
	}
}

// Somebody with full access to Redis can take sessions away, but make none and
// change none.
func TestForgedSessions(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, forge := range map[string]func(t *testing.T, s *redistest.Server, key, other string){
			"a flipped byte": func(t *testing.T, s *redistest.Server, key, _ string) {
				b := []byte(s.Do(t, "HGET", key, "session").(string))
				b[len(b)-1] ^= 1
				s.Do(t, "HSET", key, "session", b)
			},
			"in the clear": func(t *testing.T, s *redistest.Server, key, _ string) {
				text, _ := json.Marshal(gateway.Session{Binding: "mallory", Tenant: "acme", Task: "task-1"})
				s.Do(t, "HSET", key, "session", text)
			},
			"another's": func(t *testing.T, s *redistest.Server, key, other string) {
				s.Do(t, "HSET", key, "session", s.Do(t, "HGET", other, "session"))
			},
			"another version": func(t *testing.T, s *redistest.Server, key, _ string) { s.Do(t, "HINCRBY", key, "seq", 1) },
			"no version":      func(t *testing.T, s *redistest.Server, key, _ string) { s.Do(t, "HDEL", key, "seq") },
		} {
			t.Run(name, func(t *testing.T) {
				s := start(t)
				a, b := replica(t, s, &clock{}), replica(t, s, &clock{})
				opened(t, a, "s1", alice)
				key := s.Keys(t, records)[0]
				opened(t, a, "s2", gateway.Session{Binding: "mallory", Tenant: "acme", Task: "task-1"})
				other := s.Keys(t, records)
				other = slices.DeleteFunc(other, func(k string) bool { return k == key })
				forge(t, s, key, other[0])
				if got, err := b.Session(t.Context(), "s1"); err == nil {
					t.Errorf("it is %+v", got)
				}
				if got, err := b.Change(t.Context(), "s1", func(*gateway.Session) {}); err == nil {
					t.Errorf("it was changed to %+v", got)
				}
				if n, err := b.EndTask(t.Context(), "acme", "task-1"); err != nil || n != 2 {
					t.Errorf("and does not go away: %d, %v", n, err)
				}
			})
		}
	})
}

// What a replica saw change or close does not come back to it, whoever puts an
// old record there.
func TestOldSessionsPutBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, end := range map[string]func(a *sessions.Sessions) error{
			"changed": func(a *sessions.Sessions) error {
				_, err := a.Change(t.Context(), "s1", func(one *gateway.Session) { one.Follows = nil })
				return err
			},
			"closed":       func(a *sessions.Sessions) error { return a.Close(t.Context(), "s1") },
			"task is over": func(a *sessions.Sessions) error { _, err := a.EndTask(t.Context(), "acme", "task-1"); return err },
		} {
			t.Run(name, func(t *testing.T) {
				s, late := start(t), &clock{}
				a, b := replica(t, s, late), replica(t, s, late)
				one := alice
				one.Follows = []string{"file:///secret"}
				opened(t, a, "s1", one)
				for _, r := range []*sessions.Sessions{a, b} {
					if _, err := r.Session(t.Context(), "s1"); err != nil {
						t.Fatal(err)
					}
				}
				key := s.Keys(t, records)[0]
				seq, old := s.Do(t, "HGET", key, "seq"), s.Do(t, "HGET", key, "session")
				if err := end(a); err != nil {
					t.Fatal(err)
				}
				redistest.Await(t, "the other knows", func() bool {
					late.add(time.Second)
					got, err := b.Session(t.Context(), "s1")
					return err != nil || got.Follows == nil
				})
				s.Do(t, "HSET", key, "seq", seq, "session", old)
				late.add(time.Second)
				for _, r := range []*sessions.Sessions{a, b} {
					if got, err := r.Session(t.Context(), "s1"); err == nil {
						t.Errorf("it is %+v", got)
					}
				}
			})
		}
	})
}

// An answer that Redis holds is the one that was given to this ask, or none.
func TestForgedAnswers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s, &clock{})
		yes := gateway.Result{Raw: json.RawMessage(`{"action":"accept"}`)}
		open := func(session string) (key string, wait func(context.Context) (gateway.Result, error), done func()) {
			before := s.Keys(t, asks)
			wait, done, err := a.Expect(t.Context(), session, "ask-1")
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range s.Keys(t, asks) {
				if !slices.Contains(before, k) {
					key = k
				}
			}
			return key, wait, done
		}
		other, _, forget := open("other")
		defer forget()
		if err := a.Answer(t.Context(), "other", "ask-1", yes); err != nil {
			t.Fatal(err)
		}
		for name, forged := range map[string]any{
			"in the clear":  `{"raw":"e30="}`,
			"another ask's": s.Do(t, "HGET", other, "answer"),
		} {
			key, wait, done := open(name)
			s.Do(t, "HSET", key, "answer", forged)
			if r, err := wait(t.Context()); err == nil {
				t.Errorf("%s: answered %s", name, r.Raw)
			}
			done()
		}
		key, wait, done := open("lost")
		defer done()
		s.Do(t, "DEL", key)
		if r, err := wait(t.Context()); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("lost: %s, %v", r.Raw, err)
		}
	})
}

// A letter is delivered once, and only if it is one.
func TestForgedMail(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s, late := start(t), &clock{}
		a := replica(t, s, late)
		var mu sync.Mutex
		var heard []string
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go a.Watch(ctx, func(n gateway.News) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, n.Cancelled)
		})
		hears := func(what string) func() bool {
			return func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.Contains(heard, what)
			}
		}
		redistest.Await(t, "it watches", func() bool {
			return a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "awake"}) == nil && hears("awake")()
		})
		if err := a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "once"}); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "the letter comes", hears("once"))
		last := s.Do(t, "XREVRANGE", mail, "+", "-", "COUNT", 1).([]any)[0].([]any)[1].([]any)[1]
		opened(t, a, "s1", alice)
		for _, forged := range []any{last, last, `{"session":"s1","request":"forged"}`, "", s.Do(t, "HGET", s.Keys(t, records)[0], "session")} {
			s.Do(t, "XADD", mail, "*", "what", forged)
		}
		s.Do(t, "XADD", mail, "*", "nonsense", "x")
		if err := a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "after"}); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "what comes after it is heard", hears("after"))
		late.add(24 * time.Hour) // however long somebody keeps it
		s.Do(t, "XADD", mail, "*", "what", last)
		b := replica(t, s, late) // one that never heard it
		go b.Watch(ctx, func(n gateway.News) {
			mu.Lock()
			defer mu.Unlock()
			if heard = append(heard, n.Cancelled); n.Cancelled == "awake" {
				heard[len(heard)-1] = "awake too"
			}
		})
		redistest.Await(t, "another watches", func() bool {
			return a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "awake"}) == nil && hears("awake too")()
		})
		s.Do(t, "XADD", mail, "*", "what", last)
		if err := a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: "the end"}); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "both hear what comes after that", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(slices.DeleteFunc(slices.Clone(heard), func(r string) bool { return r != "the end" })) == 2
		})
		mu.Lock()
		defer mu.Unlock()
		if got := slices.DeleteFunc(heard, func(r string) bool { return strings.HasPrefix(r, "awake") }); !slices.Equal(got, []string{"once", "after", "the end", "the end"}) {
			t.Errorf("heard %q", got)
		}
	})
}

// Whoever reads Redis learns no session's id, no answer, and nothing of what was
// cancelled.
func TestNothingInTheClear(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s, &clock{})
		one := alice
		one.Binding = "canary-binding"
		opened(t, a, "canary-session", one)
		if _, err := a.Change(t.Context(), "canary-session", func(one *gateway.Session) { one.Follows = []string{"canary-uri"} }); err != nil {
			t.Fatal(err)
		}
		_, done, err := a.Expect(t.Context(), "canary-session", "canary-ask")
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		if err := a.Answer(t.Context(), "canary-session", "canary-ask", gateway.Result{Raw: json.RawMessage(`"canary-answer"`)}); err != nil {
			t.Fatal(err)
		}
		if err := a.Tell(t.Context(), gateway.News{Session: "canary-session", Cancelled: "canary-request"}); err != nil {
			t.Fatal(err)
		}
		if all := s.All(t); strings.Contains(all, "canary") || len(all) < 200 {
			t.Errorf("Redis holds %q", all)
		}
	})
}

func TestBounds(t *testing.T) {
	s := redistest.Embedded(t)
	a := replica(t, s, &clock{})
	wait, done, err := a.Expect(t.Context(), "s1", "ask-1")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := a.Answer(t.Context(), "s1", "ask-1", gateway.Result{Raw: bytes.Repeat([]byte("1"), 1<<10+1)}); !errors.Is(err, gateway.ErrBadAnswer) {
		t.Errorf("a large answer: %v", err)
	}
	small := gateway.Result{Raw: bytes.Repeat([]byte("1"), 1<<10)}
	if err := a.Answer(t.Context(), "s1", "ask-1", small); err != nil {
		t.Errorf("the ask is not open any more: %v", err)
	}
	if r, err := wait(t.Context()); err != nil || !reflect.DeepEqual(r, small) {
		t.Errorf("%+v, %v", r, err)
	}
	opened(t, a, "s1", alice)
	many := slices.Repeat([]string{strings.Repeat("x", 1<<10)}, 300)
	if _, err := a.Change(t.Context(), "s1", func(one *gateway.Session) { one.Follows = many }); !errors.Is(err, gateway.ErrTooMany) {
		t.Errorf("a large session: %v", err)
	}
	if one, err := a.Session(t.Context(), "s1"); err != nil || one.Follows != nil {
		t.Errorf("changed all the same: %v", err)
	}
	if err := a.Tell(t.Context(), gateway.News{Session: "s1", Cancelled: strings.Repeat("x", 8<<10)}); err == nil {
		t.Error("a large letter was sent")
	}
}

// A session whose end Redis did not take in is as it was, and what closes it later
// tells everybody.
func TestClosingWhileRedisIsAway(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		for name, fail := range map[string]func(t *testing.T, s *redistest.Server, a *sessions.Sessions) error{
			"it is down": func(t *testing.T, s *redistest.Server, a *sessions.Sessions) error {
				s.Stop(t)
				defer s.Start(t)
				return a.Close(t.Context(), "s1")
			},
			"it does not answer": func(t *testing.T, s *redistest.Server, _ *sessions.Sessions) error {
				late := make(chan struct{})
				defer close(late)
				slow, err := sessions.New(sessions.Config{Store: s.OpenSlow(t, "hmget", late, "acme")})
				if err != nil {
					t.Fatal(err)
				}
				return slow.Close(t.Context(), "s1")
			},
		} {
			t.Run(name, func(t *testing.T) {
				s, late := start(t), &clock{}
				a, b := replica(t, s, late), replica(t, s, late)
				opened(t, a, "s1", alice)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				closed := make(chan string, 1)
				awake := make(chan struct{}, 100)
				go b.Watch(ctx, func(n gateway.News) {
					if n.Closed {
						closed <- n.Session
					} else {
						awake <- struct{}{}
					}
				})
				if err := fail(t, s, a); err == nil {
					t.Fatal("it is said to be closed")
				}
				for _, r := range []*sessions.Sessions{a, b} {
					redistest.Await(t, "it is there", func() bool { _, err := r.Session(t.Context(), "s1"); return err == nil })
				}
				redistest.Await(t, "the other hears", func() bool {
					return a.Tell(t.Context(), gateway.News{Session: "awake", Roots: true}) == nil && len(awake) > 0
				})
				if err := a.Close(t.Context(), "s1"); err != nil {
					t.Fatal(err)
				}
				if got := <-closed; got != "s1" {
					t.Errorf("closed %q", got)
				}
				for _, r := range []*sessions.Sessions{a, b} {
					if _, err := r.Session(t.Context(), "s1"); !errors.Is(err, gateway.ErrNotFound) {
						t.Errorf("it is still there: %v", err)
					}
				}
			})
		}
	})
}
