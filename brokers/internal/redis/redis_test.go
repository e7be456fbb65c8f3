package redis_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
)

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		name string
		url  string
		tls  bool // a TLS proxy protects the way
		says string
	}{
		{"loopback", "redis://127.0.0.1:6379", false, ""},
		{"loopback by name, a database, a password", "redis://u:s3cret-canary@localhost/3", false, ""},
		{"IPv6 loopback", "redis://[::1]:6379", false, ""},
		{"TLS to another machine", "rediss://:s3cret-canary@redis.corp:6380", false, ""},
		{"plaintext to another machine", "redis://:s3cret-canary@redis.corp:6379", false, "plaintext"},
		{"plaintext to an address", "redis://10.0.0.7", false, "plaintext"},
		{"plaintext to something that begins like loopback", "redis://127.0.0.1.corp", false, "plaintext"},
		{"plaintext through a named proxy", "redis://redis.corp:6379", true, ""},
		{"TLS that would not verify", "rediss://:s3cret-canary@redis.corp?skip_verify=true", false, "without anything after"},
		{"another scheme", "unix:///s3cret-canary", false, "must be redis://"},
		{"another scheme with a host", "http://s3cret-canary", false, "must begin"},
		{"not a URL", "redis://s3cret-canary:%zz@h", false, "must be"},
		{"nothing", "", false, "must be"},
		{"no database", "redis://localhost/s3cret-canary", false, "database number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := redis.Open(redis.Config{URL: gateway.NewSecret(c.url), AllowPlaintext: c.tls, Tenants: []string{"acme"}, SealKey: make([]byte, 32)})
			if s != nil {
				s.Close()
			}
			if got := fmt.Sprint(err); c.says == "" && err != nil || !strings.Contains(got, c.says) || strings.Contains(got, "canary") {
				t.Errorf("Open says %q, want %q and no canary", got, c.says)
			}
		})
	}
	for name, c := range map[string]redis.Config{
		"no tenants":      {Embedded: true, SealKey: make([]byte, 32)},
		"a bad tenant":    {Embedded: true, SealKey: make([]byte, 32), Tenants: []string{"ac}me"}},
		"the shared name": {Embedded: true, SealKey: make([]byte, 32), Tenants: []string{redis.Shared}},
		"no seal key":     {Embedded: true, Tenants: []string{"acme"}},
		"a short key":     {Embedded: true, Tenants: []string{"acme"}, SealKey: make([]byte, 16)},
	} {
		if _, err := redis.Open(c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// What is tried again is said to the logger that we were given, and to no other.
func TestOutboxSaysWhereItWasTold(t *testing.T) {
	said, stray := make(lines, 16), make(lines, 16)
	was := slog.Default()
	defer slog.SetDefault(was)
	slog.SetDefault(slog.New(slog.NewTextHandler(stray, nil)))
	s, err := redis.Open(redis.Config{
		URL: gateway.NewSecret("redis://:s3cret-canary@127.0.0.1:1"), Tenants: []string{"acme"}, SealKey: make([]byte, 32), // nobody listens there
		Log: slog.New(slog.NewTextHandler(said, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- s.Outbox("test").Run(ctx, func(context.Context, redis.Entry) error { return nil })
	}()
	select {
	case line := <-said:
		if !strings.Contains(line, "outbox not drained") || strings.Contains(line, "canary") {
			t.Errorf("said: %s", line)
		}
	case line := <-stray:
		t.Errorf("said to slog's own: %s", line)
	case <-time.After(20 * time.Second):
		t.Error("nothing was said")
	}
	cancel()
	<-ended
}

// lines is a writer whose every write is a line.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default: // enough of them
	}
	return len(b), nil
}

func TestEmbeddedRunsItsClock(t *testing.T) {
	s, err := redis.Open(redis.Config{Embedded: true, Tenants: []string{"acme"}, SealKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Ping(t.Context()); err != nil || !s.Embedded() {
		t.Fatal(err, s.Embedded())
	}
	k := must(s.Key("acme", redis.Task, "task-1"))
	if err := s.Set(t.Context(), k, []byte("x"), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if b := must(s.Get(t.Context(), k)); string(b) != "x" {
		t.Fatalf("got %q", b)
	}
	redistest.Await(t, "the key expires", func() bool { return must(s.Get(t.Context(), k)) == nil })
	if now := must(s.Now(t.Context())); time.Since(now).Abs() > time.Minute {
		t.Errorf("its clock says %v", now)
	}
}

func TestKeys(t *testing.T) {
	s := redistest.Embedded(t).Open(t, "acme", "globex")
	for _, c := range []struct {
		tenant string
		kind   redis.Kind
		ids    []string
		key    string // or nothing, where it is refused
	}{
		{"acme", redis.Task, []string{"task-1"}, "tb:{acme}:task:task-1"},
		{"acme", redis.TasksDue, nil, "tb:{acme}:tasks-due"},
		{"_", redis.OperatorSession, []string{"ab12"}, "tb:{_}:operator-session:ab12"},
		{"acme", redis.OperatorSession, []string{"ab12"}, ""},
		{"_", redis.Task, []string{"task-1"}, ""},
		{"initech", redis.Task, []string{"task-1"}, ""},
		{"acme", redis.Task, nil, ""},
		{"acme", redis.Task, []string{"a", "b"}, ""},
		{"acme", redis.Task, []string{""}, ""},
		{"acme", redis.Task, []string{"a:b"}, ""},
		{"acme", redis.Task, []string{"a}{globex"}, ""},
		{"acme", redis.Task, []string{"a\n"}, ""},
		{"acme", redis.Task, []string{"Task"}, ""},
		{"acme", redis.Task, []string{strings.Repeat("a", 65)}, ""},
		{"acme", redis.Kind{}, nil, ""},
	} {
		k, err := s.Key(c.tenant, c.kind, c.ids...)
		if k.String() != c.key || (err == nil) != (c.key != "") || err != nil && !errors.Is(err, redis.ErrKey) {
			t.Errorf("Key(%q, %q) = %q, %v; want %q", c.tenant, c.ids, k, err, c.key)
		}
	}
	a, b := must(s.Key("acme", redis.TasksDue)), must(s.Key("globex", redis.TasksDue))
	if _, err := s.Run(t.Context(), redis.NewScript("return {'ok'}"), []redis.Key{a, b}); err == nil {
		t.Error("a script ran on two tenants' keys")
	}
	if _, err := s.Run(t.Context(), redis.NewScript("return {'ok'}"), []redis.Key{a, {}}); err == nil {
		t.Error("a script ran on a key that nobody checked")
	}
}

func TestWhatIsSealedOpensInItsPlaceOnly(t *testing.T) {
	srv := redistest.Embedded(t)
	s := srv.Open(t, "acme", "globex")
	other, err := redis.Open(redis.Config{Embedded: true, Tenants: []string{"acme"}, SealKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	k := must(s.Key("acme", redis.Task, "task-1"))
	record := []byte("canary-record")
	sealed := s.Seal(k, "v1", record)
	if strings.Contains(string(sealed), "canary") || slices.Equal(sealed, s.Seal(k, "v1", record)) {
		t.Error("it can be read, or compared")
	}
	if got, err := s.Unseal(k, "v1", sealed); err != nil || string(got) != string(record) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := s.Unseal(k, "v1", s.Seal(k, "v1", nil)); err != nil || len(got) != 0 {
		t.Errorf("an empty record: %q, %v", got, err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another id":      func() ([]byte, error) { return s.Unseal(must(s.Key("acme", redis.Task, "task-2")), "v1", sealed) },
		"another tenant":  func() ([]byte, error) { return s.Unseal(must(s.Key("globex", redis.Task, "task-1")), "v1", sealed) },
		"another kind":    func() ([]byte, error) { return s.Unseal(must(s.Key("acme", redis.Approval, "task-1")), "v1", sealed) },
		"another version": func() ([]byte, error) { return s.Unseal(k, "v2", sealed) },
		"another key":     func() ([]byte, error) { return other.Unseal(k, "v1", sealed) },
		"no key":          func() ([]byte, error) { return s.Unseal(redis.Key{}, "v1", sealed) },
		"nothing":         func() ([]byte, error) { return s.Unseal(k, "v1", nil) },
	} {
		if got, err := open(); !errors.Is(err, redis.ErrSeal) || got != nil {
			t.Errorf("under %s: %q, %v", name, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		changed := slices.Clone(sealed)
		changed[rapid.IntRange(0, len(sealed)-1).Draw(t, "byte")] ^= rapid.ByteRange(1, 255).Draw(t, "flip")
		if _, err := s.Unseal(k, "v1", changed); !errors.Is(err, redis.ErrSeal) {
			t.Fatal("a changed record opened")
		}
		if _, err := s.Unseal(k, "v1", sealed[:rapid.IntRange(0, len(sealed)-1).Draw(t, "cut")]); !errors.Is(err, redis.ErrSeal) {
			t.Fatal("a cut record opened")
		}
	})
}

var add = redis.NewScript(`return {redis.call('XADD', KEYS[1], '*', 'n', ARGV[1], 'binary', ARGV[2])}`)

// Two replicas drain one outbox while transitions go on and sending fails now
// and then: every entry arrives, in order of keys per replica, and none under
// two keys.
func TestOutboxLosesNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		srv := start(t)
		const n = 60
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		kept := map[string]string{} // key to n
		sends := 0
		var done sync.WaitGroup
		var boxes []*redis.Outbox
		for range 2 {
			s := srv.Open(t, "acme", "globex")
			box := s.Outbox("test")
			boxes = append(boxes, box)
			done.Go(func() {
				box.Run(ctx, func(_ context.Context, e redis.Entry) error {
					mu.Lock()
					defer mu.Unlock()
					if sends++; sends%7 == 0 {
						return errors.New("the log is busy")
					}
					if e.Fields["binary"] != "\x00\xff" {
						t.Errorf("fields came as %q", e.Fields)
					}
					if was, ok := kept[e.Key]; ok && was != e.Tenant+e.Fields["n"] {
						t.Errorf("%s is %s and %s", e.Key, was, e.Fields["n"])
					}
					kept[e.Key] = e.Tenant + e.Fields["n"]
					if sends%5 == 0 {
						return errors.New("kept, but the reply was lost")
					}
					return nil
				})
			})
		}
		s := srv.Open(t, "acme", "globex")
		for i := range n {
			tenant := []string{"acme", "globex"}[i%2]
			if _, err := s.Run(t.Context(), add, []redis.Key{must(boxes[0].Key(tenant))}, i, "\x00\xff"); err != nil {
				t.Fatal(err)
			}
			boxes[i%2].Wake()
		}
		redistest.Await(t, "all are kept and the outbox is empty", func() bool {
			boxes[0].Wake()
			mu.Lock()
			defer mu.Unlock()
			left := 0
			for _, k := range srv.Keys(t, "tb:*:outbox:test") {
				left += int(srv.Do(t, "XLEN", k).(int64))
			}
			return len(kept) == n && left == 0
		})
		cancel()
		done.Wait()
	})
}

func TestOneThatFailsHoldsUpNobody(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t).Open(t, "acme")
		box := s.Outbox("test")
		for i := range 200 {
			if _, err := s.Run(t.Context(), add, []redis.Key{must(box.Key("acme"))}, i, ""); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		bad := errors.New("not today")
		send := func(_ context.Context, e redis.Entry) error {
			if len(e.Fields["n"]) < 3 { // the first hundred
				return bad
			}
			got = append(got, e.Fields["n"])
			return nil
		}
		if err := box.Drain(t.Context(), "acme", send); !errors.Is(err, bad) || len(got) != 100 || got[0] != "100" || got[99] != "199" {
			t.Errorf("%d sent, %v", len(got), err)
		}
		got, bad = nil, nil
		if err := box.Drain(t.Context(), "acme", func(_ context.Context, e redis.Entry) error { got = append(got, e.Fields["n"]); return nil }); err != nil || len(got) != 100 || got[0] != "0" {
			t.Errorf("then %d sent, %v", len(got), err)
		}
	})
}

func TestOneReplicaDrainsAtATime(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		srv := start(t)
		a, b := srv.Open(t, "acme"), srv.Open(t, "acme")
		if _, err := a.Run(t.Context(), add, []redis.Key{must(a.Outbox("test").Key("acme"))}, 1, ""); err != nil {
			t.Fatal(err)
		}
		sent := 0
		err := a.Outbox("test").Drain(t.Context(), "acme", func(ctx context.Context, _ redis.Entry) error {
			sent++
			return b.Outbox("test").Drain(ctx, "acme", func(context.Context, redis.Entry) error { sent++; return nil })
		})
		if err != nil || sent != 1 {
			t.Errorf("sent %d times, %v", sent, err)
		}
		if left := srv.Keys(t, "tb:{acme}:outbox-lock:*"); len(left) != 0 {
			t.Errorf("still held: %v", left)
		}
	})
}

func TestHintsReachOtherReplicas(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		srv := start(t)
		a, b := srv.Open(t, "acme", "globex"), srv.Open(t, "acme", "globex")
		hints := must(b.Listen(t.Context(), "test"))
		say := redis.NewScript(`redis.call('PUBLISH', KEYS[1], ARGV[1]) return {'ok'}`)
		// Nobody says when a subscription stands, so say it until it is heard.
		for {
			if _, err := a.Run(t.Context(), say, []redis.Key{must(a.Topic("globex", "test"))}, "x-"+strings.ToLower(rand.Text())); err != nil {
				t.Fatal(err)
			}
			select {
			case h := <-hints:
				if h.Tenant != "globex" || !strings.HasPrefix(h.ID, "x-") {
					t.Errorf("heard %+v", h)
				}
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
