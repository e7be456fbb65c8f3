package identitytest_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"

	"toolbroker/brokers/identity/identitytest"
)

func get(t *testing.T, url string, out any) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == 200 {
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode
}

func published(t *testing.T, p *identitytest.Provider) jose.JSONWebKeySet {
	t.Helper()
	var set jose.JSONWebKeySet
	if code := get(t, p.Issuer+"/keys", &set); code != 200 {
		t.Fatalf("keys: %d", code)
	}
	return set
}

// claims verifies a token with a published key, as a stranger would.
func claims(t *testing.T, token string, keys jose.JSONWebKeySet) (map[string]any, error) {
	t.Helper()
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.ES384, jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	found := keys.Key(signed.Signatures[0].Header.KeyID)
	if len(found) != 1 {
		return nil, errors.New("unknown kid")
	}
	payload, err := signed.Verify(found[0])
	if err != nil {
		return nil, err
	}
	var all map[string]any
	if err := json.Unmarshal(payload, &all); err != nil {
		t.Fatal(err)
	}
	return all, nil
}

func TestDiscovery(t *testing.T) {
	for _, path := range []string{"", "/realms/acme"} {
		p := identitytest.Start(t, identitytest.Options{Path: path})
		host := strings.TrimSuffix(p.Issuer, path)
		for _, at := range []string{host + "/.well-known/oauth-authorization-server" + path, p.Issuer + "/.well-known/openid-configuration"} {
			var m struct {
				Issuer   string
				Authz    string   `json:"authorization_endpoint"`
				Token    string   `json:"token_endpoint"`
				Register string   `json:"registration_endpoint"`
				JWKS     string   `json:"jwks_uri"`
				PKCE     []string `json:"code_challenge_methods_supported"`
			}
			if code := get(t, at, &m); code != 200 {
				t.Fatalf("%s: %d", at, code)
			}
			if m.Issuer != p.Issuer || m.Authz != p.Issuer+"/authorize" || m.Token != p.Issuer+"/oauth/token" || m.Register != p.Issuer+"/register" || m.JWKS != p.Issuer+"/keys" || !slices.Equal(m.PKCE, []string{"S256"}) {
				t.Errorf("%s: %+v", at, m)
			}
		}
		if n := len(published(t, p).Keys); n != 1 {
			t.Errorf("%d keys", n)
		}
	}
}

func TestTokens(t *testing.T) {
	const resource = "https://tools.example/mcp"
	p := identitytest.Start(t, identitytest.Options{Path: "/o", Lifetime: 5 * time.Minute})
	p.AddWorkload("triage", "s3cret")
	p.SetClaims("triage", map[string]any{"groups": []string{"bots"}, "may_act": map[string]any{"sub": "planner"}})
	p.SetClaims("ada", map[string]any{"act": map[string]any{"sub": "editor", "act": map[string]any{"sub": "ide"}}})
	keys := published(t, p)
	for _, c := range []struct {
		name, token string
		want        map[string]any
	}{
		{"a person's", p.PersonToken(resource), map[string]any{"sub": "ada", "aud": []any{resource}, "scope": "mcp", "act": map[string]any{"sub": "editor", "act": map[string]any{"sub": "ide"}}}},
		{"a workload's", p.WorkloadToken("triage", "s3cret", resource), map[string]any{"sub": "triage", "client_id": "triage", "aud": []any{resource}, "groups": []any{"bots"}, "may_act": map[string]any{"sub": "planner"}}},
		{"for nobody in particular", p.WorkloadToken("triage", "s3cret", ""), map[string]any{"aud": []any{"triage"}}},
		{"minted", p.Mint(map[string]any{"sub": "x", "aud": resource, "jti": nil}), map[string]any{"sub": "x", "aud": resource, "jti": nil}},
	} {
		got, err := claims(t, c.token, keys)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		c.want["iss"] = p.Issuer
		for name, want := range c.want {
			if !reflect.DeepEqual(got[name], want) {
				t.Errorf("%s: %s is %v, not %v", c.name, name, got[name], want)
			}
		}
		if exp, _ := got["exp"].(float64); !time.Unix(int64(exp), 0).After(time.Now()) {
			t.Errorf("%s: has expired", c.name)
		}
	}
	p.SignIn("bob")
	if got, _ := claims(t, p.PersonToken(resource), keys); got["sub"] != "bob" || got["act"] != nil {
		t.Errorf("another person: %v", got)
	}
}

