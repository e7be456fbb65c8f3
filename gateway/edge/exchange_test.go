package edge

import (
	"encoding/json"
	"errors"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/oauth2"

	"toolbroker/authz"
	"toolbroker/gateway"
)

const details = `[{"type":"toolbroker_task","kind":"triage","purpose":"look at ACME-7 & mend it","reference":"ACME-7","on_behalf_of":"ann","principal":"agent:x",` +
	`"labels":["db"],"approvers":["group:sre"],"ttl_seconds":600,"calls":20,"scope":[{"tool":"github/*","action":"call","when":"args.repo == \"a\"","verdict":"allow"}]}]`

// form is a token exchange as "key", with some parameters changed; one that is
// empty is left out.
func form(change map[string]string) req {
	all := map[string]string{
		"grant_type": grantExchange, "subject_token": "key", "subject_token_type": tokenAPIKey, "authorization_details": details,
	}
	maps.Copy(all, change)
	v := url.Values{}
	for name, value := range all {
		if value != "" {
			v.Set(name, value)
		}
	}
	return rawForm(v.Encode())
}

func rawForm(body string) req {
	return req{path: "/oauth/token", body: body, header: map[string]string{"Authorization": "", "Content-Type": formType}}
}

func granted(t *testing.T, bound string) gateway.Task {
	scope, err := authz.NewScope([]authz.ScopeRow{{Tool: "github/read", Action: "call", Verdict: "allow"}})
	if err != nil {
		t.Fatal(err)
	}
	return gateway.Task{ID: "task-new", Kind: "triage", Scope: scope, Bound: bound, Expires: time.Date(2026, 11, 25, 12, 10, 0, 0, time.UTC)}
}

func atNoon(c *Config) {
	discoverable(c)
	c.Now = func() time.Time { return time.Date(2026, 11, 25, 12, 0, 0, 500, time.UTC) }
}

