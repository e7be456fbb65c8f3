package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"toolbroker/gateway"
)

// bundles are trust domains' keys.
type bundles interface {
	x509(spiffeid.TrustDomain, time.Time) (*x509bundle.Bundle, error)
	jwt(spiffeid.TrustDomain, time.Time) (*jwtbundle.Bundle, error)
}

// addSPIFFE makes an issuer of one trust domain or several.
func (i *Identity) addSPIFFE(is Issuer, m *mapping, c Config) error {
	from, domains, err := i.bundles(is, c)
	if err != nil {
		return err
	}
	if is.Kind == SPIFFEJWT && (len(is.Audiences) == 0 || slices.Contains(is.Audiences, "")) {
		return errors.New("an audience is required: who we are to it")
	}
	is.Skew = or(is.Skew, 30*time.Second)
	if is.Skew > time.Minute {
		return errors.New("skew: go-spiffe allows one minute at most")
	}
	for _, td := range domains {
		name := td.Name()
		if is.Kind == SPIFFEX509 {
			if i.x509[name] != nil {
				return fmt.Errorf("another issuer has trust domain %s", name)
			}
			i.x509[name] = newX509SVID(is, m, from)
			continue
		}
		if i.byDomain[name] != nil {
			return fmt.Errorf("another issuer has trust domain %s", name)
		}
		i.byDomain[name] = &svidIssuer{Issuer: is, mapping: m, from: from, gate: i.gate, now: c.Now}
	}
	return nil
}

func (i *Identity) bundles(is Issuer, c Config) (bundles, []spiffeid.TrustDomain, error) {
	names := slices.Clone(is.TrustDomains)
	for name := range is.Bundles {
		names = append(names, name)
	}
	var domains []spiffeid.TrustDomain
	for _, name := range names {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil || td.Name() != name {
			return nil, nil, fmt.Errorf("%q is not a trust domain", name)
		}
		domains = append(domains, td)
	}
	switch {
	case (is.WorkloadAPI != "") == (len(is.Bundles) > 0):
		return nil, nil, errors.New("either a Workload API's address or bundle files are required")
	case is.WorkloadAPI != "":
		if len(is.TrustDomains) == 0 {
			return nil, nil, errors.New("trust domains are required: a Workload API also has those that are federated")
		}
		if err := workloadapi.ValidateAddress(is.WorkloadAPI); err != nil {
			return nil, nil, errors.New("the Workload API's address must be unix:///PATH, or tcp://IP:PORT")
		}
		w := &workload{address: is.WorkloadAPI, maxStale: or(is.MaxStale, time.Hour), now: c.Now, log: func(err error) {
			c.Log.Warn("the Workload API does not answer; bundles there were count for a while", "issuer", is.Name, "err", err)
		}}
		i.run = append(i.run, w.run)
		return w, domains, nil
	case len(is.TrustDomains) > 0:
		return nil, nil, errors.New("bundle files name their trust domains themselves")
	}
	files := bundleFiles{}
	for name, path := range is.Bundles {
		td := spiffeid.RequireTrustDomainFromString(name)
		w, err := watch([]string{path}, is.MaxStale, c, func(texts [][]byte) (*trust, error) { return parseBundle(is.Kind, td, texts[0]) })
		if err != nil {
			return nil, nil, err
		}
		files[td] = w
	}
	return files, domains, nil
}

// A svidIssuer verifies JWT-SVIDs of one trust domain.
type svidIssuer struct {
	Issuer
	mapping *mapping
	from    bundles
	gate    *gate
	now     func() time.Time
}

