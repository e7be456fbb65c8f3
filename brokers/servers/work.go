package servers

import (
	"encoding/json"
	"slices"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"toolbroker/gateway"
)

// Schemas that refer to themselves, or twice to what refers twice, can ask for more
// work than there is time: the library that holds a value against one does all of
// it, and cannot be stopped. So it is counted first, by walking the same way.
const (
	maxCost  = 10_000    // schemas that one value is held against
	maxChain = 64        // of them, one inside the other
	maxWork  = 1_000_000 // for a value with all that it holds; a step is less than a microsecond
	maxWords = 20_000    // up to which it is said in words what is wrong
)

// A work knows what holding a value against a schema takes. It never changes.
type work struct {
	steps   map[*jsonschema.Schema]*step
	anchors map[string][]*jsonschema.Schema // where a $dynamicRef may lead, by its anchor
	roots   []*jsonschema.Schema            // where a $recursiveRef may
}

// A step is one schema held against one value.
type step struct {
	base   int       // what it takes by itself
	types  jsonTypes // of the value; it ends here with any other
	always []*jsonschema.Schema
	when   map[string]*jsonschema.Schema // by the property that has it apply
}

// jsonTypes is a set of them.
type jsonTypes uint8

const (
	isNull jsonTypes = 1 << iota
	isBool
	isNumber
	isText
	isList
	isObject
	isAny = 1<<iota - 1
)

// survey walks a schema, or returns nil where it is too costly to hold even one
// value against, or where it cannot be seen what it leads to.
func survey(top *jsonschema.Schema, doc any) *work {
	w := &work{steps: map[*jsonschema.Schema]*step{}, anchors: map[string][]*jsonschema.Schema{}}
	w.walk(top)
	anchors, roots := map[string]int{}, 0
	countAnchors(doc, anchors, &roots)
	for name, n := range anchors {
		if n > 1 && n > len(w.anchors[name]) { // one that only the library knows of
			return nil
		}
	}
	if roots > 1 && roots > len(w.roots) {
		return nil
	}
	for s, step := range w.steps {
		step.always = w.always(s)
	}
	known := map[*jsonschema.Schema]load{}
	for s := range w.steps {
		if l := w.load(s, known); l.cost > maxCost || l.chain > maxChain {
			return nil
		}
	}
	return w
}

// A load is what a schema brings to one value, with all that it leads to.
type load struct{ cost, chain int }

// load counts up to just over the limits. A schema that leads to itself, for the
// same value, is over them.
func (w *work) load(s *jsonschema.Schema, known map[*jsonschema.Schema]load) load {
	if l, ok := known[s]; ok {
		return l
	}
	known[s] = load{maxCost + 1, maxChain + 1}
	l := load{1, 0}
	add := func(o *jsonschema.Schema) {
		if l.cost <= maxCost {
			more := w.load(o, known)
			l.cost, l.chain = l.cost+more.cost, max(l.chain, more.chain)
		}
	}
	for _, o := range w.steps[s].always {
		add(o)
	}
	for _, o := range w.steps[s].when {
		add(o)
	}
	l.chain++
	known[s] = l
	return l
}

func (w *work) walk(s *jsonschema.Schema) {
	todo := []*jsonschema.Schema{s}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if s == nil || w.steps[s] != nil {
			continue
		}
		w.steps[s] = &step{base: baseOf(s), types: typesOf(s), when: when(s)}
		if s.DynamicAnchor != "" {
			w.anchors[s.DynamicAnchor] = append(w.anchors[s.DynamicAnchor], s)
		}
		if s.RecursiveAnchor {
			w.roots = append(w.roots, s)
		}
		todo = append(append(append(todo, s.RecursiveRef), w.always(s)...), below(s)...)
		if s.DynamicRef != nil {
			todo = append(todo, s.DynamicRef.Ref)
		}
		for _, o := range w.steps[s].when {
			todo = append(todo, o)
		}
	}
}

