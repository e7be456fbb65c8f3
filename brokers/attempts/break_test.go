package attempts_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/brokers/attempts"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
)

const records = "tb:{_}:attempt:"

func run(tenant, key, session string) gateway.Run {
	return gateway.Run{Tenant: tenant, Key: key, Session: session, Gone: func(bool) bool { return false }}
}

func lose(t testing.TB, a *attempts.Attempts, tenant, key string, one gateway.Attempt) {
	t.Helper()
	begin(t, a, run(tenant, key, "")).End(gateway.EndLost, one)
}

func begin(t testing.TB, a *attempts.Attempts, r gateway.Run) gateway.Try {
	t.Helper()
	one := a.Begin(r)
	if first, again, err := one.Begun(t.Context()); again || err != nil {
		t.Fatalf("%s: %+v, %v, %v; want a run of its own", r.Key, first, again, err)
	}
	return one
}

func is(t testing.TB, a *attempts.Attempts, r gateway.Run, want gateway.Attempt) {
	t.Helper()
	if got, again, err := a.Begin(r).Begun(t.Context()); !again || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, %v, %v; want %+v", r.Key, got, again, err, want)
	}
}

// stored waits until everybody can know what became of a call.
func stored(t testing.TB, s *redistest.Server, key string) {
	t.Helper()
	redistest.Await(t, "it is stored", func() bool { return s.Do(t, "HGET", records+key, "attempt") != nil })
}

// Somebody with full access to Redis can take an attempt away, but put no answer
// into an agent's hands; and who cannot be sure says so.
func TestForgedAttempts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, _ := replica(t, s.Open(t, "acme", "globex"))
		answer := gateway.Attempt{Call: "call-1", Answer: []byte(`{"from":"another"}`)}
		lose(t, a, "acme", "another", answer)
		lose(t, a, "globex", "victim", answer)
		stored(t, s, "acme:another")
		stored(t, s, "globex:victim")
		for name, forged := range map[string]any{
			"in the clear":        `{"call":"call-1","answer":"e30=","until":"2099-01-01T00:00:00Z"}`,
			"another key's":       s.Do(t, "HGET", records+"acme:another", "attempt"),
			"another tenant's":    s.Do(t, "HGET", records+"globex:victim", "attempt"),
			"not even a sentence": "\x01",
		} {
			s.Do(t, "HSET", records+"acme:victim", "attempt", forged)
			if got, again, err := a.Begin(run("acme", "victim", "")).Begun(t.Context()); err == nil || again {
				t.Errorf("%s: %+v, %v, %v", name, got, again, err)
			}
		}
		// A run that was never one leaves the real ones in doubt at most.
		s.Do(t, "HSET", records+"acme:made-up", "b"+strings.Repeat("x", 25), "1")
		is(t, a, run("acme", "made-up", ""), gateway.Attempt{Doubt: true})
		s.Do(t, "HSET", records+"acme:made-up2", "NOT:A:BOOT", "1")
		if got, again, err := a.Begin(run("acme", "made-up2", "")).Begun(t.Context()); err == nil || again {
			t.Errorf("%+v, %v, %v", got, again, err)
		}
	})
}

// The same call may be made again when the window is over, and is not answered
// from what somebody kept.
func TestAnOldAttemptPutBack(t *testing.T) {
	s := redistest.Embedded(t)
	s.Advance(0)
	a, _ := replica(t, s.Open(t, "acme", "globex"))
	lose(t, a, "acme", "k", gateway.Attempt{Call: "call-1", Answer: []byte(`{}`)})
	stored(t, s, "acme:k")
	old := s.Do(t, "HGET", records+"acme:k", "attempt")
	s.Advance(attempts.Window)
	s.Do(t, "HSET", records+"acme:k", "attempt", old)
	redistest.Await(t, "it runs", func() bool {
		_, again, err := a.Begin(run("acme", "k", "")).Begun(t.Context())
		return !again && err == nil
	})
}

