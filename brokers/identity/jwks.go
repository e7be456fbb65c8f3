package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// A keySet is an issuer's public keys: fetched when first needed, again in the
// background, and at most once a minute because a token names an unknown one.
// What cannot be fetched or does not look like keys changes nothing; the keys
// there were count until MaxStale.
type keySet struct {
	fetch             func(context.Context) ([]byte, error)
	refresh, maxStale time.Duration
	unknownEvery      time.Duration // between fetches because of an unknown key
	now               func() time.Time
	log               *slog.Logger

	current atomic.Pointer[keys] // nil before the first fetch

	mu     sync.Mutex
	flight *flight // the fetch under way, or nil
	tried  time.Time
	failed bool
}

// keys never change; a fetch makes new ones.
type keys struct {
	all  []*key
	byID map[string]*key
	at   time.Time // when they were fetched
}

// A key outlives the fetches that bring it again, so that what was verified with
// it stays verified; the fetch that leaves it out retires it.
type key struct {
	id, alg string // alg may be empty
	public  crypto.PublicKey
	retired atomic.Bool
}

type flight struct {
	done    chan struct{}
	waiting int
	err     error
}

const (
	fetchTimeout = 5 * time.Second
	failedEvery  = 5 * time.Second  // between fetches while there are no keys that count
	fileEvery    = 10 * time.Second // between looks at a file
	mostKeys     = 100
	mostWaiting  = 64 // callers for one fetch
)

func newKeySet(is Issuer, c Config) (*keySet, error) {
	s := &keySet{
		refresh: or(is.Refresh, 5*time.Minute), maxStale: or(is.MaxStale, time.Hour), unknownEvery: time.Minute,
		now: c.Now, log: c.Log.With("issuer", is.Name),
	}
	var err error
	if s.fetch, err = fetcher(is); err != nil {
		return nil, err
	}
	if is.JWKSFile != "" {
		s.refresh, s.unknownEvery = fileEvery, fileEvery
	}
	return s, nil
}

// find returns the key that a token names, or the only one that can have signed
// it where it names none.
func (s *keySet) find(ctx context.Context, kid, alg string) (*key, error) {
	have := s.current.Load()
	switch now := s.now(); {
	case have == nil || !now.Before(have.at.Add(s.maxStale)):
		if err := s.load(ctx, failedEvery); err != nil {
			return nil, err
		}
		have = s.current.Load()
	case !now.Before(have.at.Add(s.refresh)):
		s.kick(failedEvery) // nobody waits: these still count
	}
	k, err := have.pick(kid, alg)
	if k != nil || err != nil {
		return k, err
	}
	err = s.load(ctx, s.unknownEvery)
	if k, bad := s.current.Load().pick(kid, alg); k != nil || bad != nil {
		return k, bad
	}
	if err != nil && (!errors.Is(err, errTooSoon) || s.failing()) {
		return nil, err // it may be one that we could not fetch
	}
	return nil, refuse(gateway.WhySignature, errors.New("its issuer has no such key"))
}

func (k *keys) pick(kid, alg string) (*key, error) {
	if kid != "" {
		found := k.byID[kid]
		if found != nil && !found.signs(alg) {
			return nil, refuse(gateway.WhyAlgorithm, errors.New("the key it names is for another"))
		}
		return found, nil
	}
	var only *key
	for _, found := range k.all {
		if found.signs(alg) {
			if only != nil {
				return nil, refuse(gateway.WhySignature, errors.New("it names no key, and its issuer has several"))
			}
			only = found
		}
	}
	return only, nil
}

// signs reports whether a key is one for an algorithm: a public key is never
// anything's HMAC secret, an RSA key signs no ES256.
func (k *key) signs(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		return slices.Contains([]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, alg)
	case *ecdsa.PublicKey:
		return map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[p.Curve.Params().BitSize] == alg
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// A usedKey is what a remembered token was verified with.
type usedKey struct {
	set *keySet
	key *key
}

func (u usedKey) live(now time.Time) bool {
	have := u.set.current.Load()
	return !u.key.retired.Load() && have != nil && now.Before(have.at.Add(u.set.maxStale))
}

var errTooSoon = errors.New("fetched a moment ago")

// load fetches and waits, unless it was tried less than every ago.
func (s *keySet) load(ctx context.Context, every time.Duration) error {
	f := s.start(every, true)
	if f == nil {
		return refuse(gateway.WhyKeys, errTooSoon)
	}
	if f == full {
		return refuse(gateway.WhyBusy, errors.New("too many wait for an issuer's keys"))
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return refuse(gateway.WhyKeys, ctx.Err())
	}
	if f.err != nil {
		return refuse(gateway.WhyKeys, f.err)
	}
	return nil
}

// kick fetches in the background.
func (s *keySet) kick(every time.Duration) { s.start(every, false) }

var full = &flight{}

// start joins the fetch that is under way or begins one. It ends by itself,
// whoever goes away meanwhile.
func (s *keySet) start(every time.Duration, wait bool) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight == nil {
		now := s.now()
		if !s.tried.IsZero() && now.Before(s.tried.Add(every)) {
			return nil
		}
		s.flight, s.tried = &flight{done: make(chan struct{})}, now
		go s.fly(s.flight)
	}
	if wait {
		if s.flight.waiting++; s.flight.waiting > mostWaiting {
			return full
		}
	}
	return s.flight
}

