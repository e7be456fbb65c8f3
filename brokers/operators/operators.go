// Package operators knows the humans: their names, what they may do, and the
// sessions in which they do it.
//
// Passwords are hashed with argon2id and checked a few at a time; failed tries
// are counted in Redis, so that no replica gives a guesser fresh ones.
package operators

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/alexedwards/argon2id"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// An Operator is one human as the config has them.
type Operator struct {
	gateway.Operator
	PasswordHash string // HashPassword of the password
}

// Config is what Operators is made of.
type Config struct {
	Store     *redis.Store
	Operators []Operator
	Idle      time.Duration    // a session ends after so long without a request; default 30 min
	Lifetime  time.Duration    // and after so long in any case; default 12 h
	Now       func() time.Time // default time.Now
}

// Operators implements [gateway.Operators]. It is safe for concurrent use.
type Operators struct {
	store    *redis.Store
	byName   map[string]Operator
	human    map[string]string // a name or an identity to a name
	idle     time.Duration
	lifetime time.Duration
	now      func() time.Time
	hashing  chan struct{} // each hash takes 64 MiB: so many at once
	waiting  chan struct{}
}

const (
	hashesAtOnce  = 2
	hashesWaiting = 8

	window        = 15 * time.Minute // in which failed tries are counted
	triesPerName  = 5                // from one source, for one name
	triesPerPlace = 30               // from one source, for all names
)

var params = &argon2id.Params{Memory: 64 << 10, Iterations: 3, Parallelism: 2, SaltLength: 16, KeyLength: 32}

// dummy is the hash that an unknown name is checked against: it costs the same
// and is of 130 random bits that nobody kept. A test holds it to params. It is not
// made at start, which would take 64 MiB that are not needed again until a login.
const dummy = "$argon2id$v=19$m=65536,t=3,p=2$anwe5jjdQD90dNaOJYrYnA$j0ZTaejzVcGIyOcCGF8SfSnDoteFVa8yJlpMLlxnD+8"

// HashPassword hashes a password for the config, as an argon2id PHC string.
func HashPassword(password gateway.Secret) (string, error) {
	const shortest, longest = 12, 1024
	if n := len(password.Reveal()); n < shortest || n > longest {
		return "", fmt.Errorf("a password has %d to %d bytes", shortest, longest)
	}
	return argon2id.CreateHash(password.Reveal(), params)
}

// New makes Operators, or says who is wrong.
func New(c Config) (*Operators, error) {
	if c.Store == nil {
		return nil, errors.New("operators: no store")
	}
	o := &Operators{
		store: c.Store, byName: map[string]Operator{}, human: map[string]string{}, idle: c.Idle, lifetime: c.Lifetime, now: c.Now,
		hashing: make(chan struct{}, hashesAtOnce), waiting: make(chan struct{}, hashesWaiting),
	}
	if o.idle == 0 {
		o.idle = 30 * time.Minute
	}
	if o.lifetime == 0 {
		o.lifetime = 12 * time.Hour
	}
	if o.now == nil {
		o.now = time.Now
	}
	for _, op := range c.Operators {
		if !redis.ValidID(op.Name) {
			return nil, fmt.Errorf("operators: name %q: want [a-z0-9-], at most 64", op.Name)
		}
		if _, _, _, err := argon2id.DecodeHash(op.PasswordHash); err != nil {
			return nil, fmt.Errorf("operators: %s: the password hash is not argon2id's", op.Name)
		}
		for _, role := range op.Roles {
			if !slices.Contains(gateway.Roles(), role) {
				return nil, fmt.Errorf("operators: %s: unknown role %q; there are %v", op.Name, role, gateway.Roles())
			}
		}
		for _, spelt := range append([]string{op.Name}, op.Identities...) {
			name := gateway.HumanName(spelt)
			if other, ok := o.human[name]; ok {
				return nil, fmt.Errorf("operators: %q is both %s and %s", name, other, op.Name)
			}
			o.human[name] = op.Name
		}
		o.byName[op.Name] = op
	}
	return o, nil
}