func (s *svidIssuer) verify(ctx context.Context, t *token) (subject, error) {
	id, err := spiffeid.FromString(t.text("sub"))
	if err != nil {
		return subject{}, refuse(gateway.WhyMalformed, errors.New("a subject that is no SPIFFE ID"))
	}
	if !slices.Contains(asymmetric, t.alg) || t.alg == "EdDSA" {
		return subject{}, refuse(gateway.WhyAlgorithm, nil)
	}
	if t.typ != "" && t.typ != "jwt" && t.typ != "jose" {
		return subject{}, refuse(gateway.WhyMalformed, errors.New("a typ that is no JWT-SVID's"))
	}
	if err := forUs(t.claims, s.Audiences); err != nil {
		return subject{}, err
	}
	now := s.now()
	expires, err := timely(t.claims, now, s.Skew, s.MaxLifetime)
	if err != nil {
		return subject{}, err
	}
	bundle, err := s.from.jwt(id.TrustDomain(), now)
	if err != nil {
		return subject{}, refuse(gateway.WhyKeys, err)
	}
	public, ok := bundle.FindJWTAuthority(t.kid)
	switch {
	case !ok:
		return subject{}, refuse(gateway.WhySignature, errors.New("its trust domain has no such key"))
	case !(&key{public: public}).signs(t.alg):
		return subject{}, refuse(gateway.WhyAlgorithm, errors.New("the key it names is for another"))
	}
	if err := s.gate.compute(ctx, func() error {
		if _, err := jwtsvid.ParseAndValidate(t.raw, bundle, s.Audiences); err != nil {
			return refuse(gateway.WhySignature, nil)
		}
		return nil
	}); err != nil {
		return subject{}, err
	}
	out, err := s.mapping.subject(spiffeClaims(t.claims, id))
	if err != nil {
		return subject{}, err
	}
	out.Credential = credentialOf(t)
	out.expires, out.Expires = expires.Add(s.Skew), expires
	out.keys = usedAuthority{s.from, id.TrustDomain(), t.kid, public}
	return out, nil
}

// usedAuthority is the key of a trust domain that a token was verified with.
type usedAuthority struct {
	from   bundles
	domain spiffeid.TrustDomain
	kid    string
	public crypto.PublicKey
}

func (u usedAuthority) live(now time.Time) bool {
	b, err := u.from.jwt(u.domain, now)
	if err != nil {
		return false
	}
	have, ok := b.FindJWTAuthority(u.kid)
	return ok && equal(have, u.public)
}

func newX509SVID(is Issuer, m *mapping, from bundles) *certIssuer {
	return &certIssuer{Issuer: is, mapping: m, verify: func(peer []*x509.Certificate, now time.Time) (verified, error) {
		id, err := x509svid.IDFromCert(peer[0])
		if err != nil {
			return verified{}, refuse(gateway.WhyMalformed, errors.New("a certificate without a SPIFFE ID"))
		}
		bundle, err := from.x509(id.TrustDomain(), now)
		if err != nil {
			return verified{}, refuse(gateway.WhyKeys, err)
		}
		id, chains, err := x509svid.Verify(peer, bundle, x509svid.WithTime(now))
		if err != nil {
			return verified{}, notVerified(peer, now, err)
		}
		chain := chains[0]
		return verified{
			claims: spiffeClaims(certClaims(peer[0]), id), expires: earliest(chain), root: usedSVIDRoot{from, id.TrustDomain(), chain[len(chain)-1]},
		}, nil
	}}
}

type usedSVIDRoot struct {
	from   bundles
	domain spiffeid.TrustDomain
	root   *x509.Certificate
}

func (u usedSVIDRoot) live(now time.Time) bool {
	b, err := u.from.x509(u.domain, now)
	return err == nil && b.HasX509Authority(u.root)
}

// spiffeClaims adds what rules see of a SPIFFE ID: sub, trust_domain, path.
func spiffeClaims(c claims, id spiffeid.ID) claims {
	out := claims{}
	for k, v := range c {
		out[k] = v
	}
	out["sub"], out["trust_domain"], out["path"] = id.String(), id.TrustDomain().Name(), strings.TrimPrefix(id.Path(), "/")
	return out
}

