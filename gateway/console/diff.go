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
// round, value by value, up to most of them, and counts the rest; nothing is listed only
// where both mean the same. Either may be empty.
func Diff(was, now []byte, most int) (listed []Change, more int) {
	before, ok := outline(was)
	after, ok2 := outline(now)
	if !ok || !ok2 {
		if bytes.Equal(was, now) {
			return nil, 0
		}
		return []Change{{Runs: compared(value{'"', string(was)}, value{'"', string(now)})}}, 0
	}
	d := differ{before: before, after: after, most: most}
	d.fresh(0, 0)
	d.gone(0, 0)
	return d.listed, d.more
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

// A part is a value in a definition. Its path is not kept: a definition can have many
// values in one place that has a long name.
type part struct {
	name string // of a member, as written; of an element empty
	text []byte // canonical
	next int    // the part behind this one and what is inside it
}

func (p part) kind() jsontext.Kind { return jsontext.Value(p.text).Kind() }

// leaf reports whether a part is shown as a value: it holds no other.
func (p part) leaf() bool {
	return p.text[0] != '{' && p.text[0] != '[' || len(p.text) == 2
}

func (p part) value() value {
	v := value{p.kind(), string(p.text)}
	if v.kind == '"' {
		v.text = unquoted(v.text)
	}
	return v
}

func unquoted(quoted string) string {
	text, _ := jsontext.AppendUnquote(nil, quoted) // it was read before
	return string(text)
}

// parts are a definition in its canonical form: each object or array, and behind it what
// is inside. An empty definition has none.
type parts []part

// outline reads a definition. It is false for what is no JSON.
func outline(definition []byte) (parts, bool) {
	if len(definition) == 0 {
		return nil, true
	}
	raw := jsontext.Value(bytes.Clone(definition))
	if raw.Canonicalize() != nil {
		return nil, false
	}
	var all parts
	d := jsontext.NewDecoder(bytes.NewReader(raw))
	var walk func(name string)
	walk = func(name string) {
		me := len(all)
		all = append(all, part{name: name})
		if kind := d.PeekKind(); kind == '{' || kind == '[' {
			_, _ = d.ReadToken() // all of it was read before
			at := d.InputOffset() - 1
			for d.PeekKind() != '}' && d.PeekKind() != ']' {
				name := ""
				if kind == '{' {
					v, _ := d.ReadValue()
					name = string(v)
				}
				walk(name)
			}
			_, _ = d.ReadToken()
			all[me].text = raw[at:d.InputOffset()]
		} else {
			v, _ := d.ReadValue()
			all[me].text = raw[d.InputOffset()-int64(len(v)) : d.InputOffset()]
		}
		all[me].next = len(all)
	}
	walk("")
	return all, true
}

// none is the place of what is not there.
const none = -1

// counterparts hands on what is inside one part, each with what stands in its place in
// another outline's part, or none.
func (o parts) counterparts(at int, other parts, there int, f func(at, there int, step func() string)) {
	kind := o[at].kind()
	if there != none && (other[there].kind() != kind) {
		there = none
	}
	places := map[string]int{}
	if there != none && kind == '{' {
		for p := there + 1; p < other[there].next; p = other[p].next {
			places[other[p].name] = p
		}
	}
	element := there + 1
	for p, i := at+1, 0; p < o[at].next; p, i = o[p].next, i+1 {
		found := none
		switch {
		case there == none:
		case kind == '{':
			if place, ok := places[o[p].name]; ok {
				found = place
			}
		case element < other[there].next:
			found, element = element, other[element].next
		}
		f(p, found, func() string {
			if kind == '{' {
				return "." + spelt(o[p].name)
			}
			return "[" + strconv.Itoa(i) + "]"
		})
	}
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_$-]+$`)

// What is shown of a path, in bytes.
const (
	maxName = 256 // of one name in it
	maxPath = 2048
)

// spelt is a member's name as a path has it.
func spelt(quoted string) string {
	name := unquoted(quoted)
	if len(name) > maxName {
		return strconv.Quote(strings.ToValidUTF8(name[:maxName], "")) + "…"
	}
	if !plainName.MatchString(name) {
		return strconv.Quote(name)
	}
	return name
}

// A differ walks two outlines side by side, and writes the path of what differs only.
type differ struct {
	before, after parts
	path          []func() string // steps to where it is
	most          int
	listed        []Change
	more          int
}

// fresh finds what now is in the outline after at at and was not so at was.
func (d *differ) fresh(at, was int) {
	d.walk(d.after, at, d.before, was, func(p part, other *part) {
		if other == nil {
			d.add(func() []Run { return []Run{{Fresh, p.value().text}} })
		} else if old, fresh := other.value(), p.value(); old != fresh {
			d.add(func() []Run { return compared(old, fresh) })
		}
	})
}

// gone finds what was and has nothing in its place.
func (d *differ) gone(at, now int) {
	d.walk(d.before, at, d.after, now, func(p part, other *part) {
		if other == nil {
			d.add(func() []Run { return []Run{{Gone, p.value().text}} })
		}
	})
}

// walk hands on each leaf of an outline, with the leaf in its place in another, if one
// is there.
func (d *differ) walk(o parts, at int, other parts, there int, f func(part, *part)) {
	if at >= len(o) {
		return
	}
	if there >= len(other) {
		there = none
	}
	p := o[at]
	if there != none && bytes.Equal(p.text, other[there].text) {
		return
	}
	if p.leaf() {
		var same *part
		if there != none && other[there].leaf() {
			same = &other[there]
		}
		f(p, same)
		return
	}
	o.counterparts(at, other, there, func(at, there int, step func() string) {
		d.path = append(d.path, step)
		d.walk(o, at, other, there, f)
		d.path = d.path[:len(d.path)-1]
	})
}

func (d *differ) add(runs func() []Run) {
	if len(d.listed) == d.most {
		d.more++
		return
	}
	var path strings.Builder
	for _, step := range d.path {
		if path.Len() > maxPath {
			path.WriteString("…")
			break
		}
		path.WriteString(step())
	}
	d.listed = append(d.listed, Change{strings.TrimPrefix(path.String(), "."), runs()})
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

// What a definition may come to when it is indented: one that is deep and has many
// values, to hundreds of times its bytes.
const (
	maxPretty      = 512 << 10
	maxPrettyLines = 5_000
)

// pretty is a definition to read: every value as it is, and indented unless it is one
// that would be very long.
func pretty(definition []byte) string {
	v := jsontext.Value(bytes.Clone(definition))
	if v.Canonicalize() != nil {
		return string(definition)
	}
	size, lines, depth, inside := len(v), 0, 0, false
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c == '\\' && inside:
			i++
		case c == '"':
			inside = !inside
		case inside:
		case c == '{', c == '[':
			depth++
			size, lines = size+2*depth, lines+1
		case c == '}', c == ']':
			depth--
			size, lines = size+2*depth, lines+1
		case c == ',':
			size, lines = size+2*depth, lines+1
		}
	}
	var out bytes.Buffer
	if size > maxPretty || lines > maxPrettyLines || json.Indent(&out, v, "", "  ") != nil {
		return string(v)
	}
	return out.String()
}
