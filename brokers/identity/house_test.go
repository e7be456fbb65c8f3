package identity_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

type m = map[string]any

func bearer(raw string) gateway.Credential {
	return gateway.Credential{Bearer: gateway.NewSecret(raw), Source: "192.0.2.1:1"}
}

// why is what a refusal is counted by; "taken" where there is none.
func why(err error) string {
	if err == nil {
		return "taken"
	}
	n, ok := errors.AsType[*gateway.NotIdentified](err)
	if !ok || !errors.Is(err, gateway.ErrUnidentified) {
		return "no refusal: " + err.Error()
	}
	return n.Why
}

func unsigned(header, payload string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(payload)) + ".AAAA"
}

func newEC(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, key any, alg jose.SignatureAlgorithm, header m, payload any) string {
	t.Helper()
	opt := &jose.SignerOptions{}
	for n, v := range header {
		opt = opt.WithHeader(jose.HeaderKey(n), v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opt)
	if err != nil {
		t.Fatal(err)
	}
	body, ok := payload.([]byte)
	if !ok {
		if body, err = json.Marshal(payload); err != nil {
			t.Fatal(err)
		}
	}
	sig, err := signer.Sign(body)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A clock stands still until it is moved.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Now().Truncate(time.Second).UnixNano())
	return c
}

// An issuer signs tokens and publishes its keys, as a small OpenID provider does.
type issuer struct {
	t     testing.TB
	clock *clock
	http  *httptest.Server
	url   string

	mu      sync.Mutex
	key     crypto.Signer
	kid     string
	answer  func(w http.ResponseWriter, r *http.Request) // instead of the JWKS; or nil
	fetches atomic.Int32
}

func newIssuer(t testing.TB, c *clock) *issuer {
	i := &issuer{t: t, clock: c, key: newEC(t), kid: "k1"}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(m{"issuer": i.url, "jwks_uri": i.url + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		i.fetches.Add(1)
		i.mu.Lock()
		answer, set := i.answer, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid}}}
		i.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		json.NewEncoder(w).Encode(set)
	})
	i.http = httptest.NewServer(mux)
	i.url = i.http.URL
	t.Cleanup(i.http.Close)
	return i
}

// rotate replaces the key by another.
func (i *issuer) rotate(kid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.kid = newEC(i.t), kid
}

func (i *issuer) answers(f func(w http.ResponseWriter, r *http.Request)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = f
}

// claims are a good token's, but for what changes; nil deletes.
func (i *issuer) claims(change m) m {
	now := i.clock.now().Unix()
	c := m{"iss": i.url, "aud": "tb", "sub": "triage", "iat": now, "exp": now + 600, "jti": "t1"}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (i *issuer) token(change m) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return sign(i.t, i.key, jose.ES256, m{"kid": i.kid, "typ": "at+jwt"}, i.claims(change))
}

func (i *issuer) config(change ...func(*identity.Issuer)) identity.Issuer {
	c := identity.Issuer{
		Name: "corp", Kind: identity.OIDC, URL: i.url, Audiences: []string{"tb"},
		Rules: []identity.Rule{{Principal: "agent:{sub}", Tenant: "acme", Owner: "alice"}},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// onceInMemory is a replay memory of one process.
func onceInMemory() func(context.Context, [32]byte, time.Time) (bool, error) {
	var mu sync.Mutex
	seen := map[[32]byte]bool{}
	return func(_ context.Context, id [32]byte, _ time.Time) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		fresh := !seen[id]
		seen[id] = true
		return fresh, nil
	}
}

func configOf(c *clock, issuers ...identity.Issuer) identity.Config {
	return identity.Config{
		Issuers: issuers, Tenants: []string{"acme", "globex"}, Owners: []string{"alice", "bob"}, Now: c.now,
		Once: onceInMemory(), PerSecond: 1_000_000,
	}
}

func open(t testing.TB, c *clock, issuers ...identity.Issuer) *identity.Identity {
	t.Helper()
	i, err := identity.New(configOf(c, issuers...))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// ask identifies from a source of its own, so that no test's refusals count
// against another's.
var source atomic.Int32

func ask(t testing.TB, i *identity.Identity, cred gateway.Credential) (gateway.Principal, error) {
	t.Helper()
	n := source.Add(1)
	cred.Source = string([]byte{'s', byte(n), byte(n >> 8), byte(n >> 16)})
	return i.Identify(t.Context(), cred)
}

func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

// running runs i until the test ends, or the returned func is called.
func running(t testing.TB, i *identity.Identity) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); i.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}
