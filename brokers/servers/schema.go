package servers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// nowhere refuses to fetch what a schema refers to: no file, no network.
type nowhere struct{}

func (nowhere) Load(string) (any, error) { return nil, errors.New("schemas are not fetched") }

// compile makes a check out of a tool's inputSchema, in draft 2020-12 unless it
// names another. The check is safe for concurrent use. What it says quotes no
// value of the arguments.
func compile(schema json.RawMessage) (func(json.RawMessage) error, error) {
	check, err := compiled(schema, "inputSchema", "arguments")
	if err != nil {
		return nil, err
	}
	return func(args json.RawMessage) error {
		v, err := decode(args)
		if err != nil {
			return err
		}
		if _, ok := v.(map[string]any); !ok {
			return errors.New("the arguments are not an object")
		}
		return check(v)
	}, nil
}

// promise makes a check out of a tool's outputSchema, in the same way. One that
// is no good holds nothing back: every result misses it.
func promise(schema json.RawMessage) func(json.RawMessage) error {
	check, err := compiled(schema, "outputSchema", "result")
	if err != nil {
		return func(json.RawMessage) error { return err }
	}
	return func(structured json.RawMessage) error {
		v, err := decode(structured)
		if err != nil {
			return err
		}
		return check(v)
	}
}

// compiled makes a check of values of some kind.
func compiled(schema json.RawMessage, which, values string) (check func(any) error, err error) {
	defer func() {
		if recover() != nil {
			check, err = nil, fmt.Errorf("its %s does not compile", which)
		}
	}()
	if jsontext.Value(schema).Kind() != '{' {
		return nil, fmt.Errorf("its %s is not an object", which)
	}
	doc, err := decode(schema)
	if err != nil {
		return nil, fmt.Errorf("its %s is no good: %w", which, err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(nowhere{})
	c.UseRegexpEngine(pattern)
	const here = "toolbroker:///schema"
	if err := c.AddResource(here, doc); err != nil {
		return nil, fmt.Errorf("its %s does not compile", which)
	}
	made, err := c.Compile(here)
	if err != nil {
		return nil, fmt.Errorf("its %s does not compile", which)
	}
	if cost(made, map[*jsonschema.Schema]int{}) > maxCost {
		return nil, fmt.Errorf("its %s is too costly to check", which)
	}
	return func(v any) (err error) {
		defer func() {
			if recover() != nil {
				err = fmt.Errorf("the %s cannot be checked", values)
			}
		}()
		if err := made.Validate(v); err != nil {
			return explain(err)
		}
		return nil
	}, nil
}

// maxCost bounds how many schemas one value is held against: those that refer
// twice to one that refers twice, and so on, are a bomb.
const maxCost = 10_000

// cost counts the schemas that s brings to one value, up to just over maxCost.
func cost(s *jsonschema.Schema, known map[*jsonschema.Schema]int) int {
	if n, ok := known[s]; ok {
		return n
	}
	known[s] = 1 // a cycle: the library ends those
	n := 1
	for _, o := range inPlace(s) {
		if n += cost(o, known); n > maxCost {
			break
		}
	}
	known[s] = n
	return n
}

// inPlace lists the schemas that s applies to the same value.
func inPlace(s *jsonschema.Schema) []*jsonschema.Schema {
	all := slices.Concat([]*jsonschema.Schema{s.Ref, s.RecursiveRef, s.Not, s.If, s.Then, s.Else}, s.AllOf, s.AnyOf, s.OneOf)
	if s.DynamicRef != nil {
		all = append(all, s.DynamicRef.Ref)
	}
	for _, o := range s.DependentSchemas {
		all = append(all, o)
	}
	for _, o := range s.Dependencies {
		if o, ok := o.(*jsonschema.Schema); ok {
			all = append(all, o)
		}
	}
	return slices.DeleteFunc(all, func(s *jsonschema.Schema) bool { return s == nil })
}

// pattern compiles a schema's regular expressions with Go's engine, which runs
// in linear time and knows no lookaround: a schema with one does not compile.
func pattern(s string) (jsonschema.Regexp, error) {
	r, err := regexp.Compile(s)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// decode reads JSON strictly into what the schema library takes. It refuses
// numbers that only a bignum could hold: the library writes out their digits.
func decode(raw json.RawMessage) (any, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(raw))
	for {
		t, err := d.ReadToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, errors.New("not valid JSON, or a name stands twice in an object")
		}
		if t.Kind() == '0' && !sizeable(t.String()) {
			return nil, errors.New("a number is too big or too small")
		}
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(raw))
}

func sizeable(number string) bool {
	if len(number) > 400 {
		return false
	}
	i := strings.IndexAny(number, "eE")
	if i < 0 {
		return true
	}
	exp, err := strconv.Atoi(number[i+1:])
	return err == nil && -400 <= exp && exp <= 400
}

const maxReasons = 5

// explain says where the arguments miss the schema and what the schema wants,
// and nothing of what they hold.
func explain(err error) error {
	top, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return errors.New("it does not match the tool's schema")
	}
	var says []string
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		if len(says) == maxReasons {
			return
		}
		if len(e.Causes) == 0 {
			says = append(says, "at "+place(e.InstanceLocation)+": "+wants(e.ErrorKind))
		}
		for _, cause := range e.Causes {
			walk(cause)
		}
	}
	walk(top)
	slices.Sort(says)
	return errors.New(strings.Join(slices.Compact(says), "; "))
}

// wants says what a keyword of a schema asks for.
func wants(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return "must be " + strings.Join(k.Want, " or ")
	case *kind.Required:
		return "needs " + quoted(k.Missing)
	case *kind.AdditionalProperties:
		return "holds a property that the tool does not declare"
	case *kind.Enum:
		return "must be one of the values that the tool lists"
	case *kind.Const:
		return "must be the one value that the tool takes"
	case *kind.MinLength:
		return fmt.Sprintf("must be at least %d long", k.Want)
	case *kind.MaxLength:
		return fmt.Sprintf("must be at most %d long", k.Want)
	case *kind.MinItems:
		return fmt.Sprintf("must have at least %d items", k.Want)
	case *kind.MaxItems:
		return fmt.Sprintf("must have at most %d items", k.Want)
	case *kind.Minimum:
		return "must be at least " + k.Want.RatString()
	case *kind.Maximum:
		return "must be at most " + k.Want.RatString()
	case *kind.Format:
		return "must be a " + k.Want
	case *kind.Pattern:
		return "does not match the tool's pattern"
	}
	path := k.KeywordPath()
	if len(path) == 0 {
		return "does not match the tool's schema"
	}
	return "fails the schema's " + path[len(path)-1]
}

func quoted(names []string) string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, strconv.Quote(clip(n)))
	}
	return strings.Join(out, ", ")
}

// place writes a location in the arguments. Its names are the schema's, or the
// agent's; they are clipped.
func place(at []string) string {
	if len(at) == 0 {
		return "the top"
	}
	out := make([]string, 0, len(at))
	for _, part := range at {
		out = append(out, clip(part))
	}
	return strconv.Quote(strings.Join(out, "."))
}

// clip shortens a name that somebody else chose, for a message of ours.
func clip(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return s
}
