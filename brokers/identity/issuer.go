package identity

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/gateway"
)

// The kinds of issuers.
const (
	OIDC       = "oidc"        // OAuth 2.1 access tokens that are JWTs (RFC 9068), or OpenID Connect's
	Kubernetes = "kubernetes"  // a cluster's service-account tokens
	SPIFFEJWT  = "spiffe_jwt"  // JWT-SVIDs
	SPIFFEX509 = "spiffe_x509" // X.509-SVIDs, as client certificates
	MTLS       = "mtls"        // other client certificates
)

// An Issuer vouches for workloads. Which fields a kind needs is said by its
// verifier; those of other kinds are refused.
type Issuer struct {
	Name  string // ours, for the record
	Kind  string
	Rules []Rule // whom its credentials stand for; the first that matches decides
	Bound bool   // credentials must be bound to a key, and the key proven

	// Of tokens: oidc, kubernetes, spiffe_jwt.
	Audiences []string // who we are to the issuer; a token must name one

	// Of oidc and kubernetes.
	URL         string        // iss, exactly
	JWKSURL     string        // where its keys are; empty for discovery
	JWKSFile    string        // or in a file
	CAFile      string        // whom to trust there, PEM; empty for the system's
	TokenFile   string        // a bearer token to fetch keys with, read each time; kubernetes
	Algorithms  []string      // default RS256, PS256, ES256, EdDSA
	Skew        time.Duration // how far clocks may be apart; default 30 s
	MaxLifetime time.Duration // of a token, from iat to exp; zero for any
	Refresh     time.Duration // how often keys are fetched again; default 5 m
	MaxStale    time.Duration // how long keys count that cannot be fetched again; default 1 h
	Scopes      []string      // a token must have all of them
	RequireType string        // the typ a token must have, such as "at+jwt"; empty for JWT, at+jwt or none

	// Of spiffe_jwt and spiffe_x509: one or the other.
	WorkloadAPI  string            // its address; bundles of TrustDomains come from there
	TrustDomains []string          // whose SVIDs are taken
	Bundles      map[string]string // files by trust domain: a JWKS or SPIFFE bundle, or PEM for X.509

	// Of mtls.
	CAFiles []string // PEM
	Allow   []string // if any: the only certificates taken, by "sha256:<hex>" of their DER
}

var (
	safeAlgorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	asymmetric     = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

func (i *Identity) add(is Issuer, c Config) error {
	m, err := newMapping(is, c)
	if err != nil {
		return err
	}
	switch is.Kind {
	case OIDC, Kubernetes:
		j, err := newJWTIssuer(is, m, i.gate, c)
		if err != nil {
			return err
		}
		if i.byURL[is.URL] != nil {
			return errors.New("another issuer has the same url")
		}
		i.byURL[is.URL] = j
		i.run = append(i.run, j.keys.run)
	case SPIFFEJWT, SPIFFEX509:
		return i.addSPIFFE(is, m, c)
	case MTLS:
		x, err := newMTLS(is, m, c)
		if err != nil {
			return err
		}
		i.mtls = append(i.mtls, x)
	default:
		return fmt.Errorf("kind %q is not one of those known", is.Kind)
	}
	return nil
}

// A jwtIssuer verifies one issuer's tokens, with its keys and no other's.
type jwtIssuer struct {
	Issuer
	mapping *mapping
	keys    *keySet
	gate    *gate
	now     func() time.Time
}

func newJWTIssuer(is Issuer, m *mapping, g *gate, c Config) (*jwtIssuer, error) {
	if len(is.Algorithms) == 0 {
		is.Algorithms = safeAlgorithms
	}
	is.Skew = or(is.Skew, 30*time.Second)
	u, err := url.Parse(is.URL)
	switch {
	case err != nil || u.Host == "" || !safeURL(u):
		return nil, errors.New("its url must be https://, or http:// on loopback")
	case len(is.Audiences) == 0 || slices.Contains(is.Audiences, ""):
		return nil, errors.New("an audience is required: who we are to it")
	}
	for _, a := range is.Algorithms {
		if !slices.Contains(asymmetric, a) {
			return nil, fmt.Errorf("algorithm %q is none that tells signers from verifiers", a)
		}
	}
	is.RequireType = mediaType(is.RequireType)
	keys, err := newKeySet(is, c)
	if err != nil {
		return nil, err
	}
	return &jwtIssuer{Issuer: is, mapping: m, keys: keys, gate: g, now: c.Now}, nil
}

// verify asks what costs nothing first, and the signature last but for what
// only a verified token should decide.
func (j *jwtIssuer) verify(ctx context.Context, t *token) (subject, error) {
	if !slices.Contains(j.Algorithms, t.alg) {
		return subject{}, refuse(gateway.WhyAlgorithm, nil)
	}
	if !j.typed(t.typ) {
		return subject{}, refuse(gateway.WhyMalformed, errors.New("a typ that is no access token's"))
	}
	if err := forUs(t.claims, j.Audiences); err != nil {
		return subject{}, err
	}
	expires, err := timely(t.claims, j.now(), j.Skew, j.MaxLifetime)
	if err != nil {
		return subject{}, err
	}
	key, err := j.keys.find(ctx, t.kid, t.alg)
	if err != nil {
		return subject{}, err
	}
	if err := j.gate.compute(ctx, func() error { return signed(t.raw, t.alg, key.public) }); err != nil {
		return subject{}, err
	}

	seen := t.claims
	if j.Kind == Kubernetes {
		if seen, err = serviceAccount(seen); err != nil {
			return subject{}, err
		}
	}
	if err := scoped(seen, j.Scopes); err != nil {
		return subject{}, err
	}
	s, err := j.mapping.subject(seen)
	if err != nil {
		return subject{}, err
	}
	s.Credential = credentialOf(t)
	s.expires, s.Expires, s.keys = expires.Add(j.Skew), expires, usedKey{j.keys, key}
	return s, nil
}

// typed refuses tokens that were made for another purpose: an id token where
// access tokens say what they are, a logout token, a DPoP proof.
func (j *jwtIssuer) typed(typ string) bool {
	if j.RequireType != "" {
		return typ == j.RequireType
	}
	return typ == "" || typ == "jwt" || typ == "at+jwt"
}

func forUs(c claims, audiences []string) error {
	aud, ok := c.list("aud")
	if !ok {
		return refuse(gateway.WhyMalformed, errors.New("an aud that is none"))
	}
	if !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(audiences, a) }) {
		return refuse(gateway.WhyAudience, nil)
	}
	return nil
}

