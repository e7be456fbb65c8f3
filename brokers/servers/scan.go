package servers

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"iter"
	"math"
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

// What one text may make us remember or decode. A value of one byte takes a hundred
// where it is decoded, and fifty to know where it stands.
const (
	maxValues = 500_000 // JSON values in a message of a server's
	maxBlocks = 10_000  // blocks, contents or messages in a result
	maxNodes  = 100_000 // parts of a text that are known by their places
	maxNames  = 100_000 // members of one object in a message of a server's
)

// A tree says where things stand in a JSON text. Of what is inside a value it knows
// only what somebody looks at: see [view].
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

// A view is what somebody looks at in a value. It takes as little as possible in: data
// can have any number of parts.
type view uint8

const (
	asData   view = iota
	asParts       // what an object or an array is made of
	asFields      // an object's members
	asFrame       // a message's
	asResult      // a result's
	asBlocks      // of content: one or many
	asBlock
	asContents // of a resource: many, and the fields of each
	asMessages // of a prompt: many, and the content of each
	asTurn     // one of those
)

// list reports whether the elements of an array are looked at, and how each is.
func (v view) list() (keep bool, each view) {
	switch v {
	case asParts:
		return true, asData
	case asBlocks:
		return true, asBlock
	case asContents:
		return true, asFields
	case asMessages:
		return true, asTurn
	}
	return false, asData
}

// object reports whether the members of an object are looked at.
func (v view) object() bool { return v != asData && v != asContents && v != asMessages }

// member says how the value of a member of that name is looked at.
func (v view) member(name []byte) view {
	switch v {
	case asFrame:
		if string(name) == "result" {
			return asResult
		}
	case asResult:
		switch string(name) {
		case "result":
			return asResult
		case "content":
			return asBlocks
		case "contents":
			return asContents
		case "messages":
			return asMessages
		case "_meta":
			return asFields
		}
	case asBlocks, asBlock:
		if string(name) == "resource" {
			return asFields
		}
	case asTurn:
		if string(name) == "content" {
			return asBlocks
		}
	}
	return asData
}

// read reads a message, which is one JSON value with spaces around it.
func read(text []byte) (tree, error) {
	s := borrow(text, nil)
	defer s.giveBack()
	s.values, s.most = maxValues, maxNames
	t, end, err := s.scan(asFrame)
	if err == nil && space(text, end) != len(text) {
		err = errRubbish
	}
	return t, err
}

// scan reads the value that a text begins with, and says where it ends. It looks at the
// value's own parts only; with a name, at the member of that name only.
func scan(text []byte, only string) (tree, int, error) {
	s := borrow(text, nil)
	defer s.giveBack()
	s.only = only
	return s.scan(asParts)
}

func (s *scanner) scan(v view) (tree, int, error) {
	s.nodes = make([]node, 1, 12)
	at := space(s.text, 0)
	end, levels, ok := s.whole(at, v)
	switch {
	case s.full:
		return tree{}, 0, errTooMany
	case !ok:
		return tree{}, 0, errRubbish
	}
	nodes := s.nodes
	nodes[0] = node{at: at, end: end, deep: levels, next: len(nodes)}
	return tree{s.text, nodes}, end, nil
}

// pass reads the value that a text begins with, says where it ends and how deep it
// is, and keeps nothing. It asks check about each number, unless that is nil.
func pass(text []byte, check func(number []byte) bool) (end, deep int, ok bool) {
	s := borrow(text, check)
	defer s.giveBack()
	return s.whole(space(text, 0), asData)
}

// few reports whether a text that was read before holds at most so many JSON values.
func few(text []byte, most int) bool {
	s := borrow(text, nil)
	defer s.giveBack()
	s.values = most
	_, _, ok := s.whole(space(text, 0), asData)
	return ok
}

// whole reads the value at at, and whether it is UTF-8.
func (s *scanner) whole(at int, v view) (end, deep int, ok bool) {
	end, deep = s.value(at, v)
	return end, deep, end != bad && (s.seen&highs == 0 || utf8.Valid(s.text[at:end]))
}