func (s *keySet) fly(f *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	text, err := s.fetch(ctx)
	if err == nil {
		err = s.replace(text)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.failed {
		s.log.Warn("an issuer's keys cannot be fetched; those there were count for a while", "err", err, "for", s.maxStale.String())
	} else if err == nil && s.failed {
		s.log.Info("an issuer's keys are fetched again")
	}
	s.failed, f.err, s.flight = err != nil, err, nil
	close(f.done)
}

func (s *keySet) failing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// replace puts fetched keys in force, all or none.
func (s *keySet) replace(text []byte) error {
	fresh, err := parseKeys(text)
	if err != nil {
		return err
	}
	next := &keys{byID: map[string]*key{}, at: s.now()}
	old := s.current.Load()
	kept := map[*key]bool{}
	for _, k := range fresh {
		if old != nil {
			for _, was := range old.all {
				if was.id == k.id && was.alg == k.alg && equal(was.public, k.public) {
					k = was
				}
			}
		}
		kept[k] = true
		next.all = append(next.all, k)
		if k.id != "" {
			next.byID[k.id] = k
		}
	}
	s.current.Store(next)
	if old != nil {
		for _, was := range old.all {
			if !kept[was] {
				was.retired.Store(true)
			}
		}
	}
	return nil
}

func equal(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// run fetches now and again until ctx ends.
func (s *keySet) run(ctx context.Context) {
	for {
		err := s.load(ctx, failedEvery)
		next := s.refresh
		if err != nil {
			next = min(next, 3*failedEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// parseKeys reads a JWKS. One that holds what no issuer publishes (a secret, a
// private key, one name for two keys, too many) is refused as a whole; keys for
// something else than signatures are left out.
func parseKeys(text []byte) ([]*key, error) {
	var doc struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, errors.New("not a JWKS")
	}
	if len(doc.Keys) > mostKeys {
		return nil, fmt.Errorf("a JWKS of more than %d keys", mostKeys)
	}
	var all []*key
	names := map[string]bool{}
	for _, raw := range doc.Keys {
		k, err := parseKey(raw)
		if err != nil {
			return nil, err
		}
		if k == nil {
			continue
		}
		if k.id != "" && names[k.id] {
			return nil, errors.New("a JWKS with one kid for two keys")
		}
		names[k.id] = true
		all = append(all, k)
	}
	if len(all) == 0 {
		return nil, errors.New("a JWKS without a key that we could verify with")
	}
	return all, nil
}

// parseKey returns nil for a key that is not for us.
func parseKey(raw jsontext.Value) (*key, error) {
	var j struct {
		Type   string         `json:"kty"`
		ID     string         `json:"kid"`
		Use    string         `json:"use"`
		Alg    string         `json:"alg"`
		Ops    []string       `json:"key_ops"`
		Secret jsontext.Value `json:"k"`
		D      jsontext.Value `json:"d"`
		P      jsontext.Value `json:"p"`
	}
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, errors.New("a JWKS with a key that cannot be read")
	}
	switch {
	case j.Type == "oct" || j.Secret != nil || j.D != nil || j.P != nil:
		return nil, errors.New("a JWKS with a key that should be secret")
	case j.Use != "" && j.Use != "sig", j.Ops != nil && !slices.Contains(j.Ops, "verify"):
		return nil, nil
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil || !jwk.Valid() || !jwk.IsPublic() {
		return nil, nil // a curve or a type that we do not know
	}
	if !strong(jwk.Key) {
		return nil, nil
	}
	if j.Alg == "Ed25519" { // RFC 9864's word
		j.Alg = "EdDSA"
	}
	return &key{id: j.ID, alg: j.Alg, public: jwk.Key}, nil
}

// strong refuses RSA keys that are easily broken, or made to be slow.
func strong(k crypto.PublicKey) bool {
	switch k := k.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 8192
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}
