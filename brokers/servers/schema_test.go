package servers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestChecks(t *testing.T) {
	const schema = `{"type":"object","required":["name"],"additionalProperties":false,"properties":{
		"name":{"type":"string","minLength":2,"pattern":"^[a-z-]+$"},"n":{"type":"integer","minimum":1,"maximum":10},
		"how":{"enum":["fast","slow"]},"one":{"const":1},"tree":{"$ref":"#/$defs/node"},"mail":{"format":"email"}},
		"$defs":{"node":{"type":"object","properties":{"below":{"type":"array","items":{"$ref":"#/$defs/node"}},"v":{"type":"number"}}}}}`
	check, err := compile(json.RawMessage(schema), newRoom())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, says string }{
		{`{"name":"ab"}`, ""},
		{`{"name":"ab","n":1.0,"tree":{"below":[{"v":1},{"below":[]}]}}`, ""},
		{`{"name":"ab","n":10e0}`, ""},
		{`{}`, `at the top: needs "name"`},
		{`{"name":"a"}`, `at "name": must be at least 2 long`},
		{`{"name":"canary!"}`, `at "name": does not match the tool's pattern`},
		{`{"name":7}`, `at "name": must be string`},
		{`{"name":"ab","n":1.5}`, `at "n": must be integer`},
		{`{"name":"ab","n":11}`, `at "n": must be at most 10`},
		{`{"name":"ab","how":"canary"}`, `at "how": must be one of the values that the tool lists`},
		{`{"name":"ab","canary":1}`, `at the top: holds a property that the tool does not declare`},
		{`{"name":"ab","tree":{"below":[{"v":"canary"}]}}`, `at "tree.below.0.v": must be number`},
		{`{"name":"ab","n":1e999999999}`, "a number is too big or too small"},
		{`{"name":"ab","n":1e-999999999}`, "a number is too big or too small"},
		{`{"name":"ab","name":"ab"}`, "a name stands twice"},
		{`[]`, "not an object"},
		{`{"name":"ab"}}`, "not valid JSON"},
	} {
		err := check(json.RawMessage(c.args))
		switch {
		case (err == nil) != (c.says == ""), err != nil && !strings.Contains(err.Error(), c.says):
			t.Errorf("%s: %v, want %q", c.args, err, c.says)
		case err != nil && strings.Contains(err.Error(), "canary"):
			t.Errorf("%s is quoted: %v", c.args, err)
		}
	}
}

func TestSchemasOfOtherDrafts(t *testing.T) {
	for _, schema := range []string{
		`{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","properties":{"a":{"type":"integer"}}}`,
		`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"a":{"type":"integer"}}}`,
		`{"type":"object","properties":{"a":{"$ref":"#/$defs/int"}},"$defs":{"int":{"type":"integer"}}}`,
		`{"$id":"https://example.com/x","properties":{"a":{"$ref":"#i"}},"$defs":{"i":{"$anchor":"i","type":"integer"}}}`,
	} {
		check, err := compile(json.RawMessage(schema), newRoom())
		if err != nil {
			t.Errorf("%s: %v", schema, err)
			continue
		}
		if check(json.RawMessage(`{"a":1}`)) != nil || check(json.RawMessage(`{"a":"x"}`)) == nil {
			t.Errorf("%s does not check", schema)
		}
	}
}

func TestNothingIsFetched(t *testing.T) {
	file := filepath.Join(t.TempDir(), "schema.json") // a good one, if it were read
	if err := os.WriteFile(file, []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"file://" + file, file} {
		if _, err := compile(json.RawMessage(`{"$ref":"`+ref+`"}`), newRoom()); err == nil {
			t.Errorf("%s was read", ref)
		}
	}
}

// A result is held against the outputSchema; one that is no good, that leads
// elsewhere, or that is a bomb, is missed by every result and holds nothing back.
func TestPromises(t *testing.T) {
	for _, c := range []struct{ schema, result, says string }{
		{`{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}`, `{"n":1}`, ""},
		{`{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}`, `{"n":"canary"}`, `at "n": must be integer`},
		{`{"type":"object","required":["n"]}`, `{}`, `at the top: needs "n"`},
		{`{"type":"array"}`, `[1]`, ""},
		{`{"type":"array"}`, `{`, "not valid JSON"},
		{`{"$ref":"http://127.0.0.1:1/x"}`, `{}`, "its outputSchema does not compile"},
		{`{"$ref":"file:///etc/passwd"}`, `{}`, "its outputSchema does not compile"},
		{bomb(30), `{}`, "its outputSchema is too costly to check"},
	} {
		f := &fake{tools: `[{"name":"act","inputSchema":{"type":"object"},"outputSchema":` + c.schema + `},{"name":"free","inputSchema":{"type":"object"}}]`}
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
		act, _ := s.Resolve("a", "tool", "x__act")
		free, ok := s.Resolve("a", "tool", "x__free")
		if act.Promise == nil || !ok || free.Promise != nil {
			t.Fatalf("%s: promises are not those of the schemas", c.schema)
		}
		err := act.Promise(json.RawMessage(c.result))
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%s of %s: %v", c.result, c.schema, err)
		}
	}
}

// Nothing that a server may write as a schema, and an agent as arguments,
// brings the gateway down.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{"$ref":"#"}`, `{"allOf":[{"$ref":"#"}]}`, `{"properties":{"a":{"$ref":"#"}},"unevaluatedProperties":false}`,
		`{"$dynamicRef":"#x","$dynamicAnchor":"x"}`, `{"not":{}}`, bomb(3), `{"dependentSchemas":{"a":{"$ref":"#"}}}`, `{"propertyNames":{"pattern":"^a"}}`} {
		f.Add([]byte(s), []byte(`{"a":{"a":[1,"x"]}}`))
	}
	f.Fuzz(func(t *testing.T, schema, args []byte) {
		if check, err := compile(schema, newRoom()); err == nil {
			_ = check(args)
		}
	})
}

// What a schema is held against is read as strictly as everything else, its numbers
// besides.
func TestDecode(t *testing.T) {
	for _, s := range append(oddities, `1e400`, `1e401`, `-1e-401`, `[1e99999999999]`, `{"a":[0,{"b":1E+401}]}`, `{"a":1e5,"a":1e5}`, `{"a":1e400} `, `{"a":1e400}1`, strings.Repeat("1", 400), strings.Repeat("1", 401)) {
		want := jsontext.Value(s).IsValid()
		for d := jsontext.NewDecoder(strings.NewReader(s)); ; {
			token, err := d.ReadToken()
			if err != nil {
				break
			}
			want = want && (token.Kind() != '0' || sizeable(token.String()))
		}
		if _, err := decode([]byte(s)); (err == nil) != want {
			t.Errorf("%.100q: %v", s, err)
		}
	}
}
