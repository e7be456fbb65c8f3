package identity_test

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

var corp = spiffeid.RequireTrustDomainFromString("corp.example")

func svidRules(is identity.Issuer) identity.Issuer {
	rules(identity.Rule{When: map[string]string{"path": "agent/**"}, Principal: "{sub}"}, identity.Rule{When: map[string]string{"trust_domain": "corp.example", "path": "web/*"}, Principal: "web:{path}"})(&is)
	return is
}

// bundleFile writes what a trust domain publishes.
func bundleFile(t testing.TB, path string, ca *authority, keys map[string]crypto.PublicKey) string {
	t.Helper()
	b := spiffebundle.FromJWTAuthorities(corp, keys)
	if ca != nil {
		b.AddX509Authority(ca.cert)
	}
	text, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if path == "" {
		path = filepath.Join(t.TempDir(), "bundle.json")
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestJWTSVIDs(t *testing.T) {
	c := newClock() // near the real time: go-spiffe has no clock of ours
	key, stranger := newEC(t), newEC(t)
	oidc := newIssuer(t, c)
	path := bundleFile(t, "", newCA(t, c), map[string]crypto.PublicKey{"j1": key.Public()})
	plain, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: stranger.Public(), KeyID: "j1"}}})
	other := filepath.Join(t.TempDir(), "jwks.json")
	os.WriteFile(other, plain, 0o600)
	i := open(t, c, svidRules(identity.Issuer{
		Name: "mesh", Kind: identity.SPIFFEJWT, Audiences: []string{"tb"}, Bundles: map[string]string{"corp.example": path, "other.example": other},
	}), oidc.config())
	now := c.now().Unix()
	svid := func(k any, kid string, change m) string {
		return sign(t, k, jose.ES256, m{"kid": kid, "typ": "JWT"}, join(m{"sub": "spiffe://corp.example/agent/triage-7", "aud": []string{"tb"}, "exp": now + 300, "iat": now}, change))
	}
	p, err := ask(t, i, bearer(svid(key, "j1", nil)))
	if err != nil || p.ID != "spiffe://corp.example/agent/triage-7" || p.Authn != gateway.AuthnJWTSVID || p.Issuer != "mesh" || p.Bound != "" {
		t.Errorf("%+v %v", p, err)
	}
	if p, err := ask(t, i, bearer(svid(key, "j1", m{"sub": "spiffe://corp.example/web/a", "path": "agent/forged"}))); err != nil || p.ID != "web:web/a" {
		t.Errorf("a claim of its own for the path: %+v %v", p, err)
	}
	if _, err := ask(t, i, bearer(svid(stranger, "j1", m{"sub": "spiffe://other.example/agent/x"}))); err != nil {
		t.Error("by a plain JWKS:", err)
	}
	for name, tt := range map[string]struct{ raw, why string }{
		"expired":                       {svid(key, "j1", m{"exp": now - 120}), gateway.WhyExpired},
		"no expiry":                     {svid(key, "j1", m{"exp": nil}), gateway.WhyMalformed},
		"for somebody else":             {svid(key, "j1", m{"aud": []string{"x"}}), gateway.WhyAudience},
		"for nobody":                    {svid(key, "j1", m{"aud": []string{}}), gateway.WhyAudience},
		"for null":                      {svid(key, "j1", m{"aud": nil}), gateway.WhyMalformed},
		"a stranger's":                  {svid(stranger, "j1", nil), gateway.WhySignature},
		"an unknown key":                {svid(key, "j2", nil), gateway.WhySignature},
		"another trust domain's key":    {svid(key, "j1", m{"sub": "spiffe://other.example/agent/x"}), gateway.WhySignature},
		"an unknown trust domain":       {svid(key, "j1", m{"sub": "spiffe://evil.example/agent/x"}), gateway.WhyIssuer},
		"a trust domain in capitals":    {svid(key, "j1", m{"sub": "spiffe://CORP.example/agent/x"}), gateway.WhyIssuer},
		"a subject that is no path":     {svid(key, "j1", m{"sub": "spiffe://corp.example/agent/../x"}), gateway.WhyMalformed},
		"a subject with a query":        {svid(key, "j1", m{"sub": "spiffe://corp.example/agent/x?y"}), gateway.WhyMalformed},
		"no rule":                       {svid(key, "j1", m{"sub": "spiffe://corp.example/db"}), gateway.WhyMapping},
		"HMAC by the public key":        {sign(t, []byte(publicJSON(key)), jose.HS256, m{"kid": "j1"}, m{"sub": "spiffe://corp.example/agent/x", "aud": "tb", "exp": now + 300}), gateway.WhyAlgorithm},
		"an access token's typ":         {sign(t, key, jose.ES256, m{"kid": "j1", "typ": "at+jwt"}, m{"sub": "spiffe://corp.example/agent/x", "aud": "tb", "exp": now + 300}), gateway.WhyMalformed},
		"an OIDC issuer's, by its name": {svid(key, "k1", m{"iss": oidc.url}), gateway.WhySignature},
		"what an OIDC issuer says":      {oidc.token(m{"iss": nil, "sub": "spiffe://corp.example/agent/x"}), gateway.WhyMalformed},
	} {
		if p, err := ask(t, i, bearer(tt.raw)); why(err) != tt.why {
			t.Errorf("%s: %+v %v, want %q", name, p, err, tt.why)
		}
	}
	// The bundle's key is replaced: what was remembered is not taken any more.
	raw := svid(key, "j1", nil)
	if _, err := ask(t, i, bearer(raw)); err != nil {
		t.Fatal(err)
	}
	bundleFile(t, path, nil, map[string]crypto.PublicKey{"j1": stranger.Public()})
	future := time.Now().Add(time.Second)
	os.Chtimes(path, future, future)
	c.advance(10 * time.Second)
	if _, err := ask(t, i, bearer(raw)); why(err) != gateway.WhySignature {
		t.Errorf("a replaced key's: %v", err)
	}
}

