package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"toolbroker/gateway"
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

func diff(was, now string) []Change {
	all, _ := Diff([]byte(was), []byte(now), math.MaxInt)
	return all
}

// values is how definitions were read before there was a bound: it lists the values of
// one by their paths, no two of which are alike, in the order of its canonical form. It
// is false for what is no JSON.
func values(definition []byte) (map[string]value, []string, bool) {
	all := map[string]value{}
	if len(definition) == 0 {
		return all, nil, true
	}
	raw := jsontext.Value(bytes.Clone(definition))
	if raw.Canonicalize() != nil {
		return nil, nil, false
	}
	var names []string
	var walk func(path string, raw jsontext.Value)
	walk = func(path string, raw jsontext.Value) {
		d := jsontext.NewDecoder(bytes.NewReader(raw))
		t, _ := d.ReadToken()
		kind, some := t.Kind(), false
		for i := 0; (kind == '{' || kind == '[') && d.PeekKind() != '}' && d.PeekKind() != ']'; i++ {
			some = true
			next := path + "[" + strconv.Itoa(i) + "]"
			if kind == '{' {
				name, _ := d.ReadToken()
				if next = name.String(); !plainName.MatchString(next) {
					next = strconv.Quote(next)
				}
				if path != "" {
					next = path + "." + next
				}
			}
			v, err := d.ReadValue()
			if err != nil {
				return // it was read before: this does not happen
			}
			walk(next, v.Clone())
		}
		if some {
			return
		}
		v := value{kind, string(raw)}
		if kind == '"' {
			v.text = t.String()
		}
		all[path] = v
		names = append(names, path)
	}
	walk("", raw)
	return all, names, true
}

// slowDiff is what Diff is held to.
func slowDiff(was, now []byte) []Change {
	before, _, ok := values(was)
	after, names, ok2 := values(now)
	if !ok || !ok2 {
		if bytes.Equal(was, now) {
			return nil
		}
		return []Change{{Runs: compared(value{'"', string(was)}, value{'"', string(now)})}}
	}
	var all []Change
	for _, path := range names {
		old, there := before[path]
		switch fresh := after[path]; {
		case !there:
			all = append(all, Change{path, []Run{{Fresh, fresh.text}}})
		case old != fresh:
			all = append(all, Change{path, compared(old, fresh)})
		}
	}
	_, names, _ = values(was)
	for _, path := range names {
		if _, there := after[path]; !there {
			all = append(all, Change{path, []Run{{Gone, before[path].text}}})
		}
	}
	return all
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
		if got := written(diff(c.was, c.now)); got != c.want {
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
		changes := diff(string(a), string(b))
		if got, want := written(changes), written(slowDiff(a, b)); got != want {
			t.Fatalf("%s and %s:\n%s\nwas\n%s", a, b, got, want)
		}
		for most := range len(changes) {
			if some, more := Diff(a, b, most); written(some) != written(changes[:most]) || more != len(changes)-most {
				t.Fatalf("%s and %s: of %d, %d and %d more", a, b, len(changes), len(some), more)
			}
		}
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
	changes := diff(fmt.Sprintf(`{"d":%q}`, "x "+long), fmt.Sprintf(`{"d":%q}`, now))
	if len(changes) != 1 || len(changes[0].Runs) < 2 {
		t.Errorf("%d changes", len(changes))
	}
}

// What a page takes of a definition is a small multiple of its bytes.
func TestWhatADiffTakes(t *testing.T) {
	long := strings.Repeat("n", 60_000)
	for name, definition := range map[string]string{
		"many values in a place with a long name": `{"` + long + `":[` + strings.Repeat("0,", 60_000) + `0]}`,
		"deep":            strings.Repeat(`{"`+long[:300]+`":[`, 120) + strings.Repeat("0,", 60_000) + "0" + strings.Repeat("]}", 120),
		"many long names": `{"a":{"` + long + `x":1,"` + long + `y":[0,1,2,3,4,5,6,7,8,9]}}`,
	} {
		for _, was := range []string{"", `{}`, strings.ReplaceAll(definition, "0", "1")} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			h := held(gateway.Operator{}, "a", gateway.Definition{Accepted: []byte(was), Seen: []byte(definition)})
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
				t.Errorf("%s: %d bytes take %d", name, len(definition), took)
			}
			if n := len(h.Changes); n == 0 || n > maxChanges || strings.HasPrefix(name, "many values") && h.MoreRows < 50_000 {
				t.Errorf("%s: %d changes, %d more", name, n, h.MoreRows)
			}
			for _, c := range h.Changes {
				if len(c.Path) > maxPath+2*maxName {
					t.Errorf("%s: a path of %d bytes", name, len(c.Path))
				}
			}
		}
	}
	for _, short := range []string{`{"a":[1,{"b":"x,\"{"}]}`, `[]`, `{}`, `{"a":{}}`} {
		var out bytes.Buffer
		if err := json.Indent(&out, []byte(short), "", "  "); err != nil || pretty([]byte(short)) != out.String() {
			t.Errorf("%s is %s", short, pretty([]byte(short)))
		}
	}
}
