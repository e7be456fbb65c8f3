// Package identitytest brings what identity tests stand on and we did not write:
// an OpenID provider (zitadel/oidc) in this process, and a SPIRE beside it.
//
// It is for tests; nothing of the product imports it. What is checked about the
// tokens, and how, is left to those who are tested.
package identitytest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// Options are what a provider is started with; the zero Options will do.
type Options struct {
	Path      string                  // of the issuer, such as "/realms/acme"; none by default
	Lifetime  time.Duration           // of an access token; an hour by default
	Algorithm jose.SignatureAlgorithm // RS256 by default; ES256, ES384, PS256, EdDSA
	Person    string                  // who signs in and consents; "ada" by default
}

// A Provider is an OpenID provider on a loopback address, until its test ends. It
// registers any client (RFC 7591) and asks nobody for consent; all else (codes,
// PKCE by S256, client authentication, tokens) is the library's real thing.
//
// The audience of an access token is what the client named as resource (RFC
// 8707), or the client itself. It is safe for concurrent use.
type Provider struct {
	Issuer string

	t     testing.TB
	store *store
	op    *op.Provider
}

// Start starts a provider.
func Start(t testing.TB, o Options) *Provider {
	t.Helper()
	if o.Lifetime == 0 {
		o.Lifetime = time.Hour
	}
	if o.Algorithm == "" {
		o.Algorithm = jose.RS256
	}
	if o.Person == "" {
		o.Person = "ada"
	}
	front := http.NewServeMux()
	server := httptest.NewServer(front)
	t.Cleanup(server.Close)

	p := &Provider{Issuer: server.URL + o.Path, t: t, store: newStore(t, o)}
	p.store.login = p.Issuer + "/login?id="
	var secret [32]byte
	rand.Read(secret[:])
	var err error
	p.op, err = op.NewProvider(&op.Config{
		CryptoKey:       secret,
		CodeMethodS256:  true,
		AuthMethodPost:  true,
		SupportedScopes: []string{oidc.ScopeOpenID, oidc.ScopeProfile, "mcp"},
	}, p.store, op.StaticIssuer(p.Issuer), op.WithAllowInsecure())
	if err != nil {
		t.Fatal(err)
	}

	metadata := "/.well-known/oauth-authorization-server"
	front.HandleFunc("GET "+metadata+o.Path, p.metadata) // RFC 8414 puts the issuer's path last
	front.HandleFunc("GET "+o.Path+"/.well-known/openid-configuration", p.metadata)
	front.HandleFunc("POST "+o.Path+"/register", p.register)
	front.HandleFunc("GET "+o.Path+"/login", p.consent)
	front.HandleFunc("GET "+o.Path+"/keys", p.keys)
	front.Handle(o.Path+"/", http.StripPrefix(o.Path, withResource(p.op)))
	return p
}

// metadata adds to the library's what is ours: registration.
func (p *Provider) metadata(w http.ResponseWriter, r *http.Request) {
	m := op.CreateDiscoveryConfig(op.ContextWithIssuer(r.Context(), p.Issuer), p.op, p.store)
	m.RegistrationEndpoint = p.Issuer + "/register"
	reply(w, http.StatusOK, m)
}

// register answers RFC 7591: whoever asks is a client, of redirects to a loopback
// address or over https.
func (p *Provider) register(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RedirectURIs []string `json:"redirect_uris"`
		AuthMethod   string   `json:"token_endpoint_auth_method"`
		Name         string   `json:"client_name"`
	}
	refuse := func(code, why string) {
		reply(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": why})
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&in); err != nil {
		refuse("invalid_client_metadata", "not JSON")
		return
	}
	if len(in.RedirectURIs) == 0 {
		refuse("invalid_redirect_uri", "none")
		return
	}
	for _, raw := range in.RedirectURIs {
		if _, loopback := op.HTTPLoopbackOrLocalhost(raw); !loopback && !strings.HasPrefix(raw, "https://") {
			refuse("invalid_redirect_uri", "neither loopback nor https")
			return
		}
	}
	c := client{id: "client-" + strings.ToLower(rand.Text()), redirects: in.RedirectURIs, grants: []oidc.GrantType{oidc.GrantTypeCode}}
	switch in.AuthMethod {
	case "none":
		c.method = oidc.AuthMethodNone
	case "client_secret_post":
		c.method, c.secret = oidc.AuthMethodPost, rand.Text()
	case "", "client_secret_basic":
		c.method, c.secret = oidc.AuthMethodBasic, rand.Text()
	default:
		refuse("invalid_client_metadata", "token_endpoint_auth_method")
		return
	}
	p.store.add(c)
	out := map[string]any{
		"client_id": c.id, "client_id_issued_at": time.Now().Unix(), "client_name": in.Name,
		"redirect_uris": c.redirects, "token_endpoint_auth_method": c.method,
		"grant_types": c.grants, "response_types": []string{"code"},
	}
	if c.secret != "" {
		out["client_secret"], out["client_secret_expires_at"] = c.secret, 0
	}
	reply(w, http.StatusCreated, out)
}

