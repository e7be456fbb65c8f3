package sessions_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/sessions"
	"toolbroker/gateway"
)

// Whoever opened a session owns it, on every replica, until it is closed.
func TestSessions(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		now := time.Now()
		replica := func() *sessions.Sessions {
			s, err := sessions.New(sessions.Config{Store: server.Open(t, "acme"), Now: func() time.Time { return now }})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		a, b := replica(), replica()
		if _, err := a.Owner(t.Context(), "s"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("unknown: %v", err)
		}
		if err := a.Open(t.Context(), "s", "alice"); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*sessions.Sessions{a, b, b} {
			if owner, err := s.Owner(t.Context(), "s"); err != nil || owner != "alice" {
				t.Errorf("%q %v", owner, err)
			}
		}
		for _, key := range server.Keys(t, "*") {
			if strings.HasSuffix(key, ":s") {
				t.Errorf("the id itself is a key: %s", key)
			}
		}
		if err := a.Close(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Owner(t.Context(), "s"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("closed: %v", err)
		}
		now = now.Add(time.Second) // as long as another replica may take its own word
		if _, err := b.Owner(t.Context(), "s"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("closed elsewhere: %v", err)
		}
		// One session's record is no other's.
		if err := a.Open(t.Context(), "victim", "alice"); err != nil {
			t.Fatal(err)
		}
		stolen := server.Keys(t, "*agent-session*")[0]
		if err := a.Open(t.Context(), "thief", "mallory"); err != nil {
			t.Fatal(err)
		}
		for _, key := range server.Keys(t, "*agent-session*") {
			if key != stolen {
				server.Do(t, "COPY", stolen, key, "REPLACE")
			}
		}
		if owner, err := b.Owner(t.Context(), "thief"); err == nil {
			t.Errorf("a moved record opens: %q", owner)
		}
	})
}

// A session that is closed while it is asked for does not come back.
func TestClosedStaysClosed(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		open := func() *sessions.Sessions {
			s, err := sessions.New(sessions.Config{Store: server.Open(t, "acme")})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		a, b := open(), open()
		for i := range 200 {
			id := fmt.Sprint("session-", i)
			if err := a.Open(t.Context(), id, "alice"); err != nil {
				t.Fatal(err)
			}
			var work sync.WaitGroup
			work.Go(func() { _, _ = b.Owner(t.Context(), id) })
			work.Go(func() {
				if err := a.Close(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
			work.Wait()
			if left := server.Keys(t, "*agent-session*"); len(left) > 0 {
				t.Fatalf("round %d: %v came back", i, left)
			}
		}
	})
}