// Human implements [gateway.Operators]. One who was disabled is still known, and
// says so.
func (o *Operators) Human(name string) (gateway.Operator, bool) {
	op, ok := o.byName[o.human[gateway.HumanName(name)]]
	return op.Operator, ok
}

// Answers implements [gateway.Operators].
func (o *Operators) Answers(tenant, approver string) bool {
	for _, op := range o.byName {
		if op.Operator.Answers(tenant, approver) {
			return true
		}
	}
	return false
}

// Login implements [gateway.Operators]. A try counts before the password is
// looked at, so that many at once are no more than many in turn.
func (o *Operators) Login(ctx context.Context, name string, password gateway.Secret, source string) (gateway.Secret, gateway.Operator, error) {
	none := gateway.Operator{}
	place := host(source)
	forName, err := o.tryKey("name", name, place)
	if err != nil {
		return gateway.Secret{}, none, err
	}
	forPlace, err := o.tryKey("place", place)
	if err != nil {
		return gateway.Secret{}, none, err
	}
	for key, most := range map[redis.Key]int{forName: triesPerName, forPlace: triesPerPlace} {
		if err := o.try(ctx, key, most); err != nil {
			return gateway.Secret{}, none, err
		}
	}
	op, known := o.byName[name]
	if !known {
		op.PasswordHash = dummy
	}
	match, err := o.check(ctx, password, op.PasswordHash)
	if err != nil {
		return gateway.Secret{}, none, err
	}
	if !match || !known || op.Disabled {
		return gateway.Secret{}, none, gateway.ErrLogin
	}
	// A good login is no failed try. It clears its own name, but of its place
	// only itself, or a guesser could clear theirs with an account of their own.
	if err := o.store.Del(ctx, forName); err != nil {
		return gateway.Secret{}, none, err
	}
	if _, err := o.store.Run(ctx, uncountTry, []redis.Key{forPlace}); err != nil {
		return gateway.Secret{}, none, err
	}
	return o.open(ctx, op, source)
}

