package identity_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

func TestKeysRotate(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	old := idp.token(nil)
	if _, err := ask(t, i, bearer(old)); err != nil {
		t.Fatal(err)
	}
	idp.rotate("k2")
	fresh := idp.token(nil)
	if _, err := ask(t, i, bearer(fresh)); why(err) != gateway.WhySignature {
		t.Errorf("a kid that is unknown right after a fetch: %v", err)
	}
	if n := idp.fetches.Load(); n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
	c.advance(time.Minute)
	if _, err := ask(t, i, bearer(fresh)); err != nil {
		t.Error("a minute later, the refused token:", err)
	}
	if n := idp.fetches.Load(); n != 2 {
		t.Errorf("it was fetched %d times", n)
	}
	if _, err := ask(t, i, bearer(old)); why(err) != gateway.WhySignature {
		t.Errorf("a retired key's token, which was remembered: %v", err)
	}
}

func TestARetiredKeyIsNoticedWithoutAnUnknownOne(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	first := idp.token(nil)
	if _, err := ask(t, i, bearer(first)); err != nil {
		t.Fatal(err)
	}
	still := idp.token(m{"jti": "t2"})
	idp.rotate("k2")
	c.advance(5 * time.Minute) // refresh
	await(t, "the retired key is refused", func() bool {
		_, err := ask(t, i, bearer(still))
		return why(err) == gateway.WhySignature
	})
	if _, err := ask(t, i, bearer(first)); why(err) != gateway.WhySignature {
		t.Errorf("what was remembered: %v", err)
	}
}

func TestAKeyThatStaysKeepsWhatIsRemembered(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	conf := idp.config()
	conf.JWKSFile, conf.JWKSURL = filepath.Join(t.TempDir(), "keys.json"), ""
	write := func(keys ...jose.JSONWebKey) {
		text, _ := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err := os.WriteFile(conf.JWKSFile, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k1 := jose.JSONWebKey{Key: idp.key.Public(), KeyID: "k1"}
	write(k1)
	i := open(t, c, conf)
	raw := idp.token(nil)
	if _, err := ask(t, i, bearer(raw)); err != nil {
		t.Fatal(err)
	}
	idp.rotate("k2")
	write(k1, jose.JSONWebKey{Key: idp.key.Public(), KeyID: "k2"})
	c.advance(10 * time.Second)
	for _, raw := range []string{raw, idp.token(nil)} {
		if _, err := ask(t, i, bearer(raw)); err != nil {
			t.Error(err)
		}
	}
	os.Remove(conf.JWKSFile)
	c.advance(3 * time.Minute)
	if _, err := ask(t, i, bearer(raw)); err != nil {
		t.Error("the file is gone, for a while:", err)
	}
}

func TestKeysThatCannotBeHad(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	down := func(w http.ResponseWriter, r *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) }
	idp.answers(down)
	i := open(t, c, idp.config())
	for range 5 {
		if _, err := ask(t, i, bearer(idp.token(nil))); why(err) != gateway.WhyKeys {
			t.Errorf("at first use: %v", err)
		}
	}
	if n := idp.fetches.Load(); n != 1 {
		t.Errorf("while they cannot be had it was asked %d times", n)
	}
	idp.answers(nil)
	c.advance(5 * time.Second)
	raw := idp.token(m{"exp": c.now().Add(24 * time.Hour).Unix()})
	if _, err := ask(t, i, bearer(raw)); err != nil {
		t.Error("once they can be had, the same token:", err)
	}
	idp.answers(down)
	c.advance(59 * time.Minute)
	if _, err := ask(t, i, bearer(raw)); err != nil {
		t.Error("stale, within max_stale:", err)
	}
	c.advance(time.Minute)
	if _, err := ask(t, i, bearer(raw)); why(err) != gateway.WhyKeys {
		t.Errorf("after max_stale: %v", err)
	}
	idp.answers(nil)
	c.advance(time.Minute)
	if _, err := ask(t, i, bearer(raw)); err != nil {
		t.Error("and back:", err)
	}
}

// Whatever an endpoint answers, at first use and later: nobody is let in by it,
// and what was there before stays.
func TestHostileEndpoints(t *testing.T) {
	stranger, weak := newEC(t), &rsa.PrivateKey{}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Log("no weak key to try:", err)
	}
	jwk := func(k any, kid string) string {
		b, _ := jose.JSONWebKey{Key: k, KeyID: kid}.MarshalJSON()
		return string(b)
	}
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	theirs := jwk(stranger.Public(), "evil")
	many := make([]string, 5000)
	for n := range many {
		many[n] = jwk(stranger.Public(), fmt.Sprint("k", n))
	}
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(s)) }
	}
	elsewhere := httptest.NewServer(text(set(theirs)))
	defer elsewhere.Close()
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	answers := map[string]http.HandlerFunc{
		"garbage":           text("<html>"),
		"nothing":           text(""),
		"an empty set":      text(set()),
		"no keys":           text(`{}`),
		"a list":            text(`[]`),
		"a secret":          text(set(theirs, `{"kty":"oct","k":"AAAA","kid":"k1"}`)),
		"a private key":     text(set(theirs, jwk(stranger, "k1"))),
		"one kid twice":     text(set(theirs, jwk(newEC(t).Public(), "evil"))),
		"a member twice":    text(`{"keys":[],"keys":[` + theirs + `]}`),
		"a key's kid twice": text(set(strings.Replace(theirs, `{`, `{"kid":"a",`, 1))),
		"thousands of keys": text(set(many...)),
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for n := 0; n < 1<<12; n++ {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"a long one":          text(set(theirs) + strings.Repeat(" ", 512<<10)),
		"a redirect":          func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) },
		"an error, with keys": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); w.Write([]byte(set(theirs))) },
		"cut short": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9999")
			w.Write([]byte(set(theirs)))
		},
		"nested":                text(`{"keys":` + strings.Repeat("[", 100_000)),
		"a point off its curve": text(set(`{"kty":"EC","crv":"P-256","kid":"evil","x":"AAAA","y":"AAAA"}`)),
		"only for encryption":   text(set(strings.Replace(theirs, `{`, `{"use":"enc",`, 1))),
	}
	if weak != nil && weak.N != nil {
		answers["a weak key"] = text(set(jwk(&weak.PublicKey, "evil")))
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			idp := newIssuer(t, c)
			i := open(t, c, idp.config())
			forged := sign(t, stranger, jose.ES256, m{"kid": "evil"}, idp.claims(nil))
			idp.answers(answer)
			for _, raw := range []string{forged, idp.token(nil)} {
				if _, err := ask(t, i, bearer(raw)); why(err) != gateway.WhyKeys {
					t.Errorf("at first use: %v", err)
				}
			}
			idp.answers(nil)
			c.advance(time.Minute)
			good := idp.token(nil)
			if _, err := ask(t, i, bearer(good)); err != nil {
				t.Fatal(err)
			}
			idp.answers(answer)
			c.advance(time.Minute)
			before := idp.fetches.Load()
			if _, err := ask(t, i, bearer(forged)); why(err) != gateway.WhyKeys {
				t.Errorf("later: %v", err)
			}
			if idp.fetches.Load() != before+1 {
				t.Error("it was not asked")
			}
			for _, raw := range []string{good, idp.token(m{"jti": "t2"})} {
				if _, err := ask(t, i, bearer(raw)); err != nil {
					t.Error("what was there is gone:", err)
				}
			}
		})
	}
}

