// Package redis is the brokers' way to Redis: one client, one closed grammar of
// keys, transitions as scripts, records that are sealed, an outbox for facts,
// and wake-ups.
//
// What the records mean is the brokers' business. Redis is not trusted with
// meaning: whoever can write to it can destroy, but not forge (see [Store.Seal]).
package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"toolbroker/gateway"
)

// A Config says which Redis, and for whom.
type Config struct {
	URL      gateway.Secret // "redis://[user:password@]host[:port][/db]", or "rediss://" for TLS
	Embedded bool           // keep everything in this process instead; gone when it ends
	Tenants  []string       // whose keys may be made; at least one
	SealKey  []byte         // 32 bytes; every replica has the same
	TLS      *tls.Config    // for "rediss://"; nil verifies against the system's roots

	// AllowPlaintext lets "redis://" leave this machine, because something
	// else (a TLS proxy, a mesh) protects the way.
	AllowPlaintext bool

	Log *slog.Logger // for what is tried again; default: slog's
}

// A Store is a connection to Redis. It is safe for concurrent use.
type Store struct {
	client   *goredis.Client
	embedded *miniredis.Miniredis
	tenants  []string
	seals    map[string]seal // by tenant; never changes
	log      *slog.Logger
}

// Open prepares a store; it does not wait for Redis, [Store.Ping] does.
// An error never holds the URL.
func Open(c Config) (*Store, error) {
	if len(c.Tenants) == 0 {
		return nil, errors.New("redis: no tenants")
	}
	if i := slices.IndexFunc(c.Tenants, func(t string) bool { return !ValidID(t) }); i >= 0 {
		return nil, fmt.Errorf("redis: tenant %q: must be 1 to 64 of a-z, 0-9 and -", c.Tenants[i])
	}
	seals, err := newSeals(c.SealKey, append([]string{Shared}, c.Tenants...))
	if err != nil {
		return nil, err
	}
	s := &Store{tenants: slices.Clone(c.Tenants), seals: seals, log: cmp.Or(c.Log, slog.Default())}
	quiet.Do(func() { goredis.SetLogger(logger{s.log}) })
	opt := &goredis.Options{}
	if c.Embedded {
		opt, s.embedded = embed()
	} else if opt, err = parse(c); err != nil {
		return nil, err
	}
	// A script is never sent again behind our back: the first may have run.
	opt.MaxRetries, opt.DialerRetries = -1, 1
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = 2*time.Second, 2*time.Second, 2*time.Second
	opt.ContextTimeoutEnabled = true
	opt.Protocol = 2
	opt.DisableIdentity = true
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	s.client = goredis.NewClient(opt)
	return s, nil
}

// embed runs a Redis in this process. It has no listener, so it needs no
// password: the only way in is Dial.
func embed() (*goredis.Options, *miniredis.Miniredis) {
	m := miniredis.NewMiniRedis()
	m.ClockTTL(true) // or nothing would ever expire
	return &goredis.Options{
		Addr:   "embedded",
		Dialer: func(context.Context, string, string) (net.Conn, error) { return m.Dial() },
	}, m
}

// parse reads the URL. The messages leave it out, because it holds a password.
func parse(c Config) (*goredis.Options, error) {
	u, err := url.Parse(c.URL.Reveal())
	if err != nil || u.Host == "" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("redis: the URL must be redis://[user:password@]host[:port][/db], or rediss:// for TLS, without anything after it")
	}
	opt := &goredis.Options{Addr: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "6379")), Username: u.User.Username()}
	opt.Password, _ = u.User.Password()
	if db := strings.Trim(u.Path, "/"); db != "" {
		if opt.DB, err = strconv.Atoi(db); err != nil || opt.DB < 0 {
			return nil, errors.New("redis: the URL's path must be a database number")
		}
	}
	switch u.Scheme {
	case "rediss":
		opt.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if c.TLS != nil {
			opt.TLSConfig = c.TLS.Clone()
		}
		if opt.TLSConfig.ServerName == "" {
			opt.TLSConfig.ServerName = u.Hostname()
		}
	case "redis":
		if !loopback(u.Hostname()) && !c.AllowPlaintext {
			return nil, errors.New("redis: plaintext to another machine: use rediss://, or name the TLS proxy that protects the way")
		}
	default:
		return nil, errors.New("redis: the URL must begin with redis:// or rediss://")
	}
	return opt, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Tenants returns whom the store was opened for. It is not to be changed.
func (s *Store) Tenants() []string { return s.tenants }

// Embedded reports whether everything is gone when this process ends.
func (s *Store) Embedded() bool { return s.embedded != nil }

// Ping asks Redis whether it is there.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("redis: ping: %w", err)
	}
	return nil
}

// Close lets go of Redis. What runs on the store ends with an error.
func (s *Store) Close() error {
	err := s.client.Close()
	if s.embedded != nil {
		s.embedded.Close()
	}
	return err
}

// Now is Redis's clock, the one by which replicas agree on what has expired.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	t, err := s.client.Time(ctx).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("redis: time: %w", err)
	}
	return t, nil
}

