package identity

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// A bound is the keys that a token is bound to; whoever presents it must hold
// each (RFC 7800).
type bound struct {
	jkt string // JWK thumbprint, shown by DPoP (RFC 9449)
	x5t string // a certificate's, shown by TLS (RFC 8705)
}

const (
	jktPrefix = "jkt:"
	x5tPrefix = "x5t#S256:"

	proofAge  = 60 * time.Second
	proofSkew = 30 * time.Second
)

var (
	thumbprint = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)
	proofAlgs  = []string{"ES256", "ES384", "EdDSA", "RS256", "PS256"}
)

// confirmation reads cnf. A way to be bound that we cannot check is refused, not
// ignored.
func confirmation(c claims) (b bound, err error) {
	v, there := c["cnf"]
	if !there {
		return bound{}, nil
	}
	o, _ := v.(map[string]any)
	for name, v := range o {
		s, _ := v.(string)
		switch {
		case name == "jkt" && thumbprint.MatchString(s):
			b.jkt = s
		case name == "x5t#S256" && thumbprint.MatchString(s):
			b.x5t = s
		default:
			return bound{}, refuse(gateway.WhyProof, errors.New("bound in a way that cannot be checked"))
		}
	}
	if b == (bound{}) {
		return bound{}, refuse(gateway.WhyProof, errors.New("bound in a way that cannot be checked"))
	}
	return b, nil
}

// parseBound reads what a principal says it is bound to.
func parseBound(s string) (b bound, err error) {
	if s == "" {
		return b, nil
	}
	if rest, ok := strings.CutPrefix(s, jktPrefix); ok && thumbprint.MatchString(rest) {
		return bound{jkt: rest}, nil
	}
	if rest, ok := strings.CutPrefix(s, x5tPrefix); ok && thumbprint.MatchString(rest) {
		return bound{x5t: rest}, nil
	}
	return b, errors.New("bound in a way that cannot be checked")
}

// proofs checks that callers hold the keys that their credentials are bound to.
type proofs struct {
	once func(context.Context, [sha256.Size]byte, time.Time) (bool, error)
	gate *gate
	now  func() time.Time
}

// check returns the principal with the key it proved. A proof that nobody asked
// for is checked too: who sends one means it.
func (ps *proofs) check(ctx context.Context, s *subject, raw string, cred gateway.Credential) (gateway.Principal, error) {
	p, none := s.Principal, gateway.Principal{}
	if s.bound.x5t != "" {
		if len(cred.Proof.Peer) == 0 || !same(certThumb(cred.Proof.Peer[0]), s.bound.x5t) {
			return none, refuse(gateway.WhyProof, errors.New("the token is bound to a client certificate that this connection does not have"))
		}
		p.Bound = x5tPrefix + s.bound.x5t
	}
	if s.bound.jkt != "" || cred.DPoP || cred.Proof.DPoP != "" {
		jkt, err := ps.dpop(ctx, s, raw, cred)
		if err != nil {
			return none, err
		}
		if s.bound.jkt != "" {
			p.Bound = jktPrefix + jkt
		}
	}
	if s.require && p.Bound == "" {
		return none, refuse(gateway.WhyProof, errors.New("the config takes only tokens that are bound to a key"))
	}
	return p, nil
}

func (ps *proofs) dpop(ctx context.Context, s *subject, raw string, cred gateway.Credential) (jkt string, err error) {
	switch {
	case s.bound.jkt == "" && cred.DPoP:
		return "", refuse(gateway.WhyProof, errors.New("the scheme is DPoP, and the token is bound to no key"))
	case cred.Proof.Proven != "": // the whole request's, see Proven
		jkt, _ = strings.CutPrefix(cred.Proof.Proven, jktPrefix)
	case cred.Proof.Method == "":
		return "", refuse(gateway.WhyProof, errors.New("the token is bound to a key, and without an HTTP request there is nothing to prove it with"))
	case s.bound.jkt != "" && !cred.DPoP:
		return "", refuse(gateway.WhyProof, errors.New("the token is bound to a key, and the scheme is not DPoP"))
	case cred.Proof.URL == "":
		return "", refuse(gateway.WhyProof, errors.New("the token is bound to a key, and it is not known at which address it was presented"))
	default:
		if jkt, err = ps.verify(ctx, cred.Proof, raw); err != nil {
			return "", err
		}
	}
	if s.bound.jkt != "" && !same(jkt, s.bound.jkt) {
		return "", refuse(gateway.WhyProof, errors.New("the proof is another key's"))
	}
	return jkt, nil
}

