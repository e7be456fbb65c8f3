package identitytest

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// A Prover is a client's key for DPoP (RFC 9449). The provider does not bind
// tokens to one by itself: give [Provider.Mint] or [Provider.SetClaims] its CNF.
type Prover struct {
	t   testing.TB
	key key
}

// NewProver makes a key (ES256).
func NewProver(t testing.TB) *Prover {
	t.Helper()
	return &Prover{t: t, key: newKey(t, jose.ES256)}
}

// CNF is the claim "cnf" of a token that is bound to the key.
func (d *Prover) CNF() map[string]any {
	d.t.Helper()
	jwk := jose.JSONWebKey{Key: d.key.private.Public()}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		d.t.Fatal(err)
	}
	return map[string]any{"jkt": base64.RawURLEncoding.EncodeToString(sum)}
}

// Proof is the DPoP header of one request: its method and URL (without query and
// fragment), and the token it goes with, if any. Claims are added to, or stand
// instead of, what a proof holds; nil leaves one out.
func (d *Prover) Proof(method, url, token string, claims map[string]any) string {
	d.t.Helper()
	all := map[string]any{"htm": method, "htu": url, "iat": time.Now().Unix(), "jti": rand.Text()}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		all["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		d.t.Fatal(err)
	}
	public := jose.JSONWebKey{Key: d.key.private.Public()}
	return sign(d.t, d.key.algorithm, d.key.private, payload, map[string]any{"typ": "dpop+jwt", "jwk": public})
}
