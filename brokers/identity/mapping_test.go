package identity_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

func rules(all ...identity.Rule) func(*identity.Issuer) {
	for n := range all {
		if all[n].Principal == "" {
			all[n].Principal = fmt.Sprint("rule:", n)
		}
		if all[n].Tenant == "" {
			all[n].Tenant = "acme"
		}
		if all[n].Owner == "" {
			all[n].Owner = "alice"
		}
	}
	return func(is *identity.Issuer) { is.Rules = all }
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	when := func(kv ...string) identity.Rule {
		r := identity.Rule{When: map[string]string{}}
		for n := 0; n < len(kv); n += 2 {
			r.When[kv[n]] = kv[n+1]
		}
		return r
	}
	i := open(t, c, idp.config(rules(
		when("sub", "ci/*", "branch", "main"), // 0
		when("sub", "ci/**"),                  // 1
		when("groups", "agents"),              // 2
		when("email_verified", "true"),        // 3
		when("level", "7"),                    // 4
		when("a.b", "nested"),                 // 5
		when("example.com/role.name", "r*"),   // 6
		when("sub", "deep/**/x"),              // 7
	)))
	for name, tt := range map[string]struct {
		change m
		want   string
	}{
		"both conditions":                 {m{"sub": "ci/a", "branch": "main"}, "rule:0"},
		"one of two":                      {m{"sub": "ci/a", "branch": "dev"}, "rule:1"},
		"a star stays between slashes":    {m{"sub": "ci/a/b", "branch": "main"}, "rule:1"},
		"an element of a list":            {m{"groups": []string{"x", "agents"}}, "rule:2"},
		"no element of a list":            {m{"groups": []string{"x", "agent"}}, ""},
		"a part of an element":            {m{"groups": []string{"agents,admins"}}, ""},
		"an empty list":                   {m{"groups": []string{}}, ""},
		"a list in a list":                {m{"groups": []any{[]string{"agents"}}}, ""},
		"a truth":                         {m{"email_verified": true}, "rule:3"},
		"a lie":                           {m{"email_verified": false}, ""},
		"a number":                        {m{"level": 7}, "rule:4"},
		"a number near it":                {m{"level": 7.5}, ""},
		"inside":                          {m{"a": m{"b": "nested"}}, "rule:5"},
		"a name with a dot":               {m{"a.b": "nested"}, "rule:5"},
		"two ways to read one path":       {m{"a": m{"b": "nested"}, "a.b": "nested"}, ""},
		"a name with dots, and inside":    {m{"example.com/role": m{"name": "reader"}}, "rule:6"},
		"inside something that is a word": {m{"a": "b"}, ""},
		"two stars cross":                 {m{"sub": "deep/1/2/x"}, "rule:7"},
		"null":                            {m{"level": nil, "groups": nil}, ""},
	} {
		p, err := ask(t, i, bearer(idp.token(tt.change)))
		if tt.want == "" && why(err) != gateway.WhyMapping || p.ID != tt.want {
			t.Errorf("%s: %q %v, want %q", name, p.ID, err, tt.want)
		}
	}
}