// A slow endpoint holds up whom its keys are for, and nobody else; and only so many.
func TestASlowEndpointIsAskedOnce(t *testing.T) {
	c := newClock()
	slow, other := newIssuer(t, c), newIssuer(t, c)
	release, asked := make(chan struct{}), make(chan struct{}, 100)
	slow.answers(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-release
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: slow.key.Public(), KeyID: "k1"}}})
	})
	i := open(t, c, slow.config(), other.config(func(is *identity.Issuer) { is.Name = "other" }))
	raw := slow.token(nil)
	var all sync.WaitGroup
	answers := make(chan string, 200)
	for n := range 200 {
		all.Go(func() {
			cred := bearer(raw)
			cred.Source = fmt.Sprintf("192.0.2.%d:1", n)
			_, err := i.Identify(t.Context(), cred)
			answers <- why(err)
		})
	}
	<-asked
	busy := 0
	for range 200 - 64 {
		if got := <-answers; got != gateway.WhyBusy {
			t.Errorf("one beyond those who may wait: %q", got)
		} else {
			busy++
		}
	}
	if _, err := ask(t, i, bearer(other.token(nil))); err != nil {
		t.Error("another issuer's token waits too:", err)
	}
	close(release)
	all.Wait()
	for range 200 - busy {
		if got := <-answers; got != "taken" {
			t.Errorf("one that waited: %q", got)
		}
	}
	if n := slow.fetches.Load(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

// Unknown names of keys cost one fetch a minute, however many there are.
func TestManyUnknownKeysCostOneFetch(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	if _, err := ask(t, i, bearer(idp.token(nil))); err != nil {
		t.Fatal(err)
	}
	for n := range 500 {
		if n == 250 {
			c.advance(time.Minute)
		}
		if _, err := ask(t, i, bearer(sign(t, idp.key, jose.ES256, m{"kid": fmt.Sprint("x", n)}, idp.claims(nil)))); why(err) != gateway.WhySignature {
			t.Fatal(err)
		}
	}
	if n := idp.fetches.Load(); n != 2 {
		t.Errorf("they cost %d fetches", n)
	}
}

func TestTooMuchToVerify(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	conf := configOf(c, idp.config())
	conf.PerSecond = 200
	i, err := identity.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	good := bearer(idp.token(nil))
	if _, err := i.Identify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	fresh := idp.token(m{"jti": "t2"})
	forged := func(n int) gateway.Credential {
		cred := bearer(fresh[:len(fresh)-6] + "AAAA" + fmt.Sprintf("%02d", n%90+10)[:1] + "A")
		cred.Source = "198.51.100.7:1"
		return cred
	}
	busy := 0
	for n := range 150 {
		if _, err := i.Identify(t.Context(), forged(n)); why(err) == gateway.WhyBusy {
			busy++
		}
	}
	if busy != 50 {
		t.Errorf("of 150 that fail from one source, %d were not looked at", busy)
	}
	if _, err := ask(t, i, bearer(fresh)); err != nil {
		t.Error("another source pays for it:", err)
	}
	for range 300 {
		_, err = ask(t, i, bearer(unsigned(`{"alg":"ES256","kid":"k1"}`, `{"iss":"`+idp.url+`"}`)))
	}
	if why(err) != gateway.WhyBusy {
		t.Errorf("from many sources: %v", err)
	}
	if _, err := i.Identify(t.Context(), good); err != nil {
		t.Error("whoever is known pays for it:", err)
	}
	c.advance(time.Second)
	if _, err := ask(t, i, bearer(idp.token(m{"jti": "t3"}))); err != nil {
		t.Error("a second later:", err)
	}
}

func TestDiscovery(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	for name, tt := range map[string]struct {
		path string // of the issuer
		at   string // where the metadata is
		meta m
		why  string
	}{
		"OpenID Connect":              {"", "/.well-known/openid-configuration", nil, "taken"},
		"OpenID Connect, with a path": {"/realm", "/realm/.well-known/openid-configuration", nil, "taken"},
		"RFC 8414":                    {"", "/.well-known/oauth-authorization-server", nil, "taken"},
		"RFC 8414, with a path":       {"/realm", "/.well-known/oauth-authorization-server/realm", nil, "taken"},
		"another issuer's":            {"", "/.well-known/openid-configuration", m{"issuer": "https://evil.example"}, gateway.WhyKeys},
		"keys in plaintext elsewhere": {"", "/.well-known/openid-configuration", m{"jwks_uri": "http://192.0.2.1/keys"}, gateway.WhyKeys},
		"keys in a file":              {"", "/.well-known/openid-configuration", m{"jwks_uri": "file:///etc/passwd"}, gateway.WhyKeys},
		"no keys":                     {"", "/.well-known/openid-configuration", m{"jwks_uri": nil}, gateway.WhyKeys},
	} {
		var server *httptest.Server
		server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != tt.at {
				http.NotFound(w, r)
				return
			}
			json.NewEncoder(w).Encode(join(m{"issuer": server.URL + tt.path, "jwks_uri": idp.url + "/keys"}, tt.meta))
		}))
		i := open(t, c, idp.config(func(is *identity.Issuer) { is.URL = server.URL + tt.path }))
		if _, err := ask(t, i, bearer(idp.token(m{"iss": server.URL + tt.path}))); why(err) != tt.why {
			t.Errorf("%s: %v, want %q", name, err, tt.why)
		}
		server.Close()
	}
}

