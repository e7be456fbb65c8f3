package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// arguments are a call's arguments after the one strict reading of them. raw is
// what is decided on, shown, hashed and sent; nothing re-encodes it.
type arguments struct {
	raw         json.RawMessage
	meta        json.RawMessage // the _meta keys the server's config names, or nil; decided on, bound and shown
	trace       trace           // passed on, and bound to nothing: it differs from repeat to repeat
	rawDigest   string
	canonDigest string
	bare        string // canonDigest of the arguments alone, without answers
	target      string // the object touched, where the server's config names its argument
	undeclared  string // a property the schema does not declare, or empty
	progress    bool   // the agent wants to hear how far it is

	// Of a call that answers what its server asked: the answers, which are decided
	// on, bound and shown with the arguments, and the server's own state.
	answers json.RawMessage
	state   state
	refused bool // its side does not open the page where a human may agree
}

const (
	maxDepth  = 64
	maxValues = 20_000 // in one call's arguments: each costs more to read and check than its few bytes say
)

// readArguments reads a call's arguments so that no decoder in any language can
// read them differently: duplicate names, names that differ only in case,
// invalid or lone-surrogate text, NUL, and numbers that a float64 would change
// are refused at every depth, and so are more values than anybody has use for.
// Then they are checked against the tool's schema.
// What it says is for the agent and may quote its own arguments; it never goes
// on record.
func readArguments(in Call, t Tool, shapeOf func(Tool) *shape) (arguments, error) {
	raw := in.Args
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	r := borrowReader(raw)
	defer readers.Put(r)
	if r.dec.PeekKind() != '{' {
		return arguments{}, badArguments("arguments must be a JSON object")
	}
	if err := r.value(shapeOf(t), 0); err != nil {
		return arguments{}, err
	}
	if rest := bytes.TrimLeft(raw[r.dec.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return arguments{}, badArguments("arguments must be one JSON object")
	}
	if t.Check != nil {
		if err := t.Check(raw); err != nil {
			return arguments{}, badArguments("the arguments do not fit the tool's schema: %v", err)
		}
	}
	canon := jsontext.Value(slices.Clone(raw))
	if err := canon.Canonicalize(); err != nil {
		return arguments{}, badArguments("arguments cannot be read: not JSON")
	}
	digest := sha(raw)
	same := digest // of most arguments, as clients write them
	if !bytes.Equal(raw, canon) {
		same = sha(canon)
	}
	meta, trace, progress, err := readMeta(in.Meta, t.Meta)
	if err != nil {
		return arguments{}, err
	}
	return arguments{progress: progress, raw: raw, meta: meta, trace: trace, rawDigest: digest, canonDigest: same, bare: same, undeclared: r.undeclared, target: target(raw, t.Target)}, nil
}

// read reads a call's arguments and answers for what it is about.
func (g *Gateway) read(c *life) (arguments, error) {
	in, touched := c.input()
	a, err := readArguments(in, c.Tool, g.shapeOf)
	if err == nil {
		err = c.checkShape(a.raw)
	}
	if err != nil {
		return arguments{}, err
	}
	a.target = cmp.Or(touched, a.target)
	c.Args = a // what a state is bound to
	err = g.readAnswers(c, &a)
	return a, err
}

// target is the value of the top-level argument that says what is touched. An
// admin who names one puts its values on record in clear.
func target(raw json.RawMessage, argument string) string {
	const most = 200
	if argument == "" {
		return ""
	}
	var all map[string]any
	if json.Unmarshal(raw, &all) != nil {
		return ""
	}
	switch v := all[argument].(type) {
	case string:
		return strings.ToValidUTF8(v[:min(len(v), most)], "")
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return ""
}

// badArguments says it to the agent; the record keeps only the code.
func badArguments(format string, args ...any) error {
	return refuse(BadArguments, nil).say(fmt.Sprintf(format, args...))
}

type reader struct {
	dec        *jsontext.Decoder
	from       bytes.Reader
	names      []string // of the objects that are open
	values     int      // that were read
	undeclared string
}

var readers = sync.Pool{New: func() any {
	r := &reader{names: make([]string, 0, 16)}
	r.dec = jsontext.NewDecoder(&r.from)
	return r
}}

func borrowReader(raw []byte) *reader {
	r := readers.Get().(*reader)
	r.from.Reset(raw)
	r.dec.Reset(&r.from)
	clear(r.names[:cap(r.names)])
	r.names, r.values, r.undeclared = r.names[:0], 0, ""
	return r
}

func (r *reader) value(s *shape, depth int) error {
	if depth > maxDepth {
		return badArguments("arguments are nested deeper than %d levels", maxDepth)
	}
	if r.values++; r.values > maxValues {
		return badArguments("the arguments hold more than %d values; make several calls, or pass them as one string where the tool takes that", maxValues)
	}
	tok, err := r.dec.ReadToken()
	if err != nil {
		return unreadable(err)
	}
	switch tok.Kind() {
	case '{':
		return r.object(s, depth)
	case '[':
		for r.dec.PeekKind() != ']' {
			if err := r.value(s.item(), depth+1); err != nil {
				return err
			}
		}
		_, err := r.dec.ReadToken()
		return err
	case '"':
		return text(tok.String())
	case '0':
		if !Exact(tok.String()) {
			return badArguments("a number cannot be held exactly by every JSON reader; send it as a string or with fewer digits")
		}
	}
	return nil
}

func (r *reader) object(s *shape, depth int) error {
	first := len(r.names)
	var many map[string]struct{}
	for r.dec.PeekKind() != '}' {
		tok, err := r.dec.ReadToken()
		if err != nil {
			return unreadable(err)
		}
		name := tok.String()
		if err := text(name); err != nil {
			return err
		}
		if r.twice(name, first, &many) {
			return badArguments("two properties differ only in case: %s", quoteName(name))
		}
		child, declared := s.property(name)
		if !declared {
			if want, variant := s.folded(name); variant {
				return badArguments("unknown property %s; did you mean %s?", quoteName(name), quoteName(want))
			}
			if r.undeclared == "" {
				r.undeclared = name
			}
		}
		if err := r.value(child, depth+1); err != nil {
			return err
		}
	}
	r.names = r.names[:first]
	_, err := r.dec.ReadToken()
	return err
}

// twice notes a name of the object whose names begin at first, and reports whether
// some decoder takes it for one that stands there already.
func (r *reader) twice(name string, first int, many *map[string]struct{}) bool {
	const few = 16 // names, that are compared one by one
	if mine := r.names[first:]; len(mine) < few {
		r.names = append(r.names, name)
		return slices.ContainsFunc(mine, func(n string) bool { return strings.EqualFold(n, name) })
	}
	if *many == nil {
		*many = make(map[string]struct{}, 4*few)
		for _, n := range r.names[first:] {
			(*many)[fold(n)] = struct{}{}
		}
	}
	low := fold(name)
	_, dup := (*many)[low]
	(*many)[low] = struct{}{}
	return dup
}

// unreadable says what is wrong without repeating the bytes.
func unreadable(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return badArguments("a property occurs twice in the arguments")
	}
	return badArguments("arguments cannot be read: not strict JSON in UTF-8")
}

func text(s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return badArguments("arguments must not contain NUL characters")
	}
	return nil
}