// What a claim puts into a name is a name, or there is none; a wider rule below
// does not catch it.
func TestNamesThatAreNone(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	i := open(t, c, idp.config(rules(
		identity.Rule{When: map[string]string{"kind": "agent"}, Principal: "agent:{name}"},
		identity.Rule{When: map[string]string{"kind": "bare"}, Principal: "{name}"},
		identity.Rule{When: map[string]string{"kind": "tenant"}, Principal: "agent:a", Tenant: "{name}"},
		identity.Rule{When: map[string]string{"kind": "owner"}, Principal: "agent:a", Owner: "{name}"},
		identity.Rule{When: map[string]string{"kind": "human"}, Principal: "agent:a", OnBehalfOf: "{name}"},
		identity.Rule{Principal: "anybody"},
	)))
	for name, tt := range map[string]struct {
		kind string
		name any
		good string // the principal, or empty
	}{
		"a name":                     {"agent", "triage.7@corp.example/a=b+c", "agent:triage.7@corp.example/a=b+c"},
		"the only one of a list":     {"agent", []string{"a"}, "agent:a"},
		"a whole number":             {"agent", 42, "agent:42"},
		"a SPIFFE ID":                {"bare", "spiffe://corp/agent/a", "spiffe://corp/agent/a"},
		"nothing":                    {"agent", nil, ""},
		"empty":                      {"agent", "", ""},
		"a star":                     {"agent", "*", ""},
		"a star inside":              {"agent", "a*", ""},
		"a space":                    {"agent", "a b", ""},
		"a line break":               {"agent", "a\nagent:root", ""},
		"a comma, as in a policy":    {"agent", "a,acme,*,**,call,,allow", ""},
		"a quote":                    {"agent", `a"`, ""},
		"a NUL":                      {"agent", "a\x00", ""},
		"a Cyrillic а":               {"agent", "\u0430lice", ""},
		"a full-width colon":         {"bare", "operator\uff1aalice", ""},
		"an invisible joiner":        {"agent", "ali\u200dce", ""},
		"right to left":              {"agent", "\u202eecila", ""},
		"a percent escape":           {"agent", "a%2Fb", ""},
		"a bar":                      {"agent", "auth0|a", ""},
		"braces":                     {"agent", "{sub}", ""},
		"too long":                   {"agent", strings.Repeat("a", 251), ""},
		"as long as can be":          {"agent", strings.Repeat("a", 250), "agent:" + strings.Repeat("a", 250)},
		"a huge number":              {"agent", 1e20, ""},
		"several":                    {"agent", []string{"a", "b"}, ""},
		"an object":                  {"agent", m{"a": "b"}, ""},
		"an operator":                {"bare", "operator:alice", ""},
		"an operator in capitals":    {"bare", "OPERATOR:alice", ""},
		"a role":                     {"bare", "role:admin", ""},
		"a group":                    {"bare", "group:sre", ""},
		"a task":                     {"bare", "task:triage", ""},
		"a tenant":                   {"tenant", "globex", "agent:a"},
		"a tenant that is not ours":  {"tenant", "initech", ""},
		"every tenant":               {"tenant", "*", ""},
		"an owner":                   {"owner", "bob", "agent:a"},
		"an owner who is nobody":     {"owner", "mallory", ""},
		"a human":                    {"human", "ann@corp.example", "agent:a"},
		"a human who is an operator": {"human", "operator:alice", ""},
		"a human with a space":       {"human", "ann b", ""},
	} {
		p, err := ask(t, i, bearer(idp.token(m{"kind": tt.kind, "name": tt.name})))
		if p.ID != tt.good || tt.good == "" && why(err) != gateway.WhyMapping {
			t.Errorf("%s: %q %v, want %q", name, p.ID, err, tt.good)
		}
		if s, ok := tt.name.(string); ok && len(s) > 3 && err != nil && strings.Contains(err.Error(), s) {
			t.Errorf("%s: the error holds the claim: %v", name, err)
		}
	}
}

