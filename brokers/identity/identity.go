// Package identity says who is behind a bearer token: a workload with an API
// key, or a task by its token.
//
// Each kind of token has a verifier, found by the token's shape. More kinds
// (OIDC, SPIFFE) are more verifiers; who may do what is not asked here.
package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"toolbroker/gateway"
)

// An APIKey is an API key as the config has it: everything but the key.
type APIKey struct {
	ID         string // its public name, part of the key, on record
	Hash       string // HashKey of the key
	Tenant     string
	Principal  string
	OnBehalfOf string
	Owner      string // the operator accountable for it
	Expires    time.Time
}

// Config is what an Identity is made of.
type Config struct {
	Keys       []APIKey
	TaskTokens func(raw string) (gateway.Principal, error) // verifies task tokens; see tasks.VerifyToken
	Now        func() time.Time                            // default time.Now
}

// Identity implements [gateway.Identity]. It is safe for concurrent use.
type Identity struct {
	keys   map[string]APIKey
	tokens func(string) (gateway.Principal, error)
	now    func() time.Time

	mu       sync.RWMutex
	verified map[[sha256.Size]byte]gateway.Principal
}

const (
	prefix       = "tbk_"
	longest      = 8 << 10 // of a bearer token, before anything looks into it
	mostVerified = 50_000
)

var (
	shape = regexp.MustCompile(`^tbk_([a-z0-9-]{1,64})_([a-z2-7]{26})$`)
	hash  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// NewKey makes an API key for the name id. The key is shown to its holder once;
// the config keeps its hash. A key holds 130 random bits, so one SHA-256 hides
// it as well as a slow hash would.
func NewKey(id string) (key gateway.Secret, keyHash string, err error) {
	raw := prefix + id + "_" + strings.ToLower(rand.Text())
	if !shape.MatchString(raw) {
		return gateway.Secret{}, "", fmt.Errorf("key id %q: want [a-z0-9-], at most 64", id)
	}
	return gateway.NewSecret(raw), hashOf(raw), nil
}

func hashOf(raw string) string {
	sum := sha256.Sum256([]byte(raw))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// New makes an Identity, or says which key is wrong.
func New(c Config) (*Identity, error) {
	i := &Identity{keys: map[string]APIKey{}, tokens: c.TaskTokens, now: c.Now, verified: map[[sha256.Size]byte]gateway.Principal{}}
	if i.now == nil {
		i.now = time.Now
	}
	for _, k := range c.Keys {
		switch {
		case !hash.MatchString(k.Hash):
			return nil, fmt.Errorf("identity: key %s: hash is not sha256:<64 hex digits>", k.ID)
		case k.Tenant == "" || k.Principal == "" || k.Owner == "" || k.Expires.IsZero():
			return nil, fmt.Errorf("identity: key %s: tenant, principal, owner and expiry are required", k.ID)
		case i.keys[k.ID].ID != "":
			return nil, fmt.Errorf("identity: key %s: twice", k.ID)
		}
		i.keys[k.ID] = k
	}
	return i, nil
}

// Identify implements [gateway.Identity]. No error holds the token.
func (i *Identity) Identify(_ context.Context, bearer gateway.Secret) (gateway.Principal, error) {
	raw := bearer.Reveal()
	switch {
	case raw == "":
		return gateway.Principal{}, fmt.Errorf("%w: no token", gateway.ErrUnidentified)
	case len(raw) > longest:
		return gateway.Principal{}, fmt.Errorf("%w: token too long", gateway.ErrUnidentified)
	case strings.HasPrefix(raw, prefix):
		return i.apiKey(raw)
	case strings.Count(raw, ".") == 2 && i.tokens != nil:
		return i.taskToken(raw)
	}
	return gateway.Principal{}, fmt.Errorf("%w: no known kind of token", gateway.ErrUnidentified)
}

func (i *Identity) apiKey(raw string) (gateway.Principal, error) {
	var id string
	if m := shape.FindStringSubmatch(raw); m != nil {
		id = m[1]
	}
	k := i.keys[id] // the zero APIKey's hash matches nothing
	if subtle.ConstantTimeCompare([]byte(hashOf(raw)), []byte(k.Hash)) != 1 {
		return gateway.Principal{}, fmt.Errorf("%w: unknown key", gateway.ErrUnidentified)
	}
	if !i.now().Before(k.Expires) {
		return gateway.Principal{}, fmt.Errorf("%w: key %s has expired", gateway.ErrUnidentified, k.ID)
	}
	return gateway.Principal{
		ID: k.Principal, Tenant: k.Tenant, OnBehalfOf: k.OnBehalfOf, Owner: k.Owner, Authn: "api_key", Credential: k.ID, Expires: k.Expires,
	}, nil
}

// taskToken verifies a token once; afterwards its digest will do, until it
// expires. Whether its task still runs is not asked here.
func (i *Identity) taskToken(raw string) (gateway.Principal, error) {
	digest := sha256.Sum256([]byte(raw))
	i.mu.RLock()
	p, ok := i.verified[digest]
	i.mu.RUnlock()
	if !ok {
		var err error
		if p, err = i.tokens(raw); err != nil {
			if !errors.Is(err, gateway.ErrUnidentified) {
				err = fmt.Errorf("%w: %w", gateway.ErrUnidentified, err)
			}
			return gateway.Principal{}, err
		}
	}
	if !i.now().Before(p.Expires) {
		i.mu.Lock()
		delete(i.verified, digest)
		i.mu.Unlock()
		return gateway.Principal{}, fmt.Errorf("%w: token has expired", gateway.ErrUnidentified)
	}
	if !ok {
		i.mu.Lock()
		if len(i.verified) >= mostVerified {
			clear(i.verified) // costs a verification each, no more
		}
		i.verified[digest] = p
		i.mu.Unlock()
	}
	return p, nil
}