// always lists the schemas that s applies to the same value.
func (w *work) always(s *jsonschema.Schema) []*jsonschema.Schema {
	all := slices.Concat([]*jsonschema.Schema{s.Ref, s.Not, s.If, s.Then, s.Else}, s.AllOf, s.AnyOf, s.OneOf)
	if r := s.RecursiveRef; r != nil && r.RecursiveAnchor {
		all = append(all, w.roots...)
	} else {
		all = append(all, r)
	}
	if d := s.DynamicRef; d != nil && d.Anchor != "" && d.Ref.DynamicAnchor == d.Anchor {
		all = append(all, w.anchors[d.Anchor]...)
	} else if d != nil {
		all = append(all, d.Ref)
	}
	return slices.DeleteFunc(all, func(s *jsonschema.Schema) bool { return s == nil })
}

// when lists those that a property of it has apply.
func when(s *jsonschema.Schema) map[string]*jsonschema.Schema {
	all := map[string]*jsonschema.Schema{}
	for name, o := range s.DependentSchemas {
		all[name] = o
	}
	for name, o := range s.Dependencies { // of drafts that have no dependentSchemas
		if o, ok := o.(*jsonschema.Schema); ok {
			all[name] = o
		}
	}
	return all
}

// below lists the schemas that s applies to what a value holds.
func below(s *jsonschema.Schema) []*jsonschema.Schema {
	all := slices.Concat([]*jsonschema.Schema{s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems, s.ContentSchema}, s.PrefixItems)
	for _, o := range s.Properties {
		all = append(all, o)
	}
	for _, o := range s.PatternProperties {
		all = append(all, o)
	}
	for _, some := range []any{s.AdditionalProperties, s.Items, s.AdditionalItems} {
		switch some := some.(type) {
		case *jsonschema.Schema:
			all = append(all, some)
		case []*jsonschema.Schema:
			all = append(all, some...)
		}
	}
	return all
}

// countAnchors counts, by its name, what a schema says may be referred to from
// elsewhere; in something that only looks like a schema it counts too.
func countAnchors(v any, anchors map[string]int, roots *int) {
	switch v := v.(type) {
	case map[string]any:
		if name, ok := v["$dynamicAnchor"].(string); ok {
			anchors[name]++
		}
		if v["$recursiveAnchor"] == true {
			*roots++
		}
		for _, sub := range v {
			countAnchors(sub, anchors, roots)
		}
	case []any:
		for _, sub := range v {
			countAnchors(sub, anchors, roots)
		}
	}
}

// baseOf counts what a schema compares a value with.
func baseOf(s *jsonschema.Schema) int {
	n := 1 + len(s.Required)/4
	for _, names := range s.DependentRequired {
		n += 1 + len(names)/4
	}
	for _, o := range s.Dependencies {
		if names, ok := o.([]string); ok {
			n += 1 + len(names)/4
		}
	}
	if s.Const != nil {
		n += sizeOf(*s.Const, maxWork)
	}
	if s.Enum != nil {
		n += sizeOf(s.Enum.Values, maxWork)
	}
	return n
}

func typesOf(s *jsonschema.Schema) (t jsonTypes) {
	if s.Types == nil || s.Types.IsEmpty() {
		return isAny
	}
	for _, name := range s.Types.ToStrings() {
		t |= map[string]jsonTypes{"null": isNull, "boolean": isBool, "number": isNumber, "integer": isNumber, "string": isText, "array": isList, "object": isObject}[name]
	}
	return t
}

func typeOf(v any) jsonTypes {
	switch v.(type) {
	case nil:
		return isNull
	case bool:
		return isBool
	case string:
		return isText
	case []any:
		return isList
	case map[string]any:
		return isObject
	}
	return isNumber
}

// sizeOf counts what comparing a value with another takes, up to about most.
func sizeOf(v any, most int) int {
	n := 1
	switch v := v.(type) {
	case string:
		n += len(v) / 64
	case json.Number:
		n += len(v) / 8
	case []any:
		for _, sub := range v {
			if n > most {
				break
			}
			n += sizeOf(sub, most-n)
		}
	case map[string]any:
		for name, sub := range v {
			if n > most {
				break
			}
			n += len(name)/64 + sizeOf(sub, most-n)
		}
	}
	return n
}