// Calls that begin at once share their way to Redis, and ends go along.
func TestOneWayForMany(t *testing.T) {
	s := redistest.Real(t)
	a, _ := replica(t, s.Open(t, "acme", "globex"))
	begin(t, a, run("acme", "warm", "")).End(gateway.EndNothing, gateway.Attempt{})
	s.Do(t, "CONFIG", "RESETSTAT")
	const calls, clients = 6400, 64
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for i := range calls / clients {
				one := begin(t, a, run("acme", fmt.Sprintf("k-%d-%d", c, i), ""))
				one.End(gateway.EndWritten, gateway.Attempt{})
				one.End(gateway.EndArrived, gateway.Attempt{})
			}
		})
	}
	all.Wait()
	var scripts int
	for line := range strings.Lines(fmt.Sprint(s.Do(t, "INFO", "commandstats"))) {
		_, _ = fmt.Sscanf(line, "cmdstat_evalsha:calls=%d,", &scripts)
	}
	if scripts == 0 || scripts > calls/8 {
		t.Errorf("%d calls took %d round trips", calls, scripts)
	}
	redistest.Await(t, "nothing is left", func() bool { return len(s.Keys(t, records+"*")) == 0 })
}

func TestBounds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, _ := replica(t, s.Open(t, "acme", "globex"))
		lose(t, a, "acme", "large", gateway.Attempt{Call: "call-1", Answer: bytes.Repeat([]byte("1"), 1<<10+1)})
		is(t, a, run("acme", "large", ""), gateway.Attempt{Call: "call-1", Doubt: true})
		for i := range 2 * kept { // as many answers as a tenant may have kept, and more
			key, want := fmt.Sprint("k-", i), gateway.Attempt{Call: "call-2", Answer: []byte(`{}`)}
			lose(t, a, "acme", key, want)
			stored(t, s, "acme:"+key)
			if i >= kept {
				want = gateway.Attempt{Call: "call-2", Doubt: true}
			}
			redistest.Await(t, "it is known", func() bool {
				got, again, err := a.Begin(run("acme", key, "")).Begun(t.Context())
				return again && err == nil && reflect.DeepEqual(got, want)
			})
		}
		lose(t, a, "globex", "theirs", gateway.Attempt{Call: "call-3", Answer: []byte(`{}`), Error: true})
		is(t, a, run("globex", "theirs", ""), gateway.Attempt{Call: "call-3", Answer: []byte(`{}`), Error: true})
		for _, key := range []string{"", "UPPER", "a:b", strings.Repeat("x", 65)} {
			if _, _, err := a.Begin(run("acme", key, "")).Begun(t.Context()); err == nil {
				t.Errorf("%q is a key", key)
			}
		}
	})
}

// A session's latest calls are kept, and of all answers as much as there is room for:
// first those that did not arrive.
func TestRoom(t *testing.T) {
	s := redistest.Embedded(t)
	a, err := attempts.New(attempts.Config{Store: s.Open(t, "acme"), MaxMemory: 100})
	if err != nil {
		t.Fatal(err)
	}
	answer := gateway.Attempt{Call: "call-1", Answer: bytes.Repeat([]byte("1"), 40)}
	for i := range 257 {
		begin(t, a, run("acme", fmt.Sprint("k-", i), "s")).End(gateway.EndWritten, answer)
	}
	is(t, a, run("acme", "k-256", "s"), answer)
	is(t, a, run("acme", "k-255", "s"), answer)
	is(t, a, run("acme", "k-254", "s"), gateway.Attempt{Call: "call-1", Doubt: true})
	is(t, a, run("acme", "k-1", "s"), gateway.Attempt{Call: "call-1", Doubt: true})
	begin(t, a, run("acme", "k-0", "s"))
	lose(t, a, "acme", "lost", answer)
	is(t, a, run("acme", "lost", ""), answer)
	is(t, a, run("acme", "k-256", "s"), answer)
	is(t, a, run("acme", "k-255", "s"), gateway.Attempt{Call: "call-1", Doubt: true})
}

