package servers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"toolbroker/gateway"
)

// nowhere refuses to fetch what a schema refers to: no file, no network.
type nowhere struct{}

func (nowhere) Load(string) (any, error) { return nil, errors.New("schemas are not fetched") }

// A room is what the definitions of one listing may still take. What does not fit
// is left out.
type room struct {
	parts    int // of schemas: objects and booleans
	patterns int // sizes of regular expressions, and of what templates' URIs look like
}

// What one schema may take, and all of a listing's together: a part takes a
// kilobyte and a half, and the time to compile a schema grows with the square of
// its parts.
const (
	maxParts       = 3_000
	maxPointers    = 1 << 20 // bytes: where its parts are, written out
	maxReference   = 1024    // of an address in it
	maxPatterns    = 100_000
	maxAllParts    = 60_000
	maxAllPatterns = 1_000_000
)

func (r room) has(other room) bool { return other.parts <= r.parts && other.patterns <= r.patterns }

func newRoom() *room { return &room{parts: maxAllParts, patterns: maxAllPatterns} }

// compile makes a check out of a tool's inputSchema, in draft 2020-12 unless it
// names another. The check is safe for concurrent use, and ends soon. What it says
// quotes no value of the arguments.
func compile(schema json.RawMessage, r *room) (func(json.RawMessage) error, error) {
	check, err := compiled(schema, "inputSchema", "arguments", r)
	if err != nil {
		return nil, err
	}
	return func(args json.RawMessage) error {
		defer queue(args)()
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
func promise(schema json.RawMessage, r *room) func(json.RawMessage) error {
	check, err := compiled(schema, "outputSchema", "result", r)
	if err != nil {
		return func(json.RawMessage) error { return err }
	}
	return func(structured json.RawMessage) error {
		defer queue(structured)()
		v, err := decode(structured)
		if err != nil {
			return err
		}
		return check(v)
	}
}

// manyValues is from how many on a value is checked in turn with others: decoded, each
// takes a hundred bytes.
const manyValues = 10_000

var checking = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

// queue waits for the turn of a value with many parts, and returns what ends it. All of
// them end soon, as [work] sees to.
func queue(raw json.RawMessage) (done func()) {
	if len(raw) < manyValues || few(raw, manyValues) {
		return func() {}
	}
	checking <- struct{}{}
	return func() { <-checking }
}

// compiled makes a check of values of some kind.
func compiled(schema json.RawMessage, which, values string, r *room) (check func(any) error, err error) {
	defer func() {
		if recover() != nil {
			check, err = nil, fmt.Errorf("its %s does not compile", which)
		}
	}()
	if jsontext.Value(schema).Kind() != '{' {
		return nil, fmt.Errorf("its %s is not an object", which)
	}
	if depth(schema) > maxResultDepth {
		return nil, fmt.Errorf("its %s is nested too deep", which)
	}
	doc, err := decode(schema)
	if err != nil {
		return nil, fmt.Errorf("its %s is no good: %w", which, err)
	}
	if err := r.weigh(doc); err != nil {
		return nil, fmt.Errorf("its %s %w", which, err)
	}
	patterns := &engine{room: r, left: maxPatterns, known: map[string]jsonschema.Regexp{}, slow: ecma(unread)}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(nowhere{})
	c.UseRegexpEngine(patterns.compile)
	const here, refuses = "toolbroker:///schema", "toolbroker:///refuses"
	if err := c.AddResource(here, doc); err != nil {
		return nil, fmt.Errorf("its %s does not compile", which)
	}
	// What says no to what the schema says yes to: it stops at the first miss, and
	// remembers none.
	if err := c.AddResource(refuses, map[string]any{"not": map[string]any{"$ref": here}}); err != nil {
		return nil, fmt.Errorf("its %s does not compile", which)
	}
	made, err := c.Compile(here)
	if err != nil {
		if patterns.full != nil {
			err = patterns.full
		} else {
			err = errors.New("does not compile")
		}
		return nil, fmt.Errorf("its %s %w", which, err)
	}
	inverse, err := c.Compile(refuses)
	if err != nil {
		return nil, fmt.Errorf("its %s does not compile", which)
	}
	patterns.done = true
	work := survey(made, doc)
	if work == nil {
		return nil, fmt.Errorf("its %s is too costly to check", which)
	}
	return func(v any) (err error) {
		defer func() {
			if recover() != nil {
				err = fmt.Errorf("the %s cannot be checked", values)
			}
		}()
		if which == "inputSchema" {
			v = given(made, v)
		}
		allowance := newAllowance()
		defer allowance.close()
		switch n := work.of(made, v, allowance); {
		case n > maxWork:
			return fmt.Errorf("checking the %s would take too long", values)
		case n > maxWords:
			if inverse.Validate(v) == nil {
				return errNoMatch
			}
			return nil
		}
		if err := made.Validate(v); err != nil {
			return explain(err)
		}
		return nil
	}, nil
}

var errNoMatch = errors.New("it does not match the tool's schema")

// weigh takes the room that a schema needs before anything is made of it.
func (r *room) weigh(doc any) error {
	w := weight{}
	w.add(doc, 0)
	// Each other way to write a place in a list makes what is there another schema.
	parts, pointers := w.parts*(1+w.aliases), w.pointers*(1+w.aliases)
	switch {
	case w.long:
		return errors.New("refers to an address that is too long")
	case parts > maxParts || pointers > maxPointers:
		return errors.New("has too many parts")
	case parts > r.parts:
		return errTooMuch
	}
	r.parts -= parts
	return nil
}

// errTooMuch is why what would be good alone is left out.
var errTooMuch = errors.New("is too much, with the rest of what the server lists")

type weight struct {
	parts, pointers, aliases int
	long                     bool
}

func (w *weight) add(v any, at int) {
	switch v := v.(type) {
	case map[string]any:
		w.parts, w.pointers = w.parts+1, w.pointers+at
		for name, sub := range v {
			if s, ok := sub.(string); ok && strings.HasPrefix(name, "$") {
				w.long = w.long || len(s) > maxReference
				if strings.HasSuffix(name, "ef") && alias(s) {
					w.aliases++
				}
			}
			w.add(sub, at+len(name)+1)
		}
	case []any:
		for _, sub := range v {
			w.add(sub, at+8)
		}
	case bool:
		w.parts, w.pointers = w.parts+1, w.pointers+at
	}
}

// alias reports whether a reference may name a place in a list otherwise than by
// its number as it is usually written.
func alias(reference string) bool {
	_, pointer, _ := strings.Cut(reference, "#")
	if plain, err := url.PathUnescape(pointer); err == nil {
		pointer = plain
	}
	for part := range strings.SplitSeq(pointer, "/") {
		if n, err := strconv.Atoi(part); err == nil && strconv.Itoa(n) != part {
			return true
		}
	}
	return false
}

// An engine compiles a schema's regular expressions with Go's, which runs in
// linear time, and with [ecma] what that does not know.
type engine struct {
	room  *room
	left  int
	slow  jsonschema.RegexpEngine
	known map[string]jsonschema.Regexp
	full  error // why it compiled no more
	done  bool  // the schema is compiled: what comes now stands in a value
}

func (e *engine) compile(text string) (jsonschema.Regexp, error) {
	if e.done {
		return gateway.ReadPattern(text)
	}
	p, ok := e.known[text]
	if ok {
		return p, nil
	}
	var size int
	if fast, err := gateway.ReadPattern(text); err == nil {
		p, size = fast, fast.Size
	} else if !errors.Is(err, gateway.ErrPattern) { // it is too much, for the other one all the more
		return nil, err
	} else if p, err = e.slow(text); err != nil {
		return nil, err
	} else {
		size = slowest * len(text)
	}
	if e.left -= size; e.left < 0 {
		e.full = errors.New("has too many patterns")
		return nil, e.full
	}
	if size > e.room.patterns {
		e.full = errTooMuch
		return nil, e.full
	}
	e.room.patterns -= size
	e.known[text] = p
	return p, nil
}

// slowest is what a byte of a pattern of the slow engine's counts for. That one
// unrolls nothing.
const slowest = 16

func unread(string) (jsonschema.Regexp, error) { return nil, gateway.ErrPattern }

// decode reads JSON strictly into what the schema library takes. It refuses
// numbers that only a bignum could hold: the library writes out their digits.
func decode(raw json.RawMessage) (any, error) {
	good := true
	sized := func(number []byte) bool {
		good = sizeable(string(number))
		return good
	}
	end, _, ok := pass(raw, sized)
	switch {
	case !good:
		return nil, errors.New("a number is too big or too small")
	case !ok || space(raw, end) != len(raw):
		return nil, errors.New("not valid JSON, or a name stands twice in an object")
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
		return errNoMatch
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