var scanners = sync.Pool{New: func() any { return &scanner{names: make([][]byte, 0, 16)} }}

func borrow(text []byte, check func(number []byte) bool) *scanner {
	s := scanners.Get().(*scanner)
	*s = scanner{text: text, check: check, names: s.names, values: math.MaxInt, most: math.MaxInt}
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
	text   []byte
	only   string // of the members that are looked at; empty: all
	nodes  []node
	names  [][]byte // of the objects that are open
	level  int
	values int    // that may still come
	most   int    // names of one object
	full   bool   // more came, or more to remember
	seen   uint64 // every byte, one over the other
	check  func(number []byte) bool
}

// keep makes a part of the text a node, while there is room.
func (s *scanner) keep(n node) bool {
	if len(s.nodes) > maxNodes {
		s.full = true
		return false
	}
	s.nodes = append(s.nodes, n)
	return true
}

// value reads what starts at i. What of it is looked at becomes nodes.
func (s *scanner) value(i int, v view) (end, deep int) {
	if s.values--; s.values < 0 {
		s.full = true
		return bad, 0
	}
	if i >= len(s.text) {
		return bad, 0
	}
	switch s.text[i] {
	case '"':
		end, _ = s.string(i)
		return end, 0
	case '{':
		return s.object(i, v)
	case '[':
		return s.array(i, v)
	case 't':
		return s.literal(i, "true"), 0
	case 'f':
		return s.literal(i, "false"), 0
	case 'n':
		return s.literal(i, "null"), 0
	}
	return s.number(i), 0
}

func (s *scanner) object(i int, v view) (end, deep int) {
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
		if s.full = len(s.names)-first >= s.most; s.full || s.twice(name, first, &many) {
			return bad, 0
		}
		at := space(s.text, colon)
		if at >= len(s.text) || s.text[at] != ':' {
			return bad, 0
		}
		at = space(s.text, at+1)
		me := len(s.nodes)
		keep := v.object() && (s.only == "" || string(name) == s.only)
		if keep && !s.keep(node{name: i, colon: colon, plain: plain, at: at}) {
			return bad, 0
		}
		end, levels := s.value(at, v.member(name))
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

func (s *scanner) array(i int, v view) (end, deep int) {
	if s.level++; s.level > maxNested {
		return bad, 0
	}
	if i = space(s.text, i+1); i < len(s.text) && s.text[i] == ']' {
		s.level--
		return i + 1, 1
	}
	keep, each := v.list()
	for n := 0; ; n++ {
		me := len(s.nodes)
		if keep && n == maxBlocks && each != asData {
			s.full = true
			return bad, 0
		}
		if keep && !s.keep(node{at: i}) {
			return bad, 0
		}
		end, levels := s.value(i, each)
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
			if i+1 < len(text) && short[text[i+1]] {
				i += 2
			} else if i = escape(text, i); i == bad {
				return bad, false
			}
		default:
			return bad, false
		}
	}
}

// short are the characters that stand for one behind a backslash; hexes is what a
// hexadecimal digit is worth, and -1 of what is none.
var (
	short [256]bool
	hexes [256]rune
)

func init() {
	for _, c := range []byte(`"\/bfnrt`) {
		short[c] = true
	}
	for c := range hexes {
		hexes[c] = -1
	}
	for n, c := range []byte("0123456789abcdef") {
		hexes[c], hexes[bytes.ToUpper([]byte{c})[0]] = rune(n), rune(n)
	}
}

// escape reads an escape that is not short; half of a character from beyond the first
// 65,536 is none.
func escape(text []byte, i int) (end int) {
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

// unit returns what is written as \uXXXX, or a negative number.
func unit(text []byte, i int) rune {
	if i+6 > len(text) || text[i] != '\\' || text[i+1] != 'u' {
		return -1
	}
	return hexes[text[i+2]]<<12 | hexes[text[i+3]]<<8 | hexes[text[i+4]]<<4 | hexes[text[i+5]]
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