// Run fetches before anybody asks, and notices a retired key.
func TestRunFetches(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	stop := running(t, i)
	await(t, "keys are fetched", func() bool { return idp.fetches.Load() == 1 })
	stop()
}

func TestIssuersThatAreNone(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	for name, change := range map[string]func(*identity.Issuer){
		"no name":                 func(is *identity.Issuer) { is.Name = "" },
		"another kind":            func(is *identity.Issuer) { is.Kind = "saml" },
		"no audience":             func(is *identity.Issuer) { is.Audiences = nil },
		"an empty audience":       func(is *identity.Issuer) { is.Audiences = []string{""} },
		"HMAC":                    func(is *identity.Issuer) { is.Algorithms = []string{"HS256"} },
		"none":                    func(is *identity.Issuer) { is.Algorithms = []string{"none"} },
		"plaintext off loopback":  func(is *identity.Issuer) { is.URL = "http://idp.example" },
		"keys in plaintext":       func(is *identity.Issuer) { is.JWKSURL = "http://idp.example/keys" },
		"keys here and there":     func(is *identity.Issuer) { is.JWKSURL, is.JWKSFile = "https://idp.example/keys", "keys" },
		"a CA file that is none":  func(is *identity.Issuer) { is.CAFile = "keys_test.go" },
		"no rules":                func(is *identity.Issuer) { is.Rules = nil },
		"a rule without a tenant": func(is *identity.Issuer) { is.Rules[0].Tenant = "" },
		"a template with a star":  func(is *identity.Issuer) { is.Rules[0].Principal = "agent:*" },
		"a template with a brace": func(is *identity.Issuer) { is.Rules[0].Principal = "agent:{sub" },
		"an empty hole":           func(is *identity.Issuer) { is.Rules[0].Principal = "agent:{}" },
		"vouching for all":        func(is *identity.Issuer) { is.Rules[0].Vouches = []string{"*"} },
		"mtls without a CA":       func(is *identity.Issuer) { is.Kind = identity.MTLS },
		"spiffe without bundles":  func(is *identity.Issuer) { is.Kind = identity.SPIFFEJWT },
	} {
		if _, err := identity.New(configOf(c, idp.config(change))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := identity.New(configOf(c, idp.config(), idp.config(func(is *identity.Issuer) { is.Name = "b" }))); err == nil {
		t.Error("one url for two issuers: accepted")
	}
}
