package console

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

// written is a diff on lines: -gone- and +new+ in what stayed.
func written(changes []Change) string {
	var all []string
	for _, c := range changes {
		line := c.Path + ": "
		for _, r := range c.Runs {
			line += map[RunKind]string{Kept: r.Text, Gone: "-" + r.Text + "-", Fresh: "+" + r.Text + "+"}[r.Kind]
		}
		all = append(all, line)
	}
	return strings.Join(all, "\n")
}

func TestDiff(t *testing.T) {
	for name, c := range map[string]struct{ was, now, want string }{
		"the same":             {`{"a":1,"b":"x"}`, `{ "b":"\u0078", "a":1.0 }`, ""},
		"a word":               {`{"d":"Reads a file."}`, `{"d":"Reads a file. Send it on."}`, "d: Reads a -file.-+file. Send it on.+"},
		"a word inside":        {`{"d":"one two three"}`, `{"d":"one 2 three"}`, "d: one -two -+2 +three"},
		"two words":            {`{"d":"a b c d e"}`, `{"d":"a x c y e"}`, "d: a -b -+x +c -d -+y +e"},
		"a new value":          {`{"a":1}`, `{"a":1,"b":{"c":[true,null]}}`, "b.c[0]: +true+\nb.c[1]: +null+"},
		"one is gone":          {`{"a":1,"b":{"c":[true]}}`, `{"a":1}`, "b.c[0]: -true-"},
		"another kind":         {`{"a":1}`, `{"a":"1"}`, `a: -1-+"1"+`},
		"emptied":              {`{"a":{"b":1}}`, `{"a":{}}`, "a: +{}+\na.b: -1-"},
		"a list of nothing":    {`{"a":{}}`, `{"a":[]}`, `a: -{}-+[]+`},
		"a name with a dot":    {`{"a":{"b":1}}`, `{"a.b":1}`, "\"a.b\": +1+\na.b: -1-"},
		"a name like an index": {`{"a":[1]}`, `{"a[0]":1}`, "\"a[0]\": +1+\na[0]: -1-"},
		"new":                  {``, `{"a":"x"}`, "a: +x+"},
		"gone":                 {`{"a":"x"}`, ``, "a: -x-"},
		"hidden":               {`{"a":"x y"}`, `{"a":"x\u200b y"}`, "a: -x -+x\u200b +y"},
		"no JSON":              {`{"a":1}`, `{"a":`, `: -{"a":1}-+{"a":+`},
		"a bare value":         {`"x"`, `"y"`, ": -x-+y+"},
	} {
		if got := written(Diff([]byte(c.was), []byte(c.now))); got != c.want {
			t.Errorf("%s:\n%s\nnot\n%s", name, got, c.want)
		}
	}
}

// A diff is empty only where nothing that counts differs, and what it says is new
// is what stands there now.
func TestDiffMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was, now := definition.Draw(t, "was"), definition.Draw(t, "now")
		a, _ := json.Marshal(was)
		b, _ := json.Marshal(now)
		changes := Diff(a, b)
		ca, cb := jsontext.Value(a), jsontext.Value(b)
		_, _ = ca.Canonicalize(), cb.Canonicalize()
		if (len(changes) == 0) != (string(ca) == string(cb)) {
			t.Fatalf("%s and %s: %s", a, b, written(changes))
		}
		before, _, _ := values(a)
		after, _, _ := values(b)
		for _, c := range changes {
			var gone, fresh strings.Builder
			for _, r := range c.Runs {
				if r.Kind != Fresh {
					gone.WriteString(r.Text)
				}
				if r.Kind != Gone {
					fresh.WriteString(r.Text)
				}
			}
			for _, side := range []struct {
				all  map[string]value
				text string
			}{{before, gone.String()}, {after, fresh.String()}} {
				if v, ok := side.all[c.Path]; ok && side.text != v.text && side.text != v.quoted() || !ok && side.text != "" {
					t.Fatalf("%s: %q is not what stands there", c.Path, side.text)
				}
			}
		}
	})
}

var definition = rapid.Custom(func(t *rapid.T) any { return anything(t, 3) })

func anything(t *rapid.T, deep int) any {
	kinds := 4
	if deep > 0 {
		kinds = 6
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return rapid.IntRange(0, 2).Draw(t, "n")
	case 1:
		return rapid.Bool().Draw(t, "b")
	case 2:
		return nil
	case 3:
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", " ", "\n", "\u200b", "1", "."}), 0, 8).Draw(t, "text"), "")
	case 4:
		var all []any
		for range rapid.IntRange(0, 3).Draw(t, "len") {
			all = append(all, anything(t, deep-1))
		}
		return all
	}
	all := map[string]any{}
	for range rapid.IntRange(0, 3).Draw(t, "len") {
		all[rapid.SampledFrom([]string{"a", "b", "a.b", "a[0]", "", `"`}).Draw(t, "name")] = anything(t, deep-1)
	}
	return all
}

func TestLongTextsAreCompared(t *testing.T) {
	long := strings.Repeat("word ", 3000)
	now := "new " + long + "end"
	changes := Diff(fmt.Appendf(nil, `{"d":%q}`, "x "+long), fmt.Appendf(nil, `{"d":%q}`, now))
	if len(changes) != 1 || len(changes[0].Runs) < 2 {
		t.Errorf("%d changes", len(changes))
	}
}
