package identitytest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A key signs tokens.
type key struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func newKey(t testing.TB, algorithm jose.SignatureAlgorithm) key {
	t.Helper()
	k := key{id: rand.Text(), algorithm: algorithm}
	var err error
	switch algorithm {
	case jose.RS256, jose.PS256:
		k.private, err = rsa.GenerateKey(rand.Reader, 2048)
	case jose.ES256:
		k.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		k.private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.EdDSA:
		_, k.private, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no keys for %s here", algorithm)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (k key) ID() string                                  { return k.id }
func (k key) Key() any                                    { return k.private }
func (k key) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }

type publicKey struct{ key }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.private.Public() }

func (s *store) SigningKey(context.Context) (op.SigningKey, error) { return s.inForce(), nil }

func (s *store) inForce() key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.signing[len(s.signing)-1]
}

func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{s.algorithm}, nil
}

func (s *store) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var public []op.Key
	for _, k := range s.signing {
		public = append(public, publicKey{k})
	}
	return public, nil
}

// Rotate signs with a new key from now on. The ones before it stay published
// until Retire.
func (p *Provider) Rotate() {
	k := newKey(p.t, p.store.algorithm)
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.signing = append(p.store.signing, k)
}

// Retire publishes no key but the one in force.
func (p *Provider) Retire() {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.signing = p.store.signing[len(p.store.signing)-1:]
}

// StopKeys shuts the JWKS endpoint: a connection to it is closed without a word.
func (p *Provider) StopKeys() {
	p.ServeKeys(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
}

// StartKeys opens the JWKS endpoint again.
func (p *Provider) StartKeys() { p.ServeKeys(nil) }

// ServeKeys answers at the JWKS endpoint with page from now on, for those that
// test what a broken or hostile one does; nil is the real one.
func (p *Provider) ServeKeys(page http.Handler) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.keysPage = page
}

// KeyFetches returns how often the JWKS endpoint has been asked.
func (p *Provider) KeyFetches() int {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	return p.store.fetches
}

func (p *Provider) keys(w http.ResponseWriter, r *http.Request) {
	p.store.mu.Lock()
	p.store.fetches++
	page := p.store.keysPage
	p.store.mu.Unlock()
	if page != nil {
		page.ServeHTTP(w, r)
		return
	}
	op.Keys(w, r, p.store)
}

// Key returns the key in force, to sign what the provider never would.
func (p *Provider) Key() (id string, private crypto.Signer) {
	k := p.store.inForce()
	return k.id, k.private
}

// Verify is how a careful stranger reads an access token: by the published keys,
// for its issuer, an audience and its time. It returns all claims.
func (p *Provider) Verify(token, audience string) (map[string]any, error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{p.store.algorithm})
	if err != nil {
		return nil, err
	}
	keys, err := p.store.KeySet(context.Background())
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.ID() != parsed.Headers[0].KeyID {
			continue
		}
		var registered jwt.Claims
		all := map[string]any{}
		if err := parsed.Claims(k.Key(), &registered, &all); err != nil {
			return nil, err
		}
		return all, registered.Validate(jwt.Expected{Issuer: p.Issuer, AnyAudience: jwt.Audience{audience}, Time: time.Now()})
	}
	return nil, errors.New("signed with no published key")
}

// Mint returns a token of these claims, signed with the key in force. It adds
// iss, iat, exp (an hour ahead) and jti; a claim that is nil is left out.
func (p *Provider) Mint(claims map[string]any) string {
	p.t.Helper()
	now := time.Now()
	all := map[string]any{"iss": p.Issuer, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": rand.Text()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.Sign(payload, nil)
}

// Sign signs any bytes with the key in force. The header holds typ "at+jwt" and
// the key's id, or what header says instead; there, too, nil leaves out.
func (p *Provider) Sign(payload []byte, header map[string]any) string {
	p.t.Helper()
	k := p.store.inForce()
	all := map[string]any{"typ": "at+jwt", "kid": k.id}
	maps.Copy(all, header)
	return sign(p.t, k.algorithm, k.private, payload, all)
}

// sign makes a compact JWS.
func sign(t testing.TB, algorithm jose.SignatureAlgorithm, private any, payload []byte, header map[string]any) string {
	t.Helper()
	var o jose.SignerOptions
	for name, value := range header {
		if value != nil {
			o.WithHeader(jose.HeaderKey(name), value)
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: private}, &o)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