// Get returns a string's bytes, or nil when there is none.
func (s *Store) Get(ctx context.Context, k Key) ([]byte, error) {
	b, err := s.client.Get(ctx, k.name).Bytes()
	if errors.Is(err, goredis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("redis: get: %w", err)
	}
	return b, nil
}

// Set keeps a string for ttl, which must be positive: nothing is kept for ever.
func (s *Store) Set(ctx context.Context, k Key, value []byte, ttl time.Duration) error {
	if ttl <= 0 {
		return errors.New("redis: set: no ttl")
	}
	if err := s.client.Set(ctx, k.name, value, ttl).Err(); err != nil {
		return fmt.Errorf("redis: set: %w", err)
	}
	return nil
}

// Add sets a key that is not there, for ttl, which must be positive, and reports
// whether it was not. An error leaves that open.
func (s *Store) Add(ctx context.Context, k Key, ttl time.Duration) (bool, error) {
	if ttl < time.Millisecond {
		return false, errors.New("redis: add: no ttl")
	}
	err := s.client.SetArgs(ctx, k.name, "1", goredis.SetArgs{Mode: "NX", TTL: ttl}).Err()
	if errors.Is(err, goredis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("redis: add: %w", err)
	}
	return true, nil
}

// Del forgets keys; one that is not there is no error.
func (s *Store) Del(ctx context.Context, keys ...Key) error {
	if len(keys) == 0 {
		return nil
	}
	if err := s.client.Del(ctx, names(keys)...).Err(); err != nil {
		return fmt.Errorf("redis: del: %w", err)
	}
	return nil
}

// Fields reads the same fields of several hashes in one round trip, and
// Redis's clock before them. A field that is not there is empty.
func (s *Store) Fields(ctx context.Context, keys []Key, fields ...string) ([]map[string]string, time.Time, error) {
	pipe := s.client.Pipeline()
	clock := pipe.Time(ctx)
	reads := make([]*goredis.SliceCmd, len(keys))
	for i, k := range keys {
		reads[i] = pipe.HMGet(ctx, k.name, fields...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, time.Time{}, fmt.Errorf("redis: read: %w", err)
	}
	found := make([]map[string]string, len(keys))
	for i, r := range reads {
		found[i] = map[string]string{}
		for j, v := range r.Val() {
			found[i][fields[j]], _ = v.(string)
		}
	}
	return found, clock.Val(), nil
}

// All returns every field of a hash.
func (s *Store) All(ctx context.Context, k Key) (map[string]string, error) {
	m, err := s.client.HGetAll(ctx, k.name).Result()
	if err != nil {
		return nil, fmt.Errorf("redis: read: %w", err)
	}
	return m, nil
}

// Members returns a set's members, in no order.
func (s *Store) Members(ctx context.Context, k Key) ([]string, error) {
	m, err := s.client.SMembers(ctx, k.name).Result()
	if err != nil {
		return nil, fmt.Errorf("redis: members: %w", err)
	}
	return m, nil
}

// Due returns up to n members of a sorted set whose score is a time in
// milliseconds up to Redis's now, oldest first.
func (s *Store) Due(ctx context.Context, k Key, n int) ([]string, error) {
	now, err := s.Now(ctx)
	if err != nil {
		return nil, err
	}
	return s.Between(ctx, k, time.Time{}, now, n)
}

// Between returns up to n members of a sorted set whose score is a time in
// milliseconds from since to until, oldest first; a zero time is no bound.
func (s *Store) Between(ctx context.Context, k Key, since, until time.Time, n int) ([]string, error) {
	by := goredis.ZRangeArgs{Key: k.name, Start: "-inf", Stop: "+inf", ByScore: true, Count: int64(n)}
	if !since.IsZero() {
		by.Start = Millis(since)
	}
	if !until.IsZero() {
		by.Stop = Millis(until)
	}
	ids, err := s.client.ZRangeArgs(ctx, by).Result()
	if err != nil {
		return nil, fmt.Errorf("redis: range: %w", err)
	}
	return ids, nil
}

// Latest returns up to n members of a sorted set, the highest score first.
func (s *Store) Latest(ctx context.Context, k Key, n int) ([]string, error) {
	ids, err := s.client.ZRangeArgs(ctx, goredis.ZRangeArgs{Key: k.name, Start: 0, Stop: n - 1, Rev: true}).Result()
	if err != nil {
		return nil, fmt.Errorf("redis: range: %w", err)
	}
	return ids, nil
}

// Millis writes a time as scripts compare it.
func Millis(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

func names(keys []Key) []string {
	all := make([]string, len(keys))
	for i, k := range keys {
		all[i] = k.name
	}
	return all
}

// quiet holds that the client has one logger for the whole process: the first
// store's.
var quiet sync.Once

// logger passes on what the client says of itself (addresses, never data).
type logger struct{ to *slog.Logger }

func (l logger) Printf(_ context.Context, format string, v ...any) {
	l.to.Debug("redis client", "says", fmt.Sprintf(format, v...))
}