// fold maps names that some decoder takes for one another to one: Unicode
// simple folding, as encoding/json matches.
func fold(s string) string {
	if isASCII(s) {
		return strings.ToUpper(s) // capitals come first, also where others fold to them
	}
	return strings.Map(func(r rune) rune {
		low := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			low = min(low, f)
		}
		return low
	}, s)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// clip keeps what a caller chose to a length that a record can hold.
func clip(s string) string { return clipTo(s, 128) }

func clipTo(s string, most int) string { return strings.ToValidUTF8(s[:min(len(s), most)], "") }

func quoteName(s string) string {
	const most = 64
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strconv.QuoteToASCII(s)
}

// Exact reports whether the shortest decimal that names the float64 nearest to
// a JSON number is the number itself: then every reader has the same value.
func Exact(number string) bool {
	if len(number) <= 15 && strings.Trim(number, "0123456789") == "" {
		return true // a whole number below 2^53
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return false
	}
	want, ok := decimalOf(number)
	got, _ := decimalOf(strconv.FormatFloat(f, 'e', -1, 64))
	return ok && want == got && want != decimal{neg: true} // -0 is 0 to some
}

// decimal is sign * 0.digits * 10^exp without leading or trailing zeros.
type decimal struct {
	neg    bool
	digits string
	exp    int
}

