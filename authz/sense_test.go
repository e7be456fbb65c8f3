package authz

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestConditionsThatSayNothing(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"args.a == 'x' && args.a == 'y'", "never: args.a == 'x', args.a == 'y'"},
		{"args.n > 5 && args.n < 3", "never: args.n > 5, args.n < 3"},
		{"args.n >= 5 && args.n <= 5", ""},
		{"args.n > 5 && args.n <= 5", "never: args.n > 5, args.n <= 5"},
		{"5 < args.n && 3 >= args.n", "never: 5 < args.n, 3 >= args.n"},
		{"args.n > 1 && args.n < 1.5", ""},
		{"args.a > 'a' && args.a < 'b'", ""},
		{"args.a > 'b' && args.a < 'a'", "never: args.a > 'b', args.a < 'a'"},
		{"args.a == 'x' && args.a == 5", "never: args.a == 'x', args.a == 5"},
		{"args.a =~ '^x' && args.a in ('y', 'z')", "never: args.a =~ '^x', args.a in ('y', 'z')"},
		{"args.a =~ '^acme/' && args.a =~ '^corp/'", "never: args.a =~ '^acme/', args.a =~ '^corp/'"},
		{"args.a =~ '^acme/' && args.a =~ '^acme/api'", ""},
		{"args.a =~ '(?i)^acme' && args.a =~ '^ACME'", ""},
		{"args.t && !args.t", "never: args.t"},
		{"args.t && args.t == false", "never: args.t, args.t == false"},
		{"'a' in args.l && !('a' in args.l)", "never: 'a' in args.l"},
		{"'a' in args.l && args.l == 'a'", "never: 'a' in args.l, args.l == 'a'"},
		{"args.a == null && args.a == 'x'", "never: args.a == null, args.a == 'x'"},
		{"args.a == 'x' && args.a.b == 1", "never: args.a == 'x'"},
		{"args.a == null && args.a.b == null", ""},
		{"hour < 6 && hour >= 22", "never: hour < 6, hour >= 22"},
		{"hour < 6 || hour >= 22", ""},
		{"weekday == 'sat' && weekday == 'sun'", "never: weekday == 'sat', weekday == 'sun'"},
		{"hour > 23", "never: hour > 23"},
		{"date >= '2026-12-01' && date < '2026-12-01'", "never: date >= '2026-12-01', date < '2026-12-01'"},
		{"!(args.n == 5 || args.n != 5)", "never: args.n == 5, args.n != 5"},
		{"(args.n == 5 || args.t) && args.n == 6 && !args.t", "never: "},
		{"args.n == args.m && args.n == 5", ""},

		{"args.a != 'x' || args.a != 'y'", "always"},
		{"args.n <= 5 || args.n > 5", "always"},
		{"args.a == null || args.a != null", "always"},
		{"hour >= 0", "always"},
		{"weekday in (0, 1, 2, 3, 4, 5, 6)", "always"},
		{"args.a != 'x' && args.a != 'y'", ""},
		{"args.a =~ 'x' || args.a !~ 'x'", ""}, // not looked into
	} {
		cond, err := parseCondition(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		got := ""
		if ok, clash := (&sense{maxEffort}).can(cond, false, nil); !ok {
			got = "never: " + strings.Join(clash, ", ")
		} else if ok, _ := (&sense{maxEffort}).can(cond, true, nil); !ok {
			got = "always"
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.text, got, c.want)
		}
	}
}

// What is called impossible never happens.
func TestSenseIsSound(t *testing.T) {
	const shape = `{"properties":{"n":{"type":["integer","null"],"minimum":-2,"maximum":4},"s":{"enum":["a","b",3]},"t":{"type":"boolean"},"l":{"type":"array"},"o":{"$ref":"#/$defs/o"},
		"u":{"anyOf":[{"type":"string"},{"type":"number"}]}},"required":["s"],"additionalProperties":false,"$defs":{"o":{"type":"object","properties":{"n":{"type":"number"}}}}}`
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.SampledFrom([]string{"-2", "-1", "0", "1", "1.5", "3", "4"})
		word := rapid.SampledFrom([]string{"''", "'a'", "'b'", "'ab'"})
		name := rapid.SampledFrom([]string{"n", "s", "t", "l", "o", "u", "o.n", "x"})
		op := rapid.SampledFrom([]string{"==", "!=", "<", "<=", ">", ">="})
		var gen func(depth int) string
		gen = func(depth int) string {
			if depth > 0 {
				switch rapid.IntRange(0, 3).Draw(t, "shape") {
				case 0:
					return "(" + gen(depth-1) + " && " + gen(depth-1) + ")"
				case 1:
					return "(" + gen(depth-1) + " || " + gen(depth-1) + ")"
				case 2:
					return "!(" + gen(depth-1) + ")"
				}
			}
			v := "args." + name.Draw(t, "name")
			switch rapid.IntRange(0, 8).Draw(t, "leaf") {
			case 0:
				return v
			case 1:
				return v + " " + op.Draw(t, "op") + " " + word.Draw(t, "word")
			case 2:
				return v + rapid.SampledFrom([]string{" == null", " != null", " == true"}).Draw(t, "null")
			case 3:
				return v + " in (" + word.Draw(t, "one") + ", " + word.Draw(t, "two") + ")"
			case 4:
				return v + rapid.SampledFrom([]string{" =~ '^a'", " !~ '^a'", " =~ '^ab'", " =~ 'b$'"}).Draw(t, "pattern")
			case 5:
				return word.Draw(t, "word") + " in " + v
			case 6:
				return v + " " + op.Draw(t, "op") + " args." + name.Draw(t, "other")
			case 7:
				return rapid.SampledFrom([]string{"hour < 6", "hour >= 6", "hour in (5, 6)", "weekday == 'mon'", "weekday > 1", "date < '1970-01-03'", "date == '1970-01-03'"}).Draw(t, "clock")
			}
			return number.Draw(t, "number") + " " + op.Draw(t, "op") + " " + v
		}
		cond, err := parseCondition(gen(3))
		if err != nil {
			t.Skip(err)
		}
		args := map[string]any{"s": rapid.SampledFrom([]any{"a", "b", 3}).Draw(t, "s")}
		for key, values := range map[string][]any{"n": {-2, -1, 0, 1, 3, 4, nil}, "t": {true, false}, "l": {[]string{}, []string{"a"}}, "u": {"ab", 1.5, ""}, "o": {map[string]any{}, map[string]any{"n": 1.5}, map[string]any{"n": 0}}} {
			if v := rapid.SampledFrom(append(values, "absent")).Draw(t, key); v != "absent" {
				args[key] = v
			}
		}
		raw, _ := json.Marshal(args)
		at := time.Unix(rapid.Int64Range(0, 7*86400).Draw(t, "at"), 0)
		came := cond.eval(&input{raw: raw, at: at})
		for name, s := range map[string]*schema{"no schema": nil, "the schema": newSchema(json.RawMessage(shape))} {
			today := fact{term: &term{name: "date", op: ">=", text: "today", among: []value{{kind: numberKind, number: float64(dayOf(at))}}}}
			can, _ := (&sense{maxEffort}).can(cond, false, s, today)
			fails, _ := (&sense{maxEffort}).can(cond, true, s, today)
			if came == yes && !can || came == no && !fails {
				t.Fatalf("%s came to %s of %s at %v, which is impossible by %s", cond.text, []string{"no", "yes", "unknown"}[came], raw, at, name)
			}
		}
	})
}

