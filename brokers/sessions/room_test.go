package sessions_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/sessions"
	"toolbroker/gateway"
)

// The session that ends for a new one is the one that was not used for longest, and
// it ends as if its agent had ended it. Whatever Redis lost of one makes room as well.
func TestRoomForANewOne(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		now := time.Now()
		const most = 150 // of which more than the front is looked at
		s, err := sessions.New(sessions.Config{Store: server.Open(t, "acme"), Now: func() time.Time { return now }, Most: most})
		if err != nil {
			t.Fatal(err)
		}
		open := func(i int) {
			t.Helper()
			if err := s.Open(t.Context(), fmt.Sprint("session-", i), gateway.Session{Binding: "a", Tenant: "acme", Task: "task-1", Principal: "agent:a"}); err != nil {
				t.Fatal(err)
			}
		}
		use := func(i int, want error) {
			t.Helper()
			if _, err := s.Session(t.Context(), fmt.Sprint("session-", i)); !errors.Is(err, want) {
				t.Errorf("session-%d: %v, want %v", i, err, want)
			}
		}
		key := func(i int) (string, string) {
			sum := sha256.Sum256(fmt.Append(nil, "session-", i))
			digest := hex.EncodeToString(sum[:])
			return "tb:{_}:agent-session:" + digest, digest
		}
		for i := range most {
			open(i)
			use(i, nil)
		}
		// All of that was long ago, one after the other.
		list := server.Keys(t, "*sessions-of*")[0]
		for i := range most {
			k, digest := key(i)
			at := now.Add(time.Duration(i) * time.Second).Add(-time.Hour).UnixMilli()
			server.Do(t, "HSET", k, "used", at)
			server.Do(t, "ZADD", list, at, digest)
		}
		now = now.Add(2 * time.Second)
		for i := range 100 {
			use(i, nil)
		}
		open(most)
		now = now.Add(2 * time.Second)
		use(most, nil)
		use(99, nil)
		use(101, nil)
		use(100, gateway.ErrNotFound) // the first that nobody used again
		if n := server.Do(t, "ZCARD", list); n != int64(most) {
			t.Errorf("%v are listed", n)
		}
		if n := server.Do(t, "SCARD", server.Keys(t, "*sessions-task*")[0]); n != int64(most) {
			t.Errorf("%v are listed for their task", n)
		}
		k, _ := key(102)
		server.Do(t, "DEL", k) // as when it lapsed
		open(most + 1)
		use(most+1, nil)
		use(103, nil)
		if err := s.Close(t.Context(), fmt.Sprint("session-", most+1)); err != nil {
			t.Fatal(err)
		}
		open(most + 2)
		use(104, nil)
		if _, err := s.EndTask(t.Context(), "acme", "task-1"); err != nil {
			t.Fatal(err)
		}
		if left := server.Keys(t, "*sessions-of*"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// Replicas that open sessions at once keep to the bound together.
func TestRoomIsShared(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		const most, each = 10, 30
		var work sync.WaitGroup
		for r := range 3 {
			s, err := sessions.New(sessions.Config{Store: server.Open(t, "acme"), Most: most})
			if err != nil {
				t.Fatal(err)
			}
			for i := range each {
				work.Go(func() {
					if err := s.Open(t.Context(), fmt.Sprint("session-", r, "-", i), gateway.Session{Tenant: "acme", Task: "task-1", Principal: "agent:a"}); err != nil {
						t.Error(err)
					}
				})
			}
		}
		work.Wait()
		if n := len(server.Keys(t, "*agent-session*")); n != most {
			t.Errorf("%d are open, want %d", n, most)
		}
	})
}
