package attempts_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"toolbroker/brokers/attempts"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
)

const records = "tb:{_}:attempt:"

func broke(t *testing.T, a *attempts.Attempts, tenant, key string, one gateway.Attempt) {
	t.Helper()
	if err := a.Broke(t.Context(), tenant, key, one); err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, a *attempts.Attempts, tenant, key string, want gateway.Attempt) {
	t.Helper()
	if got, ok, err := a.Broken(t.Context(), tenant, key); !ok || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, %v, %v; want %+v", key, got, ok, err, want)
	}
}

// Somebody with full access to Redis can take an attempt away, but put no answer
// into an agent's hands; and who cannot be sure says so.
func TestForgedAttempts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s.Open(t, "acme", "globex"))
		answer := gateway.Attempt{Call: "call-1", Answer: []byte(`{"from":"another"}`)}
		broke(t, a, "acme", "another", answer)
		broke(t, a, "globex", "victim", answer)
		for name, forged := range map[string]any{
			"in the clear":        `{"call":"call-1","answer":"e30=","until":"2099-01-01T00:00:00Z"}`,
			"another key's":       s.Do(t, "HGET", records+"acme:another", "attempt"),
			"another tenant's":    s.Do(t, "HGET", records+"globex:victim", "attempt"),
			"not even a sentence": "\x01",
		} {
			broke(t, a, "acme", "victim", gateway.Attempt{Call: "call-2", Doubt: true})
			s.Do(t, "HSET", records+"acme:victim", "attempt", forged)
			if got, ok, err := a.Broken(t.Context(), "acme", "victim"); err == nil || ok {
				t.Errorf("%s: %+v, %v, %v", name, got, ok, err)
			}
		}
	})
}

// The same call may be made again when the window is over, and is not answered
// from what somebody kept.
func TestAnOldAttemptPutBack(t *testing.T) {
	s := redistest.Embedded(t)
	s.Advance(0)
	a := replica(t, s.Open(t, "acme", "globex"))
	broke(t, a, "acme", "k", gateway.Attempt{Call: "call-1", Answer: []byte(`{}`)})
	old := s.Do(t, "HGET", records+"acme:k", "attempt")
	s.Advance(attempts.Window)
	s.Do(t, "HSET", records+"acme:k", "attempt", old)
	if got, ok, err := a.Broken(t.Context(), "acme", "k"); ok || err != nil {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
}

// Where none broke lately no call costs a round trip, and where one did, only it
// does.
func TestNoRoundTrip(t *testing.T) {
	s := redistest.Real(t)
	a, b := replica(t, s.Open(t, "acme", "globex")), replica(t, s.Open(t, "acme", "globex"))
	broke(t, b, "acme", "broken", gateway.Attempt{Call: "call-1", Doubt: true})
	redistest.Await(t, "it is known", func() bool {
		_, ok, err := a.Broken(t.Context(), "acme", "broken")
		return ok && err == nil
	})
	redistest.Await(t, "a thousand calls ask nothing", func() bool {
		s.Do(t, "CONFIG", "RESETSTAT")
		for i := range 1000 {
			if _, ok, err := a.Broken(t.Context(), "acme", fmt.Sprint("other-", i)); ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		return !strings.Contains(fmt.Sprint(s.Do(t, "INFO", "commandstats")), "hmget") // a replica that was starved asks
	})
	is(t, a, "acme", "broken", gateway.Attempt{Call: "call-1", Doubt: true})
	if stats := fmt.Sprint(s.Do(t, "INFO", "commandstats")); !strings.Contains(stats, "cmdstat_hmget:calls=1,") {
		t.Error(stats)
	}
}

// Who does not follow asks: an attempt is found without Run, and by one that came
// after the stream was lost or cut.
func TestWhoeverIsNotSureAsks(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s.Open(t, "acme", "globex"))
		idle, err := attempts.New(attempts.Config{Store: s.Open(t, "acme")})
		if err != nil {
			t.Fatal(err)
		}
		want := gateway.Attempt{Call: "call-1", Doubt: true}
		broke(t, a, "acme", "k1", want)
		is(t, idle, "acme", "k1", want)

		b := replica(t, s.Open(t, "acme", "globex"))
		for i := range 3 { // the stream's ids begin again lower, as after a failover
			s.Do(t, "DEL", "tb:{_}:attempts-lately")
			key := fmt.Sprint("again-", i)
			broke(t, a, "acme", key, want)
			redistest.Await(t, "it is known to another", func() bool {
				_, ok, err := b.Broken(t.Context(), "acme", key)
				return ok && err == nil
			})
			s.Do(t, "DEL", "tb:{_}:attempts-lately")
			s.Do(t, "XADD", "tb:{_}:attempts-lately", fmt.Sprint(i+1, "-1"), "id", "acme:other")
		}
	})
}

func TestBounds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s.Open(t, "acme", "globex"))
		broke(t, a, "acme", "large", gateway.Attempt{Call: "call-1", Answer: bytes.Repeat([]byte("1"), 1<<10+1)})
		is(t, a, "acme", "large", gateway.Attempt{Call: "call-1", Doubt: true})
		for i := range 6 { // as many answers as a tenant may have kept, and more
			key, want := fmt.Sprint("k-", i), gateway.Attempt{Call: "call-2", Answer: []byte(`{}`)}
			broke(t, a, "acme", key, want)
			if i >= 3 {
				want = gateway.Attempt{Call: "call-2", Doubt: true}
			}
			is(t, a, "acme", key, want)
		}
		broke(t, a, "globex", "theirs", gateway.Attempt{Call: "call-3", Answer: []byte(`{}`), Error: true})
		is(t, a, "globex", "theirs", gateway.Attempt{Call: "call-3", Answer: []byte(`{}`), Error: true})
		for _, key := range []string{"", "UPPER", "a:b", strings.Repeat("x", 65)} {
			if err := a.Broke(t.Context(), "acme", key, gateway.Attempt{Doubt: true}); err == nil {
				t.Errorf("%q is a key", key)
			}
		}
	})
}

func TestNothingInTheClear(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a := replica(t, s.Open(t, "acme", "globex"))
		answer, _ := json.Marshal("canary-answer")
		broke(t, a, "acme", "k", gateway.Attempt{Call: "canary-call", Answer: answer})
		if all := s.All(t); strings.Contains(all, "canary") || !strings.Contains(all, "acme:k") {
			t.Errorf("Redis holds %q", all)
		}
	})
}
