package servers

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"iter"
	"math/bits"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Every byte that a server answers is read here, once: a reply is most of what a
// call costs. What is taken is what jsontext takes, to the byte; a fuzz test holds
// the two together.

const (
	maxNested = 10_000 // levels, as in jsontext
	fewNames  = 64     // of an object, that are compared one by one
	bad       = -1     // an end that is none
)

// A tree says where things stand in a JSON text. Of what is inside a member it
// knows only where somebody looks: see [looked].
type tree struct {
	text  []byte
	nodes []node // the first is the whole value; what is inside one comes behind it
}

// A node is a value, and the member that it is of.
type node struct {
	name, colon int  // of a member: from its name's quote to behind the other one
	plain       bool // the name is as it is written
	at, end     int  // of the value
	deep        int  // levels that it is nested
	next        int  // the node behind this one and what is inside it
}

// looked says of a member's name whether anyone looks into its value. It takes as
// little as possible in: data can have any number of parts.
func looked(name []byte) bool {
	switch string(name) {
	case "result", "content", "contents", "messages", "resource", "_meta":
		return true
	}
	return false
}

// read reads a text that is one JSON value with spaces around it.
func read(text []byte) (tree, bool) {
	t, end, ok := scan(text, true)
	return t, ok && space(text, end) == len(text)
}

// scan reads the value that a text begins with, and says where it ends. With deep
// it looks into what [looked] names, else at the value's own parts only.
func scan(text []byte, deep bool) (tree, int, bool) {
	s := borrow(text, nil)
	defer s.giveBack()
	s.deep, s.nodes = deep, make([]node, 1, 12)
	at := space(text, 0)
	end, levels, ok := s.whole(at, true)
	if !ok {
		return tree{}, 0, false
	}
	nodes := s.nodes
	nodes[0] = node{at: at, end: end, deep: levels, next: len(nodes)}
	return tree{text, nodes}, end, true
}

// pass reads the value that a text begins with, says where it ends and how deep it
// is, and keeps nothing. It asks check about each number, unless that is nil.
func pass(text []byte, check func(number []byte) bool) (end, deep int, ok bool) {
	s := borrow(text, check)
	defer s.giveBack()
	return s.whole(space(text, 0), false)
}

// whole reads the value at at, and whether it is UTF-8.
func (s *scanner) whole(at int, keep bool) (end, deep int, ok bool) {
	end, deep = s.value(at, keep)
	return end, deep, end != bad && (s.seen&highs == 0 || utf8.Valid(s.text[at:end]))
}

var scanners = sync.Pool{New: func() any { return &scanner{names: make([][]byte, 0, 16)} }}

func borrow(text []byte, check func(number []byte) bool) *scanner {
	s := scanners.Get().(*scanner)
	*s = scanner{text: text, check: check, names: s.names}
	return s
}

func (s *scanner) giveBack() {
	names := s.names[:cap(s.names)]
	clear(names) // they are of the text
	if *s = (scanner{names: names[:0]}); cap(names) <= 1024 {
		scanners.Put(s)
	}
}

// kind is the first byte of a value.
func (t *tree) kind(i int) byte { return t.text[t.nodes[i].at] }

func (t *tree) value(i int) json.RawMessage {
	n := &t.nodes[i]
	return t.text[n.at:n.end:n.end]
}

// name is the name of a member; it is not to be kept.
func (t *tree) name(i int) []byte {
	n := &t.nodes[i]
	raw := t.text[n.name:n.colon]
	if n.plain {
		return raw[1 : len(raw)-1]
	}
	name, _ := jsontext.AppendUnquote(nil, raw) // scan has done so before
	return name
}

// inside lists the parts of an object or an array, if that is what i is.
func (t *tree) inside(i int, kind byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		if t.kind(i) != kind {
			return
		}
		for part := i + 1; part < t.nodes[i].next; part = t.nodes[part].next {
			if !yield(part) {
				return
			}
		}
	}
}

// find returns the member of that name, or 0 where i has none.
func (t *tree) find(i int, name string) int {
	for m := range t.inside(i, '{') {
		if string(t.name(m)) == name {
			return m
		}
	}
	return 0
}

