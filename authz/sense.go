package authz

import (
	"encoding/json"
	"math"
	"regexp/syntax"
	"slices"
	"strings"
)

// What a condition can come to is found by trying it: each variable is given
// every value that could make a difference to the terms about it. That never
// calls a condition impossible that could hold; it misses some that cannot, such
// as two patterns that nothing matches.

// The bounds of that search. A condition that needs more is not looked into.
const (
	maxWays    = 64
	maxEffort  = 1_000_000 // trials for one file
	maxAnyOf   = 16        // alternatives of a schema, and how deep its references go
	someString = "\x00"    // after a literal: the strings that come right after it
)

// A sense looks into conditions until its effort is spent.
type sense struct{ effort int }

// A fact is a term that must hold, or must not.
type fact struct {
	*term
	not bool
}

// ways returns the facts that would make s hold (or, with not, fail), as
// alternatives. Any way in which it can is among them.
func (s *shape) ways(not bool) ([][]fact, bool) {
	switch {
	case s.op == "":
		return [][]fact{{{s.term, not}}}, true
	case s.op == "!":
		return s.of[0].ways(!not)
	}
	left, ok := s.of[0].ways(not)
	right, also := s.of[1].ways(not)
	if !ok || !also {
		return nil, false
	}
	if (s.op == "||") != not {
		return append(left, right...), len(left)+len(right) <= maxWays
	}
	if len(left)*len(right) > maxWays {
		return nil, false
	}
	var both [][]fact
	for _, l := range left {
		for _, r := range right {
			both = append(both, slices.Concat(l, r))
		}
	}
	return both, true
}

// can reports whether c could hold (or, with not, fail) for arguments that fit
// the schema, when further facts are true too. Where it cannot in the one way
// there is, clash names the terms that keep it from it.
func (n *sense) can(c *condition, not bool, s *schema, further ...fact) (ok bool, clash []string) {
	if n.effort < 0 {
		return true, nil
	}
	ways, known := c.shape.ways(not)
	if !known {
		return true, nil
	}
	for _, way := range ways {
		n.effort -= len(way) * len(way)
		var why []string
		if ok, why = n.fits(slices.Concat(way, further), s); ok {
			return true, nil
		}
		if len(ways) == 1 {
			clash = why
		}
	}
	return false, clash
}

// fits reports whether all the facts can be true at once.
func (n *sense) fits(facts []fact, s *schema) (ok bool, clash []string) {
	about := map[string][]fact{}
	var names []string
	for _, f := range facts {
		if about[f.name] == nil {
			names = append(names, f.name)
		}
		about[f.name] = append(about[f.name], f)
		for _, g := range facts {
			if f.text == g.text && f.not != g.not {
				return false, []string{f.text}
			}
		}
	}
	for _, name := range names {
		parent := false // whether something must lie below it
		for _, below := range names {
			parent = parent || strings.HasPrefix(below, name+".") && !all(about[below], value{kind: absentKind}, true)
		}
		if !n.some(name, about[name], parent, s) {
			return false, texts(about[name])
		}
	}
	return true, nil
}

func texts(facts []fact) (all []string) {
	for _, f := range facts {
		if !slices.Contains(all, f.text) {
			all = append(all, f.text)
		}
	}
	return all
}

// some reports whether some value makes all facts about one variable true.
func (n *sense) some(name string, facts []fact, parent bool, s *schema) bool {
	if _, clock := clocks[name]; clock {
		s = nil
	}
	field := s.at(name)
	for _, c := range candidates(name, facts, field) {
		if n.effort -= len(facts); n.effort < 0 {
			return true
		}
		if parent && c.kind != objectKind || !field.takes(c.value) {
			continue
		}
		if all(facts, c.value, c.exact) && (c.exact || c.kind != stringKind || prefixesAgree(facts)) {
			return true
		}
	}
	return false
}

func all(facts []fact, v value, exact bool) bool {
	return !slices.ContainsFunc(facts, func(f fact) bool { return !f.maybe(v, exact) })
}

// maybe reports whether a fact could be true of a value; one that is not exact
// stands for many.
func (f fact) maybe(v value, exact bool) bool {
	switch f.op {
	case "is":
		return v.kind == boolKind && v.truth != f.not
	case "has":
		return v.kind == arrayKind
	case "=~", "!~":
		return v.kind == stringKind && (!exact || f.re.MatchString(v.text) == ((f.op == "=~") != f.not))
	case "in":
		held := false
		for _, lit := range f.among {
			same, err := compare("==", v, lit, f.name, "")
			if err != nil {
				return false
			}
			held = held || same
		}
		return held != f.not
	}
	if len(f.among) == 0 { // beside another variable
		return boolKind <= v.kind && v.kind <= stringKind
	}
	held, err := compare(f.op, v, f.among[0], f.name, "")
	return err == nil && held != f.not
}