// What was asked reaches the gateway, and what was granted the caller.
func TestExchange(t *testing.T) {
	answer := func(issued, kind string) string {
		return `{"access_token":"the-task-token","issued_token_type":"` + issued + `","token_type":"` + kind + `","expires_in":599,` +
			`"authorization_details":[{"type":"toolbroker_task","task":"task-new","kind":"triage","scope":[{"tool":"github/read","action":"call","verdict":"allow"}],"expires":"2026-11-25T12:10:00Z"}]}` + "\n"
	}
	spec := gateway.TaskSpec{
		Kind: "triage", Purpose: "look at ACME-7 & mend it", Reference: "ACME-7", OnBehalfOf: "ann", Principal: "agent:x",
		Labels: []string{"db"}, Approvers: []string{"group:sre"}, TTL: 10 * time.Minute, Calls: 20,
		Scope: []authz.ScopeRow{{Tool: "github/*", Action: "call", When: `args.repo == "a"`, Verdict: "allow"}},
	}
	for _, row := range []struct {
		name   string
		change map[string]string
		bound  string
		answer string
		want   gateway.Exchange
	}{
		{"an API key", nil, "", answer(tokenJWT, "Bearer"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"a JWT", map[string]string{"subject_token_type": tokenJWT}, "", answer(tokenJWT, "Bearer"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"an access token, for one", map[string]string{"subject_token_type": tokenAccess, "requested_token_type": tokenAccess}, "", answer(tokenAccess, "Bearer"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"for a human", map[string]string{"actor_token": "bob", "actor_token_type": tokenJWT}, "", answer(tokenJWT, "Bearer"),
			gateway.Exchange{Subject: gateway.NewSecret("key"), Actor: gateway.NewSecret("bob"), Spec: spec}},
		{"bound to a key", nil, "jkt:k", answer(tokenJWT, "DPoP"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"bound to a certificate", nil, "x5t#S256:c", answer(tokenJWT, "Bearer"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"with our name", map[string]string{"resource": "https://tools.example/mcp", "audience": "https://tools.example"}, "", answer(tokenJWT, "Bearer"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"with what means nothing", map[string]string{"scope": "mcp:tools", "client_id": "x", "foo": "ünì"}, "", answer(tokenJWT, "Bearer"), gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: spec}},
		{"only a kind", map[string]string{"authorization_details": `[{"type":"toolbroker_task","kind":"triage"}]`}, "", answer(tokenJWT, "Bearer"),
			gateway.Exchange{Subject: gateway.NewSecret("key"), Spec: gateway.TaskSpec{Kind: "triage"}}},
	} {
		d := open(t, atNoon)
		d.granted = granted(t, row.bound)
		got := d.do(form(row.change))
		if got.status != 200 || got.body != row.answer || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s\nwant %s", row.name, got.status, got.body, row.answer)
		}
		if len(d.exchanged) != 1 || !reflect.DeepEqual(d.exchanged[0], row.want) {
			t.Errorf("%s: exchanged %+v", row.name, d.exchanged)
		}
	}
	d := open(t, atNoon)
	d.granted = granted(t, "")
	d.granted.Expires = time.Date(2026, 11, 25, 11, 0, 0, 0, time.UTC)
	if got := d.do(form(nil)); !strings.Contains(got.body, `"expires_in":0,`) {
		t.Errorf("over before it was answered: %s", got.body)
	}
}

// A form that is not one exchange, in one reading, is refused in RFC 6749's words
// and never repeated back.
func TestExchangeRefusesForms(t *testing.T) {
	with := func(name, value string) req { return form(map[string]string{name: value}) }
	raw := func(more string) req { return rawForm(form(nil).body + more) }
	wish := func(member string) req {
		return with("authorization_details", `[{"type":"toolbroker_task","kind":"triage",`+member+`}]`)
	}
	for _, row := range []struct {
		name   string
		req    req
		status int
		code   string
	}{
		{"no grant_type", with("grant_type", ""), 400, "invalid_request"},
		{"another grant", with("grant_type", "client_credentials"), 400, "unsupported_grant_type"},
		{"a code", with("grant_type", "authorization_code"), 400, "unsupported_grant_type"},
		{"no subject", with("subject_token", ""), 400, "invalid_request"},
		{"no subject and no type", form(map[string]string{"subject_token": "", "subject_token_type": ""}), 400, "invalid_request"},
		{"no subject type", with("subject_token_type", ""), 400, "invalid_request"},
		{"a type nobody takes", with("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), 400, "invalid_request"},
		{"an ID token", with("subject_token_type", "urn:ietf:params:oauth:token-type:id_token"), 400, "invalid_request"},
		{"a subject that is none", with("subject_token", "ke y"), 400, "invalid_request"},
		{"a subject with a line end", with("subject_token", "key\n"), 400, "invalid_request"},
		{"an actor without a type", with("actor_token", "bob"), 400, "invalid_request"},
		{"an actor's type without one", with("actor_token_type", tokenJWT), 400, "invalid_request"},
		{"a refresh token wanted", with("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), 400, "invalid_request"},
		{"another resource", with("resource", "https://tools.example/v1"), 400, "invalid_target"},
		{"a resource that begins like ours", with("resource", "https://tools.example.evil.example/mcp"), 400, "invalid_target"},
		{"another audience", with("audience", "https://id.example"), 400, "invalid_target"},
		{"no details", with("authorization_details", ""), 400, "invalid_request"},

		{"a parameter twice", raw("&subject_token=key"), 400, "invalid_request"},
		{"a parameter twice, once escaped", raw("&subject%5Ftoken=bob"), 400, "invalid_request"},
		{"a parameter twice, once empty", raw("&subject_token="), 400, "invalid_request"},
		{"two resources", raw("&resource=https://tools.example&resource=https://tools.example"), 400, "invalid_request"},
		{"what means nothing, twice", raw("&x=1&x=2"), 400, "invalid_request"},
		{"another case", raw("&Subject_Token=bob"), 400, "invalid_request"},
		{"a semicolon", raw(";subject_token=bob"), 400, "invalid_request"},
		{"a bad escape", raw("&x=%zz"), 400, "invalid_request"},
		{"half an escape", raw("&x=%"), 400, "invalid_request"},
		{"a raw byte", raw("&x=\xff"), 400, "invalid_request"},
		{"a line end", raw("\n"), 400, "invalid_request"},
		{"empty", rawForm(""), 400, "invalid_request"},
		{"JSON", rawForm(`{"grant_type":"x"}`).with("Content-Type", "application/json"), 415, "invalid_request"},
		{"JSON in a form's clothes", rawForm(details), 400, "invalid_request"},
		{"no content type", form(nil).with("Content-Type", ""), 415, "invalid_request"},
		{"multipart", form(nil).with("Content-Type", "multipart/form-data; boundary=x"), 415, "invalid_request"},
		{"compressed", form(nil).with("Content-Encoding", "gzip"), 415, "invalid_request"},
		{"too large", raw("&x=" + strings.Repeat("x", maxForm)), 413, "invalid_request"},
		{"a task that is no id", form(nil).with(TaskHeader, "Task 1"), 400, "invalid_request"},

		{"details that are no JSON", with("authorization_details", "{"), 400, "invalid_authorization_details"},
		{"details: null", with("authorization_details", "null"), 400, "invalid_authorization_details"},
		{"details: an object", with("authorization_details", `{"type":"toolbroker_task"}`), 400, "invalid_authorization_details"},
		{"details: none", with("authorization_details", "[]"), 400, "invalid_authorization_details"},
		{"details: nothing", with("authorization_details", "[null]"), 400, "invalid_authorization_details"},
		{"details: two", with("authorization_details", `[{"type":"toolbroker_task"},{"type":"toolbroker_task"}]`), 400, "invalid_authorization_details"},
		{"details: no type", with("authorization_details", `[{"kind":"triage"}]`), 400, "invalid_authorization_details"},
		{"details: another type", with("authorization_details", `[{"type":"payment_initiation"}]`), 400, "invalid_authorization_details"},
		{"details: trailing", with("authorization_details", details+"x"), 400, "invalid_authorization_details"},
		{"details: deep", with("authorization_details", strings.Repeat("[", 1000)), 400, "invalid_authorization_details"},
		{"details: not UTF-8", wish(`"purpose":"` + "\xff" + `"`), 400, "invalid_authorization_details"},
		{"details: a lone surrogate", wish(`"purpose":"\ud800"`), 400, "invalid_authorization_details"},
		{"details: unknown member", wish(`"tenant":"other"`), 400, "invalid_authorization_details"},
		{"details: unknown member of a hostile name", wish(`"evil-member \u001b<b>":"other"`), 400, "invalid_authorization_details"},
		{"details: an ancestor", wish(`"parent":"task-b"`), 400, "invalid_authorization_details"},
		{"details: RFC 9396's own members", wish(`"locations":["https://tools.example"]`), 400, "invalid_authorization_details"},
		{"details: another case", wish(`"Purpose":"p"`), 400, "invalid_authorization_details"},
		{"details: twice", wish(`"kind":"other"`), 400, "invalid_authorization_details"},
		{"details: a scope of more columns", wish(`"scope":[{"who":"*"}]`), 400, "invalid_authorization_details"},
		{"details: a scope in another case", wish(`"scope":[{"Tool":"a/b"}]`), 400, "invalid_authorization_details"},
		{"details: negative time", wish(`"ttl_seconds":-1`), 400, "invalid_authorization_details"},
		{"details: endless time", wish(`"ttl_seconds":9223372036854775807`), 400, "invalid_authorization_details"},
		{"details: time in words", wish(`"ttl_seconds":"600"`), 400, "invalid_authorization_details"},
		{"details: fewer than no calls", wish(`"calls":-1`), 400, "invalid_authorization_details"},
		{"details: a label", wish(`"labels":"db"`), 400, "invalid_authorization_details"},
	} {
		d := open(t, discoverable)
		got := d.do(row.req)
		var out map[string]string
		if err := json.Unmarshal([]byte(got.body), &out); err != nil {
			t.Errorf("%s: %s: %v", row.name, got.body, err)
		}
		if got.status != row.status || out["error"] != row.code || len(out) != 2 || out["error_description"] == "" || plain(out["error_description"]) != out["error_description"] ||
			got.header.Get("Cache-Control") != "no-store" || len(got.header.Values("WWW-Authenticate")) > 0 {
			t.Errorf("%s: %d %s %v, want %d %s", row.name, got.status, got.body, got.header, row.status, row.code)
		}
		for what, says := range map[string]string{"details: unknown member": "principals, labels, approvers, ttl_seconds, calls and scope; /0/tenant is none of these",
			"details: a scope of more columns": "; /0/scope/0/who is none of these", "details: time in words": "; /0/ttl_seconds is of the wrong type",
			"details: unknown member of a hostile name": "; a member is none of these"} {
			if row.name == what && !strings.HasSuffix(out["error_description"], says) {
				t.Errorf("%s: %s", row.name, got.body)
			}
		}
		if len(d.exchanged) > 0 {
			t.Errorf("%s: the gateway heard of it", row.name)
		}
		for _, said := range []string{"bob", "evil", "Subject_Token", "other", "payment", "evil-member"} {
			if strings.Contains(got.body, said) {
				t.Errorf("%s: repeats %s", row.name, got.body)
			}
		}
	}
	d := open(t, discoverable)
	for _, method := range []string{"GET", "PUT", "OPTIONS"} {
		r := form(nil)
		r.method = method
		if got := d.do(r); got.status != 405 {
			t.Errorf("%s: %d", method, got.status)
		}
	}
	if got := d.do(form(nil).with("Origin", "https://evil.example")); got.status != 403 {
		t.Errorf("from a page: %d", got.status)
	}
}

// Without a name of our own, no target is ours.
func TestExchangeKnowsNoTargetWithoutAName(t *testing.T) {
	d := open(t, func(c *Config) { c.Hosts = []string{"tools.example"} })
	r := form(map[string]string{"resource": "http://tools.example/mcp"})
	r.host = "tools.example"
	if got := d.do(r); got.status != 400 || !strings.Contains(got.body, "invalid_target") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// Each way the gateway says no has one in OAuth's words.
func TestExchangeRefusals(t *testing.T) {
	bad := func(why string) req {
		return form(map[string]string{"subject_token": "bad:" + strings.ReplaceAll(why, " ", "_")})
	}
	refused := func(code gateway.Code) *gateway.Refusal {
		return &gateway.Refusal{Code: code, Say: "say \"it\" in words —\n", Err: errors.New("ours")}
	}
	const sentence = "say 'it' in words ??"
	not := "the subject_token or actor_token was not accepted: "
	for _, row := range []struct {
		name    string
		req     req
		refusal *gateway.Refusal
		status  int
		want    tokenError
		retry   string
	}{
		{"nobody's", form(map[string]string{"subject_token": "mallory"}), nil, 400, tokenError{"invalid_request", not + "the token is not valid here"}, ""},
		{"expired", bad(gateway.WhyExpired), nil, 400, tokenError{"invalid_request", not + "the token has expired"}, ""},
		{"without a scope", bad(gateway.WhyScope), nil, 400, tokenError{"invalid_request", not + "the token lacks a scope"}, ""},
		{"no proof", bad(gateway.WhyProof), nil, 400, tokenError{"invalid_dpop_proof", not + saying[gateway.WhyProof]}, ""},
		{"replay", bad(gateway.WhyReplay), nil, 400, tokenError{"invalid_dpop_proof", not + saying[gateway.WhyReplay]}, ""},
		{"keys", bad(gateway.WhyKeys), nil, 503, tokenError{"temporarily_unavailable", not + saying[gateway.WhyKeys]}, "5"},
		{"busy", bad(gateway.WhyBusy), nil, 429, tokenError{"slow_down", not + saying[gateway.WhyBusy]}, "1"},
		{"denied", form(nil), refused(gateway.Denied), 400, tokenError{"access_denied", sentence}, ""},
		{"nothing left", form(nil), refused(gateway.OverBudget), 400, tokenError{"access_denied", sentence}, ""},
		{"a wish that cannot be", form(nil), refused(gateway.BadArguments), 400, tokenError{"invalid_authorization_details", sentence}, ""},
		{"a task that is over", form(nil), refused(gateway.NoTask), 400, tokenError{"invalid_request", sentence}, ""},
		{"too many", form(nil), refused(gateway.TooMany), 429, tokenError{"slow_down", sentence}, "1"},
		{"internal", form(nil), refused(gateway.Internal), 500, tokenError{"server_error", "the gateway could not do its part; try again"}, ""},
		{"what no exchange comes to", form(nil), refused(gateway.Downstream), 500, tokenError{"server_error", "the gateway could not do its part; try again"}, ""},
	} {
		d := open(t, discoverable)
		d.refusal = row.refusal
		got := d.do(row.req)
		var out tokenError
		if err := json.Unmarshal([]byte(got.body), &out); err != nil || got.status != row.status || out != row.want || got.header.Get("Retry-After") != row.retry ||
			len(got.header.Values("WWW-Authenticate")) > 0 || strings.Contains(got.body, "ours") || strings.Contains(got.body, "insufficient_scope") {
			t.Errorf("%s: %d %s %v\nwant %d %+v", row.name, got.status, got.body, got.header, row.status, row.want)
		}
	}
	d := open(t, discoverable)
	d.down = errDown
	if got := d.do(form(nil)); got.status != 500 || strings.Contains(got.body, "redis") || !strings.Contains(got.body, "server_error") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// An Authorization header beside the subject token is not needed, and where it is
// there it has to hold.
func TestExchangeWithAnAuthorization(t *testing.T) {
	for _, row := range []struct {
		name, header string
		status       int
		code         string
	}{
		{"good", "Bearer bob", 200, ""},
		{"nobody's", "Bearer mallory", 401, "invalid_client"},
		{"of a client", "Basic eDp5", 401, "invalid_client"},
		{"without a scope", "Bearer bad:" + strings.ReplaceAll(gateway.WhyScope, " ", "_"), 403, "invalid_client"},
		{"of an issuer that is away", "Bearer bad:" + strings.ReplaceAll(gateway.WhyKeys, " ", "_"), 503, "temporarily_unavailable"},
		{"while too many ask", "Bearer bad:" + strings.ReplaceAll(gateway.WhyBusy, " ", "_"), 429, "slow_down"},
	} {
		d := open(t, discoverable)
		d.granted = granted(t, "")
		got := d.do(form(nil).with("Authorization", row.header))
		if got.status != row.status || !strings.Contains(got.body, row.code) || (len(got.header.Values("WWW-Authenticate")) > 0) != (row.code == "invalid_client") {
			t.Errorf("%s: %d %s %v", row.name, got.status, got.body, got.header)
		}
		if (len(d.exchanged) > 0) != (row.status == 200) {
			t.Errorf("%s: exchanged %v", row.name, d.exchanged)
		}
	}
	// The proof is left for the gateway, which binds the task's token to its key.
	d := open(t, discoverable)
	d.granted = granted(t, "jkt:k")
	r := form(nil).with("DPoP", "k 1 POST https://tools.example/oauth/token").with("Authorization", "Bearer bob")
	if got := d.do(r); got.status != 200 || !strings.Contains(got.body, `"token_type":"DPoP"`) {
		t.Fatalf("%d %s", got.status, got.body)
	}
	want := gateway.Proof{DPoP: "k 1 POST https://tools.example/oauth/token", Method: "POST", URL: "https://tools.example/oauth/token"}
	if last := d.seen[len(d.seen)-1]; !reflect.DeepEqual(last.Proof, want) {
		t.Errorf("the gateway saw %+v", last.Proof)
	}
}

// A client library that we did not write makes the exchange.
func TestOAuthLibraryExchanges(t *testing.T) {
	d := open(t, func(*Config) {})
	d.granted = granted(t, "")
	d.granted.Expires = time.Now().Add(time.Hour)
	c := oauth2.Config{ClientID: "t", Endpoint: oauth2.Endpoint{TokenURL: d.url + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams}}
	exchange := func(details string) (*oauth2.Token, error) {
		var params []oauth2.AuthCodeOption
		for name, value := range map[string]string{
			"grant_type": grantExchange, "subject_token": "key", "subject_token_type": tokenAPIKey, "resource": d.url + "/mcp", "authorization_details": details,
		} {
			params = append(params, oauth2.SetAuthURLParam(name, value))
		}
		return c.Exchange(t.Context(), "", params...) // sends an empty code along
	}
	token, err := exchange(details)
	if err != nil {
		t.Fatal(err)
	}
	if token.AccessToken != "the-task-token" || token.Type() != "Bearer" || !token.Valid() || token.Extra("issued_token_type") != tokenJWT {
		t.Errorf("%+v", token)
	}
	_, err = exchange(`[{"type":"other"}]`)
	if no, ok := errors.AsType[*oauth2.RetrieveError](err); !ok || no.ErrorCode != "invalid_authorization_details" || no.ErrorDescription == "" {
		t.Errorf("%v", err)
	}
}

// What is accepted, every decoder reads alike: forms by net/url and as browsers
// do, details by encoding/json. Nothing else of the body matters.
func FuzzExchange(f *testing.F) {
	for _, r := range []req{
		form(nil), form(map[string]string{"actor_token": "bob", "actor_token_type": tokenJWT, "requested_token_type": tokenAccess}),
		form(map[string]string{"authorization_details": `[{"type":"toolbroker_task","kind":null,"labels":[null],"scope":[null],"ttl_seconds":-0}]`}),
		rawForm(form(nil).body + "&&x=1=2&=&y&+=%20"), rawForm(form(nil).body + ";a=b"), rawForm(form(nil).body + "&subject_token=x"),
	} {
		f.Add(r.body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		x, issued, err := decodeExchange(body, "https://tools.example")
		if err != nil {
			if no, ok := errors.AsType[*tokenError](err); !ok || no.Code == "" || plain(no.Say) != no.Say {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		all, err := url.ParseQuery(body)
		if err != nil {
			t.Fatal("net/url cannot read it", err)
		}
		for name, values := range all {
			if got := asBrowsersDo(body)[name]; len(values) != 1 || !slices.Equal(got, values) {
				t.Errorf("%q is %q to net/url, and %q to browsers", name, values, got)
			}
		}
		for name, want := range map[string]string{"subject_token": x.Subject.Reveal(), "actor_token": x.Actor.Reveal(), "grant_type": grantExchange} {
			if all.Get(name) != want {
				t.Errorf("%s: %q, read as %q", name, all.Get(name), want)
			}
		}
		if got := all.Get("requested_token_type"); got != issued && got != "" || x.Subject.IsZero() {
			t.Errorf("a %q was wanted, %q issued", got, issued)
		}
		text := all.Get("authorization_details")
		var in []struct {
			Type       string
			Kind       string
			Purpose    string
			Reference  string
			OnBehalfOf string `json:"on_behalf_of"`
			Principals []string
			Principal  string
			Labels     []string
			Approvers  []string
			TTL        int64 `json:"ttl_seconds"`
			Calls      int64
			Scope      []authz.ScopeRow
		}
		if err := json.Unmarshal([]byte(text), &in); err != nil || len(in) != 1 || in[0].Type != detailsType || !utf8.ValidString(text) {
			t.Fatalf("encoding/json reads %+v %v", in, err)
		}
		w := in[0]
		want := gateway.TaskSpec{
			Kind: w.Kind, Purpose: w.Purpose, Reference: w.Reference, OnBehalfOf: w.OnBehalfOf, Principal: w.Principal, Principals: w.Principals, Labels: w.Labels, Approvers: w.Approvers,
			TTL: time.Duration(w.TTL) * time.Second, Calls: w.Calls, Scope: w.Scope,
		}
		if !reflect.DeepEqual(x.Spec, want) || x.Spec.TTL < 0 || x.Spec.Calls < 0 {
			t.Errorf("%+v\nencoding/json reads %+v", x.Spec, want)
		}
		// Of two members by one name another decoder could take the first.
		for name, n := range members(t, text) {
			if n > 1 {
				t.Errorf("%q is there %d times", name, n)
			}
		}
	})
}

// asBrowsersDo is application/x-www-form-urlencoded parsing by the URL standard,
// which refuses nothing.
func asBrowsersDo(body string) map[string][]string {
	out := map[string][]string{}
	unescape := func(s string) string {
		var b []byte
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] == '+':
				b = append(b, ' ')
			case s[i] == '%' && i+2 < len(s) && strings.Contains(hexDigits, s[i+1:i+2]) && strings.Contains(hexDigits, s[i+2:i+3]):
				b = append(b, byte(strings.Index(hexDigits, s[i+1:i+2])%16<<4|strings.Index(hexDigits, s[i+2:i+3])%16))
				i += 2
			default:
				b = append(b, s[i])
			}
		}
		return string(b)
	}
	for part := range strings.SplitSeq(body, "&") {
		if part != "" {
			name, value, _ := strings.Cut(part, "=")
			out[unescape(name)] = append(out[unescape(name)], unescape(value))
		}
	}
	return out
}

// hexDigits is such that a digit's value is its place, modulo 16.
const hexDigits = "0123456789abcdef          ABCDEF"

// members counts the names of the one object in an array, as they are spelt.
func members(t *testing.T, text string) map[string]int {
	d := json.NewDecoder(strings.NewReader(text))
	out, depth, name := map[string]int{}, 0, false
	for {
		tok, err := d.Token()
		if err != nil {
			return out
		}
		switch v := tok.(type) {
		case json.Delim:
			if v == '{' || v == '[' {
				depth++
			} else {
				depth--
			}
			name = depth == 2
		case string:
			if depth == 2 && name {
				out[v]++
				name = false
				continue
			}
			name = depth == 2
		default:
			name = depth == 2
		}
	}
}
