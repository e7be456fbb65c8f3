// Package redistest runs a Redis for the brokers' tests: the one in process,
// and a real redis-server where there is one.
package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// SealKey is the key that every store of [Server.Open] has.
var SealKey = []byte("a key of thirty-two bytes, a test")

// A Server is one Redis. Several stores on it are several replicas.
type Server struct {
	addr string
	mini *miniredis.Miniredis
	now  time.Time // of a clock that was moved
	dir  string
	proc *exec.Cmd
	life io.Closer
	raw  *goredis.Client
}

// Each runs a test on the embedded Redis and on a real one; it is handed how to
// start one.
func Each(t *testing.T, test func(t *testing.T, start func(testing.TB) *Server)) {
	t.Run("embedded", func(t *testing.T) { test(t, Embedded) })
	t.Run("real", func(t *testing.T) { test(t, Real) })
}

// Embedded starts miniredis, with its clock running, behind a loopback address,
// so that several stores can share it.
func Embedded(t testing.TB) *Server {
	t.Helper()
	s := &Server{mini: miniredis.NewMiniRedis()}
	s.mini.ClockTTL(true)
	if err := s.mini.Start(); err != nil {
		t.Fatal(err)
	}
	s.addr = s.mini.Addr()
	t.Cleanup(s.mini.Close)
	return s.connect(t)
}

// Real starts a redis-server of its own that keeps what it acknowledged. Where
// there is none the test is skipped, or fails if TOOLBROKER_REQUIRE_REAL is 1.
func Real(t testing.TB) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
			t.Fatal("no redis-server on PATH, and TOOLBROKER_REQUIRE_REAL=1")
		}
		t.Skip("no redis-server on PATH: tested on the embedded Redis only")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{addr: l.Addr().String(), dir: t.TempDir()}
	l.Close()
	s.Start(t)
	t.Cleanup(func() { s.Stop(t) })
	return s.connect(t)
}

func (s *Server) connect(t testing.TB) *Server {
	s.raw = goredis.NewClient(&goredis.Options{Addr: s.addr, Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { s.raw.Close() })
	return s
}

// Start starts a stopped server again: a real one with what it had, the
// embedded one too.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if s.mini != nil {
		if err := s.mini.Restart(); err != nil {
			t.Fatal(err)
		}
		return
	}
	_, port, _ := net.SplitHostPort(s.addr)
	// The shell kills the server when its input ends, that is also when this
	// process dies without a cleanup.
	s.proc = exec.Command("sh", "-c", `redis-server "$@" & read -r _; kill -9 $!; wait`, "sh", "--bind", "127.0.0.1", "--port", port, "--dir", s.dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning")
	var err error
	if s.life, err = s.proc.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.proc.Start(); err != nil {
		t.Fatal(err)
	}
	Await(t, "redis-server answers", func() bool {
		c := goredis.NewClient(&goredis.Options{Addr: s.addr, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
		defer c.Close()
		return c.Ping(context.Background()).Err() == nil
	})
}

// Stop ends the server without warning.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	switch {
	case s.mini != nil:
		s.mini.Close()
	case s.proc != nil:
		s.life.Close()
		s.proc.Wait()
		s.proc = nil
	}
}

// Open opens a store on the server: one replica.
func (s *Server) Open(t testing.TB, tenants ...string) *redis.Store {
	t.Helper()
	return open(t, s.addr, tenants)
}

func open(t testing.TB, addr string, tenants []string) *redis.Store {
	t.Helper()
	store, err := redis.Open(redis.Config{
		URL:     gateway.NewSecret("redis://" + addr),
		Tenants: tenants,
		SealKey: SealKey[:redis.SealKeySize],
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// Do is someone with full access to Redis: it runs any command, and returns its
// reply.
func (s *Server) Do(t testing.TB, args ...any) any {
	t.Helper()
	v, err := s.Try(args...)
	if err != nil {
		t.Fatalf("redis %v: %v", args[0], err)
	}
	return v
}

// Try is Do where the command may be refused.
func (s *Server) Try(args ...any) (any, error) {
	v, err := s.raw.Do(context.Background(), args...).Result()
	if errors.Is(err, goredis.Nil) {
		err = nil
	}
	return v, err
}

// Advance moves the clock of the embedded Redis, which stands still from the
// first call on. It reports false where the clock is not ours to move.
func (s *Server) Advance(d time.Duration) bool {
	if s.mini == nil {
		return false
	}
	if s.now.IsZero() {
		s.now = time.Now().UTC().Truncate(time.Millisecond)
	}
	s.now = s.now.Add(d)
	s.mini.SetTime(s.now)
	return true
}

// Embedded reports whether this is the one in process.
func (s *Server) Embedded() bool { return s.mini != nil }

// Now is the server's time.
func (s *Server) Now() time.Time {
	if s.now.IsZero() {
		return time.Now()
	}
	return s.now
}

// Keys lists the keys that match a pattern.
func (s *Server) Keys(t testing.TB, pattern string) []string {
	t.Helper()
	keys, err := s.raw.Keys(context.Background(), pattern).Result()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// Await waits until a fact holds; it fails the test when that never happens.
func Await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(fmt.Sprint("never: ", what))
		}
	}
}

// All is everything that Redis holds, keys and values, as somebody reads it who
// has full access to it.
func (s *Server) All(t testing.TB) string {
	t.Helper()
	var all []any
	for _, key := range s.Keys(t, "*") {
		all = append(all, key)
		switch kind := s.Do(t, "TYPE", key); kind {
		case "string":
			all = append(all, s.Do(t, "GET", key))
		case "hash":
			all = append(all, s.Do(t, "HGETALL", key))
		case "set":
			all = append(all, s.Do(t, "SMEMBERS", key))
		case "zset":
			all = append(all, s.Do(t, "ZRANGE", key, 0, -1, "WITHSCORES"))
		case "stream":
			all = append(all, s.Do(t, "XRANGE", key, "-", "+"))
		default:
			t.Fatalf("%s is a %s", key, kind)
		}
	}
	return fmt.Sprint(all...)
}