type candidate struct {
	value
	exact bool
}

// candidates are values of every kind: each literal of the facts, and one of each
// stretch between them.
func candidates(name string, facts []fact, field *field) []candidate {
	var numbers []float64
	var strs []string
	for _, f := range facts {
		for _, lit := range f.among {
			switch lit.kind {
			case numberKind:
				numbers = append(numbers, lit.number)
			case stringKind:
				strs = append(strs, lit.text)
			}
		}
	}
	if field != nil {
		for _, bound := range []float64{field.least, field.most} {
			if !math.IsInf(bound, 0) {
				numbers = append(numbers, bound)
			}
		}
	}
	var all []candidate
	add := func(v value, exact bool) { all = append(all, candidate{v, exact}) }
	number := func(n float64) { add(value{kind: numberKind, number: n}, true) }
	if clock, ok := clocks[name]; ok {
		add := func(n float64) {
			if n >= 0 && n <= clock.limit && (name != "hour" || n < 24) {
				number(n)
			}
		}
		add(0)
		for _, n := range numbers {
			for _, at := range []float64{math.Floor(n) - 1, math.Floor(n), math.Ceil(n), math.Ceil(n) + 1} {
				add(at)
			}
		}
		return all
	}
	if field != nil && field.enum != nil {
		for _, v := range field.enum {
			add(v, v.kind <= stringKind)
		}
		if !field.required {
			add(value{kind: absentKind}, true)
		}
		return all
	}
	for _, k := range []kind{absentKind, nullKind, arrayKind, objectKind} {
		add(value{kind: k}, true)
	}
	add(value{kind: boolKind}, true)
	add(value{kind: boolKind, truth: true}, true)

	slices.Sort(numbers)
	number(0)
	for i, n := range numbers {
		if field != nil && field.whole {
			for _, at := range []float64{math.Floor(n) - 1, math.Floor(n), math.Ceil(n), math.Ceil(n) + 1} {
				number(at)
			}
			continue
		}
		number(n)
		if i == 0 {
			number(n - math.Max(1, math.Abs(n)))
		}
		if i == len(numbers)-1 {
			number(n + math.Max(1, math.Abs(n)))
		} else {
			number(n/2 + numbers[i+1]/2)
		}
	}
	add(value{kind: stringKind}, slices.Contains(strs, ""))
	for _, s := range strs {
		add(value{kind: stringKind, text: s}, true)
		add(value{kind: stringKind, text: s + someString}, false)
	}
	return all
}

// prefixesAgree reports whether one value can begin as all the patterns want.
func prefixesAgree(facts []fact) bool {
	long := ""
	for _, f := range facts {
		if f.op != "=~" && f.op != "!~" || (f.op == "=~") == f.not {
			continue
		}
		prefix := literalPrefix(f.re.String())
		if len(prefix) < len(long) {
			prefix, long = long, prefix
		}
		if !strings.HasPrefix(prefix, long) {
			return false
		}
		long = prefix
	}
	return true
}

// literalPrefix is the text that every match of an anchored pattern begins with.
func literalPrefix(pattern string) string {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return ""
	}
	re = re.Simplify()
	if re.Op != syntax.OpConcat || len(re.Sub) < 2 || re.Sub[0].Op != syntax.OpBeginText {
		return ""
	}
	if lit := re.Sub[1]; lit.Op == syntax.OpLiteral && lit.Flags&syntax.FoldCase == 0 {
		return string(lit.Rune)
	}
	return ""
}

// A schema is what is understood of a tool's input schema. What is not
// understood is taken for anything at all.
type schema struct {
	root map[string]any
}

// newSchema reads a JSON Schema; nil is one that says nothing.
func newSchema(text json.RawMessage) *schema {
	var root map[string]any
	if len(text) == 0 || json.Unmarshal(text, &root) != nil || root == nil {
		return nil
	}
	return &schema{root}
}

// A field is what a schema says of one argument.
type field struct {
	named    bool // the schema names it
	closed   bool // it does not, and takes nothing that it does not name
	required bool
	kinds    [objectKind + 1]bool
	enum     []value // all that it can be, or nil
	whole    bool    // only whole numbers
	least    float64
	most     float64
}

// takes reports whether the schema lets an argument be v.
func (f *field) takes(v value) bool {
	switch {
	case f == nil:
		return true
	case v.kind == absentKind:
		return !f.required
	case f.closed || !f.kinds[v.kind]:
		return false
	case v.kind == numberKind:
		return v.number >= f.least && v.number <= f.most && (!f.whole || v.number == math.Trunc(v.number))
	}
	return true
}

func anything() *field {
	f := &field{least: math.Inf(-1), most: math.Inf(1)}
	for k := range f.kinds {
		f.kinds[k] = true
	}
	return f
}

