package gateway_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"toolbroker/gateway"
)

// selves is a schema with n properties that are the schema itself again.
func selves(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"p%d":{"$ref":"#","description":"again"}`, i))
	}
	return `{"type":"object","properties":{` + strings.Join(all, ",") + `}}`
}

// What a schema says of itself again is declared however deep, and costs what it
// says once: with 7 such properties, a tree of shapes would take more memory than
// there is.
func TestRecursionIsAGraph(t *testing.T) {
	for _, n := range []int{1, 7, 500} {
		deep := strings.Repeat(`{"p0":`, 60) + `{"other":1}` + strings.Repeat(`}`, 60)
		if got, err := gateway.Undeclared(selves(n), deep); err != nil || got != "other" {
			t.Errorf("%d: %q, %v", n, got, err)
		}
		deep = strings.Replace(deep, "other", fmt.Sprintf("p%d", n-1), 1)
		if got, err := gateway.Undeclared(selves(n), deep); err != nil || got != "" {
			t.Errorf("%d: %q, %v", n, got, err)
		}
		if cost := gateway.ShapeCost(selves(n)); cost > 10*n+10 {
			t.Errorf("the shape of %d costs %d", n, cost)
		}
	}
	const pair = `{"properties":{"a":{"$ref":"#/$defs/a"}},"$defs":{
		"a":{"properties":{"b":{"allOf":[{"$ref":"#/$defs/b"}]}}},"b":{"properties":{"a":{"$ref":"#/$defs/a"},"l":{"items":{"$ref":"#"}}}}}}`
	for args, want := range map[string]string{
		`{"a":{"b":{"a":{"b":{"l":[{"a":{}}]}}}}}`: "",
		`{"a":{"b":{"a":{"a":1}}}}`:                "a",
		`{"a":{"b":{"l":[{"l":[]}]}}}`:             "l",
	} {
		if got, err := gateway.Undeclared(pair, args); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", args, got, err, want)
		}
	}
}

// Beyond what a shape may cost nothing is declared, which refuses more and not less.
func TestAShapeIsBounded(t *testing.T) {
	var all []string
	for i := range 30_000 {
		all = append(all, fmt.Sprintf(`"p%d":{"properties":{"x":{}}}`, i))
	}
	wide := `{"properties":{` + strings.Join(all, ",") + `}}`
	if got, err := gateway.Undeclared(wide, `{"p1":{}}`); err != nil || got != "p1" {
		t.Errorf("%q, %v", got, err)
	}
	// Each subset of the alternatives is another shape.
	all = nil
	for i := range 40 {
		all = append(all, fmt.Sprintf(`"p%d":{"anyOf":[{"$ref":"#"},{"$ref":"#/$defs/d%d"}]}`, i, i))
	}
	defs := []string{}
	for i := range 40 {
		defs = append(defs, fmt.Sprintf(`"d%d":{"properties":{"p%d":{"$ref":"#/$defs/d%d"}}}`, i, i, (i+7)%40))
	}
	bomb := `{"properties":{` + strings.Join(all, ",") + `},"$defs":{` + strings.Join(defs, ",") + `}}`
	if got, err := gateway.Undeclared(bomb, `{"q":1}`); err != nil || got != "q" {
		t.Errorf("%q, %v", got, err)
	}
	for _, schema := range []string{wide, bomb} {
		if cost := gateway.ShapeCost(schema); cost > gateway.MaxShape+10_000 {
			t.Errorf("a shape costs %d", cost)
		}
	}
}

// What is remembered of shapes does not grow with what servers say.
func TestRememberedShapesAreBounded(t *testing.T) {
	var g gateway.Gateway
	most := 0
	for i := range 80 {
		most = max(most, gateway.Remember(&g, gateway.Tool{Hash: fmt.Sprint(i), Schema: json.RawMessage(selves(5_000))}))
	}
	if most < 10 || most > 60 {
		t.Errorf("%d shapes are remembered", most)
	}
}

// A pattern is counted before it is compiled.
func TestPatternsAreBounded(t *testing.T) {
	for text, good := range map[string]bool{
		`^[a-z]{1,999}$`: true, `^[\p{L}\p{N} _-]{1,64}$`: true, `^(?:[0-9a-f]{8}-){4}$`: true, strings.Repeat("a", 4096): true,
		`^\pL{900}$`: false, `(?:\pL{30}){30}`: false, strings.Repeat(`\pL`, 400): false, strings.Repeat("a", 4097): false, `(`: false, `(?=a)`: false,
	} {
		p, err := gateway.ReadPattern(text)
		if (err == nil) != good || good && (p.Size == 0 || p.Steps == 0) {
			t.Errorf("%.40s: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "pL") {
			t.Errorf("it is quoted: %v", err)
		}
	}
	if got, err := gateway.Undeclared(`{"properties":{"a":{}},"patternProperties":{"^\\pL{900}$":{}}}`, `{"b":1}`); err != nil || got != "b" {
		t.Errorf("%q, %v", got, err)
	}
}
