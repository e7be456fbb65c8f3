package servers

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// nested is a value of objects, one in the other, by the same name.
func nested(name string, deep int, last string) string {
	return strings.Repeat(`{"`+name+`":`, deep) + last + strings.Repeat("}", deep)
}

// Each of these would go on for longer than anybody waits: the library does all of
// the work, and does not stop when its caller is gone.
func TestWorkWithoutEnd(t *testing.T) {
	for schema, value := range map[string]string{
		`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`:                                                                               nested("a", 60, "{}"),
		`{"properties":{"a":{"anyOf":[{"$ref":"#"},{"$ref":"#"}]}},"not":{"required":["z"]}}`:                                                      nested("a", 60, `{"z":1}`),
		`{"properties":{"a":{"not":{"dependentSchemas":{"p":{"$ref":"#"},"q":{"$ref":"#"}}}}}}`:                                                    strings.Repeat(`{"p":1,"q":1,"a":`, 60) + "{}" + strings.Repeat("}", 60),
		`{"properties":{"a":{"$ref":"#"}},"additionalProperties":false,"patternProperties":{"a":{"$ref":"#"}}}`:                                    nested("a", 60, "{}"),
		`{"properties":{"a":{"items":{"oneOf":[{"$ref":"#"},{"$ref":"#"},{"type":"null"}]}}}}`:                                                     strings.Repeat(`{"a":[`, 60) + "{}" + strings.Repeat("]}", 60),
		`{"properties":{"a":{"if":{"$ref":"#"},"then":{"$ref":"#"}}}}`:                                                                             nested("a", 60, "{}"),
		`{"properties":{"x":{"$ref":"#/$defs/x"}},"$defs":{"x":{"items":{"contains":{"$ref":"#/$defs/x"},"prefixItems":[{"$ref":"#/$defs/x"}]}}}}`: `{"x":` + strings.Repeat("[[", 60) + strings.Repeat("]]", 60) + `}`,
		`{"$id":"https://a.example/x","$dynamicAnchor":"n","properties":{"a":{"allOf":[{"$dynamicRef":"#n"},{"$ref":"#"}]}}}`:                      nested("a", 60, "{}"),
		`{"properties":{"s":{"pattern":"^(a|aa|aaa|[a-z]{1,500}){1,2}$"}}}`:                                                                        `{"s":"` + strings.Repeat("a", 1<<20) + `"}`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"l":{"items":{"format":"regex"}}}}`:                                    `{"l":["` + strings.Repeat(`\\pL{30}","`, 1000) + `a"]}`,
		`{"properties":{"l":{"items":{"enum":[` + strings.Repeat("1.5,", 4000) + `2]}}}}`:                                                          `{"l":[` + strings.Repeat("1,", 5000) + `1]}`,
	} {
		check, err := compile(json.RawMessage(schema), newRoom())
		if err != nil {
			t.Errorf("%.100s: %v", schema, err)
			continue
		}
		if err := check(json.RawMessage(value)); err == nil || err.Error() != "checking the arguments would take too long" {
			t.Errorf("%.100s: %v", schema, err)
		}
	}
}

// What is ordinary is checked, however often it says itself again, and what is big
// too, without words.
func TestWorkWithAnEnd(t *testing.T) {
	const tree = `{"properties":{"children":{"type":"array","items":{"$ref":"#"}},"name":{"type":"string"}},"additionalProperties":false}`
	deep := strings.Repeat(`{"name":"x","children":[`, 30) + `{"children":[{},{},{}]}` + strings.Repeat(`]}`, 30)
	wide := `{"children":[` + strings.Repeat(`{"name":"x"},`, 100_000) + `{}]}`
	check, err := compile(json.RawMessage(tree), newRoom())
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		deep: "",
		wide: "",
		strings.Replace(deep, `{},{}`, `{"canary":1},{}`, 1):         "holds a property that the tool does not declare",
		strings.Replace(wide, `{}]`, `{"canary":1}]`, 1):             "it does not match the tool's schema",
		strings.Replace(wide, `{"name":"x"}`, `{"name":1}`, 1):       "it does not match the tool's schema",
		`{"children":[` + strings.Repeat(`{},`, 600_000) + `{}]}`:    "checking the arguments would take too long",
		`{"name":"` + strings.Repeat("x", 3<<20) + `","children":0}`: "it does not match the tool's schema",
		`{"name":"x","children":0}`:                                  "must be array",
	} {
		err := check(json.RawMessage(args))
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%.60s: %v, want %q", args, err, want)
		}
	}
}

// The count is never less than what the library does: it is watched doing it, by a
// format on each schema, which is looked at when one is begun.
func TestWorkIsNotLessThanIsDone(t *testing.T) {
	for _, schema := range []string{
		`{"properties":{"a":{"$ref":"#"},"b":{"allOf":[{"$ref":"#"},{"anyOf":[{"$ref":"#"},{}]}]}},"additionalProperties":{"$ref":"#/properties/b"}}`,
		`{"patternProperties":{"^a":{"$ref":"#"},"b|c":{"oneOf":[{"$ref":"#"},{"not":{"$ref":"#"}}]}},"propertyNames":{"anyOf":[{"minLength":1},{"pattern":"x"}]}}`,
		`{"items":{"$ref":"#"},"prefixItems":[{"if":{"$ref":"#"},"then":{"$ref":"#"},"else":{}}],"contains":{"$ref":"#"},"properties":{"a":{"$ref":"#"}}}`,
		`{"allOf":[{"properties":{"a":{"$ref":"#"}}}],"unevaluatedProperties":{"$ref":"#"},"unevaluatedItems":{"$ref":"#"}}`,
		`{"dependentSchemas":{"a":{"properties":{"b":{"$ref":"#"}}},"b":{"properties":{"a":{"$ref":"#"}}}}}`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","dependencies":{"a":{"properties":{"b":{"$ref":"#"}}},"b":["a"]},"items":[{"$ref":"#"}],"additionalItems":{"$ref":"#"}}`,
		`{"additionalProperties":{"$ref":"#"},"propertyNames":{"allOf":[{"minLength":0},{"maxLength":9},{"pattern":"."},{"not":{"minLength":5}}]}}`,
		`{"$schema":"https://json-schema.org/draft/2019-09/schema","$id":"https://a.example/strict","$recursiveAnchor":true,
			"allOf":[{"$ref":"tree"},{"minProperties":0},{"maxProperties":9},{"not":{"type":"null"}},{"not":{"type":"null"}}],
			"$defs":{"tree":{"$id":"tree","$recursiveAnchor":true,"additionalProperties":{"$recursiveRef":"#"}}}}`,
		`{"$schema":"https://json-schema.org/draft/2019-09/schema","$recursiveAnchor":true,"additionalProperties":{"$recursiveRef":"#"},"items":{"$recursiveRef":"#"}}`,
		`{"$id":"https://a.example/strict","$dynamicAnchor":"n","unevaluatedProperties":false,
			"allOf":[{"$ref":"tree"},{"minProperties":0},{"maxProperties":9},{"not":{"type":"null"}},{"not":{"type":"null"}}],"$defs":{"tree":{"$id":"tree","$dynamicAnchor":"n",
			"properties":{"a":{"$dynamicRef":"#n"},"b":{"items":{"$dynamicRef":"#n"}},"c":{}}}}}`,
		`{"$ref":"https://json-schema.org/draft/2020-12/schema"}`,
	} {
		doc, err := decode(json.RawMessage(schema))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.UseRegexpEngine((&engine{room: newRoom(), left: maxPatterns, known: nil, done: true}).compile)
		if err := c.AddResource("toolbroker:///schema", doc); err != nil {
			t.Fatal(err)
		}
		made, err := c.Compile("toolbroker:///schema")
		if err != nil {
			t.Fatal(schema, err)
		}
		work := survey(made, doc)
		if work == nil {
			t.Fatalf("%s is too costly", schema)
		}
		done := 0
		for s := range work.steps {
			s.Format = &jsonschema.Format{Name: "watched", Validate: func(any) error { done++; return nil }}
		}
		for i := range 300 {
			v := someValue(i, 4)
			done = 0
			valid := made.Validate(v) == nil
			if n := work.of(made, v, newAllowance()); n < done {
				t.Errorf("%s with %v (%v): counted %d, done %d", schema, v, valid, n, done)
			}
			if i == 0 && done == 0 {
				t.Errorf("%s is not watched", schema)
			}
		}
	}
}

// someValue is a value that a number stands for.
func someValue(n, deep int) any {
	if deep == 0 || n%7 == 6 {
		return []any{nil, true, "a", json.Number("1")}[n%4]
	}
	all := map[string]any{}
	var list []any
	for i, name := range []string{"a", "b", "c", "ab", "d"} {
		if (n>>i)&1 == 1 || n == 0 {
			all[name] = someValue(n/3+i*5, deep-1)
			list = append(list, all[name])
		}
	}
	if n%3 == 2 {
		return list
	}
	return all
}
