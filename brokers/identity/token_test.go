package identity_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

func TestATokenIsWhomItsRuleSays(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config(func(is *identity.Issuer) {
		is.Rules = []identity.Rule{{
			When: map[string]string{"client_id": "agents-*"}, Principal: "agent:{sub}", Tenant: "{org.tenant}", Owner: "{boss}", OnBehalfOf: "{email}",
			Standing: "triage", Vouches: []string{"purpose"},
		}}
	}))
	p, err := ask(t, i, bearer(idp.token(m{
		"client_id": "agents-eu", "org": m{"tenant": "globex"}, "boss": "bob", "email": "ann@corp.example",
		"may_act": []m{{"sub": "runner"}, {"sub": "stranger", "iss": "https://x.example"}, {"sub": "other", "iss": idp.url}, {"sub": "narrow", "client_id": "c"}, {"client_id": "d"}},
	})))
	if err != nil {
		t.Fatal(err)
	}
	want := gateway.Principal{
		ID: "agent:triage", Tenant: "globex", Owner: "bob", OnBehalfOf: "ann@corp.example", Authn: gateway.AuthnOIDC, Credential: "t1", Issuer: "corp",
		Client: "agents-eu", Standing: "triage", Vouches: []string{"purpose"}, MayAct: []string{"runner", "corp|other"}, Subject: "triage",
		Expires: c.now().Add(10 * time.Minute),
	}
	if !p.Expires.Equal(want.Expires) {
		t.Errorf("it expires %v", p.Expires)
	}
	if p.Expires = want.Expires; !reflect.DeepEqual(p, want) {
		t.Errorf("it is  %+v\nwant   %+v", p, want)
	}
}

