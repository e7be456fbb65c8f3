package edge

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	sdkauth "github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
	"golang.org/x/oauth2"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// discoverable is a door that sends those it does not know to an issuer.
func discoverable(c *Config) {
	c.PublicURL = "https://tools.example"
	c.Issuers = []string{"https://id.example/realm"}
	c.Scopes = []string{"mcp:tools", "offline_access"}
	c.Origins = []string{"https://app.example"}
}

var bare = map[string]string{"Authorization": ""}

// What /mcp says of itself is for everybody, and for nobody else's use.
func TestMetadata(t *testing.T) {
	const path = "/.well-known/oauth-protected-resource"
	full := `{"resource":"https://tools.example/mcp","authorization_servers":["https://id.example/realm"],"scopes_supported":["mcp:tools","offline_access"],` +
		`"bearer_methods_supported":["header"],"dpop_signing_alg_values_supported":["ES256","ES384","EdDSA","RS256","PS256"],` +
		`"authorization_details_types_supported":["toolbroker_task"],"resource_name":"toolbroker"}`
	for _, row := range []struct {
		name   string
		change func(*Config)
		req    req
		status int
		body   string
	}{
		{"with the path", discoverable, req{method: "GET", path: path + "/mcp", header: bare}, 200, full},
		{"without the path", discoverable, req{method: "GET", path: path, header: bare}, 200, full},
		{"with a token that is no good", discoverable, req{method: "GET", path: path, token: "mallory"}, 200, full},
		{"HEAD", discoverable, req{method: "HEAD", path: path + "/mcp", header: bare}, 200, ""},
		{"from a page", discoverable, req{method: "GET", path: path + "/mcp", header: bare}.with("Origin", "https://inspector.example"), 200, full},
		{"preflight", discoverable, req{method: "OPTIONS", path: path + "/mcp", header: bare}.with("Origin", "https://inspector.example"), 204, ""},
		{"with certificates", func(c *Config) { discoverable(c); c.MTLS = true }, req{method: "GET", path: path, header: bare}, 200,
			strings.Replace(full, `"authorization_details`, `"tls_client_certificate_bound_access_tokens":true,"authorization_details`, 1)},
		{"without scopes", func(c *Config) { discoverable(c); c.Scopes = nil }, req{method: "GET", path: path, header: bare}, 200,
			strings.Replace(full, `"scopes_supported":["mcp:tools","offline_access"],`, "", 1)},
		{"other algorithms", func(c *Config) { discoverable(c); c.DPoPAlgs = []string{"ES512"} }, req{method: "GET", path: path, header: bare}, 200,
			strings.Replace(full, `["ES256","ES384","EdDSA","RS256","PS256"]`, `["ES512"]`, 1)},
		{"no issuer", func(c *Config) { discoverable(c); c.Issuers = nil }, req{method: "GET", path: path + "/mcp", header: bare}, 404, "404 page not found\n"},
		{"no issuer: preflight", func(*Config) {}, req{method: "OPTIONS", path: path + "/mcp", header: bare}, 404, "404 page not found\n"},
		{"on loopback by its Host", func(c *Config) { discoverable(c); c.PublicURL = "" }, req{method: "GET", path: path, header: bare, host: "localhost:7777"}, 200,
			strings.Replace(full, "https://tools.example/mcp", "http://localhost:7777/mcp", 1)},
		{"by a name that a proxy may have", func(c *Config) { discoverable(c); c.PublicURL = ""; c.Hosts = []string{"tools.example"} },
			req{method: "GET", path: path, header: bare, host: "tools.example"}, 404, "404 page not found\n"},
		{"foreign host", discoverable, req{method: "GET", path: path, header: bare, host: "evil.example"}, 421, "this server does not answer to that Host\n"},
		{"a query", discoverable, req{method: "GET", path: path + "?x=1", header: bare}, 400, "no query parameters here; a token goes in the Authorization header\n"},
		{"another resource", discoverable, req{method: "GET", path: path + "/v1", header: bare}, 404, "404 page not found\n"},
		{"POST", discoverable, req{path: path, header: bare}, 405, "Method Not Allowed\n"},
	} {
		d := open(t, row.change)
		got := d.do(row.req)
		if got.status != row.status || got.body != row.body {
			t.Errorf("%s: %d %s\nwant %d %s", row.name, got.status, got.body, row.status, row.body)
		}
		wide, cached := got.header.Get("Access-Control-Allow-Origin") == "*", got.header.Get("Cache-Control") == metadataAge
		if good := row.status < 300; wide != good || cached != (row.status == 200) {
			t.Errorf("%s: headers %v", row.name, got.header)
		}
		if got.header.Get("Access-Control-Allow-Credentials") != "" || len(d.seen) > 0 {
			t.Errorf("%s: somebody was asked for, %v", row.name, got.header)
		}
	}
	d := open(t, discoverable)
	for _, r := range []req{{body: call("echo", "{}")}, {token: "mallory"}, {method: "GET", path: "/v1/tasks/task-a"}, {path: "/oauth/token"}} {
		if got := d.do(r.with("Origin", "https://app.example")); got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%+v: %v", r, got.header)
		}
	}
	if got := d.do(req{body: call("echo", "{}")}.with("Origin", "https://inspector.example")); got.status != 403 {
		t.Errorf("a page that is not allowed: %d", got.status)
	}
}

