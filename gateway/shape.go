package gateway

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// A shape is which properties a schema declares, and where. A nil shape
// declares nothing. What a schema says of itself again, below, is one shape: a
// shape may hold itself.
type shape struct {
	props    map[string]*shape
	lower    map[string]string // folded name to declared name
	patterns []named           // names that the schema declares by a pattern
	others   *shape            // of every other name, where the schema says this object is a map; never at the top
	items    *shape
}

type named struct {
	name Pattern
	of   *shape
}

func (s *shape) property(name string) (*shape, bool) {
	if s == nil {
		return nil, false
	}
	if child, ok := s.props[name]; ok {
		return child, true
	}
	for _, p := range s.patterns {
		if p.name.MatchString(name) {
			return p.of, true
		}
	}
	return s.others, s.others != nil
}

func (s *shape) folded(name string) (string, bool) {
	if s == nil || len(s.lower) == 0 {
		return "", false
	}
	declared, ok := s.lower[fold(name)]
	return declared, ok
}

func (s *shape) item() *shape {
	if s == nil {
		return nil
	}
	return s.items
}

const (
	maxShape  = 20_000  // what one schema's shape may cost: schemas that are read for it, and names
	maxShapes = 500_000 // and those that are remembered, together
)

// shapeOf returns the shape of a tool's schema, remembered by its definition.
func (g *Gateway) shapeOf(t Tool) *shape {
	key := t.Hash
	if t.Sort != "" && t.Sort != SortTool { // whose schemas are ours, and few
		key = string(t.Schema)
	}
	if s, ok := g.shapes.Load(key); ok {
		return s.(*shape)
	}
	var root any
	if json.Unmarshal(t.Schema, &root) != nil {
		return nil
	}
	s, cost := readShape(root)
	if g.shaped.Add(int64(cost)) > maxShapes { // servers say ever new things: begin anew
		g.shapes.Clear()
		g.shaped.Store(int64(cost))
	}
	g.shapes.Store(key, s)
	return s
}

// readShape collects what a JSON Schema declares: properties, and those of the
// schemas it is combined from. Local references are followed; others declare
// nothing. Nor does what is left when maxShape is used up.
func readShape(root any) (s *shape, cost int) {
	r := shaper{root: root, left: maxShape, ids: map[uintptr]int{}, known: map[string]*shape{}}
	s = r.shape([]any{root}, true)
	for len(r.todo) > 0 && r.left > 0 {
		next := r.todo[0]
		r.todo = r.todo[1:]
		next()
	}
	return s, maxShape - max(r.left, 0) + 1
}

// A shaper makes shapes out of sets of schemas that hold for the same value. A
// set that comes again has its shape already, which is what ends recursion.
type shaper struct {
	root  any
	left  int
	ids   map[uintptr]int // of the schemas met, by where they are in memory
	known map[string]*shape
	todo  []func() // shapes that are known and not filled in yet, the nearest to the top first
}

// shape is the shape of a value that all these schemas hold for.
func (r *shaper) shape(schemas []any, top bool) *shape {
	set, seen := map[int]map[string]any{}, map[int]bool{}
	for _, s := range schemas {
		r.gather(s, set, seen)
	}
	members := slices.Sorted(maps.Keys(set))
	var key strings.Builder
	if top {
		key.WriteString("top")
	}
	for _, id := range members {
		key.WriteRune(rune(id)) // maxShape is less than there are runes below the surrogates
	}
	if s, ok := r.known[key.String()]; ok {
		return s
	}
	s := &shape{}
	r.known[key.String()] = s
	r.todo = append(r.todo, func() {
		all := make([]map[string]any, 0, len(members))
		for _, id := range members {
			all = append(all, set[id])
		}
		r.fill(s, all, top)
	})
	return s
}

// gather adds to a set a schema and those that it applies to the same value, as
// far as they declare anything.
func (r *shaper) gather(schema any, set map[int]map[string]any, seen map[int]bool) {
	m, ok := schema.(map[string]any)
	if !ok || r.left <= 0 {
		return
	}
	id := r.id(m)
	if seen[id] {
		return
	}
	r.left--
	seen[id] = true
	for _, k := range []string{"properties", "patternProperties", "additionalProperties", "items"} {
		if _, declares := m[k].(map[string]any); declares {
			set[id] = m
		}
	}
	if ref, ok := m["$ref"].(string); ok {
		r.gather(pointer(r.root, ref), set, seen)
	}
	for _, k := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := m[k].([]any)
		for _, sub := range list {
			r.gather(sub, set, seen)
		}
	}
	for _, k := range []string{"then", "else"} {
		r.gather(m[k], set, seen)
	}
}