func decimalOf(s string) (d decimal, ok bool) {
	s, d.neg = strings.CutPrefix(s, "-")
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		e, err := strconv.Atoi(s[i+1:])
		if err != nil || e > 1000 || e < -1000 {
			return d, false
		}
		s, d.exp = s[:i], e
	}
	whole, part, _ := strings.Cut(s, ".")
	d.exp += len(whole)
	all := whole + part
	trimmed := strings.TrimLeft(all, "0")
	d.exp -= len(all) - len(trimmed)
	if d.digits = strings.TrimRight(trimmed, "0"); d.digits == "" {
		d.exp = 0
	}
	return d, true
}

// A trace is where a call stands in a distributed trace (W3C Trace Context, as
// MCP carries it in _meta).
type trace struct{ parent, state string }

var (
	traceParent = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$`)
	traceState  = regexp.MustCompile(`^[ -~]{1,512}$`)
)

// id is the trace's id, or empty.
func (t trace) id() string {
	if m := traceParent.FindStringSubmatch(t.parent); m != nil {
		return m[1]
	}
	return ""
}

// readMeta keeps the agent's _meta keys that the server's config names, and
// trace context; the progress token is the edge's. Nothing of ours passes: we
// say such things ourselves.
func readMeta(meta json.RawMessage, allowed []string) (_ json.RawMessage, t trace, progress bool, err error) {
	if len(meta) == 0 {
		return nil, t, false, nil
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(meta, &all); err != nil {
		return nil, t, false, badArguments("_meta must be a JSON object")
	}
	_, progress = all["progressToken"]
	var parent, state string
	if json.Unmarshal(all["traceparent"], &parent) == nil && traceParent.MatchString(parent) {
		t.parent = parent
		if json.Unmarshal(all["tracestate"], &state) == nil && traceState.MatchString(state) {
			t.state = state
		}
	}
	kept := map[string]json.RawMessage{}
	for k, v := range all {
		if slices.Contains(allowed, k) && !strings.HasPrefix(k, "io.toolbroker/") {
			r := borrowReader(v)
			err := r.value(nil, 0)
			readers.Put(r)
			if err != nil {
				return nil, t, false, err
			}
			kept[k] = v
		}
	}
	if len(kept) == 0 {
		return nil, t, progress, nil
	}
	out, err := json.Marshal(kept)
	return out, t, progress, err
}

// outgoing is the _meta that goes to the server: what is bound, and the trace.
func (a arguments) outgoing() json.RawMessage {
	if a.trace.parent == "" {
		return a.meta
	}
	all := map[string]json.RawMessage{}
	_ = json.Unmarshal(a.meta, &all) // made by readMeta, or nil
	for k, v := range map[string]string{"traceparent": a.trace.parent, "tracestate": a.trace.state} {
		if _, named := all[k]; v != "" && !named {
			all[k], _ = json.Marshal(v)
		}
	}
	out, err := json.Marshal(all)
	if err != nil {
		return a.meta
	}
	return out
}