// of counts what holding a value against s takes, up to just over maxWork. It never
// counts less: where the library stops at a miss, this goes on.
// Where a pattern may take long, its texts are held against it on the way.
func (w *work) of(s *jsonschema.Schema, v any, a *allowance) int {
	e := &effort{maxWork, a}
	w.visit(s, v, e)
	return maxWork - e.left
}

// An effort is what one check may still take.
type effort struct {
	left      int
	allowance *allowance
}

func (w *work) visit(s *jsonschema.Schema, v any, e *effort) {
	step := w.steps[s]
	if e.left -= step.base; e.left < 0 || s.Bool != nil || typeOf(v)&step.types == 0 {
		return
	}
	for _, o := range step.always {
		w.visit(o, v, e)
	}
	switch v := v.(type) {
	case map[string]any:
		w.object(s, step, v, e)
	case []any:
		w.list(s, v, e)
	case string:
		if e.left -= len(v) / 64; s.Pattern != nil {
			e.hold(s.Pattern, v)
		}
		if s.Format != nil {
			if e.left -= len(v) / 8; s.Format.Name == "regex" { // it is compiled
				e.left -= 10_000
			}
		}
	case json.Number:
		e.left -= len(v) / 8
	}
}

func (w *work) object(s *jsonschema.Schema, step *step, v map[string]any, e *effort) {
	for name, o := range step.when {
		if _, there := v[name]; there {
			w.visit(o, v, e)
		}
	}
	for name, sub := range v {
		if e.left--; e.left < 0 {
			return
		}
		here, known := s.Properties[name]
		if known {
			w.visit(here, sub, e)
		}
		for pattern, o := range s.PatternProperties {
			if e.hold(pattern, name); e.left < 0 {
				return
			}
			if pattern.MatchString(name) {
				known = true
				w.visit(o, sub, e)
			}
		}
		if o, ok := s.AdditionalProperties.(*jsonschema.Schema); ok && !known {
			w.visit(o, sub, e)
		}
		if s.PropertyNames != nil {
			w.visit(s.PropertyNames, name, e)
		}
		if s.UnevaluatedProperties != nil && !known && s.AdditionalProperties == nil {
			w.visit(s.UnevaluatedProperties, sub, e)
		}
	}
}

func (w *work) list(s *jsonschema.Schema, v []any, e *effort) {
	if s.UniqueItems {
		times := 2
		if len(v) <= 20 { // each is compared with each
			times = 20
		}
		e.left -= times * sizeOf(v, e.left)
	}
	first, rest := s.PrefixItems, s.Items2020
	switch items := s.Items.(type) { // before 2020-12
	case *jsonschema.Schema:
		rest = items
	case []*jsonschema.Schema:
		first = items
		rest, _ = s.AdditionalItems.(*jsonschema.Schema)
	}
	for i, sub := range v {
		if e.left--; e.left < 0 {
			return
		}
		if i < len(first) {
			w.visit(first[i], sub, e)
		} else if rest != nil {
			w.visit(rest, sub, e)
		}
		if s.Contains != nil {
			w.visit(s.Contains, sub, e)
		}
		if s.UnevaluatedItems != nil && i >= len(first) && rest == nil {
			w.visit(s.UnevaluatedItems, sub, e)
		}
	}
}

// hold counts what holding a text against a pattern takes. Where that may be long it is
// done here, on this check's account.
func (e *effort) hold(p jsonschema.Regexp, text string) {
	steps := 1
	if p, ok := p.(gateway.Pattern); ok {
		steps = p.Steps
	}
	e.left -= 1 + len(text)*steps/32
	if p, ok := p.(*ecmaPattern); ok && e.left >= 0 {
		e.allowance.match(p, text)
	}
}
