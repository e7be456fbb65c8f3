package tasks

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

const (
	tokenType = "tbtask+jwt"
	maxToken  = 8 << 10             // bytes, before anything is parsed
	keyLives  = 31 * 24 * time.Hour // a public key, after its replica last said so
)

// claims are what a task token says.
type claims struct {
	jwt.Claims
	Tenant     string `json:"tid"`
	Task       string `json:"task"`
	OnBehalfOf string `json:"obo,omitempty"`
	Owner      string `json:"owner"`
	Act        *actor `json:"act,omitempty"` // who delegated to the subject (RFC 8693)
	Cnf        *bound `json:"cnf,omitempty"` // the key it is bound to (RFC 7800)
}

// An actor is the principal of the task above; the outermost is the deepest.
type actor struct {
	Subject string `json:"sub"`
	Act     *actor `json:"act,omitempty"`
}

// A bound token counts only together with proof of one key.
type bound struct {
	JKT  string `json:"jkt,omitempty"`      // of a DPoP key (RFC 9449)
	X5T  string `json:"x5t#S256,omitempty"` // of a client's certificate (RFC 8705)
	more bool   // a way that is not ours
}

// UnmarshalJSON reads cnf; a member that is unknown here might be a limit.
func (b *bound) UnmarshalJSON(text []byte) error {
	var m map[string]string
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	*b = bound{JKT: m["jkt"], X5T: m["x5t#S256"]}
	delete(m, "jkt")
	delete(m, "x5t#S256")
	b.more = len(m) > 0
	return nil
}

// key is what Principal.Bound says, or false where that is not one key.
func (b *bound) key() (string, bool) {
	switch {
	case b == nil:
		return "", true
	case b.more || (b.JKT == "") == (b.X5T == "") || !thumbprint.MatchString(b.JKT+b.X5T):
		return "", false
	case b.JKT != "":
		return "jkt:" + b.JKT, true
	default:
		return "x5t#S256:" + b.X5T, true
	}
}

// boundTo is the cnf of a task's token.
func boundTo(key string) (*bound, error) {
	if key == "" {
		return nil, nil
	}
	b := &bound{}
	if x, ok := strings.CutPrefix(key, "jkt:"); ok {
		b.JKT = x
	} else if x, ok := strings.CutPrefix(key, "x5t#S256:"); ok {
		b.X5T = x
	}
	if k, ok := b.key(); !ok || k != key {
		return nil, errors.New("bound to what is no key's thumbprint")
	}
	return b, nil
}

// A thumbprint is a SHA-256 in base64url.
var thumbprint = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

// A signer signs with this replica's key.
type signer struct {
	jose.Signer
	kid    string
	public ed25519.PublicKey
}

func newSigner(key ed25519.PrivateKey) (signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return signer{}, errors.New("tasks: no signing key")
	}
	s := signer{public: key.Public().(ed25519.PublicKey)}
	sum := sha256.Sum256(s.public)
	s.kid = hex.EncodeToString(sum[:16])
	var err error
	s.Signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key, KeyID: s.kid}},
		(&jose.SignerOptions{}).WithType(tokenType))
	if err != nil {
		return signer{}, fmt.Errorf("tasks: %w", err)
	}
	return s, nil
}

// sign makes the token that is a task. It lives as long as the task.
func (r *Tasks) sign(t gateway.Task) (gateway.Secret, error) {
	now := r.Now()
	cnf, err := boundTo(t.Bound)
	if err != nil {
		return gateway.Secret{}, err
	}
	var act *actor
	for _, who := range t.Delegators() {
		act = &actor{who, act}
	}
	raw, err := jwt.Signed(r.signer).Claims(claims{
		Claims: jwt.Claims{
			Issuer: r.Issuer, Audience: jwt.Audience{r.Audience}, Subject: t.Principal, ID: strings.ToLower(rand.Text()),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(t.Expires),
		},
		Tenant: t.Tenant, Task: t.ID, OnBehalfOf: t.OnBehalfOf, Owner: t.Owner, Act: act, Cnf: cnf,
	}).Serialize()
	if err != nil {
		return gateway.Secret{}, err
	}
	if len(raw) > maxToken {
		return gateway.Secret{}, errors.New("the token would be too long")
	}
	return gateway.NewSecret(raw), nil
}

// VerifyToken returns the principal that a task token is for, or an error that
// wraps [gateway.ErrUnidentified] and holds nothing of the token. The principal's
// Bound is the key whose proof the token demands, which is the caller's to ask
// for; its Chain is the principals above, outermost first. Whether the task still
// runs is [Tasks.Running]'s to say. Only a key this replica has not
// seen yet costs a round trip.
func (r *Tasks) VerifyToken(raw string) (gateway.Principal, error) {
	p, err := r.verify(raw)
	if err != nil {
		return gateway.Principal{}, fmt.Errorf("%w: task token: %w", gateway.ErrUnidentified, err)
	}
	return p, nil
}