const metadataURL = `resource_metadata="https://tools.example/.well-known/oauth-protected-resource/mcp"`

// everyDoor is one well-formed request for each way in that needs a credential.
func everyDoor() map[string]req {
	return map[string]req{
		"POST /mcp":     {body: call("echo", "{}")},
		"modern /mcp":   modernReq("tools/list", "", ""),
		"GET /mcp":      {method: "GET"},
		"DELETE /mcp":   {method: "DELETE"},
		"start":         {path: "/v1/tasks", body: `{"kind":"x"}`},
		"show":          {method: "GET", path: "/v1/tasks/task-a"},
		"end":           {path: "/v1/tasks/task-a/end"},
		"delegate":      {path: "/v1/tasks/task-a/delegate", body: `{"kind":"x"}`},
		"notification":  {body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`},
		"no JSON-RPC":   {body: "{"},
		"unknown thing": {path: "/v1/tasks/Task/end"},
	}
}

// Whoever is not identified hears at every door what to do about it, and nothing
// that would send a client in circles.
func TestChallenges(t *testing.T) {
	const scope = `scope="mcp:tools offline_access"`
	invalid := func(says string) string {
		return `Bearer error="invalid_token", error_description="` + says + `", ` + metadataURL + `, ` + scope
	}
	dpop := func(says string) string {
		return ` | DPoP algs="ES256 ES384 EdDSA RS256 PS256", error="invalid_dpop_proof", error_description="` + says + `"`
	}
	noProof := "the token is bound to a key, and no valid proof of that key came with it"
	for _, row := range []struct {
		name   string
		token  string // "" for none
		proof  string
		status int
		want   string // the challenges
		retry  string
	}{
		{"nothing came", "", "", 401, `Bearer ` + metadataURL + `, ` + scope, ""},
		{"another scheme", "Basic eDp5", "", 401, `Bearer ` + metadataURL + `, ` + scope, ""},
		{"nobody's", "mallory", "", 401, invalid("the token is not valid here"), ""},
		{"malformed", gateway.WhyMalformed, "", 401, invalid("the token cannot be read"), ""},
		{"no such key", gateway.WhyUnknown, "", 401, invalid("the key is not known"), ""},
		{"issuer", gateway.WhyIssuer, "", 401, invalid("the token's issuer is not one of those that the resource metadata names"), ""},
		{"audience", gateway.WhyAudience, "", 401, invalid("the token is for another resource"), ""},
		{"expired", gateway.WhyExpired, "", 401, invalid("the token has expired"), ""},
		{"early", gateway.WhyEarly, "", 401, invalid("the token is not valid yet"), ""},
		{"algorithm", gateway.WhyAlgorithm, "", 401, invalid("the token is signed with an algorithm that is not taken here"), ""},
		{"algorithm of a proof", gateway.WhyAlgorithm, "x", 401, invalid("the token is signed with an algorithm that is not taken here") + dpop("the token is signed with an algorithm that is not taken here"), ""},
		{"signature", gateway.WhySignature, "", 401, invalid("the token's signature does not verify"), ""},
		{"mapping", gateway.WhyMapping, "", 401, invalid("nobody is known here by this token"), ""},
		{"no proof", gateway.WhyProof, "", 401, invalid(noProof) + dpop(noProof), ""},
		{"replay", gateway.WhyReplay, "x", 401, invalid("the proof was used before") + dpop("the proof was used before"), ""},
		{"scope", gateway.WhyScope, "", 403, `Bearer error="insufficient_scope", scope="mcp:tools mcp:admin", ` + metadataURL, ""},
		{"keys", gateway.WhyKeys, "", 503, "", "5"},
		{"busy", gateway.WhyBusy, "", 429, "", "1"},
		{"a reason to come", "that nobody thought of", "", 401, invalid("the token is not valid here"), ""},
	} {
		d := open(t, discoverable)
		for door, r := range everyDoor() {
			switch row.token {
			case "":
				r = r.with("Authorization", "")
			case "mallory":
				r.token = "mallory"
			case "Basic eDp5":
				r = r.with("Authorization", row.token)
			default:
				r.token = "bad:" + strings.ReplaceAll(row.token, " ", "_")
			}
			if row.proof != "" {
				r = r.with("DPoP", row.proof)
			}
			got := d.do(r)
			all := strings.Join(got.header.Values("WWW-Authenticate"), " | ")
			if got.status != row.status || all != row.want || got.header.Get("Retry-After") != row.retry || got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s, %s: %d %s, Retry-After %q\nwant %d %s", row.name, door, got.status, all, got.header.Get("Retry-After"), row.status, row.want)
			}
			if strings.Contains(got.body, "words") || strings.Contains(got.body, "ours") || strings.Contains(got.body+all, "bad:") || strings.Contains(got.body+all, "mallory") {
				t.Errorf("%s, %s: says too much: %s %s", row.name, door, all, got.body)
			}
		}
		if len(d.calls)+len(d.started)+d.malformed > 0 {
			t.Errorf("%s: something was done", row.name)
		}
	}
}

// Where there is no issuer there is nowhere to send anybody.
func TestChallengesWithoutAnIssuer(t *testing.T) {
	for token, want := range map[string]string{
		"mallory":                  "Bearer",
		"bad:" + gateway.WhyIssuer: "Bearer",
		"bad:" + gateway.WhyProof:  `Bearer | DPoP algs="ES256 ES384 EdDSA RS256 PS256", error="invalid_dpop_proof", error_description="the token is bound to a key, and no valid proof of that key came with it"`,
	} {
		d := open(t)
		for door, r := range everyDoor() {
			r.token = strings.ReplaceAll(token, " ", "_")
			got := d.do(r)
			if all := strings.Join(got.header.Values("WWW-Authenticate"), " | "); got.status != 401 || all != want {
				t.Errorf("%s, %s: %d %s", token, door, got.status, all)
			}
		}
	}
}

// No decision of policy's looks like something that another token would mend.
func TestDenialsAreNoChallenges(t *testing.T) {
	d := open(t, discoverable)
	for _, code := range gateway.Codes {
		if code == gateway.Unidentified {
			continue
		}
		d.refusal = &gateway.Refusal{Code: code, Say: "words"}
		for door, r := range map[string]req{
			"a call":      {body: call("refuse", "{}")},
			"an exchange": form(nil),
			"no task":     {token: "key", body: rpc(1, "tools/list", "")},
			"a start":     {path: "/v1/tasks", body: `{"kind":"x"}`},
		} {
			got := d.do(r)
			if len(got.header.Values("WWW-Authenticate")) > 0 || strings.Contains(got.body, "insufficient_scope") || got.status == 401 {
				t.Errorf("%s by %s: %d %v %s", code, door, got.status, got.header, got.body)
			}
		}
	}
}

// No Why that the gateway can give is without words for whoever holds the token.
func TestEveryWhyIsSaid(t *testing.T) {
	for _, why := range []string{
		gateway.WhyNone, gateway.WhyMalformed, gateway.WhyUnknown, gateway.WhyIssuer, gateway.WhyAudience, gateway.WhyExpired, gateway.WhyEarly,
		gateway.WhyAlgorithm, gateway.WhySignature, gateway.WhyKeys, gateway.WhyProof, gateway.WhyReplay, gateway.WhyMapping, gateway.WhyScope, gateway.WhyBusy,
	} {
		if text := saying[why]; text == "" || plain(text) != text || authenticate("Bearer", "x", text) != `Bearer x="`+text+`"` {
			t.Errorf("%s: %q", why, text)
		}
	}
}

func TestNewRefusesWhatNobodyCouldDiscover(t *testing.T) {
	for _, row := range []struct {
		change Config
		fine   bool
	}{
		{Config{PublicURL: "https://tools.example"}, true},
		{Config{PublicURL: "https://tools.example:8443/"}, true},
		{Config{PublicURL: "http://localhost:8080"}, true},
		{Config{PublicURL: "http://tools.example"}, false},
		{Config{PublicURL: "https://tools.example/mcp"}, false},
		{Config{PublicURL: "https://tools.example?x"}, false},
		{Config{PublicURL: "https://me@tools.example"}, false},
		{Config{PublicURL: "tools.example"}, false},
		{Config{PublicURL: "https://"}, false},
		{Config{PublicURL: `https://a"b`}, false},
		{Config{Issuers: []string{"https://id.example/realm"}}, true},
		{Config{Issuers: []string{"http://[::1]:9/"}}, true},
		{Config{Issuers: []string{"http://id.example"}}, false},
		{Config{Issuers: []string{"javascript:alert(1)"}}, false},
		{Config{Issuers: []string{"https://id.example/#x"}}, false},
		{Config{Issuers: []string{""}}, false},
		{Config{Scopes: []string{"mcp:tools"}}, true},
		{Config{Scopes: []string{`a"b`}}, false},
		{Config{Scopes: []string{"a b"}}, false},
		{Config{Scopes: []string{""}}, false},
		{Config{DPoPAlgs: []string{"ES256\n"}}, false},
	} {
		c := row.change
		c.Gateway, c.Sessions = newHouse(), gatewaytest.NewSessions()
		if _, err := New(c); (err == nil) != row.fine {
			t.Errorf("%+v: %v", row.change, err)
		}
	}
}

// A client that was told nothing but a URL finds its issuer, by the SDK's own
// reading of what it is told, and is then let in.
func TestSDKDiscovers(t *testing.T) {
	d := open(t, func(c *Config) { c.Issuers, c.Scopes = []string{"https://id.example/realm"}, []string{"mcp:tools"} })
	finder := &finder{resource: d.url + "/mcp"}
	c := sdk.NewClient(&sdk.Implementation{Name: "t", Version: "1"}, nil)
	s, err := c.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: finder.resource, OAuthHandler: finder}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if out, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "echo"}); err != nil || out.IsError {
		t.Fatalf("%+v %v", out, err)
	}
	m := finder.found
	if finder.asked != 1 || m == nil || strings.Join(m.AuthorizationServers, " ") != "https://id.example/realm" || strings.Join(m.ScopesSupported, " ") != "mcp:tools" ||
		finder.scope != "mcp:tools" || len(m.DPOPSigningAlgValuesSupported) != 5 || m.TLSClientCertificateBoundAccessTokens {
		t.Errorf("%d %+v", finder.asked, m)
	}
}