// check compares a password, a few at a time for the whole process.
func (o *Operators) check(ctx context.Context, password gateway.Secret, hash string) (bool, error) {
	select {
	case o.waiting <- struct{}{}:
		defer func() { <-o.waiting }()
	default:
		return false, gateway.ErrTooMany
	}
	select {
	case o.hashing <- struct{}{}:
		defer func() { <-o.hashing }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	match, err := argon2id.ComparePasswordAndHash(password.Reveal(), hash)
	if err != nil {
		return false, errors.New("operators: a password could not be checked")
	}
	return match, nil
}

var countTry = redis.NewScript(`
local n = redis.call('INCR', KEYS[1])
if n == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {tostring(n)}
`)

var uncountTry = redis.NewScript(`
if tonumber(redis.call('GET', KEYS[1]) or '0') > 0 then redis.call('DECR', KEYS[1]) end
return {'ok'}
`)

// try counts one more try, and refuses when there were too many. Refused tries
// do not lengthen the wait.
func (o *Operators) try(ctx context.Context, key redis.Key, most int) error {
	out, err := o.store.Run(ctx, countTry, []redis.Key{key}, window.Milliseconds())
	if err != nil {
		return fmt.Errorf("operators: count a try: %w", err)
	}
	var n int
	if _, err := fmt.Sscan(out[0], &n); err != nil {
		return fmt.Errorf("operators: count a try: %w", err)
	}
	if n > most {
		return gateway.ErrTooMany
	}
	return nil
}

func (o *Operators) tryKey(parts ...string) (redis.Key, error) {
	raw, err := json.Marshal(parts)
	if err != nil {
		return redis.Key{}, err
	}
	return o.store.Key(redis.Shared, redis.OperatorTries, digest(raw))
}

// host is what tries are counted by: an address without its port, and an IPv6
// one's /64, of which one guesser has plenty.
func host(source string) string {
	h, _, err := net.SplitHostPort(source)
	if err != nil {
		h = source
	}
	if ip := net.ParseIP(h); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String()
	}
	return h
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A session is what Redis keeps, sealed, under a digest of the token.
type session struct {
	Name    string    `json:"name"`
	Source  string    `json:"source"`
	Opened  time.Time `json:"opened"`
	Renewed time.Time `json:"renewed"`
	Login   string    `json:"login"` // digest of the password hash it was opened under
}

const sealed = "session"

func (o *Operators) open(ctx context.Context, op Operator, source string) (gateway.Secret, gateway.Operator, error) {
	raw := make([]byte, 32)
	rand.Read(raw)
	token := gateway.NewSecret(base64.RawURLEncoding.EncodeToString(raw))
	now := o.now().UTC()
	s := session{Name: op.Name, Source: source, Opened: now, Renewed: now, Login: digest([]byte(op.PasswordHash))}
	if err := o.save(ctx, token, s); err != nil {
		return gateway.Secret{}, gateway.Operator{}, err
	}
	return token, o.operator(op, s, token), nil
}

func (o *Operators) operator(op Operator, s session, token gateway.Secret) gateway.Operator {
	out := op.Operator
	out.Source = s.Source
	mac := hmac.New(sha256.New, []byte(token.Reveal()))
	mac.Write([]byte("toolbroker-csrf-v1"))
	out.CSRF = gateway.NewSecret(hex.EncodeToString(mac.Sum(nil)))
	return out
}

func (o *Operators) key(token gateway.Secret) (redis.Key, error) {
	return o.store.Key(redis.Shared, redis.OperatorSession, digest([]byte(token.Reveal())))
}

func (o *Operators) save(ctx context.Context, token gateway.Secret, s session) error {
	k, err := o.key(token)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return o.store.Set(ctx, k, o.store.Seal(k, sealed, raw), o.idle)
}

var replace = redis.NewScript(`
if redis.call('SET', KEYS[1], ARGV[1], 'XX', 'PX', ARGV[2]) then return {'ok'} end
return {'gone'}
`)

// renew keeps a session awake, if it still is one: a log out that came after we
// looked is not undone.
func (o *Operators) renew(ctx context.Context, k redis.Key, s session) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	out, err := o.store.Run(ctx, replace, []redis.Key{k}, o.store.Seal(k, sealed, raw), o.idle.Milliseconds())
	if err != nil {
		return fmt.Errorf("operators: renew session: %w", err)
	}
	if out[0] != "ok" {
		return gateway.ErrLogin
	}
	return nil
}

// Session implements [gateway.Operators]. An operator who was removed from the
// config, was disabled, or got another password, has no session.
func (o *Operators) Session(ctx context.Context, token gateway.Secret) (gateway.Operator, error) {
	none := gateway.Operator{}
	if n := len(token.Reveal()); n == 0 || n > 64 {
		return none, gateway.ErrLogin
	}
	k, err := o.key(token)
	if err != nil {
		return none, err
	}
	raw, err := o.store.Get(ctx, k)
	if err != nil {
		return none, err
	}
	if raw == nil {
		return none, gateway.ErrLogin
	}
	plain, err := o.store.Unseal(k, sealed, raw)
	if err != nil {
		return none, fmt.Errorf("operators: session: %w", err)
	}
	var s session
	if err := json.Unmarshal(plain, &s); err != nil {
		return none, fmt.Errorf("operators: session: %w", err)
	}
	op, known := o.byName[s.Name]
	now := o.now().UTC()
	same := subtle.ConstantTimeCompare([]byte(s.Login), []byte(digest([]byte(op.PasswordHash)))) == 1
	if !known || op.Disabled || !same || now.Sub(s.Opened) >= o.lifetime || now.Sub(s.Renewed) >= o.idle {
		_ = o.store.Del(ctx, k)
		return none, gateway.ErrLogin
	}
	// Once a minute is often enough to stay awake.
	if now.Sub(s.Renewed) >= min(time.Minute, o.idle/2) {
		s.Renewed = now
		if err := o.renew(ctx, k, s); err != nil {
			return none, err
		}
	}
	return o.operator(op, s, token), nil
}

// Logout implements [gateway.Operators].
func (o *Operators) Logout(ctx context.Context, token gateway.Secret) error {
	k, err := o.key(token)
	if err != nil {
		return err
	}
	return o.store.Del(ctx, k)
}
