package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
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
	Standing   string // the kind of task it is on where it names none
	Vouches    []string
	StartsFor  []string // whom else it may start tasks for
	Expires    time.Time
}

const prefix = "tbk_"

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

// An apiKey is a key of the config, ready to be asked for.
type apiKey struct {
	digest [sha256.Size]byte
	holder subject
}

func apiKeys(all []APIKey) (map[string]*apiKey, error) {
	keys := map[string]*apiKey{}
	for _, k := range all {
		switch {
		case !hash.MatchString(k.Hash):
			return nil, fmt.Errorf("key %s: hash is not sha256:<64 hex digits>", k.ID)
		case k.Tenant == "" || k.Principal == "" || k.Owner == "" || k.Expires.IsZero():
			return nil, fmt.Errorf("key %s: tenant, principal, owner and expiry are required", k.ID)
		case keys[k.ID] != nil:
			return nil, fmt.Errorf("key %s: twice", k.ID)
		}
		if err := vouchable(k.Vouches); err != nil {
			return nil, fmt.Errorf("key %s: %w", k.ID, err)
		}
		one := &apiKey{holder: subject{Principal: gateway.Principal{
			ID: k.Principal, Tenant: k.Tenant, OnBehalfOf: k.OnBehalfOf, Owner: k.Owner, Authn: gateway.AuthnAPIKey, Credential: k.ID,
			Standing: k.Standing, Vouches: k.Vouches, StartsFor: k.StartsFor, Expires: k.Expires,
		}, expires: k.Expires}}
		if _, err := hex.Decode(one.digest[:], []byte(strings.TrimPrefix(k.Hash, "sha256:"))); err != nil {
			return nil, fmt.Errorf("key %s: hash: %w", k.ID, err)
		}
		keys[k.ID] = one
	}
	return keys, nil
}

func isAPIKey(raw string) bool { return strings.HasPrefix(raw, prefix) }

func (i *Identity) apiKey(raw string) (*subject, error) {
	id, _, _ := strings.Cut(raw[len(prefix):], "_")
	k := i.keys[id]
	if k == nil {
		k = nobody
	}
	if sum := sha256.Sum256([]byte(raw)); subtle.ConstantTimeCompare(sum[:], k.digest[:]) != 1 {
		return nil, refuse(gateway.WhyUnknown, nil)
	}
	if !i.now().Before(k.holder.expires) {
		return nil, refuse(gateway.WhyExpired, fmt.Errorf("key %s", id))
	}
	return &k.holder, nil
}

// nobody is the key of an unknown id. Nothing is known to hash to zeros.
var nobody = &apiKey{}