// A finder is a client's way to a token: it goes where the challenge sends it.
type finder struct {
	resource string
	found    *oauthex.ProtectedResourceMetadata
	scope    string
	asked    int
}

var _ sdkauth.OAuthHandler = (*finder)(nil)

func (f *finder) TokenSource(context.Context) (oauth2.TokenSource, error) {
	if f.found == nil {
		return nil, nil
	}
	return oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "alice"}), nil
}

func (f *finder) Authorize(ctx context.Context, _ *http.Request, answer *http.Response) error {
	defer answer.Body.Close()
	f.asked++
	all, err := oauthex.ParseWWWAuthenticate(answer.Header.Values("WWW-Authenticate"))
	if err != nil {
		return err
	}
	f.scope = all[0].Params["scope"]
	f.found, err = oauthex.GetProtectedResourceMetadata(ctx, all[0].Params["resource_metadata"], f.resource, http.DefaultClient)
	return err
}

// The SDK reads every challenge as we mean it.
func TestSDKReadsChallenges(t *testing.T) {
	d := open(t, discoverable)
	got := d.do(req{token: "bad:" + strings.ReplaceAll(gateway.WhyProof, " ", "_")})
	all, err := oauthex.ParseWWWAuthenticate(got.header.Values("WWW-Authenticate"))
	if err != nil {
		t.Fatal(err)
	}
	// Clients that join the lines of a header read the same.
	joined, err := oauthex.ParseWWWAuthenticate([]string{strings.Join(got.header.Values("WWW-Authenticate"), ", ")})
	if err != nil {
		t.Fatal(err)
	}
	for _, all := range [][]oauthex.Challenge{all, joined} {
		if len(all) != 2 || all[0].Scheme != "bearer" || all[0].Params["error"] != "invalid_token" || all[0].Params["scope"] != "mcp:tools offline_access" ||
			all[1].Scheme != "dpop" || all[1].Params["error"] != "invalid_dpop_proof" || !strings.HasPrefix(all[1].Params["algs"], "ES256 ") {
			raw, _ := json.Marshal(all)
			t.Errorf("%s", raw)
		}
	}
}