// trustDomain returns a SPIFFE ID's trust domain, or "".
func trustDomain(id string) string {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// bundleFiles are bundles by trust domain, from files.
type bundleFiles map[spiffeid.TrustDomain]*watched[trust]

// trust is what a bundle file holds, for SVIDs of one kind.
type trust struct {
	x509 *x509bundle.Bundle
	jwt  *jwtbundle.Bundle
}

func (f bundleFiles) x509(td spiffeid.TrustDomain, now time.Time) (*x509bundle.Bundle, error) {
	t, err := f.get(td, now)
	if err != nil {
		return nil, err
	}
	return t.x509, nil
}

func (f bundleFiles) jwt(td spiffeid.TrustDomain, now time.Time) (*jwtbundle.Bundle, error) {
	t, err := f.get(td, now)
	if err != nil {
		return nil, err
	}
	return t.jwt, nil
}

func (f bundleFiles) get(td spiffeid.TrustDomain, now time.Time) (*trust, error) {
	w, ok := f[td]
	if !ok {
		return nil, errors.New("no bundle of that trust domain")
	}
	return w.get(now)
}

// parseBundle reads a SPIFFE bundle; or, for JWT-SVIDs, a plain JWKS; or, for
// X.509-SVIDs, PEM.
func parseBundle(kind string, td spiffeid.TrustDomain, text []byte) (*trust, error) {
	b, err := spiffebundle.Parse(td, text)
	switch {
	case kind == SPIFFEX509 && err == nil && len(b.X509Authorities()) > 0:
		return &trust{x509: b.X509Bundle()}, nil
	case kind == SPIFFEX509:
		if certs, err := parseCertificates(text); err == nil {
			return &trust{x509: x509bundle.FromX509Authorities(td, certs)}, nil
		}
	case err == nil && len(b.JWTAuthorities()) > 0:
		return &trust{jwt: b.JWTBundle()}, nil
	default:
		if plain, err := jwtbundle.Parse(td, text); err == nil && len(plain.JWTAuthorities()) > 0 {
			return &trust{jwt: plain}, nil
		}
	}
	return nil, errors.New("a bundle file holds no key for such SVIDs")
}

// A workload is a Workload API whose bundles are watched. Without an answer from
// it there are no bundles; once it stops answering, those there were count until
// maxStale.
type workload struct {
	address  string
	maxStale time.Duration
	now      func() time.Time
	log      func(error)

	x509s  atomic.Pointer[x509bundle.Set]
	jwts   atomic.Pointer[jwtbundle.Set]
	silent [2]atomic.Int64 // since when there is no answer, Unix nanoseconds; of X.509, of JWT; 0 while there is
}

func (w *workload) run(ctx context.Context) {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(w.address))
	if err != nil {
		w.log(err)
		return
	}
	defer client.Close()
	var both sync.WaitGroup
	for which, watch := range []func() error{
		func() error { return client.WatchX509Bundles(ctx, w) },
		func() error { return client.WatchJWTBundles(ctx, w) },
	} {
		both.Go(func() {
			for ctx.Err() == nil {
				err := watch() // until ctx ends, or it says that we may not
				if ctx.Err() != nil {
					return
				}
				w.silence(which, err)
				select {
				case <-ctx.Done():
				case <-time.After(failedEvery):
				}
			}
		})
	}
	both.Wait()
}

// OnX509BundlesUpdate implements [workloadapi.X509BundleWatcher].
func (w *workload) OnX509BundlesUpdate(s *x509bundle.Set) { w.x509s.Store(s); w.silent[0].Store(0) }

// OnX509BundlesWatchError implements [workloadapi.X509BundleWatcher].
func (w *workload) OnX509BundlesWatchError(err error) { w.silence(0, err) }

// OnJWTBundlesUpdate implements [workloadapi.JWTBundleWatcher].
func (w *workload) OnJWTBundlesUpdate(s *jwtbundle.Set) { w.jwts.Store(s); w.silent[1].Store(0) }

// OnJWTBundlesWatchError implements [workloadapi.JWTBundleWatcher].
func (w *workload) OnJWTBundlesWatchError(err error) { w.silence(1, err) }

func (w *workload) silence(which int, err error) {
	if w.silent[which].CompareAndSwap(0, w.now().UnixNano()) {
		w.log(err)
	}
}

func (w *workload) stale(which int, now time.Time) bool {
	since := w.silent[which].Load()
	return since != 0 && now.Sub(time.Unix(0, since)) >= w.maxStale
}

var errSilent = errors.New("the Workload API does not answer")

func (w *workload) x509(td spiffeid.TrustDomain, now time.Time) (*x509bundle.Bundle, error) {
	set := w.x509s.Load()
	if set == nil || w.stale(0, now) {
		return nil, errSilent
	}
	return set.GetX509BundleForTrustDomain(td)
}

func (w *workload) jwt(td spiffeid.TrustDomain, now time.Time) (*jwtbundle.Bundle, error) {
	set := w.jwts.Load()
	if set == nil || w.stale(1, now) {
		return nil, errSilent
	}
	return set.GetJWTBundleForTrustDomain(td)
}