// However a condition is written, looking into it ends soon.
func TestSenseIsBounded(t *testing.T) {
	var all []string
	for i := range 18 {
		all = append(all, fmt.Sprintf("(args.a%d==1||args.b==%d)", i, i))
	}
	cond, err := parseCondition(strings.Join(all, "&&"))
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := (&sense{maxEffort}).can(cond, false, nil); !ok {
		t.Error("what is not looked into is not impossible")
	}
	var text strings.Builder
	text.WriteString("p, bot, acme, k, s/t, call, , allow\n")
	for i := range 5_000 {
		fmt.Fprintf(&text, "p, bot%d, acme, k, s/t, call, \"%s && args.z == %d\", allow\n", i, strings.Join(all[:6], "&&"), i)
	}
	if p, findings := Parse("policy.csv", []byte(text.String())); p == nil {
		t.Error(findings)
	}
}

// References that go in circles, and schemas that are none, are taken for anything.
func TestSchemasThatSayNothing(t *testing.T) {
	cond, err := parseCondition("args.a == 5")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "5", "null", "{}", "{", `{"properties":5}`, `{"properties":{"a":true}}`, `{"properties":{"a":{"$ref":"#/properties/a"}}}`, `{"properties":{"a":{"$ref":"https://example.com/a"}}}`,
		`{"properties":{"a":{"type":"odd"}}}`, `{"properties":{"a":{"anyOf":[{"$ref":"#/properties/a"}]}}}`, `{"allOf":[{"properties":{"a":{"type":"number"}}}],"additionalProperties":false,"properties":{}}`, `{"$ref":"#"}`} {
		if ok, _ := (&sense{maxEffort}).can(cond, false, newSchema(json.RawMessage(text))); !ok {
			t.Errorf("%s: impossible", text)
		}
	}
}

// The bounds of a schema are themselves within it.
func TestSchemaBounds(t *testing.T) {
	s := newSchema(json.RawMessage(`{"properties":{"n":{"type":"number","minimum":2,"maximum":4}}}`))
	for text, want := range map[string]bool{"args.n < 2": false, "args.n <= 2": true, "args.n > 4": false, "args.n >= 4": true, "args.n == 3": true, "args.n == '3'": false} {
		cond, err := parseCondition(text)
		if err != nil {
			t.Fatal(err)
		}
		if ok, _ := (&sense{maxEffort}).can(cond, false, s); ok != want {
			t.Errorf("%s: %v", text, ok)
		}
	}
}

// Whatever the schema and the condition: no panic, and an end.
func FuzzSense(f *testing.F) {
	f.Add("args.a.b == 'x' && !(args.n < 5 || 'y' in args.l)", `{"properties":{"a":{"$ref":"#/$defs/a"},"n":{"type":["integer","null"],"minimum":2},"l":{}},"$defs":{"a":{"properties":{"b":{"enum":["x",null,1]}}}}}`)
	f.Add("args.a in (1, 2) || date >= '2026-01-01'", `{"anyOf":[{"properties":{"a":{"anyOf":[{"const":1},{"$ref":"#/anyOf/0"}]}}}],"additionalProperties":false}`)
	f.Fuzz(func(t *testing.T, text, text2 string) {
		cond, err := parseCondition(text)
		if err != nil {
			return
		}
		p := &parser{sense: &sense{maxEffort}}
		r := &row{when: cond, verdict: verdict{word: "deny"}}
		p.lintCondition(r, map[*condition]string{})
		if s := newSchema(json.RawMessage(text2)); s != nil {
			p.lintArguments(r, []string{"s/t"}, map[string]*schema{"s/t": s})
		}
		for _, f := range p.report() {
			if f.Severity != SeverityWarning {
				t.Fatalf("%q: %v", text, f)
			}
		}
	})
}