func TestX509SVIDs(t *testing.T) {
	c := newClock()
	ca, stranger := newCA(t, c), newCA(t, c)
	i := open(t, c, svidRules(identity.Issuer{Name: "mesh", Kind: identity.SPIFFEX509, Bundles: map[string]string{"corp.example": ca.file(t)}}),
		svidRules(identity.Issuer{Name: "other", Kind: identity.SPIFFEX509, Bundles: map[string]string{"other.example": stranger.file(t)}}))
	triage := named("spiffe://corp.example/agent/triage-7")
	good := ca.issue(t, triage)
	for range 2 {
		p, err := ask(t, i, presents(good))
		if err != nil || p.ID != "spiffe://corp.example/agent/triage-7" || p.Authn != gateway.AuthnX509SVID || p.Issuer != "mesh" || p.Bound != "x5t#S256:"+thumbOfCert(good) {
			t.Errorf("%+v %v", p, err)
		}
	}
	between := ca.below(t)
	if _, err := ask(t, i, presents(between.issue(t, triage), between.cert)); err != nil {
		t.Error("with one between:", err)
	}
	for name, tt := range map[string]struct {
		cert *x509.Certificate
		why  string
	}{
		"another trust domain's authority":  {stranger.issue(t, triage), gateway.WhySignature},
		"an unknown trust domain":           {ca.issue(t, named("spiffe://evil.example/agent/a")), gateway.WhyIssuer},
		"a trust domain it cannot sign for": {ca.issue(t, named("spiffe://other.example/agent/a")), gateway.WhySignature},
		"two SPIFFE IDs":                    {ca.issue(t, triage, named("spiffe://corp.example/agent/b")), gateway.WhyIssuer},
		"no SPIFFE ID":                      {ca.issue(t, leaf("triage")), gateway.WhyIssuer},
		"expired":                           {ca.issue(t, triage, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Minute) }), gateway.WhyExpired},
		"not yet valid":                     {ca.issue(t, triage, func(c *x509.Certificate) { c.NotBefore = c.NotAfter.Add(-time.Minute) }), gateway.WhyEarly},
		"an authority":                      {ca.issue(t, triage, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), gateway.WhySignature},
		"a signer of certificates":          {ca.issue(t, triage, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), gateway.WhySignature},
		"no rule":                           {ca.issue(t, named("spiffe://corp.example/db")), gateway.WhyMapping},
	} {
		if p, err := ask(t, i, presents(tt.cert)); why(err) != tt.why {
			t.Errorf("%s: %+v %v, want %q", name, p, err, tt.why)
		}
	}
}

