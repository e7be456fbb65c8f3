package servers

import (
	"encoding/json"
	"strings"
	"testing"
)

// An argument that is null where it may be left out and takes no null counts as left
// out; any other null is what it is.
func TestNullArguments(t *testing.T) {
	const schema = `{"type":"object","required":["name"],"additionalProperties":false,
		"dependentRequired":{"deep":["n"]},
		"properties":{"name":{"type":"string"},"n":{"type":"integer"},"flag":{"type":"boolean"},"how":{"enum":["fast",2]},
		"maybe":{"type":["string","null"]},"either":{"anyOf":[{"type":"string"},{"type":"null"}]},"any":{},"never":false,
		"by":{"$ref":"#/$defs/word"},"deep":{"type":"object","properties":{"n":{"type":"integer"}}}},
		"$defs":{"word":{"type":"string"}}}`
	for _, s := range []string{schema, `{"$ref":"#/$defs/all","$defs":{"all":` + strings.Replace(schema, "#/$defs/word", "#/$defs/all/$defs/word", 1) + `}}`} {
		check, err := compile(json.RawMessage(s), newRoom())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ args, says string }{
			{`{"name":"ab","n":null,"flag":null,"how":null,"by":null,"never":null,"deep":null}`, ""},
			{`{"name":"ab","maybe":null,"either":null,"any":null}`, ""},
			{`{"name":null}`, `at "name": must be string`},
			{`{"name":"ab","n":null,"flag":1}`, `at "flag": must be boolean`},
			{`{"name":"ab","other":null}`, `does not declare`},
			{`{"name":"ab","n":1,"deep":{"n":null}}`, `at "deep.n": must be integer`},
			{`{"name":"ab","n":null,"deep":{}}`, `fails the schema's deep`},
		} {
			if err := check(json.RawMessage(c.args)); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", c.args, err, c.says)
			}
		}
	}
	promised := promise(json.RawMessage(schema), newRoom())
	if promised(json.RawMessage(`{"name":"ab","flag":null}`)) == nil {
		t.Error("what a tool promises is null")
	}
}