// at returns what the schema says of args.NAME; nil is nothing.
func (s *schema) at(name string) *field {
	path, ok := strings.CutPrefix(name, "args.")
	if s == nil || !ok {
		return nil
	}
	at, required, plain := s.root, true, true
	for part := range strings.SplitSeq(path, ".") {
		if at, ok = s.deref(at); !ok {
			return nil
		}
		properties, _ := at["properties"].(map[string]any)
		next, named := properties[part]
		for _, other := range []string{"anyOf", "oneOf", "allOf", "if", "patternProperties", "dependentSchemas", "$dynamicRef"} {
			if _, ok := at[other]; ok {
				plain = false
			}
		}
		switch {
		case named:
		case !plain, at["properties"] == nil && at["additionalProperties"] != false:
			return nil // who knows
		default:
			f := anything()
			f.closed = at["additionalProperties"] == false
			return f
		}
		wanted, _ := at["required"].([]any)
		required = required && slices.Contains(wanted, any(part))
		if next == true {
			next = map[string]any{}
		}
		if at, ok = next.(map[string]any); !ok {
			return nil
		}
	}
	f := s.field(at, 0)
	if f != nil {
		f.named, f.required = true, required
	}
	return f
}

// names lists the arguments that the schema names beside the last part of one.
func (s *schema) names(name string) (all []string) {
	parts := strings.Split(strings.TrimPrefix(name, "args."), ".")
	at := s.root
	for _, part := range parts[:len(parts)-1] {
		properties, _ := at["properties"].(map[string]any)
		if at, _ = properties[part].(map[string]any); at == nil {
			return nil
		}
		at, _ = s.deref(at)
	}
	properties, _ := at["properties"].(map[string]any)
	prefix := "args." + strings.Join(append(slices.Clone(parts[:len(parts)-1]), ""), ".")
	for key := range properties {
		all = append(all, prefix+key)
	}
	slices.Sort(all)
	return all
}

// deref follows references within the schema.
func (s *schema) deref(at map[string]any) (map[string]any, bool) {
	for range maxAnyOf {
		ref, ok := at["$ref"].(string)
		if !ok {
			return at, true
		}
		path, ok := strings.CutPrefix(ref, "#/")
		if !ok || len(at) > 1 {
			return nil, false
		}
		at = s.root
		for part := range strings.SplitSeq(path, "/") {
			if at, ok = at[part].(map[string]any); !ok {
				return nil, false
			}
		}
	}
	return nil, false
}

var jsonTypes = map[string]kind{"null": nullKind, "boolean": boolKind, "number": numberKind, "integer": numberKind, "string": stringKind, "array": arrayKind, "object": objectKind}

// field reads what one property may be; nil is anything.
func (s *schema) field(at map[string]any, depth int) *field {
	at, ok := s.deref(at)
	if !ok || depth > maxAnyOf {
		return nil
	}
	f := anything()
	types, _ := at["type"].([]any)
	if one, ok := at["type"].(string); ok {
		types = []any{one}
	}
	if len(types) > 0 {
		f.kinds = [objectKind + 1]bool{}
		f.whole = !slices.Contains(types, any("number"))
		for _, t := range types {
			word, _ := t.(string)
			k, ok := jsonTypes[word]
			if !ok {
				return nil
			}
			f.kinds[k] = true
		}
	}
	if n, ok := at["minimum"].(float64); ok {
		f.least = n
	}
	if n, ok := at["maximum"].(float64); ok {
		f.most = n
	}
	listed, ok := at["enum"].([]any)
	if one, is := at["const"]; is {
		listed, ok = []any{one}, true
	}
	if ok {
		f.enum = []value{}
		for _, v := range listed {
			f.enum = append(f.enum, literalOf(v))
		}
	}
	for _, word := range []string{"anyOf", "oneOf"} {
		alternatives, ok := at[word].([]any)
		if !ok {
			continue
		}
		if len(alternatives) > maxAnyOf {
			return nil
		}
		union := [objectKind + 1]bool{}
		for _, alt := range alternatives {
			m, _ := alt.(map[string]any)
			g := s.field(m, depth+1)
			if m == nil || g == nil {
				return nil
			}
			for k := range union {
				union[k] = union[k] || g.kinds[k]
			}
		}
		for k := range union {
			f.kinds[k] = f.kinds[k] && union[k]
		}
	}
	return f
}

func literalOf(v any) value {
	switch v := v.(type) {
	case nil:
		return value{kind: nullKind}
	case bool:
		return value{kind: boolKind, truth: v}
	case float64:
		return value{kind: numberKind, number: v}
	case string:
		return value{kind: stringKind, text: v}
	case []any:
		return value{kind: arrayKind}
	}
	return value{kind: objectKind}
}

// described says what kinds an argument can be.
func (f *field) described() string {
	var words []string
	for k, ok := range f.kinds {
		if ok && kind(k) != absentKind {
			words = append(words, kind(k).String())
		}
	}
	return strings.Join(words, " or ")
}