// timely returns when a token expires, which it must say.
func timely(c claims, now time.Time, skew, lifetime time.Duration) (time.Time, error) {
	exp, hasExp, ok1 := c.time("exp")
	nbf, hasNbf, ok2 := c.time("nbf")
	iat, hasIat, ok3 := c.time("iat")
	switch {
	case !ok1 || !ok2 || !ok3 || !hasExp:
		return exp, refuse(gateway.WhyMalformed, errors.New("exp is missing, or a time is none"))
	case !now.Before(exp.Add(skew)):
		return exp, refuse(gateway.WhyExpired, nil)
	case hasNbf && nbf.After(now.Add(skew)), hasIat && iat.After(now.Add(skew)):
		return exp, refuse(gateway.WhyEarly, nil)
	case lifetime > 0 && !hasIat:
		return exp, refuse(gateway.WhyMalformed, errors.New("no iat, so its lifetime is unknown"))
	case lifetime > 0 && exp.Sub(iat) > lifetime:
		return exp, refuse(gateway.WhyExpired, errors.New("it lives longer than max_lifetime"))
	}
	return exp, nil
}

// signed verifies with a key that was chosen before: nothing in the token's
// header names another.
func signed(raw, alg string, key crypto.PublicKey) error {
	sig, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
	if err != nil {
		return refuse(gateway.WhyMalformed, errors.New("not a signed token"))
	}
	if _, err := sig.Verify(key); err != nil {
		return refuse(gateway.WhySignature, nil)
	}
	return nil
}

func scoped(c claims, need []string) error {
	if len(need) == 0 {
		return nil
	}
	var have []string
	for _, name := range []string{"scope", "scp"} {
		all, ok := c.list(name)
		if !ok {
			return refuse(gateway.WhyMalformed, errors.New("a scope that is none"))
		}
		for _, s := range all {
			have = append(have, strings.Fields(s)...)
		}
	}
	for _, s := range need {
		if !slices.Contains(have, s) {
			return &gateway.NotIdentified{Why: gateway.WhyScope, Scope: slices.Clone(need)}
		}
	}
	return nil
}

// credentialOf names a token on record: its jti, or else a digest.
func credentialOf(t *token) string {
	if id := t.text("jti"); id != "" && len(id) <= 128 && insertable(id) {
		return id
	}
	sum := digestOf(t.raw)
	return "sha256:" + base64.RawURLEncoding.EncodeToString(sum[:12])
}

// serviceAccount adds namespace, serviceaccount, pod and node to a Kubernetes
// token's claims, where they agree with its subject.
func serviceAccount(c claims) (claims, error) {
	parts := strings.Split(c.text("sub"), ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return nil, refuse(gateway.WhyMapping, errors.New("not a service account"))
	}
	io, _ := c["kubernetes.io"].(map[string]any)
	named := func(what string) string {
		o, _ := io[what].(map[string]any)
		return claims(o).text("name")
	}
	if claims(io).text("namespace") != parts[2] || named("serviceaccount") != parts[3] {
		return nil, refuse(gateway.WhyMapping, errors.New("its kubernetes.io claim is not about its subject"))
	}
	out := claims{}
	for k, v := range c {
		out[k] = v
	}
	out["namespace"], out["serviceaccount"] = parts[2], parts[3]
	for _, what := range []string{"pod", "node"} {
		delete(out, what)
		if n := named(what); n != "" {
			out[what] = n
		}
	}
	return out, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
