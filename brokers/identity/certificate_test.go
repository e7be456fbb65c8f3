package identity_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

// An authority issues certificates.
type authority struct {
	clock *clock
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	n     int64
}

func newCA(t testing.TB, c *clock, change ...func(*x509.Certificate)) *authority {
	a := &authority{clock: c, key: newEC(t)}
	a.cert = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "a test's authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key, change...)
	return a
}

func (a *authority) sign(t testing.TB, c *x509.Certificate, parent *x509.Certificate, key *ecdsa.PrivateKey, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	a.n++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.n), a.clock.now().Add(-time.Hour), a.clock.now().Add(time.Hour)
	for _, f := range change {
		f(c)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) issue(t testing.TB, change ...func(*x509.Certificate)) *x509.Certificate {
	return a.sign(t, &x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, newEC(t), change...)
}

// below is an authority that a signs for.
func (a *authority) below(t testing.TB) *authority {
	b := &authority{clock: a.clock, key: newEC(t)}
	b.cert = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "below"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, a.cert, b.key)
	return b
}

func (a *authority) file(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "ca.pem")
	a.write(t, path)
	return path
}

func (a *authority) write(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func leaf(cn string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: cn} }
}

func named(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, s := range uris {
			u, _ := url.Parse(s)
			c.URIs = append(c.URIs, u)
		}
	}
}

func chainOf(certs ...*x509.Certificate) []*x509.Certificate { return certs }

func thumbOfCert(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func presents(certs ...*x509.Certificate) gateway.Credential {
	return gateway.Credential{Proof: gateway.Proof{Method: "POST", URL: here, Peer: certs}}
}

func TestClientCertificates(t *testing.T) {
	c := newClock()
	ca, other, stranger := newCA(t, c), newCA(t, c), newCA(t, c)
	mtls := func(name string, a *authority, change ...func(*identity.Issuer)) identity.Issuer {
		is := identity.Issuer{Name: name, Kind: identity.MTLS, CAFiles: []string{a.file(t)}}
		rules(identity.Rule{When: map[string]string{"dns": "*.agents.example"}, Principal: name + ":{dns}"},
			identity.Rule{When: map[string]string{"serial": "ff"}, Principal: "serial:{serial}"}, identity.Rule{Principal: name + ":{cn}"})(&is)
		for _, f := range change {
			f(&is)
		}
		return is
	}
	listed := other.issue(t, leaf("listed"))
	sum := sha256.Sum256(listed.Raw)
	i := open(t, c, mtls("one", ca), mtls("two", other, func(is *identity.Issuer) { is.Allow = []string{"sha256:" + hex.EncodeToString(sum[:])} }))

	good := ca.issue(t, leaf("triage"))
	for range 2 { // remembered or not
		p, err := ask(t, i, presents(good))
		goodSum := sha256.Sum256(good.Raw)
		if err != nil || p.ID != "one:triage" || p.Authn != gateway.AuthnMTLS || p.Issuer != "one" || p.Bound != "x5t#S256:"+thumbOfCert(good) ||
			p.Credential != "sha256:"+hex.EncodeToString(goodSum[:]) || !p.Expires.Equal(good.NotAfter) {
			t.Errorf("%+v %v", p, err)
		}
	}
	between := ca.below(t)
	usage := func(all ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = all }
	}
	many := []*x509.Certificate{good}
	for range 8 {
		many = append(many, stranger.cert)
	}
	proving := presents(good)
	proving.DPoP, proving.Proof.DPoP = true, "x"
	for name, tt := range map[string]struct {
		cred gateway.Credential
		why  string
		id   string
	}{
		"by a DNS name":                {presents(ca.issue(t, func(c *x509.Certificate) { c.DNSNames = []string{"a.agents.example"} })), "taken", "one:a.agents.example"},
		"by a serial":                  {presents(ca.issue(t, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(255) })), "taken", "serial:ff"},
		"with one between":             {presents(between.issue(t, leaf("deep")), between.cert), "taken", "one:deep"},
		"the one between left out":     {presents(between.issue(t, leaf("deep"))), gateway.WhySignature, ""},
		"another authority's, listed":  {presents(listed), "taken", "two:listed"},
		"another's, not listed":        {presents(other.issue(t, leaf("x"))), gateway.WhyMapping, ""},
		"a stranger's":                 {presents(stranger.issue(t, leaf("triage"))), gateway.WhyIssuer, ""},
		"a stranger's, with our CA":    {presents(stranger.issue(t, leaf("triage")), ca.cert), gateway.WhyIssuer, ""},
		"a stranger's, with its CA":    {presents(stranger.issue(t, leaf("triage")), stranger.cert), gateway.WhyIssuer, ""},
		"expired":                      {presents(ca.issue(t, leaf("x"), func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Minute) })), gateway.WhyExpired, ""},
		"not yet valid":                {presents(ca.issue(t, leaf("x"), func(c *x509.Certificate) { c.NotBefore = c.NotAfter.Add(-time.Minute) })), gateway.WhyEarly, ""},
		"for servers only":             {presents(ca.issue(t, leaf("x"), usage(x509.ExtKeyUsageServerAuth))), gateway.WhyIssuer, ""},
		"the authority's own":          {presents(ca.cert), gateway.WhyIssuer, ""},
		"a name with a line break":     {presents(ca.issue(t, leaf("a\nb"))), gateway.WhyMapping, ""},
		"a name with a star":           {presents(ca.issue(t, func(c *x509.Certificate) { c.DNSNames = []string{"*.agents.example"} })), gateway.WhyMapping, ""},
		"no name":                      {presents(ca.issue(t)), gateway.WhyMapping, ""},
		"two DNS names":                {presents(ca.issue(t, func(c *x509.Certificate) { c.DNSNames = []string{"a.agents.example", "b"} })), gateway.WhyMapping, ""},
		"a longer chain than is taken": {presents(many...), gateway.WhyMalformed, ""},
		"a proof without a token":      {proving, gateway.WhyProof, ""},
		"nothing":                      {presents(), gateway.WhyNone, ""},
	} {
		p, err := ask(t, i, tt.cred)
		// Where two issuers were asked, the refusal is that none knows it, or one's that is more precise.
		if got := why(err); got != tt.why && !(tt.why == gateway.WhySignature && got == gateway.WhyIssuer) || p.ID != tt.id {
			t.Errorf("%s: %+v %v, want %q", name, p, err, tt.why)
		}
		if err != nil && strings.Contains(err.Error(), "authority\"") {
			t.Errorf("%s: the error names a certificate: %v", name, err)
		}
	}
	// The bytes of a certificate are no secret: as a token they are nothing.
	for _, raw := range []string{string(good.Raw), base64.StdEncoding.EncodeToString(good.Raw)} {
		if _, err := ask(t, i, bearer(raw)); why(err) != gateway.WhyMalformed {
			t.Error(err)
		}
	}
	c.advance(time.Hour + time.Second)
	if _, err := ask(t, i, presents(good)); why(err) != gateway.WhyExpired {
		t.Errorf("remembered beyond its end: %v", err)
	}
}

