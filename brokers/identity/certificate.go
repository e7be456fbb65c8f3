package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"toolbroker/gateway"
)

// A certIssuer verifies client certificates: X.509-SVIDs, or others.
type certIssuer struct {
	Issuer
	mapping *mapping
	verify  func(peer []*x509.Certificate, now time.Time) (verified, error)
}

// verified is what a chain that verifies comes to.
type verified struct {
	claims  claims
	expires time.Time // of the first certificate in the chain to
	root    interface{ live(time.Time) bool }
}

const longestChain = 8

// certificate says whose the connection's client certificate is; TLS has shown
// that its key is the caller's.
func (i *Identity) certificate(ctx context.Context, cred gateway.Credential) (gateway.Principal, error) {
	peer, none := cred.Proof.Peer, gateway.Principal{}
	switch {
	case len(peer) == 0:
		return none, refuse(gateway.WhyNone, nil)
	case cred.DPoP || cred.Proof.DPoP != "":
		return none, refuse(gateway.WhyProof, errors.New("a DPoP proof without a token"))
	case len(peer) > longestChain:
		return none, refuse(gateway.WhyMalformed, errors.New("a longer chain of certificates than is taken"))
	case len(i.mtls) == 0 && len(i.x509) == 0:
		return none, refuse(gateway.WhyNone, errors.New("client certificates identify nobody here"))
	}
	digest := digestOfChain(peer)
	now := i.now()
	if s, ok := i.chains.get(digest, now); ok {
		return s.Principal, nil
	}
	leave, err := i.gate.enter(cred.Source)
	if err != nil {
		return none, err
	}
	var s subject
	err = i.gate.compute(ctx, func() (err error) {
		s, err = i.chain(peer, now)
		return err
	})
	leave(err == nil)
	if err != nil {
		return none, err
	}
	i.chains.put(digest, &s, now)
	return s.Principal, nil
}

// chain asks the issuer that the certificate's SPIFFE ID names, or else each
// that takes other certificates.
func (i *Identity) chain(peer []*x509.Certificate, now time.Time) (subject, error) {
	issuers := i.mtls
	if len(peer[0].URIs) == 1 {
		if is := i.x509[trustDomain(peer[0].URIs[0].String())]; is != nil {
			issuers = []*certIssuer{is}
		}
	}
	err := refuse(gateway.WhyIssuer, nil)
	for _, is := range issuers {
		v, no := is.verify(peer, now)
		if no != nil {
			if n, ok := errors.AsType[*gateway.NotIdentified](no); !ok || n.Why != gateway.WhySignature || len(issuers) == 1 {
				err = no // more than "not mine"
			}
			continue
		}
		s, no := is.mapping.subject(v.claims)
		if no != nil {
			return subject{}, no
		}
		s.Bound = x5tPrefix + certThumb(peer[0])
		s.Credential = fingerprint(peer[0])
		s.Expires, s.expires, s.keys = v.expires, v.expires, v.root
		return s, nil
	}
	return subject{}, err
}

func newMTLS(is Issuer, m *mapping, c Config) (*certIssuer, error) {
	if len(is.CAFiles) == 0 {
		return nil, errors.New("a CA file is required")
	}
	is.Allow = slices.Clone(is.Allow)
	for n, a := range is.Allow {
		if is.Allow[n] = strings.ToLower(a); !hash.MatchString(is.Allow[n]) {
			return nil, errors.New("allow: write sha256:<64 hex digits> of a certificate")
		}
	}
	roots, err := watch(is.CAFiles, is.MaxStale, c, parseRoots)
	if err != nil {
		return nil, err
	}
	return &certIssuer{Issuer: is, mapping: m, verify: func(peer []*x509.Certificate, now time.Time) (verified, error) {
		have, err := roots.get(now)
		if err != nil {
			return verified{}, refuse(gateway.WhyKeys, err)
		}
		leaf := peer[0]
		if leaf.IsCA {
			return verified{}, refuse(gateway.WhySignature, errors.New("an authority's own certificate"))
		}
		between := x509.NewCertPool()
		for _, c := range peer[1:] {
			between.AddCert(c)
		}
		chains, err := leaf.Verify(x509.VerifyOptions{
			Roots: have.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			return verified{}, notVerified(peer, now, err)
		}
		if len(is.Allow) > 0 && !slices.Contains(is.Allow, fingerprint(leaf)) {
			return verified{}, refuse(gateway.WhyMapping, errors.New("not among the certificates that allow lists"))
		}
		return verified{claims: certClaims(leaf), expires: earliest(chains[0]), root: usedRoot{roots, chains[0][len(chains[0])-1]}}, nil
	}}, nil
}

// notVerified says what is wrong in our own words: x509's name the certificate.
func notVerified(peer []*x509.Certificate, now time.Time, err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			if now.Before(peer[0].NotBefore) {
				return refuse(gateway.WhyEarly, errors.New("the certificate"))
			}
			return refuse(gateway.WhyExpired, errors.New("the certificate, or one above it"))
		case x509.IncompatibleUsage:
			return refuse(gateway.WhySignature, errors.New("the certificate is not for clients"))
		}
	}
	return refuse(gateway.WhySignature, errors.New("the certificate does not lead to an authority that is taken"))
}

func earliest(chain []*x509.Certificate) time.Time {
	first := chain[0].NotAfter
	for _, c := range chain {
		if c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first
}

// certClaims is what rules see of a certificate: cn, dns, uri, email, serial.
func certClaims(c *x509.Certificate) claims {
	list := func(all []string) []any {
		var out []any
		for _, s := range all {
			out = append(out, s)
		}
		return out
	}
	var uris []string
	for _, u := range c.URIs {
		uris = append(uris, u.String())
	}
	out := claims{"serial": c.SerialNumber.Text(16)}
	for name, all := range map[string][]string{"dns": c.DNSNames, "uri": uris, "email": c.EmailAddresses} {
		if len(all) > 0 {
			out[name] = list(all)
		}
	}
	if c.Subject.CommonName != "" {
		out["cn"] = c.Subject.CommonName
	}
	return out
}

type roots struct {
	pool *x509.CertPool
	all  []*x509.Certificate
}

func parseRoots(texts [][]byte) (*roots, error) {
	r := &roots{pool: x509.NewCertPool()}
	for _, text := range texts {
		certs, err := parseCertificates(text)
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			r.pool.AddCert(c)
		}
		r.all = append(r.all, certs...)
	}
	return r, nil
}

type usedRoot struct {
	roots *watched[roots]
	root  *x509.Certificate
}

func (u usedRoot) live(now time.Time) bool {
	have, err := u.roots.get(now)
	return err == nil && slices.ContainsFunc(have.all, u.root.Equal)
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func digestOfChain(peer []*x509.Certificate) [sha256.Size]byte {
	var each []byte
	for _, c := range peer {
		sum := sha256.Sum256(c.Raw)
		each = append(each, sum[:]...)
	}
	return sha256.Sum256(each)
}