func TestTokensThatAreTaken(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config())
	now := c.now().Unix()
	for name, raw := range map[string]string{
		"as usual":                         idp.token(nil),
		"one audience of several is ours":  idp.token(m{"aud": []string{"else", "tb"}}),
		"expired within the skew":          idp.token(m{"exp": now - 29}),
		"from a clock that is a bit ahead": idp.token(m{"iat": now + 29, "nbf": now + 29}),
		"no iat, no jti":                   idp.token(m{"iat": nil, "jti": nil}),
		"typ JWT":                          sign(t, idp.key, jose.ES256, m{"kid": "k1", "typ": "JWT"}, idp.claims(nil)),
		"typ with its prefix":              sign(t, idp.key, jose.ES256, m{"kid": "k1", "typ": "application/AT+JWT"}, idp.claims(nil)),
		"no typ":                           sign(t, idp.key, jose.ES256, m{"kid": "k1"}, idp.claims(nil)),
		"no kid, and there is one key":     sign(t, idp.key, jose.ES256, nil, idp.claims(nil)),
	} {
		if p, err := ask(t, i, bearer(raw)); err != nil || p.ID != "agent:triage" || p.Credential == "" || p.Bound != "" {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
}

// Every line here is one way in that is closed.
func TestTokensThatAreRefused(t *testing.T) {
	c := newClock()
	idp, other := newIssuer(t, c), newIssuer(t, c)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	idp.answers(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: idp.key.Public(), KeyID: "k1"}, {Key: &rsaKey.PublicKey, KeyID: "r1", Algorithm: "RS256"}, {Key: &rsaKey.PublicKey, KeyID: "e1", Use: "enc"},
		}})
	})
	i := open(t, c, idp.config(), other.config(func(is *identity.Issuer) {
		is.Name, is.Scopes, is.MaxLifetime, is.RequireType = "other", []string{"read", "write"}, time.Hour, "at+jwt"
	}))
	now := c.now().Unix()
	ours := m{"kid": "k1", "typ": "at+jwt"}
	es := func(header m, payload any) string { return sign(t, idp.key, jose.ES256, header, payload) }
	head := func(h m) m { out := m{"kid": "k1"}; return join(out, h) }
	part := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
	good := idp.token(nil)
	cut := strings.Split(good, ".")
	der, _ := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	stranger := newEC(t)

	if _, err := ask(t, i, bearer(good)); err != nil {
		t.Fatal("the good one:", err)
	}
	if _, err := ask(t, i, bearer(other.token(m{"scope": "write read more"}))); err != nil {
		t.Fatal("the other's good one:", err)
	}
	if _, err := ask(t, i, bearer(sign(t, rsaKey, jose.RS256, m{"kid": "r1"}, idp.claims(nil)))); err != nil {
		t.Fatal("by the RSA key:", err)
	}
	for name, tt := range map[string]struct{ raw, why string }{
		"expired":                           {idp.token(m{"exp": now - 31}), gateway.WhyExpired},
		"no expiry":                         {idp.token(m{"exp": nil}), gateway.WhyMalformed},
		"an expiry that is a word":          {idp.token(m{"exp": "tomorrow"}), gateway.WhyMalformed},
		"an expiry after all time":          {idp.token(m{"exp": 1e300}), gateway.WhyMalformed},
		"a negative expiry":                 {idp.token(m{"exp": -1}), gateway.WhyMalformed},
		"not yet valid":                     {idp.token(m{"nbf": now + 31}), gateway.WhyEarly},
		"from the future":                   {idp.token(m{"iat": now + 31}), gateway.WhyEarly},
		"an nbf that is a list":             {idp.token(m{"nbf": []int{1}}), gateway.WhyMalformed},
		"lives too long":                    {other.token(m{"scope": "read write", "exp": now + 3601}), gateway.WhyExpired},
		"for how long is not said":          {other.token(m{"scope": "read write", "iat": nil}), gateway.WhyMalformed},
		"for somebody else":                 {idp.token(m{"aud": "tb2"}), gateway.WhyAudience},
		"for several others":                {idp.token(m{"aud": []string{"a", "b"}}), gateway.WhyAudience},
		"for nobody":                        {idp.token(m{"aud": nil}), gateway.WhyAudience},
		"an aud that is an object":          {idp.token(m{"aud": m{"tb": 1}}), gateway.WhyMalformed},
		"an aud with a number in it":        {idp.token(m{"aud": []any{"tb", 1}}), gateway.WhyMalformed},
		"an unknown issuer":                 {idp.token(m{"iss": "https://evil.example"}), gateway.WhyIssuer},
		"the issuer with a slash":           {idp.token(m{"iss": idp.url + "/"}), gateway.WhyIssuer},
		"the issuer in capitals":            {idp.token(m{"iss": strings.ToUpper(idp.url)}), gateway.WhyIssuer},
		"no issuer":                         {idp.token(m{"iss": nil}), gateway.WhyIssuer},
		"an issuer that is a list":          {idp.token(m{"iss": []string{idp.url}}), gateway.WhyIssuer},
		"another issuer's, by our kid":      {idp.token(m{"iss": other.url, "scope": "read write"}), gateway.WhySignature},
		"alg none":                          {part(m{"alg": "none", "kid": "k1"}) + "." + cut[1] + ".", gateway.WhyAlgorithm},
		"alg None":                          {part(m{"alg": "None", "kid": "k1"}) + "." + cut[1] + "." + cut[2], gateway.WhyAlgorithm},
		"no alg":                            {part(m{"kid": "k1"}) + "." + cut[1] + "." + cut[2], gateway.WhyAlgorithm},
		"HMAC by the public key":            {sign(t, public, jose.HS256, m{"kid": "r1"}, idp.claims(nil)), gateway.WhyAlgorithm},
		"HMAC by the public key's DER":      {sign(t, der, jose.HS512, m{"kid": "r1"}, idp.claims(nil)), gateway.WhyAlgorithm},
		"an RSA key named for ES256":        {es(m{"kid": "r1"}, idp.claims(nil)), gateway.WhyAlgorithm},
		"an RS256 key used for PS256":       {sign(t, rsaKey, jose.PS256, m{"kid": "r1"}, idp.claims(nil)), gateway.WhyAlgorithm},
		"an algorithm off the list":         {sign(t, rsaKey, jose.RS512, m{"kid": "r1"}, idp.claims(nil)), gateway.WhyAlgorithm},
		"by a key for encryption":           {sign(t, rsaKey, jose.RS256, m{"kid": "e1"}, idp.claims(nil)), gateway.WhySignature},
		"by a stranger, our kid":            {sign(t, stranger, jose.ES256, ours, idp.claims(nil)), gateway.WhySignature},
		"by a stranger, its own kid":        {sign(t, stranger, jose.ES256, m{"kid": "mine"}, idp.claims(nil)), gateway.WhySignature},
		"by a stranger, its key in it":      {sign(t, stranger, jose.ES256, m{"kid": "k1", "jwk": jose.JSONWebKey{Key: stranger.Public()}}, idp.claims(nil)), gateway.WhySignature},
		"by a stranger, where its keys are": {sign(t, stranger, jose.ES256, m{"kid": "k1", "jku": other.url + "/keys"}, idp.claims(nil)), gateway.WhySignature},
		"a kid that is a path":              {es(m{"kid": "../../k1"}, idp.claims(nil)), gateway.WhySignature},
		"a kid that is a number":            {part(m{"alg": "ES256", "kid": 1}) + "." + cut[1] + "." + cut[2], gateway.WhyMalformed},
		"a changed payload":                 {cut[0] + "." + part(idp.claims(m{"sub": "root"})) + "." + cut[2], gateway.WhySignature},
		"no signature":                      {cut[0] + "." + cut[1] + ".", gateway.WhySignature},
		"a signature of zeros":              {cut[0] + "." + cut[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), gateway.WhySignature},
		"crit":                              {es(head(m{"crit": []string{"exp"}, "exp": 1}), idp.claims(nil)), gateway.WhyMalformed},
		"crit, empty":                       {part(m{"alg": "ES256", "kid": "k1", "crit": []string{}}) + "." + cut[1] + "." + cut[2], gateway.WhyMalformed},
		"b64":                               {part(m{"alg": "ES256", "kid": "k1", "b64": false}) + "." + cut[1] + "." + cut[2], gateway.WhyMalformed},
		"compressed":                        {part(m{"alg": "ES256", "kid": "k1", "zip": "DEF"}) + "." + cut[1] + "." + cut[2], gateway.WhyMalformed},
		"a DPoP proof":                      {es(head(m{"typ": "dpop+jwt"}), idp.claims(nil)), gateway.WhyMalformed},
		"a logout token":                    {es(head(m{"typ": "logout+jwt"}), idp.claims(nil)), gateway.WhyMalformed},
		"a typ that is a list":              {es(head(m{"typ": []string{"JWT"}}), idp.claims(nil)), gateway.WhyMalformed},
		"an id token where typ is asked":    {sign(t, other.key, jose.ES256, m{"kid": "k1", "typ": "JWT"}, other.claims(m{"scope": "read write"})), gateway.WhyMalformed},
		"no typ where it is asked":          {sign(t, other.key, jose.ES256, m{"kid": "k1"}, other.claims(m{"scope": "read write"})), gateway.WhyMalformed},
		"too little scope":                  {other.token(m{"scope": "read"}), gateway.WhyScope},
		"no scope":                          {other.token(nil), gateway.WhyScope},
		"a scope that has it inside":        {other.token(m{"scope": "readwrite read:write"}), gateway.WhyScope},
		"a scope that is an object":         {other.token(m{"scope": m{}}), gateway.WhyMalformed},
		"a task token of nobody's":          {es(head(m{"typ": "tbtask+jwt"}), idp.claims(nil)), gateway.WhyIssuer},
		"too long":                          {idp.token(m{"pad": strings.Repeat("x", 8<<10)}), gateway.WhyMalformed},
		"64 MiB":                            {strings.Repeat("x", 64<<20), gateway.WhyMalformed},
		"a payload nested deeply":           {es(ours, []byte(strings.Repeat(`{"a":`, 9)+"1"+strings.Repeat("}", 9))), gateway.WhyMalformed},
		"a payload nested very deeply":      {es(ours, []byte(`{"iss":"x","a":`+strings.Repeat("[", 2900)+strings.Repeat("]", 2900)+"}")), gateway.WhyMalformed},
		"a header nested deeply":            {unsigned(`{"alg":"ES256","x":`+strings.Repeat("[", 9)+strings.Repeat("]", 9)+`}`, `{}`), gateway.WhyMalformed},
		"a claim twice":                     {es(ours, []byte(fmt.Sprintf(`{"iss":%q,"aud":"tb","exp":%d,"sub":"a","sub":"b"}`, idp.url, now+60))), gateway.WhyMalformed},
		"a claim twice, escaped":            {es(ours, []byte(fmt.Sprintf(`{"iss":%q,"aud":"tb","exp":%d,"sub":"a","s\u0075b":"b"}`, idp.url, now+60))), gateway.WhyMalformed},
		"a claim twice, inside":             {es(ours, []byte(fmt.Sprintf(`{"iss":%q,"aud":"tb","exp":%d,"sub":"a","x":{"y":1,"y":2}}`, idp.url, now+60))), gateway.WhyMalformed},
		"a header twice":                    {unsigned(`{"alg":"ES256","alg":"none"}`, `{}`), gateway.WhyMalformed},
		"not UTF-8":                         {es(ours, []byte("{\"sub\":\"\xff\"}")), gateway.WhyMalformed},
		"more after the payload":            {es(ours, []byte(`{} {}`)), gateway.WhyMalformed},
		"a payload that is a list":          {es(ours, []byte(`[]`)), gateway.WhyMalformed},
		"a payload that is nothing":         {es(ours, []byte(`null`)), gateway.WhyMalformed},
		"padded base64":                     {cut[0] + "." + cut[1] + "." + cut[2] + "==", gateway.WhyMalformed},
		"line breaks":                       {cut[0] + "." + cut[1] + ".\n" + cut[2], gateway.WhyMalformed},
		"another spelling of base64":        {respell(good), gateway.WhyMalformed},
		"spaces around":                     {" " + good + " ", gateway.WhyMalformed},
		"JSON serialization":                {fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, cut[0], cut[1], cut[2]), gateway.WhyMalformed},
		"encrypted":                         {"a.b.c.d.e", gateway.WhyMalformed},
		"opaque":                            {"2YotnFZFEjr1zCsicMWpAA", gateway.WhyMalformed},
		"nothing":                           {"", gateway.WhyNone},
	} {
		p, err := ask(t, i, bearer(tt.raw))
		if got := why(err); got != tt.why || p.ID != "" {
			t.Errorf("%s: %v %q, want %q", name, err, got, tt.why)
		}
		for _, secret := range []string{tt.raw, "triage", "https://evil", idp.url} {
			if len(secret) > 5 && err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error holds what was presented: %v", name, err)
			}
		}
		if n := (*gateway.NotIdentified)(nil); tt.why == gateway.WhyScope {
			if n, _ = err.(*gateway.NotIdentified); !reflect.DeepEqual(n.Scope, []string{"read", "write"}) {
				t.Errorf("%s: it does not say what is needed: %v", name, n.Scope)
			}
		}
	}
	if _, err := ask(t, i, bearer(good)); err != nil {
		t.Error("after all that, the good one:", err)
	}
}