func (r *Tasks) verify(raw string) (p gateway.Principal, err error) {
	if len(raw) > maxToken {
		return p, errors.New("too long")
	}
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil || len(token.Headers) != 1 {
		return p, errors.New("not a token of ours")
	}
	h := token.Headers[0]
	if typ, _ := h.ExtraHeaders[jose.HeaderType].(string); typ != tokenType || h.Algorithm != string(jose.EdDSA) {
		return p, errors.New("not a task token")
	}
	key, err := r.publicKey(h.KeyID)
	if err != nil {
		return p, err
	}
	var c claims
	if err := token.Claims(key, &c); err != nil {
		return p, errors.New("the signature is wrong")
	}
	now := r.Now()
	switch {
	case c.Issuer != r.Issuer || len(c.Audience) != 1 || c.Audience[0] != r.Audience:
		return p, errors.New("for somebody else")
	case c.Expiry == nil || !now.Before(c.Expiry.Time()):
		return p, errors.New("expired")
	case c.IssuedAt == nil || c.NotBefore == nil || c.IssuedAt.Time().After(now.Add(skew)) || c.NotBefore.Time().After(now.Add(skew)):
		return p, errors.New("not valid yet")
	case c.Subject == "" || c.Owner == "" || c.ID == "":
		return p, errors.New("incomplete")
	}
	if _, err := r.Store.Key(c.Tenant, redis.Task, c.Task); err != nil {
		return p, errors.New("for no tenant or task of ours")
	}
	holder, ok := c.Cnf.key()
	if !ok {
		return p, errors.New("bound in a way that cannot be proven here")
	}
	var chain []string
	for a := c.Act; a != nil; a = a.Act {
		if a.Subject == "" || len(chain) == maxDepth {
			return p, errors.New("a chain that is not ours")
		}
		chain = append(chain, a.Subject)
	}
	slices.Reverse(chain)
	return gateway.Principal{
		ID: c.Subject, Tenant: c.Tenant, OnBehalfOf: c.OnBehalfOf, Owner: c.Owner, Chain: chain, Bound: holder,
		Authn: gateway.AuthnTaskToken, Credential: c.ID, Task: c.Task, Expires: c.Expiry.Time(),
	}, nil
}

// publicKey finds the key that some replica signs with. Replicas publish theirs
// sealed, so that writing to Redis makes nobody a signer.
func (r *Tasks) publicKey(kid string) (ed25519.PublicKey, error) {
	r.mu.Lock()
	key := r.keys[kid]
	r.mu.Unlock()
	if key != nil {
		return key, nil
	}
	k, err := r.Store.Key(redis.Shared, redis.TaskKey, kid)
	if err != nil || !r.lookup.Allow() {
		return nil, errors.New("unknown key")
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	sealed, err := r.Store.Get(ctx, k)
	if err != nil || sealed == nil {
		return nil, errors.New("unknown key")
	}
	key, err = r.Store.Unseal(k, "public key", sealed)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("unknown key")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[kid] = key
	return key, nil
}

// publish lets other replicas know this one's public key.
func (r *Tasks) publish(ctx context.Context) error {
	r.mu.Lock()
	done := time.Since(r.published) < time.Hour
	r.mu.Unlock()
	if done {
		return nil
	}
	k, err := r.Store.Key(redis.Shared, redis.TaskKey, r.signer.kid)
	if err != nil {
		return err
	}
	if err := r.Store.Set(ctx, k, r.Store.Seal(k, "public key", r.signer.public), keyLives); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.published = time.Now()
	return nil
}

// LoadKey reads the Ed25519 key that a replica signs task tokens with, and makes
// it where there is none. The file is 0600; one that others may read is refused.
// A crash leaves no file or a whole one.
func LoadKey(path string) (ed25519.PrivateKey, error) {
	for range 2 {
		key, err := readKey(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return key, err
		}
		if err := makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make task key: %w", err)
		}
	}
	return nil, fmt.Errorf("task key %s: it keeps vanishing", path)
}

func readKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("task key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("task key %s: must be a file that only its owner can read (chmod 600)", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("task key: %w", err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("task key %s: not a PEM private key", path)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := any.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("task key %s: not an Ed25519 key", path)
	}
	return key, nil
}

func makeKey(path string) (err error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".task-key-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Link(f.Name(), path) // never over another's
}
