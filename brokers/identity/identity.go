// Package identity says who is asking: it turns what a caller presented (an API
// key, a task token, an issuer's JWT, a SPIFFE SVID, a client certificate) into
// a principal that the config names, and checks that the caller holds the key
// that its credential is bound to.
//
// Each kind of credential has a verifier, chosen by the credential's shape and
// never by trying one after another. What a principal may do is not asked here.
package identity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"toolbroker/gateway"
)

// Config is what an Identity is made of.
type Config struct {
	Keys       []APIKey
	Issuers    []Issuer
	TaskTokens func(raw string) (gateway.Principal, error) // verifies task tokens; see tasks.VerifyToken
	Tenants    []string                                    // the only ones a rule can lead to
	Owners     []string                                    // the operators that a rule can name as accountable
	ActDepth   int                                         // how many actors a token's act may nest; default 4

	// Once remembers a proof of possession until it could not be used again, for
	// all replicas, and reports whether it is new; see [Once]. Nil where there
	// are no proofs: they are refused.
	Once func(ctx context.Context, id [sha256.Size]byte, until time.Time) (fresh bool, err error)

	PerSecond int              // tokens and proofs verified in a second, all callers together; default 500
	Now       func() time.Time // default time.Now
	Log       *slog.Logger     // default: nothing is said
}

// Identity implements [gateway.Identity]. It is safe for concurrent use.
type Identity struct {
	keys     map[string]*apiKey
	tasks    func(string) (gateway.Principal, error)
	byURL    map[string]*jwtIssuer  // by the exact iss
	byDomain map[string]*svidIssuer // of JWT-SVIDs, by trust domain
	x509     map[string]*certIssuer // of X.509-SVIDs, by trust domain
	mtls     []*certIssuer
	run      []func(context.Context) // what keeps keys fresh

	proofs   *proofs
	verified *cache // bearer tokens
	chains   *cache // certificates: never in one with what a caller can choose to be the same bytes
	gate     *gate
	now      func() time.Time
}

const (
	longest  = 8 << 10         // of a bearer token, before anything looks into it
	remember = 5 * time.Minute // how long a verified credential is taken without being verified again
)

// A subject is who a verified credential stands for, before its proof.
type subject struct {
	gateway.Principal       // Bound is empty: nothing is proven yet
	bound             bound // what must be proven
	require           bool  // and that something must be
	expires           time.Time
	keys              interface{ live(now time.Time) bool } // whether the key it was verified with still counts; nil for always
}

// New makes an Identity, or says which key, issuer or rule is wrong. It opens
// files, no connection.
func New(c Config) (*Identity, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ActDepth == 0 {
		c.ActDepth = 4
	}
	if c.PerSecond == 0 {
		c.PerSecond = 500
	}
	i := &Identity{
		tasks: c.TaskTokens, byURL: map[string]*jwtIssuer{}, byDomain: map[string]*svidIssuer{}, x509: map[string]*certIssuer{},
		verified: newCache(), chains: newCache(), gate: newGate(c.PerSecond, c.Now), now: c.Now,
	}
	i.proofs = &proofs{once: c.Once, gate: i.gate, now: c.Now}
	var err error
	if i.keys, err = apiKeys(c.Keys); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	names := map[string]bool{}
	for _, is := range c.Issuers {
		if is.Name == "" || names[is.Name] {
			return nil, fmt.Errorf("identity: issuer %q: has no name, or one that is taken", is.Name)
		}
		names[is.Name] = true
		if err := i.add(is, c); err != nil {
			return nil, fmt.Errorf("identity: issuer %s: %w", is.Name, err)
		}
	}
	return i, nil
}

// Run keeps the issuers' keys fresh until ctx ends. Without it keys are fetched
// when a token needs them, and the Workload API is not asked at all.
func (i *Identity) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, run := range i.run {
		all.Go(func() { run(ctx) })
	}
	all.Wait()
	return nil
}

// Identify implements [gateway.Identity]. No error holds what was presented.
func (i *Identity) Identify(ctx context.Context, cred gateway.Credential) (gateway.Principal, error) {
	raw := cred.Bearer.Reveal()
	if raw == "" {
		return i.certificate(ctx, cred)
	}
	if len(raw) > longest {
		return gateway.Principal{}, refuse(gateway.WhyMalformed, errors.New("longer than a token may be"))
	}
	s, err := i.bearer(ctx, raw, cred.Source)
	if err != nil {
		return gateway.Principal{}, err
	}
	// Possession is shown with each request, however well the token is known.
	return i.proofs.check(ctx, s, raw, cred)
}

// bearer returns whom a bearer token stands for, from memory where it can.
func (i *Identity) bearer(ctx context.Context, raw, source string) (*subject, error) {
	if isAPIKey(raw) {
		return i.apiKey(raw)
	}
	digest := digestOf(raw)
	if s, ok := i.verified.get(digest, i.now()); ok {
		return s, nil
	}
	t, err := peek(raw)
	if err != nil {
		return nil, refuse(gateway.WhyMalformed, err)
	}
	verify, err := i.verifier(t)
	if err != nil {
		return nil, err
	}
	leave, err := i.gate.enter(source)
	if err != nil {
		return nil, err
	}
	s, err := verify(ctx, t)
	leave(err == nil)
	if err != nil {
		return nil, err
	}
	// Only what was verified is remembered: a flood of bad tokens pushes nothing out.
	i.verified.put(digest, &s, i.now())
	return &s, nil
}

// verifier chooses by what the token says of itself, which nobody has verified
// yet: the verifier does, with the keys of that issuer and of no other.
func (i *Identity) verifier(t *token) (func(context.Context, *token) (subject, error), error) {
	if t.typ == taskType {
		if i.tasks == nil {
			return nil, refuse(gateway.WhyIssuer, nil)
		}
		return i.taskToken, nil
	}
	if is := i.byURL[t.text("iss")]; is != nil {
		return is.verify, nil
	}
	if is := i.byDomain[trustDomain(t.text("sub"))]; is != nil {
		return is.verify, nil
	}
	return nil, refuse(gateway.WhyIssuer, nil)
}

// taskToken asks the task registry's verifier. Whether its task still runs is
// not asked here.
func (i *Identity) taskToken(_ context.Context, t *token) (subject, error) {
	p, err := i.tasks(t.raw)
	if err != nil {
		if _, ok := errors.AsType[*gateway.NotIdentified](err); !ok {
			err = refuse(gateway.WhySignature, err)
		}
		return subject{}, err
	}
	if !i.now().Before(p.Expires) {
		return subject{}, refuse(gateway.WhyExpired, nil)
	}
	b, err := parseBound(p.Bound)
	if err != nil {
		return subject{}, refuse(gateway.WhyProof, err)
	}
	p.Bound = ""
	return subject{Principal: p, bound: b, expires: p.Expires}, nil
}

// refuse makes a refusal; why is one of the gateway's words, and err is ours.
func refuse(why string, err error) error { return &gateway.NotIdentified{Why: why, Err: err} }
