package identity_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/identity"
	"toolbroker/brokers/internal/redis"
	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
)

const here = "https://tools.example.com/mcp"

func thumb(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	jwk := jose.JSONWebKey{Key: key}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

func ath(raw string) string {
	sum := sha256.Sum256([]byte(raw))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A holder has a key and makes proofs with it.
type holder struct {
	t     testing.TB
	clock *clock
	key   *ecdsa.PrivateKey
}

func (h holder) claims(raw string, change m) m {
	c := m{"htm": "POST", "htu": here, "iat": h.clock.now().Unix(), "jti": rand.Text(), "ath": ath(raw)}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func (h holder) header(change m) m {
	return join(m{"typ": "dpop+jwt", "jwk": jose.JSONWebKey{Key: h.key.Public()}}, change)
}

func (h holder) proof(raw string, change m) string {
	return sign(h.t, h.key, jose.ES256, h.header(nil), h.claims(raw, change))
}

func dpop(raw, proof string) gateway.Credential {
	cred := bearer(raw)
	cred.DPoP = true
	cred.Proof = gateway.Proof{DPoP: proof, Method: "POST", URL: here}
	return cred
}

func TestABoundTokenNeedsItsKey(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config(), newIssuer(t, c).config(func(is *identity.Issuer) { is.Name = "unused" }))
	h, thief := holder{t, c, newEC(t)}, holder{t, c, newEC(t)}
	raw := idp.token(m{"cnf": m{"jkt": thumb(t, h.key.Public())}})
	free := idp.token(nil)
	other := idp.token(m{"jti": "t2", "cnf": m{"jkt": thumb(t, h.key.Public())}})

	p, err := ask(t, i, dpop(raw, h.proof(raw, nil)))
	if err != nil || p.Bound != "jkt:"+thumb(t, h.key.Public()) {
		t.Fatalf("%+v %v", p, err)
	}
	used := h.proof(raw, nil)
	if _, err := ask(t, i, dpop(raw, used)); err != nil {
		t.Fatal(err)
	}
	now := c.now().Unix()
	private, _ := json.Marshal(jose.JSONWebKey{Key: h.key})
	weak, _ := rsa.GenerateKey(rand.Reader, 2048)
	bare := bearer(raw)
	stdio := gateway.Credential{Bearer: gateway.NewSecret(raw)}
	schemed := dpop(raw, h.proof(raw, nil))
	schemed.DPoP = false
	unproven := dpop(free, h.proof(free, nil))
	volunteer := dpop(free, h.proof(free, m{"htu": "https://evil.example/mcp"}))
	volunteer.DPoP = false
	for name, tt := range map[string]struct {
		cred gateway.Credential
		why  string
	}{
		"stripped: the scheme is Bearer, no proof": {bare, gateway.WhyProof},
		"stripped: Bearer, with the proof":         {schemed, gateway.WhyProof},
		"on stdio":                                 {stdio, gateway.WhyProof},
		"DPoP and no proof":                        {dpop(raw, ""), gateway.WhyProof},
		"DPoP and a token that is bound to none":   {unproven, gateway.WhyProof},
		"a bad proof that nobody asked for":        {volunteer, gateway.WhyProof},
		"a thief's proof":                          {dpop(raw, thief.proof(raw, nil)), gateway.WhyProof},
		"used before":                              {dpop(raw, used), gateway.WhyReplay},
		"for another method":                       {dpop(raw, h.proof(raw, m{"htm": "GET"})), gateway.WhyProof},
		"for the method in small letters":          {dpop(raw, h.proof(raw, m{"htm": "post"})), gateway.WhyProof},
		"for no method":                            {dpop(raw, h.proof(raw, m{"htm": nil})), gateway.WhyProof},
		"for another path":                         {dpop(raw, h.proof(raw, m{"htu": here + "/"})), gateway.WhyProof},
		"for another host":                         {dpop(raw, h.proof(raw, m{"htu": "https://tools.example.com.evil.example/mcp"})), gateway.WhyProof},
		"for a host behind a login":                {dpop(raw, h.proof(raw, m{"htu": "https://tools.example.com@evil.example/mcp"})), gateway.WhyProof},
		"for another port":                         {dpop(raw, h.proof(raw, m{"htu": "https://tools.example.com:8443/mcp"})), gateway.WhyProof},
		"for plaintext":                            {dpop(raw, h.proof(raw, m{"htu": "http://tools.example.com/mcp"})), gateway.WhyProof},
		"for no URL":                               {dpop(raw, h.proof(raw, m{"htu": nil})), gateway.WhyProof},
		"for another token":                        {dpop(raw, h.proof(other, nil)), gateway.WhyProof},
		"for no token":                             {dpop(raw, h.proof(raw, m{"ath": nil})), gateway.WhyProof},
		"made too long ago":                        {dpop(raw, h.proof(raw, m{"iat": now - 91})), gateway.WhyProof},
		"made in the future":                       {dpop(raw, h.proof(raw, m{"iat": now + 31})), gateway.WhyProof},
		"made at no time":                          {dpop(raw, h.proof(raw, m{"iat": nil})), gateway.WhyProof},
		"made at a word":                           {dpop(raw, h.proof(raw, m{"iat": "now"})), gateway.WhyProof},
		"no jti":                                   {dpop(raw, h.proof(raw, m{"jti": nil})), gateway.WhyProof},
		"a jti that is too long":                   {dpop(raw, h.proof(raw, m{"jti": strings.Repeat("a", 257)})), gateway.WhyProof},
		"another typ":                              {dpop(raw, sign(t, h.key, jose.ES256, h.header(m{"typ": "JWT"}), h.claims(raw, nil))), gateway.WhyProof},
		"no key in it":                             {dpop(raw, sign(t, h.key, jose.ES256, m{"typ": "dpop+jwt"}, h.claims(raw, nil))), gateway.WhyProof},
		"another's key in it":                      {dpop(raw, sign(t, thief.key, jose.ES256, h.header(nil), h.claims(raw, nil))), gateway.WhyProof},
		"its private key in it":                    {dpop(raw, sign(t, h.key, jose.ES256, h.header(m{"jwk": json.RawMessage(private)}), h.claims(raw, nil))), gateway.WhyProof},
		"a secret in it":                           {dpop(raw, sign(t, []byte(strings.Repeat("k", 32)), jose.HS256, h.header(m{"jwk": m{"kty": "oct", "k": base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))}}), h.claims(raw, nil))), gateway.WhyProof},
		"HMAC by the key":                          {dpop(raw, sign(t, []byte(strings.Repeat("k", 32)), jose.HS256, h.header(nil), h.claims(raw, nil))), gateway.WhyAlgorithm},
		"alg none":                                 {dpop(raw, unsigned(`{"typ":"dpop+jwt","alg":"none","jwk":`+publicJSON(h.key)+`}`, `{}`)), gateway.WhyAlgorithm},
		"another key's algorithm":                  {dpop(raw, sign(t, weak, jose.RS512, m{"typ": "dpop+jwt", "jwk": jose.JSONWebKey{Key: weak.Public()}}, h.claims(raw, nil))), gateway.WhyAlgorithm},
		"the token itself":                         {dpop(raw, raw), gateway.WhyProof},
		"two at once":                              {dpop(raw, h.proof(raw, nil)+", "+h.proof(raw, nil)), gateway.WhyProof},
		"a megabyte":                               {dpop(raw, strings.Repeat("a", 1<<20)), gateway.WhyProof},
	} {
		p, err := ask(t, i, tt.cred)
		if why(err) != tt.why || p.ID != "" {
			t.Errorf("%s: %v %+v, want %q", name, err, p, tt.why)
		}
	}
	for name, change := range map[string]m{
		"with the default port": {"htu": "https://tools.example.com:443/mcp"},
		"in capitals":           {"htu": "HTTPS://Tools.Example.com/mcp"},
		"with a query":          {"htu": here + "?a=b#c"},
		"a minute old":          {"iat": now - 60},
		"from a clock ahead":    {"iat": now + 30},
	} {
		if _, err := ask(t, i, dpop(raw, h.proof(raw, change))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	volunteer.Proof.DPoP = h.proof(free, nil)
	if p, err := ask(t, i, volunteer); err != nil || p.Bound != "" {
		t.Errorf("a good proof that nobody asked for: %+v %v", p, err)
	}
}

func publicJSON(k *ecdsa.PrivateKey) string {
	b, _ := jose.JSONWebKey{Key: k.Public()}.MarshalJSON()
	return string(b)
}

func TestWaysToBeBound(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	h := holder{t, c, newEC(t)}
	ca := newCA(t, c)
	cert := ca.issue(t, leaf("a"))
	x5t := thumbOfCert(cert)
	over := func(cred gateway.Credential) gateway.Credential {
		cred.Proof.Peer = chainOf(cert)
		return cred
	}
	jkt := thumb(t, h.key.Public())
	toCert := idp.token(m{"cnf": m{"x5t#S256": x5t}})
	toBoth := idp.token(m{"cnf": m{"x5t#S256": x5t, "jkt": jkt}})
	another := bearer(toCert)
	another.Proof.Peer = chainOf(ca.issue(t, leaf("a")))
	for name, tt := range map[string]struct {
		cred  gateway.Credential
		why   string
		bound string
	}{
		"a certificate":               {over(bearer(toCert)), "taken", "x5t#S256:" + x5t},
		"no certificate":              {bearer(toCert), gateway.WhyProof, ""},
		"another of the same name":    {another, gateway.WhyProof, ""},
		"both":                        {over(dpop(toBoth, h.proof(toBoth, nil))), "taken", "jkt:" + jkt},
		"both, no certificate":        {dpop(toBoth, h.proof(toBoth, nil)), gateway.WhyProof, ""},
		"both, no proof":              {over(bearer(toBoth)), gateway.WhyProof, ""},
		"a free token, a certificate": {over(bearer(idp.token(nil))), "taken", ""},
		"cnf of nothing":              {bearer(idp.token(m{"cnf": m{}})), gateway.WhyProof, ""},
		"cnf that is a word":          {bearer(idp.token(m{"cnf": "jkt"})), gateway.WhyProof, ""},
		"cnf.jwk":                     {bearer(idp.token(m{"cnf": m{"jwk": m{}}})), gateway.WhyProof, ""},
		"a kid beside a jkt":          {bearer(idp.token(m{"cnf": m{"jkt": jkt, "kid": "k"}})), gateway.WhyProof, ""},
		"a jkt that is none":          {bearer(idp.token(m{"cnf": m{"jkt": "x"}})), gateway.WhyProof, ""},
	} {
		p, err := ask(t, i, tt.cred)
		if why(err) != tt.why || p.Bound != tt.bound {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
}

func TestBeingBoundCanBeRequired(t *testing.T) {
	c := newClock()
	idp, other := newIssuer(t, c), newIssuer(t, c)
	i := open(t, c, idp.config(func(is *identity.Issuer) { is.Bound = true }), other.config(func(is *identity.Issuer) {
		is.Name = "other"
		rules(identity.Rule{When: map[string]string{"sub": "strict"}, Bound: true}, identity.Rule{})(is)
	}))
	h := holder{t, c, newEC(t)}
	for name, tt := range map[string]struct{ raw, why string }{
		"by the issuer": {idp.token(nil), gateway.WhyProof},
		"by the rule":   {other.token(m{"sub": "strict"}), gateway.WhyProof},
		"by another":    {other.token(nil), "taken"},
	} {
		for range 2 { // remembered or not
			if _, err := ask(t, i, bearer(tt.raw)); why(err) != tt.why {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	raw := idp.token(m{"cnf": m{"jkt": thumb(t, h.key.Public())}})
	if _, err := ask(t, i, dpop(raw, h.proof(raw, nil))); err != nil {
		t.Error(err)
	}
}

func TestTaskTokensAreHeldToTheirKey(t *testing.T) {
	c := newClock()
	h := holder{t, c, newEC(t)}
	conf := configOf(c)
	raw := unsigned(`{"typ":"tbtask+jwt"}`, `{}`)
	bound := "jkt:" + thumb(t, h.key.Public())
	conf.TaskTokens = func(string) (gateway.Principal, error) {
		return gateway.Principal{ID: "agent:a", Task: "t", Bound: bound, Expires: c.now().Add(time.Minute)}, nil
	}
	i, err := identity.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := ask(t, i, bearer(raw)); why(err) != gateway.WhyProof {
			t.Error(err)
		}
		if p, err := ask(t, i, dpop(raw, h.proof(raw, nil))); err != nil || p.Bound != bound {
			t.Errorf("%+v %v", p, err)
		}
	}
	bound = "a key"
	if _, err := ask(t, i, bearer(unsigned(`{"typ":"tbtask+jwt"}`, `{"other":1}`))); why(err) != gateway.WhyProof {
		t.Errorf("bound in a way nobody knows: %v", err)
	}
}

// A request whose token is in its body is proven by itself, once.
func TestProven(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	h, thief := holder{t, c, newEC(t)}, holder{t, c, newEC(t)}
	raw := idp.token(m{"cnf": m{"jkt": thumb(t, h.key.Public())}})
	exchange := func(h holder, raw string) (gateway.Principal, string, error) {
		cred := bearer(raw)
		cred.Proof = gateway.Proof{DPoP: h.proof("", m{"ath": nil}), Method: "POST", URL: here}
		bound, err := i.Proven(t.Context(), cred)
		if err != nil {
			return gateway.Principal{}, "", err
		}
		cred.Proof.Proven = bound
		p, err := ask(t, i, cred)
		if _, again := i.Proven(t.Context(), cred); why(again) != gateway.WhyReplay {
			t.Errorf("the proof is good twice: %v", again)
		}
		return p, bound, err
	}
	mine := "jkt:" + thumb(t, h.key.Public())
	if p, bound, err := exchange(h, raw); err != nil || bound != mine || p.Bound != mine {
		t.Errorf("%+v %q %v", p, bound, err)
	}
	if p, bound, err := exchange(h, idp.token(nil)); err != nil || bound != mine || p.Bound != "" {
		t.Errorf("a token that is bound to none yet: %+v %q %v", p, bound, err)
	}
	if _, _, err := exchange(thief, raw); why(err) != gateway.WhyProof {
		t.Errorf("a thief: %v", err)
	}
	cred := bearer(raw)
	if bound, err := i.Proven(t.Context(), cred); err != nil || bound != "" {
		t.Errorf("nothing: %q %v", bound, err)
	}
	cert := newCA(t, c).issue(t, leaf("a"))
	cred.Proof.Peer = chainOf(cert)
	if bound, err := i.Proven(t.Context(), cred); err != nil || bound != "x5t#S256:"+thumbOfCert(cert) {
		t.Errorf("a certificate: %q %v", bound, err)
	}
	cred.Proof = gateway.Proof{DPoP: h.proof("", m{"htu": "https://else.example"}), Method: "POST", URL: here}
	if _, err := i.Proven(t.Context(), cred); why(err) != gateway.WhyProof {
		t.Errorf("for another URL: %v", err)
	}
}

// Of one proof at two replicas at once, one is let in; and while Redis is away, none.
func TestAProofIsGoodOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		c := newClock()
		idp := newIssuer(t, c)
		replica := func() *identity.Identity {
			conf := configOf(c, idp.config())
			conf.Once = identity.Once(s.Open(t, "acme"), c.now)
			i, err := identity.New(conf)
			if err != nil {
				t.Fatal(err)
			}
			return i
		}
		replicas := []*identity.Identity{replica(), replica()}
		h := holder{t, c, newEC(t)}
		raw := idp.token(m{"cnf": m{"jkt": thumb(t, h.key.Public())}})
		proof := h.proof(raw, nil)
		var all sync.WaitGroup
		answers := make(chan string, 20)
		for n := range 20 {
			all.Go(func() {
				_, err := replicas[n%2].Identify(t.Context(), dpop(raw, proof))
				answers <- why(err)
			})
		}
		all.Wait()
		count := map[string]int{}
		for range 20 {
			count[<-answers]++
		}
		if count["taken"] != 1 || count[gateway.WhyReplay] != 19 {
			t.Errorf("%v", count)
		}
		keys := s.Keys(t, "tb:{_}:proof:*")
		if len(keys) != 1 {
			t.Fatalf("%v", keys)
		}
		if ttl, _ := s.Do(t, "PTTL", keys[0]).(int64); ttl <= 90_000 || ttl > 121_000 {
			t.Errorf("it is remembered for %d ms", ttl)
		}
		s.Stop(t)
		if _, err := replicas[0].Identify(t.Context(), dpop(raw, h.proof(raw, nil))); why(err) != gateway.WhyProof {
			t.Errorf("without Redis: %v", err)
		}
	})
}

func TestWithoutAMemoryThereAreNoProofs(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	h := holder{t, c, newEC(t)}
	raw := idp.token(m{"cnf": m{"jkt": thumb(t, h.key.Public())}})
	for name, once := range map[string]func(context.Context, [32]byte, time.Time) (bool, error){
		"none":     nil,
		"a broken": func(context.Context, [32]byte, time.Time) (bool, error) { return true, errors.New("away") },
	} {
		conf := configOf(c, idp.config())
		conf.Once = once
		i, err := identity.New(conf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t, i, dpop(raw, h.proof(raw, nil))); why(err) != gateway.WhyProof {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAddIsOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		store := start(t).Open(t, "acme")
		k, err := store.Key(redis.Shared, redis.Proof, "a")
		if err != nil {
			t.Fatal(err)
		}
		for n, want := range []bool{true, false, false} {
			if fresh, err := store.Add(t.Context(), k, time.Minute); err != nil || fresh != want {
				t.Errorf("%d: %v %v", n, fresh, err)
			}
		}
		if _, err := store.Add(t.Context(), k, 0); err == nil {
			t.Error("for ever")
		}
	})
}

// No proof is taken but one that the holder made, and nothing panics.
func FuzzDPoP(f *testing.F) {
	c := newClock()
	idp := newIssuer(f, c)
	i := open(f, c, idp.config())
	h := holder{f, c, newEC(f)}
	raw := idp.token(m{"cnf": m{"jkt": thumb(f, h.key.Public())}})
	good := h.proof(raw, nil)
	f.Add(good, "POST", here)
	f.Add(respell(good), "POST", here)
	f.Add(unsigned(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+publicJSON(h.key)+`}`, `{"htm":"POST"}`), "POST", here)
	f.Add(unsigned(`{"typ":"dpop+jwt","alg":"RS256","jwk":{"kty":"RSA","n":"AQAB","e":"AA"}}`, `{}`), "", "")
	f.Fuzz(func(t *testing.T, proof, method, url string) {
		cred := dpop(raw, proof)
		cred.Proof.Method, cred.Proof.URL = method, url
		p, err := ask(t, i, cred)
		if err == nil && proof != good || strings.HasPrefix(why(err), "no refusal") {
			t.Fatalf("%q is %+v, %v", proof, p, err)
		}
	})
}

// Anybody can make proofs; they keep nobody else's token from being verified.
func TestProofsOfOneSourceStarveNobody(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	h := holder{t, c, newEC(t)}
	busy := 0
	for range 600 {
		cred := gateway.Credential{Proof: gateway.Proof{DPoP: h.proof("", m{"ath": nil}), Method: "POST", URL: here}, Source: "192.0.2.9:1"}
		if _, err := i.Proven(t.Context(), cred); why(err) == gateway.WhyBusy {
			busy++
		}
	}
	if busy < 400 {
		t.Errorf("only %d of 600 were refused", busy)
	}
	if _, err := ask(t, i, bearer(idp.token(nil))); err != nil {
		t.Errorf("another's token: %v", err)
	}
}