// An agent answers the Workload API, as SPIRE's does.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	mu      sync.Mutex
	changed chan struct{}
	x509    map[string][]byte
	jwt     map[string][]byte
}

func (a *agent) publish(ca *authority, keys map[string]crypto.PublicKey) {
	text, _ := spiffebundle.FromJWTAuthorities(corp, keys).JWTBundle().Marshal()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.x509, a.jwt = map[string][]byte{corp.IDString(): ca.cert.Raw}, map[string][]byte{corp.IDString(): text, "spiffe://federated.example": text}
	if a.changed != nil {
		close(a.changed)
	}
	a.changed = make(chan struct{})
}

func (a *agent) state() (map[string][]byte, map[string][]byte, chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.x509, a.jwt, a.changed
}

func (a *agent) FetchX509Bundles(_ *workload.X509BundlesRequest, s grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	for {
		x509, _, changed := a.state()
		if err := s.Send(&workload.X509BundlesResponse{Bundles: x509}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (a *agent) FetchJWTBundles(_ *workload.JWTBundlesRequest, s grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	for {
		_, jwt, changed := a.state()
		if err := s.Send(&workload.JWTBundlesResponse{Bundles: jwt}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func TestTheWorkloadAPI(t *testing.T) {
	c := newClock()
	dir, err := os.MkdirTemp("", "wl") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent.sock")
	ca, key := newCA(t, c), newEC(t)
	from := func(name, kind string) identity.Issuer {
		is := svidRules(identity.Issuer{Name: name, Kind: kind, WorkloadAPI: "unix://" + socket, TrustDomains: []string{"corp.example"}})
		if kind == identity.SPIFFEJWT {
			is.Audiences = []string{"tb"}
		}
		return is
	}
	i := open(t, c, from("tokens", identity.SPIFFEJWT), from("certificates", identity.SPIFFEX509))
	now := c.now().Unix()
	svid := func(k any, td string) string {
		return sign(t, k, jose.ES256, m{"kid": "j1"}, m{"sub": "spiffe://" + td + "/agent/a", "aud": "tb", "exp": now + 1e9})
	}
	raw, cert := svid(key, "corp.example"), ca.issue(t, named("spiffe://corp.example/agent/a"), func(x *x509.Certificate) { x.NotAfter = x.NotAfter.Add(2 * time.Hour) })
	running(t, i)
	if _, err := ask(t, i, bearer(raw)); why(err) != gateway.WhyKeys {
		t.Errorf("before it answers: %v", err)
	}
	if _, err := ask(t, i, presents(cert)); why(err) != gateway.WhyKeys {
		t.Errorf("before it answers: %v", err)
	}

	a := &agent{}
	a.publish(ca, map[string]crypto.PublicKey{"j1": key.Public()})
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	taken := func(cred gateway.Credential) func() bool {
		return func() bool { _, err := ask(t, i, cred); return err == nil }
	}
	await(t, "a JWT-SVID is taken", taken(bearer(raw)))
	await(t, "an X.509-SVID is taken", taken(presents(cert)))
	if _, err := ask(t, i, bearer(svid(key, "federated.example"))); why(err) != gateway.WhyIssuer {
		t.Errorf("a federated trust domain that nobody named: %v", err)
	}

	next, nextCA := newEC(t), newCA(t, c)
	a.publish(nextCA, map[string]crypto.PublicKey{"j1": next.Public()})
	await(t, "a rotated key is taken", taken(bearer(svid(next, "corp.example"))))
	await(t, "a rotated authority is taken", taken(presents(nextCA.issue(t, named("spiffe://corp.example/agent/a")))))
	for _, cred := range []gateway.Credential{bearer(raw), presents(cert)} {
		if _, err := ask(t, i, cred); why(err) != gateway.WhySignature {
			t.Errorf("a retired one's, remembered: %v", err)
		}
	}

	server.Stop()
	fresh := bearer(svid(next, "corp.example"))
	if _, err := ask(t, i, fresh); err != nil {
		t.Error("it is silent, for a while:", err)
	}
	await(t, "its bundles count no more", func() bool {
		c.advance(time.Hour)
		_, err := ask(t, i, fresh)
		return why(err) == gateway.WhyKeys
	})
}