func (r *shaper) id(m map[string]any) int {
	at := reflect.ValueOf(m).Pointer() // root holds them all, so no two have one address
	id, ok := r.ids[at]
	if !ok {
		id = len(r.ids) + 1
		r.ids[at] = id
	}
	return id
}

// fill writes down what a set of schemas declares.
func (r *shaper) fill(s *shape, all []map[string]any, top bool) {
	s.props, s.lower = map[string]*shape{}, map[string]string{}
	props, patterns := map[string][]any{}, map[string][]any{}
	var others, items []any
	for _, m := range all {
		for text, to := range map[string]map[string][]any{"properties": props, "patternProperties": patterns} {
			found, _ := m[text].(map[string]any)
			r.left -= len(found)
			for name, sub := range found {
				to[name] = append(to[name], sub)
			}
		}
		if extra, ok := m["additionalProperties"].(map[string]any); ok && !top {
			others = append(others, extra)
		}
		if sub, ok := m["items"].(map[string]any); ok {
			items = append(items, sub)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(props)) {
		if r.left <= 0 {
			return
		}
		s.props[name], s.lower[fold(name)] = r.shape(props[name], false), name
	}
	for _, text := range slices.Sorted(maps.Keys(patterns)) {
		if r.left <= 0 {
			return
		}
		if name, err := ReadPattern(text); err == nil { // one we cannot read declares nothing
			r.left -= name.Size / 8
			s.patterns = append(s.patterns, named{name, r.shape(patterns[text], false)})
		}
	}
	if len(others) > 0 && r.left > 0 {
		s.others = r.shape(others, false)
	}
	if len(items) > 0 && r.left > 0 {
		s.items = r.shape(items, false)
	}
}

// pointer follows a local reference such as "#/$defs/name".
func pointer(root any, ref string) any {
	if ref == "#" {
		return root
	}
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		return nil
	}
	at := root
	for part := range strings.SplitSeq(path, "/") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)]
	}
	return at
}

// A Pattern is a regular expression that a server wrote. It runs in time linear
// in its text, and what it costs is known.
type Pattern struct {
	*regexp.Regexp
	Steps int // what one character of a text may cost: its instructions
	Size  int // what it takes in memory, in some 30 bytes each: those, and its ranges of characters
}

const (
	maxPatternText = 4096
	maxPatternSize = 50_000
	patternBase    = 64 // the Size of one that says nothing
)

// ErrPattern says that a pattern is none that Go's engine knows.
var ErrPattern = errors.New("a pattern cannot be read")

// ReadPattern compiles a regular expression of bounded size. It counts before it
// compiles: nine characters can stand for megabytes.
func ReadPattern(text string) (Pattern, error) {
	if len(text) > maxPatternText {
		return Pattern{}, errors.New("a pattern is too long")
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return Pattern{}, ErrPattern
	}
	steps, ranges := program(tree)
	p := Pattern{Steps: steps, Size: steps + ranges + patternBase}
	if p.Size > maxPatternSize {
		return Pattern{}, errors.New("a pattern is too big")
	}
	if p.Regexp, err = regexp.Compile(text); err != nil {
		return Pattern{}, ErrPattern
	}
	return p, nil
}

// program counts, about, the instructions of an expression's program and the
// ranges of characters in them. The parser bounds how often things repeat.
func program(e *syntax.Regexp) (steps, ranges int) {
	switch e.Op {
	case syntax.OpLiteral:
		return len(e.Rune), 0
	case syntax.OpCharClass:
		return 1, len(e.Rune) / 2
	}
	steps = 1
	for _, sub := range e.Sub {
		s, r := program(sub)
		steps, ranges = steps+s, ranges+r
	}
	if e.Op == syntax.OpRepeat {
		n := max(e.Max, e.Min+1)
		return steps * n, ranges * n
	}
	return steps, ranges
}