// Proven implements [gateway.Identity].
func (i *Identity) Proven(ctx context.Context, cred gateway.Credential) (string, error) {
	if cred.Proof.DPoP == "" {
		if len(cred.Proof.Peer) == 0 {
			return "", nil
		}
		return x5tPrefix + certThumb(cred.Proof.Peer[0]), nil
	}
	leave, err := i.gate.enter(cred.Source)
	if err != nil {
		return "", err
	}
	jkt, err := i.proofs.verify(ctx, cred.Proof, "")
	leave(false) // anybody can make a good proof, so that it is one says nothing for its source
	if err != nil {
		return "", err
	}
	return jktPrefix + jkt, nil
}

// verify checks a DPoP proof for this request and, where there is one, for this
// token; it returns the thumbprint of the key that made it. A proof is good once.
func (ps *proofs) verify(ctx context.Context, proof gateway.Proof, access string) (jkt string, err error) {
	bad := func(text string) (string, error) { return "", refuse(gateway.WhyProof, errors.New(text)) }
	t, err := peek(proof.DPoP)
	if err != nil {
		return bad("the DPoP proof is none")
	}
	public, err := proofKey(t)
	if err != nil {
		return "", refuse(gateway.WhyProof, err)
	}
	iat, hasIat, ok := t.time("iat")
	now := ps.now()
	switch {
	case t.typ != "dpop+jwt":
		return bad("the DPoP proof's typ is not dpop+jwt")
	case !slices.Contains(proofAlgs, t.alg) || !(&key{public: public.Key}).signs(t.alg):
		return "", refuse(gateway.WhyAlgorithm, errors.New("of the DPoP proof"))
	case t.text("htm") == "" || t.text("htm") != proof.Method:
		return bad("the DPoP proof is for another method")
	case !sameURL(t.text("htu"), proof.URL):
		return bad("the DPoP proof is for another URL")
	case !hasIat || !ok || iat.Before(now.Add(-proofAge-proofSkew)) || iat.After(now.Add(proofSkew)):
		return bad("the DPoP proof was not made just now")
	case t.text("jti") == "" || len(t.text("jti")) > maxValue:
		return bad("the DPoP proof has no jti of reasonable length")
	}
	if access != "" {
		sum := sha256.Sum256([]byte(access))
		if !same(t.text("ath"), base64.RawURLEncoding.EncodeToString(sum[:])) {
			return bad("the DPoP proof is for another token")
		}
	}
	if err := ps.gate.compute(ctx, func() error { return signed(t.raw, t.alg, public.Key) }); err != nil {
		return "", refuse(gateway.WhyProof, fmt.Errorf("DPoP: %w", err))
	}
	sum, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return bad("the DPoP proof's key has no thumbprint")
	}
	jkt = base64.RawURLEncoding.EncodeToString(sum)
	if ps.once == nil {
		return bad("proofs cannot be remembered here, so none is taken")
	}
	// Last, so that only whole proofs are remembered; and before the answer, so
	// that of two that come at once one is let in.
	fresh, err := ps.once(ctx, sha256.Sum256([]byte("dpop\x00"+jkt+"\x00"+t.text("jti"))), iat.Add(proofAge+2*proofSkew))
	if err != nil {
		return "", refuse(gateway.WhyProof, fmt.Errorf("whether the proof is new is unknown: %w", err))
	}
	if !fresh {
		return "", refuse(gateway.WhyReplay, nil)
	}
	return jkt, nil
}

// proofKey returns the public key in a proof's header.
func proofKey(t *token) (jose.JSONWebKey, error) {
	var none, jwk jose.JSONWebKey
	var h struct {
		JWK jsontext.Value `json:"jwk"`
	}
	head, _, _ := strings.Cut(t.raw, ".")
	text, err := strict.DecodeString(head)
	if err != nil || json.Unmarshal(text, &h) != nil || h.JWK.Kind() != '{' {
		return none, errors.New("the DPoP proof's header holds no key")
	}
	k, err := parseKey(h.JWK)
	if err != nil || k == nil {
		return none, errors.New("the DPoP proof's key is not a public key of a kind that is taken")
	}
	if r, ok := k.public.(*rsa.PublicKey); ok && r.N.BitLen() > 4096 {
		return none, errors.New("the DPoP proof's key is larger than is taken")
	}
	jwk.Key = k.public
	return jwk, nil
}

// sameURL compares as RFC 9449 asks: without query and fragment, letters' case
// in the scheme and host and a default port making no difference.
func sameURL(a, b string) bool {
	x, ok1 := plainURL(a)
	y, ok2 := plainURL(b)
	return ok1 && ok2 && x == y
}

func plainURL(s string) (string, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", false
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	default:
		return "", false
	}
	return scheme + "://" + host + or(u.EscapedPath(), "/"), true
}

func certThumb(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