// word returns the string that i is.
func (t *tree) word(i int) (string, bool) { return word(t.value(i)) }

// says reports whether i is the string that says this.
func (t *tree) says(i int, this string) bool {
	raw := t.value(i)
	if n := len(raw); raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1:n-1]) == this
	}
	is, ok := word(raw)
	return ok && is == this
}

// A scanner is on its way through a text.
type scanner struct {
	text  []byte
	deep  bool
	nodes []node
	names [][]byte // of the objects that are open
	level int
	seen  uint64 // every byte, one over the other
	check func(number []byte) bool
}

// value reads what starts at i. With keep, its parts become nodes.
func (s *scanner) value(i int, keep bool) (end, deep int) {
	if i >= len(s.text) {
		return bad, 0
	}
	switch s.text[i] {
	case '"':
		end, _ = s.string(i)
		return end, 0
	case '{':
		return s.object(i, keep)
	case '[':
		return s.array(i, keep)
	case 't':
		return s.literal(i, "true"), 0
	case 'f':
		return s.literal(i, "false"), 0
	case 'n':
		return s.literal(i, "null"), 0
	}
	return s.number(i), 0
}

func (s *scanner) object(i int, keep bool) (end, deep int) {
	if s.level++; s.level > maxNested {
		return bad, 0
	}
	first := len(s.names)
	var many map[string]bool
	for i = space(s.text, i+1); ; i = space(s.text, i+1) {
		switch {
		case i >= len(s.text):
			return bad, 0
		case s.text[i] == '}' && len(s.names) == first:
			s.level--
			return i + 1, 1
		case s.text[i] != '"':
			return bad, 0
		}
		colon, plain := s.string(i)
		if colon == bad {
			return bad, 0
		}
		name := s.text[i+1 : colon-1]
		if !plain {
			var err error
			if name, err = jsontext.AppendUnquote(nil, s.text[i:colon]); err != nil {
				return bad, 0
			}
		}
		if s.twice(name, first, &many) {
			return bad, 0
		}
		at := space(s.text, colon)
		if at >= len(s.text) || s.text[at] != ':' {
			return bad, 0
		}
		at = space(s.text, at+1)
		me := len(s.nodes)
		if keep {
			s.nodes = append(s.nodes, node{name: i, colon: colon, plain: plain, at: at})
		}
		end, levels := s.value(at, keep && s.deep && looked(name))
		if end == bad {
			return bad, 0
		}
		deep = max(deep, levels)
		if keep {
			n := &s.nodes[me]
			n.end, n.deep, n.next = end, levels, len(s.nodes)
		}
		if i = space(s.text, end); i >= len(s.text) {
			return bad, 0
		}
		switch s.text[i] {
		case ',':
		case '}':
			s.names = s.names[:first]
			s.level--
			return i + 1, deep + 1
		default:
			return bad, 0
		}
	}
}

// twice notes a name of the object whose names begin at first, and reports whether
// it stands there already.
func (s *scanner) twice(name []byte, first int, many *map[string]bool) bool {
	mine := s.names[first:]
	if s.names = append(s.names, name); len(mine) < fewNames {
		for _, n := range mine {
			if string(n) == string(name) {
				return true
			}
		}
		return false
	}
	if *many == nil {
		*many = make(map[string]bool, 4*fewNames)
		for _, n := range mine {
			(*many)[string(n)] = true
		}
	}
	if (*many)[string(name)] {
		return true
	}
	(*many)[string(name)] = true
	return false
}

func (s *scanner) array(i int, keep bool) (end, deep int) {
	if s.level++; s.level > maxNested {
		return bad, 0
	}
	if i = space(s.text, i+1); i < len(s.text) && s.text[i] == ']' {
		s.level--
		return i + 1, 1
	}
	for {
		me := len(s.nodes)
		if keep {
			s.nodes = append(s.nodes, node{at: i})
		}
		end, levels := s.value(i, keep && s.deep)
		if end == bad {
			return bad, 0
		}
		deep = max(deep, levels)
		if keep {
			n := &s.nodes[me]
			n.end, n.deep, n.next = end, levels, len(s.nodes)
		}
		if i = space(s.text, end); i >= len(s.text) {
			return bad, 0
		}
		switch s.text[i] {
		case ',':
			i = space(s.text, i+1)
		case ']':
			s.level--
			return i + 1, deep + 1
		default:
			return bad, 0
		}
	}
}