func TestActors(t *testing.T) {
	c := newClock()
	idp := newIssuer(t, c)
	conf := configOf(c, idp.config(rules(
		identity.Rule{When: map[string]string{"kind": "blind"}, Principal: "agent:{sub}"},
		identity.Rule{When: map[string]string{"kind": "fixed", "act.sub": "runner"}, Principal: "agent:runner", OnBehalfOf: "{sub}"},
		identity.Rule{When: map[string]string{"act.sub": "**"}, Principal: "agent:{act.sub}", OnBehalfOf: "{sub}", Chain: "agent:{sub}"},
		identity.Rule{Principal: "agent:{sub}"},
	)))
	i, err := identity.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	act := func(subs ...string) any {
		var a any
		for n := len(subs) - 1; n >= 0; n-- {
			next := m{"sub": subs[n]}
			if a != nil {
				next["act"] = a
			}
			a = next
		}
		return a
	}
	for name, tt := range map[string]struct {
		change m
		why    string
		id     string
		behalf string
		chain  []string
	}{
		"nobody acts":                {m{}, "taken", "agent:triage", "", nil},
		"one acts":                   {m{"sub": "ann", "act": act("now")}, "taken", "agent:now", "ann", nil},
		"one after another":          {m{"sub": "ann", "act": act("now", "before", "first")}, "taken", "agent:now", "ann", []string{"agent:first", "agent:before"}},
		"as deep as can be":          {m{"act": act("a", "b", "c", "d")}, "taken", "agent:a", "triage", []string{"agent:d", "agent:c", "agent:b"}},
		"deeper":                     {m{"act": act("a", "b", "c", "d", "e")}, gateway.WhyMapping, "", "", nil},
		"much deeper":                {m{"act": act("a", "b", "c", "d", "e", "f", "g", "h", "i")}, gateway.WhyMalformed, "", "", nil},
		"an actor whom a rule names": {m{"kind": "fixed", "sub": "ann", "act": act("runner")}, "taken", "agent:runner", "ann", nil},
		"a rule that does not look":  {m{"kind": "blind", "act": act("mallory")}, gateway.WhyMapping, "", "", nil},
		"an act that is a word":      {m{"act": "now"}, gateway.WhyMalformed, "", "", nil},
		"an act that is a list":      {m{"act": []any{act("now")}}, gateway.WhyMalformed, "", "", nil},
		"an actor without a name":    {m{"act": m{"client_id": "x"}}, gateway.WhyMalformed, "", "", nil},
		"an earlier one without":     {m{"act": m{"sub": "now", "act": m{}}}, gateway.WhyMalformed, "", "", nil},
		"an earlier one with a star": {m{"act": act("now", "*")}, gateway.WhyMapping, "", "", nil},
		"an earlier operator":        {m{"kind": "fixed", "act": act("runner", "operator:alice")}, gateway.WhyMapping, "", "", nil},
	} {
		p, err := ask(t, i, bearer(idp.token(tt.change)))
		if why(err) != tt.why || p.ID != tt.id || p.OnBehalfOf != tt.behalf || !slices.Equal(p.Chain, tt.chain) {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
}

// Whatever an issuer signs: what comes of it is within the grammar.
func FuzzMapping(f *testing.F) {
	c := newClock()
	idp := newIssuer(f, c)
	i := open(f, c, idp.config(rules(
		identity.Rule{When: map[string]string{"a": "*x*"}, Principal: "{a}", OnBehalfOf: "{b}", Tenant: "{c.d}"},
		identity.Rule{When: map[string]string{"act.sub": "**"}, Principal: "{act.sub}", OnBehalfOf: "{sub}"},
		identity.Rule{Principal: "{sub}{a}"},
	)))
	for _, s := range []string{
		`{"a":"x","b":"y","c":{"d":"acme"}}`, `{"a":["x"],"b":1,"c.d":"acme"}`, `{"act":{"sub":"x","act":{"sub":"y"}}}`, `{"sub":"operator:alice","a":"x"}`,
		`{"a":"*","sub":"\n"}`, `{"may_act":[{"sub":"a","iss":"b"}],"azp":"c\nd","jti":" "}`, `{"sub":"rol","a":"e:x"}`,
	} {
		f.Add([]byte(s))
	}
	name := regexp.MustCompile(`^[A-Za-z0-9._:/@+=-]{1,256}$`)
	none := regexp.MustCompile(`(?i)^(operator|role|group|task):`)
	f.Fuzz(func(t *testing.T, more []byte) {
		if len(more) < 2 || more[0] != '{' || len(more) > 4000 {
			return
		}
		body := fmt.Appendf(nil, `{"iss":%q,"aud":"tb","exp":%d,%s`, idp.url, c.now().Unix()+600, more[1:])
		p, err := ask(t, i, bearer(sign(t, idp.key, jose.ES256, m{"kid": "k1"}, body)))
		if err != nil {
			if strings.HasPrefix(why(err), "no refusal") || p.ID != "" {
				t.Fatalf("%+v %v", p, err)
			}
			return
		}
		for _, s := range append([]string{p.ID}, p.Chain...) {
			if !name.MatchString(s) || none.MatchString(s) {
				t.Fatalf("%q is a name", s)
			}
		}
		if p.Tenant != "acme" && p.Tenant != "globex" || p.Owner != "alice" || p.OnBehalfOf != "" && (!name.MatchString(p.OnBehalfOf) || none.MatchString(p.OnBehalfOf)) {
			t.Fatalf("%+v", p)
		}
		for _, s := range p.MayAct {
			if !name.MatchString(strings.Replace(s, "|", "", 1)) && len(s) <= 256 {
				t.Fatalf("%q may act", s)
			}
		}
		if !name.MatchString(p.Credential) || p.Client != "" && !name.MatchString(p.Client) {
			t.Fatalf("%+v", p)
		}
	})
}