func TestAnAuthorityThatIsReplaced(t *testing.T) {
	c := newClock()
	ca, next := newCA(t, c), newCA(t, c)
	path := ca.file(t)
	is := identity.Issuer{Name: "one", Kind: identity.MTLS, CAFiles: []string{path}}
	rules(identity.Rule{Principal: "one:{cn}"})(&is)
	i := open(t, c, is)
	good := ca.issue(t, leaf("a"))
	if _, err := ask(t, i, presents(good)); err != nil {
		t.Fatal(err)
	}
	next.write(t, path)
	future := time.Now().Add(time.Second)
	os.Chtimes(path, future, future) // written at another time, however coarse clocks are
	c.advance(10 * time.Second)
	if _, err := ask(t, i, presents(good)); why(err) != gateway.WhySignature {
		t.Errorf("the old one's, remembered: %v", err)
	}
	if _, err := ask(t, i, presents(next.issue(t, leaf("a")))); err != nil {
		t.Error("the new one's:", err)
	}
	if err := os.WriteFile(path, []byte("-----BEGIN CERTIFICATE-----"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.advance(10 * time.Second)
	good = next.issue(t, leaf("b"))
	if _, err := ask(t, i, presents(good)); err != nil {
		t.Error("a file that is cut short takes away what was there:", err)
	}
	c.advance(59 * time.Minute)
	if _, err := ask(t, i, presents(good)); err != nil {
		t.Error(err)
	}
	c.advance(50 * time.Second)
	if _, err := ask(t, i, presents(good)); why(err) != gateway.WhyKeys {
		t.Errorf("for ever: %v", err)
	}
}