func TestNothingInTheClear(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, _ := replica(t, s.Open(t, "acme", "globex"))
		answer, _ := json.Marshal("canary-answer")
		lose(t, a, "acme", "k", gateway.Attempt{Call: "canary-call", Answer: answer})
		stored(t, s, "acme:k")
		if all := s.All(t); strings.Contains(all, "canary") || !strings.Contains(all, "acme:k") {
			t.Errorf("Redis holds %q", all)
		}
	})
}

// A replica that ends in order leaves nothing in the way of those who count alike.
func TestLeaves(t *testing.T) {
	s := redistest.Embedded(t)
	a, stop := replica(t, s.Open(t, "acme"))
	begin(t, a, run("acme", "k", "")).End(gateway.EndWritten, gateway.Attempt{Call: "call-1", Doubt: true})
	begin(t, a, run("acme", "in", "s")).End(gateway.EndWritten, gateway.Attempt{Call: "call-1", Doubt: true})
	stop()
	b, _ := replica(t, s.Open(t, "acme"))
	begin(t, b, run("acme", "k", ""))
	is(t, b, run("acme", "in", "s"), gateway.Attempt{Doubt: true})
}

// Other replicas can ask about what is kept for a session for a whole window after
// its end, whether it took long or not.
func TestKeptForAWindow(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, _ := replica(t, s.Open(t, "acme"))
		left := func(key string) time.Duration {
			ms, _ := s.Do(t, "PTTL", records+"acme:"+key).(int64)
			return time.Duration(ms) * time.Millisecond
		}
		begin(t, a, run("acme", "quick", "s")).End(gateway.EndWritten, gateway.Attempt{Call: "call-1"})
		if left("quick") < attempts.Window {
			t.Errorf("%v left", left("quick"))
		}
		slow := begin(t, a, run("acme", "slow", "s"))
		s.Do(t, "PEXPIRE", records+"acme:slow", time.Minute.Milliseconds())
		attempts.Age(slow, time.Minute)
		slow.End(gateway.EndWritten, gateway.Attempt{Call: "call-2"})
		redistest.Await(t, "it is kept", func() bool { return left("slow") >= attempts.Window })
	})
}

// What a session's calls came to outlives a replica that is stopped in order, and a
// window later it is nobody's any more.
func TestStoppedInOrder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, stop := replica(t, s.Open(t, "acme", "globex"))
		b, _ := replica(t, s.Open(t, "acme", "globex"))
		done := gateway.Attempt{Call: "call-1", Answer: []byte(`{"content":[]}`)}
		begin(t, a, run("acme", "answered", "s1")).End(gateway.EndWritten, done)
		begin(t, a, run("acme", "lonely", "")).End(gateway.EndWritten, done)
		begin(t, a, run("acme", "running", "s1"))
		stop()
		is(t, b, run("acme", "answered", "s1"), done)
		is(t, b, run("acme", "running", "s1"), gateway.Attempt{Doubt: true})
		begin(t, b, run("acme", "lonely", ""))
		if s.Advance(0); s.Advance(attempts.Window) {
			begin(t, b, run("acme", "answered", "s1"))
		}
	})
}

func BenchmarkBegin(b *testing.B) {
	s := redistest.Real(b)
	a, _ := replica(b, s.Open(b, "acme"))
	b.ReportAllocs()
	b.SetParallelism(32)
	var n sync.Mutex
	next := 0
	b.RunParallel(func(pb *testing.PB) {
		n.Lock()
		next++
		c := next
		n.Unlock()
		for i := 0; pb.Next(); i++ {
			one := a.Begin(run("acme", fmt.Sprintf("k-%d-%d", c, i), ""))
			if _, again, err := one.Begun(b.Context()); again || err != nil {
				b.Error(again, err)
			}
			one.End(gateway.EndWritten, gateway.Attempt{})
			one.End(gateway.EndArrived, gateway.Attempt{})
		}
	})
}