// consent is the page on which the person would sign in and say yes.
func (p *Provider) consent(w http.ResponseWriter, r *http.Request) {
	id := r.FormValue("id")
	if !p.store.consent(id) {
		http.Error(w, "no such request", http.StatusNotFound)
		return
	}
	http.Redirect(w, r, op.AuthCallbackURL(p.op)(op.ContextWithIssuer(r.Context(), p.Issuer), id), http.StatusFound)
}

type resourceKey struct{}

// withResource hands the store what the library does not read, the resource a
// client names (RFC 8707), and gives a request without a scope one, as RFC 6749
// section 3.3 lets a server.
func withResource(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, "bad form", http.StatusBadRequest)
			return
		}
		if r.Form.Has("response_type") && strings.TrimSpace(r.Form.Get("scope")) == "" {
			r.Form.Set("scope", oidc.ScopeOpenID)
		}
		w.Header().Set("Cache-Control", "no-store") // RFC 6749 section 5.1; the library leaves it out
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), resourceKey{}, r.Form["resource"])))
	})
}

// SignIn becomes whoever signs in from now on.
func (p *Provider) SignIn(person string) { p.store.signIn(person) }

// SetClaims sets what access tokens of a subject, a person or a workload, hold
// from now on beside the registered claims: groups, act, may_act, cnf.
func (p *Provider) SetClaims(subject string, claims map[string]any) {
	p.store.setClaims(subject, claims)
}

// AddWorkload makes id a client of the client_credentials grant. It is the
// subject of its tokens.
func (p *Provider) AddWorkload(id, secret string) {
	p.store.add(client{id: id, secret: secret, method: oidc.AuthMethodBasic, grants: []oidc.GrantType{oidc.GrantTypeClientCredentials}})
}

// WorkloadToken returns an access token by the client_credentials grant.
func (p *Provider) WorkloadToken(id, secret, resource string) string {
	p.t.Helper()
	c := clientcredentials.Config{ClientID: id, ClientSecret: secret, TokenURL: p.Issuer + "/oauth/token", EndpointParams: url.Values{}}
	if resource != "" {
		c.EndpointParams.Set("resource", resource)
	}
	token, err := c.Token(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return token.AccessToken
}

// PersonToken returns an access token of whoever signs in, by registration and
// the authorization code grant.
func (p *Provider) PersonToken(resource string) string {
	p.t.Helper()
	const back = "http://127.0.0.1/callback"
	answer, err := http.Post(p.Issuer+"/register", "application/json", strings.NewReader(`{"redirect_uris":["`+back+`"],"token_endpoint_auth_method":"none"}`))
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	var registered struct {
		ID string `json:"client_id"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&registered); err != nil {
		p.t.Fatal(err)
	}
	c := oauth2.Config{ClientID: registered.ID, RedirectURL: back, Scopes: []string{"mcp"},
		Endpoint: oauth2.Endpoint{AuthURL: p.Issuer + "/authorize", TokenURL: p.Issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams}}
	verifier := oauth2.GenerateVerifier()
	var named []oauth2.AuthCodeOption
	if resource != "" {
		named = append(named, oauth2.SetAuthURLParam("resource", resource))
	}
	landed, err := Visit(p.t.Context(), c.AuthCodeURL("state", append(named, oauth2.S256ChallengeOption(verifier))...), back)
	if err != nil {
		p.t.Fatal(err)
	}
	token, err := c.Exchange(p.t.Context(), landed.Get("code"), append(named, oauth2.VerifierOption(verifier))...)
	if err != nil {
		p.t.Fatal(err)
	}
	return token.AccessToken
}

// Visit is a person's browser: it follows redirects from an authorization URL to
// the client's redirect URI, which need not exist, and returns what that is told.
func Visit(ctx context.Context, authorize, redirectURI string) (url.Values, error) {
	arrived := errors.New("arrived")
	var landed *url.URL
	browser := &http.Client{CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), redirectURI+"?") {
			landed = r.URL
			return arrived
		}
		if len(via) > 10 {
			return errors.New("redirected without end")
		}
		return nil
	}}
	r, err := http.NewRequestWithContext(ctx, "GET", authorize, nil)
	if err != nil {
		return nil, err
	}
	resp, err := browser.Do(r)
	if resp != nil {
		defer resp.Body.Close()
	}
	switch {
	case landed == nil && err != nil:
		return nil, err
	case landed == nil:
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return nil, fmt.Errorf("%s: %s", resp.Status, why)
	case landed.Query().Get("code") == "":
		return nil, fmt.Errorf("no code: %s %s", landed.Query().Get("error"), landed.Query().Get("error_description"))
	}
	return landed.Query(), nil
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
