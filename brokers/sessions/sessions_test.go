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
		if _, err := a.Session(t.Context(), "s"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("unknown: %v", err)
		}
		if err := a.Open(t.Context(), "s", gateway.Session{Binding: "alice", Tenant: "acme", Task: "task-1"}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*sessions.Sessions{a, b, b} {
			if owner, err := s.Session(t.Context(), "s"); err != nil || owner.Binding != "alice" {
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
		if _, err := a.Session(t.Context(), "s"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("closed: %v", err)
		}
		now = now.Add(time.Second) // as long as another replica may take its own word
		if _, err := b.Session(t.Context(), "s"); !errors.Is(err, gateway.ErrNotFound) {
			t.Errorf("closed elsewhere: %v", err)
		}
		// One session's record is no other's.
		if err := a.Open(t.Context(), "victim", gateway.Session{Binding: "alice", Tenant: "acme", Task: "task-1"}); err != nil {
			t.Fatal(err)
		}
		stolen := server.Keys(t, "*agent-session*")[0]
		if err := a.Open(t.Context(), "thief", gateway.Session{Binding: "mallory", Tenant: "acme", Task: "task-1"}); err != nil {
			t.Fatal(err)
		}
		for _, key := range server.Keys(t, "*agent-session*") {
			if key != stolen {
				server.Do(t, "COPY", stolen, key, "REPLACE")
			}
		}
		if owner, err := b.Session(t.Context(), "thief"); err == nil {
			t.Errorf("a moved record opens: %q", owner)
		}
	})
}

// The end of a task ends its sessions, on every replica, and no other's.
func TestTheEndOfATask(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		now := time.Now()
		open := func() *sessions.Sessions {
			s, err := sessions.New(sessions.Config{Store: server.Open(t, "acme", "globex"), Now: func() time.Time { return now }})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		a, b := open(), open()
		for session, of := range map[string][2]string{
			"one": {"acme", "task-1"}, "two": {"acme", "task-1"}, "closed": {"acme", "task-1"},
			"other": {"acme", "task-2"}, "theirs": {"globex", "task-1"},
		} {
			if err := a.Open(t.Context(), session, gateway.Session{Binding: session, Tenant: of[0], Task: of[1]}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Session(t.Context(), session); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(t.Context(), "closed"); err != nil {
			t.Fatal(err)
		}
		for i, want := range []int{2, 0} {
			if n, err := b.EndTask(t.Context(), "acme", "task-1"); err != nil || n != want {
				t.Errorf("end %d ended %d, %v; want %d", i, n, err, want)
			}
		}
		now = now.Add(time.Second)
		for session, want := range map[string]error{"one": gateway.ErrNotFound, "two": gateway.ErrNotFound, "closed": gateway.ErrNotFound, "other": nil, "theirs": nil} {
			for _, s := range []*sessions.Sessions{a, b} {
				if _, err := s.Session(t.Context(), session); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", session, err, want)
				}
			}
		}
		if left := server.Keys(t, "*sessions-task:acme:task-1*"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if _, err := a.EndTask(t.Context(), "acme", "task:1"); err == nil {
			t.Error("ended what cannot be a task")
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
			if err := a.Open(t.Context(), id, gateway.Session{Binding: "alice", Tenant: "acme", Task: "task-1"}); err != nil {
				t.Fatal(err)
			}
			var work sync.WaitGroup
			work.Go(func() { _, _ = b.Session(t.Context(), id) })
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

// Whose a session is costs nothing while this replica's own word for it is fresh.
func TestFreshCostsNothing(t *testing.T) {
	now := time.Now()
	s, err := sessions.New(sessions.Config{Store: redistest.Embedded(t).Open(t, "acme"), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(t.Context(), "session-1", gateway.Session{Binding: "alice", Tenant: "acme", Task: "task-1"}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.Session(ctx, "session-1"); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSession(b *testing.B) {
	now := time.Now()
	s, err := sessions.New(sessions.Config{Store: redistest.Embedded(b).Open(b, "acme"), Now: func() time.Time { return now }})
	if err != nil {
		b.Fatal(err)
	}
	id := strings.Repeat("s", 64)
	if err := s.Open(b.Context(), id, gateway.Session{Binding: "alice", Tenant: "acme", Task: "task-1"}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Session(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}