func join(a, b m) m {
	for k, v := range b {
		a[k] = v
	}
	return a
}

// respell changes the bits of the last character that no byte comes of.
func respell(raw string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	n := strings.IndexByte(alphabet, raw[len(raw)-1])
	return raw[:len(raw)-1] + string(alphabet[n^1])
}

func TestServiceAccounts(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config(func(is *identity.Issuer) {
		is.Name, is.Kind = "cluster", identity.Kubernetes
		is.Rules = []identity.Rule{{When: map[string]string{"namespace": "agents"}, Principal: "k8s:{namespace}/{serviceaccount}/{pod}", Tenant: "acme", Owner: "bob"}}
	}))
	sa := func(ns, name string, change m) m {
		return join(m{"sub": "system:serviceaccount:agents:triage", "aud": []string{"tb"},
			"kubernetes.io": m{"namespace": ns, "serviceaccount": m{"name": name, "uid": "u"}, "pod": m{"name": "triage-7", "uid": "u"}}}, change)
	}
	p, err := ask(t, i, bearer(idp.token(sa("agents", "triage", nil))))
	if err != nil || p.ID != "k8s:agents/triage/triage-7" || p.Authn != gateway.AuthnKubernetes || p.Issuer != "cluster" {
		t.Errorf("%+v %v", p, err)
	}
	for name, claims := range map[string]m{
		"a user":                              sa("agents", "triage", m{"sub": "alice"}),
		"another namespace than its subject":  sa("kube-system", "triage", nil),
		"another account than its subject":    sa("agents", "admin", nil),
		"a claim of its own for the pod":      {"sub": "system:serviceaccount:agents:triage", "pod": "forged", "kubernetes.io": m{"namespace": "agents", "serviceaccount": m{"name": "triage"}}},
		"a namespace that no rule names":      join(sa("web", "triage", nil), m{"sub": "system:serviceaccount:web:triage"}),
		"a legacy token, without an expiry":   sa("agents", "triage", m{"exp": nil}),
		"no kubernetes.io":                    {"sub": "system:serviceaccount:agents:triage"},
		"a kubernetes.io that is a word":      {"sub": "system:serviceaccount:agents:triage", "kubernetes.io": "agents"},
		"an audience of the API server's own": sa("agents", "triage", m{"aud": []string{"https://kubernetes.default.svc"}}),
	} {
		if p, err := ask(t, i, bearer(idp.token(claims))); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// Nobody is let in whom the issuer did not sign for.
func FuzzToken(f *testing.F) {
	c := newClock()
	idp := newIssuer(f, c)
	i := open(f, c, idp.config())
	good := idp.token(nil)
	f.Add(good)
	for _, s := range []string{respell(good), strings.Replace(good, ".", "..", 1), "a.b.c", unsigned(`{"alg":"none"}`, `{"sub":1}`), unsigned(`{"alg":"ES256","kid":"k1"}`, `{"iss":"`+idp.url+`","aud":"tb","exp":99999999999}`)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := ask(t, i, bearer(raw))
		if err == nil && raw != good {
			t.Fatalf("%q is %+v", raw, p)
		}
		if err != nil && strings.HasPrefix(why(err), "no refusal") {
			t.Fatal(err)
		}
	})
}
