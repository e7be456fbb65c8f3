package console

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// A Change is one value of a definition that is not what was accepted. Its path
// and its runs are its server's words.
type Change struct {
	Path string // "inputSchema.properties.path.description"
	Runs []Run
}

// A Run is a part of a value: what is gone, what is new, or what stayed.
type Run struct {
	Kind RunKind
	Text string
}

// RunKind says what became of a run.
type RunKind uint8

// The kinds of a Run.
const (
	Kept RunKind = iota
	Gone
	Fresh
)

// Diff lists what a definition says that an older one did not, and the other way
// round, value by value; nothing is listed only where both mean the same. Either
// may be empty.
func Diff(was, now []byte) []Change {
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

// A value is a string's text, or what stands in the JSON.
type value struct {
	kind jsontext.Kind
	text string
}

func (v value) quoted() string {
	if v.kind != '"' {
		return v.text
	}
	return strconv.Quote(v.text)
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_$-]+$`)

// values lists a definition's values by their paths, no two of which are alike,
// in the order of its canonical form. It is false for what is no JSON.
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

// compared puts two values beside each other, word by word where both are text.
func compared(was, now value) []Run {
	if was.kind != '"' || now.kind != '"' {
		return []Run{{Gone, was.quoted()}, {Fresh, now.quoted()}}
	}
	a, b := tokens(was.text), tokens(now.text)
	var out []Run
	add := func(kind RunKind, words ...string) {
		if len(words) == 0 {
			return
		}
		text := strings.Join(words, "")
		if n := len(out); n > 0 && out[n-1].Kind == kind {
			out[n-1].Text += text
			return
		}
		out = append(out, Run{kind, text})
	}
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	end := 0
	for end < len(a)-start && end < len(b)-start && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	add(Kept, a[:start]...)
	between(a[start:len(a)-end], b[start:len(b)-end], add)
	add(Kept, a[len(a)-end:]...)
	return out
}

// mostCells bounds the table of a comparison; longer texts are shown whole.
const mostCells = 1 << 20

// between adds what is left of two texts once their ends are off, by their
// longest common subsequence.
func between(a, b []string, add func(RunKind, ...string)) {
	if len(a) == 0 || len(b) == 0 || len(a)*len(b) > mostCells {
		add(Gone, a...)
		add(Fresh, b...)
		return
	}
	w := len(b) + 1
	long := make([]int32, (len(a)+1)*w) // of what is behind
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				long[i*w+j] = long[(i+1)*w+j+1] + 1
			} else {
				long[i*w+j] = max(long[(i+1)*w+j], long[i*w+j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			add(Kept, a[i])
			i, j = i+1, j+1
		case long[(i+1)*w+j] >= long[i*w+j+1]:
			add(Gone, a[i])
			i++
		default:
			add(Fresh, b[j])
			j++
		}
	}
	add(Gone, a[i:]...)
	add(Fresh, b[j:]...)
}

// tokens splits a text into words, each with the space behind it.
func tokens(s string) (all []string) {
	begin, space := 0, false
	for i, r := range s {
		if is := unicode.IsSpace(r); space && !is {
			all = append(all, s[begin:i])
			begin, space = i, false
		} else {
			space = is
		}
	}
	return append(all, s[begin:])
}

// pretty is a definition to read: indented, every value as it is.
func pretty(definition []byte) string {
	v := jsontext.Value(bytes.Clone(definition))
	if v.Canonicalize() != nil {
		return string(definition)
	}
	var out bytes.Buffer
	if json.Indent(&out, v, "", "  ") != nil {
		return string(definition)
	}
	return out.String()
}