// Eight bytes at a time: in a word, where a byte is below a space, a quote or a
// backslash, the highest bit of that byte is set. Where a byte further up is set
// besides, that may be wrong; the lowest never is.
const (
	ones    = 0x0101010101010101
	highs   = 0x80 * ones
	spaces  = ' ' * ones
	quotes  = '"' * ones
	slashes = '\\' * ones
)

// string reads the string that starts at i, and says where it ends and whether it
// holds no escape. Whether it is UTF-8 is seen at the end, of the whole text.
func (s *scanner) string(i int) (end int, plain bool) {
	text, seen := s.text, s.seen
	plain = true
	for i++; ; {
		for i+8 <= len(text) {
			w := binary.LittleEndian.Uint64(text[i:])
			seen |= w
			q, e := w^quotes, w^slashes
			if stop := ((w-spaces)&^w | (q-ones)&^q | (e-ones)&^e) & highs; stop != 0 {
				i += bits.TrailingZeros64(stop) / 8
				break
			}
			i += 8
		}
		for i < len(text) && text[i] >= ' ' && text[i] != '"' && text[i] != '\\' {
			seen |= uint64(text[i])
			i++
		}
		if i >= len(text) {
			return bad, false
		}
		switch text[i] {
		case '"':
			s.seen = seen
			return i + 1, plain
		case '\\':
			plain = false
			if i = escape(text, i); i == bad {
				return bad, false
			}
		default:
			return bad, false
		}
	}
}

// escape reads an escape; half of a character from beyond the first 65,536 is none.
func escape(text []byte, i int) (end int) {
	if i+1 >= len(text) {
		return bad
	}
	switch text[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		switch r := unit(text, i); {
		case r < 0, r >= 0xdc00 && r < 0xe000:
			return bad
		case r >= 0xd800 && r < 0xdc00:
			if r = unit(text, i+6); r < 0xdc00 || r >= 0xe000 {
				return bad
			}
			return i + 12
		}
		return i + 6
	}
	return bad
}

// unit returns what is written as \uXXXX, or -1.
func unit(text []byte, i int) (r rune) {
	if i+6 > len(text) || text[i] != '\\' || text[i+1] != 'u' {
		return -1
	}
	for _, c := range text[i+2 : i+6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

func (s *scanner) number(i int) (end int) {
	start := i
	if i < len(s.text) && s.text[i] == '-' {
		i++
	}
	whole := digits(s.text, i)
	if whole == i || s.text[i] == '0' && whole > i+1 {
		return bad
	}
	if i = whole; i < len(s.text) && s.text[i] == '.' {
		part := digits(s.text, i+1)
		if part == i+1 {
			return bad
		}
		i = part
	}
	if i < len(s.text) && (s.text[i] == 'e' || s.text[i] == 'E') {
		if i++; i < len(s.text) && (s.text[i] == '+' || s.text[i] == '-') {
			i++
		}
		exp := digits(s.text, i)
		if exp == i {
			return bad
		}
		i = exp
	}
	if s.check != nil && !s.check(s.text[start:i]) {
		return bad
	}
	return i
}

func digits(text []byte, i int) int {
	for i < len(text) && '0' <= text[i] && text[i] <= '9' {
		i++
	}
	return i
}

func (s *scanner) literal(i int, word string) (end int) {
	if len(s.text)-i < len(word) || string(s.text[i:i+len(word)]) != word {
		return bad
	}
	return i + len(word)
}

// space returns where what is not a space begins.
func space(text []byte, i int) int {
	for i < len(text) && text[i] <= ' ' && (text[i] == ' ' || text[i] == '\n' || text[i] == '\r' || text[i] == '\t') {
		i++
	}
	return i
}