// What a provider must refuse, so that a client which gets it wrong is found out.
func TestRefusals(t *testing.T) {
	const back = "http://127.0.0.1:1/back"
	p := identitytest.Start(t, identitytest.Options{})
	p.AddWorkload("w", "right")
	register := func(body string) (status int, id string) {
		resp, err := http.Post(p.Issuer+"/register", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out struct {
			ID string `json:"client_id"`
		}
		json.NewDecoder(resp.Body).Decode(&out)
		return resp.StatusCode, out.ID
	}
	for _, body := range []string{`{`, `{}`, `{"redirect_uris":["http://elsewhere.example/"]}`, `{"redirect_uris":["` + back + `"],"token_endpoint_auth_method":"magic"}`} {
		if status, _ := register(body); status != 400 {
			t.Errorf("register %s: %d", body, status)
		}
	}
	_, id := register(`{"redirect_uris":["` + back + `"],"token_endpoint_auth_method":"none"}`)
	config := oauth2.Config{ClientID: id, RedirectURL: back, Scopes: []string{"mcp"}, Endpoint: oauth2.Endpoint{AuthURL: p.Issuer + "/authorize", TokenURL: p.Issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams}}
	verifier := oauth2.GenerateVerifier()
	resource := oauth2.SetAuthURLParam("resource", "https://a.example")
	good := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(verifier), resource}

	for name, options := range map[string][]oauth2.AuthCodeOption{
		"no PKCE":                           {resource},
		"plain PKCE":                        {oauth2.SetAuthURLParam("code_challenge", "abc"), oauth2.SetAuthURLParam("code_challenge_method", "plain")},
		"a redirect that is not registered": append(slices.Clone(good), oauth2.SetAuthURLParam("redirect_uri", "http://elsewhere.example/back")),
	} {
		if landed, err := identitytest.Visit(t.Context(), config.AuthCodeURL("s", options...), back); err == nil {
			t.Errorf("%s: %v", name, landed)
		}
	}
	code := func() string {
		landed, err := identitytest.Visit(t.Context(), config.AuthCodeURL("s", good...), back)
		if err != nil {
			t.Fatal(err)
		}
		return landed.Get("code")
	}
	for name, options := range map[string][]oauth2.AuthCodeOption{
		"no verifier":      {},
		"another verifier": {oauth2.VerifierOption(oauth2.GenerateVerifier())},
		"another resource": {oauth2.VerifierOption(verifier), oauth2.SetAuthURLParam("resource", "https://b.example")},
	} {
		if _, err := config.Exchange(t.Context(), code(), options...); err == nil {
			t.Error(name)
		}
	}
	once := code()
	if _, err := config.Exchange(t.Context(), once, oauth2.VerifierOption(verifier)); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Exchange(t.Context(), once, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code twice")
	}
	resp, err := http.PostForm(p.Issuer+"/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {"w"}, "client_secret": {"wrong"}})
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 401 || !strings.Contains(string(body), "invalid_client") {
		t.Errorf("a wrong secret: %s %s", resp.Status, body)
	}
	resp.Body.Close()
}

func TestRotation(t *testing.T) {
	p := identitytest.Start(t, identitytest.Options{Algorithm: jose.ES256})
	first := p.Mint(nil)
	known := published(t, p)
	p.Rotate()
	second := p.Mint(nil)
	both := published(t, p)
	p.Retire()
	after := published(t, p)
	for name, c := range map[string]struct {
		token string
		keys  jose.JSONWebKeySet
		fine  bool
	}{
		"the old one, before": {first, known, true}, "the new one, before": {second, known, false},
		"the old one, meanwhile": {first, both, true}, "the new one, meanwhile": {second, both, true},
		"the old one, after": {first, after, false}, "the new one, after": {second, after, true},
	} {
		if _, err := claims(t, c.token, c.keys); (err == nil) != c.fine {
			t.Errorf("%s: %v", name, err)
		}
	}

	p.StopKeys()
	if _, err := http.Get(p.Issuer + "/keys"); err == nil {
		t.Error("the shut endpoint answers")
	}
	p.StartKeys()
	before := p.KeyFetches()
	if n := len(published(t, p).Keys); n != 1 {
		t.Errorf("%d keys", n)
	}
	if n := p.KeyFetches() - before; n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// Verify is a yardstick, so it must tell apart what others are to tell apart.
func TestVerify(t *testing.T) {
	p, other := identitytest.Start(t, identitytest.Options{Algorithm: jose.ES256}), identitytest.Start(t, identitytest.Options{Algorithm: jose.ES256})
	for _, c := range []struct {
		name, token string
		fine        bool
	}{
		{"as it should be", p.Mint(map[string]any{"aud": "us"}), true},
		{"for others", p.Mint(map[string]any{"aud": "them"}), false},
		{"expired", p.Mint(map[string]any{"aud": "us", "exp": time.Now().Add(-time.Hour).Unix()}), false},
		{"not yet valid", p.Mint(map[string]any{"aud": "us", "nbf": time.Now().Add(time.Hour).Unix()}), false},
		{"another issuer's", other.Mint(map[string]any{"aud": "us"}), false},
		{"in another issuer's name", other.Mint(map[string]any{"aud": "us", "iss": p.Issuer}), false},
		{"by no known key", p.Sign([]byte(`{"aud":"us"}`), map[string]any{"kid": "?"}), false},
		{"nothing", "", false},
	} {
		if _, err := p.Verify(c.token, "us"); (err == nil) != c.fine {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestProver(t *testing.T) {
	d := identitytest.NewProver(t)
	proof, err := jose.ParseSignedCompact(d.Proof("POST", "https://a.example/mcp", "tok", map[string]any{"nonce": "n"}), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	header := proof.Signatures[0].Header
	if header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() || header.ExtraHeaders["typ"] != "dpop+jwt" {
		t.Fatalf("%+v", header)
	}
	payload, err := proof.Verify(header.JSONWebKey)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	json.Unmarshal(payload, &got)
	// ath is base64url(SHA-256("tok"))
	if got["htm"] != "POST" || got["htu"] != "https://a.example/mcp" || got["nonce"] != "n" || got["ath"] != "GnZ0607njffhrEOak8P6jjyUV4TU3sn9jjARc4svHWI" {
		t.Errorf("%v", got)
	}
	if len(d.CNF()["jkt"].(string)) != 43 {
		t.Error(d.CNF())
	}
}
