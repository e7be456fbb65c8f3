package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Some decoders take the first of two names and some the last, some take names that
// differ only in case for one, and some round numbers. What a server asks, and what
// an agent answers it, is decided on: so it must read alike to every decoder, or it
// goes nowhere.

// names are those that mean something in an object, and in each object of a list,
// with those that mean something in their values. "*" is every other name.
type names map[string]names

var errTwoWays = errors.New("it can be read in two ways")

// of are names in whose values nothing means anything.
func of(all ...string) names {
	n := names{}
	for _, name := range all {
		n[name] = nil
	}
	return n
}

// in adds a name with those that mean something in its value.
func (n names) in(name string, inside names) names {
	n[name] = inside
	return n
}

// The names of what servers ask, by revision 2026-07-28 and those before it.
var (
	elicitNames = of("mode", "message", "url", "elicitationId", "task", "_meta").
			in("requestedSchema", of("$schema", "type", "required").in("properties", names{"*": of("type", "title", "description", "format", "default",
			"enum", "enumNames", "const", "oneOf", "anyOf", "items", "minLength", "maxLength", "pattern", "minimum", "maximum", "minItems", "maxItems")}))
	sampleNames = of("systemPrompt", "includeContext", "temperature", "maxTokens", "stopSequences", "metadata", "task", "_meta").
			in("messages", of("role", "_meta").in("content", of("type", "text", "data", "mimeType", "annotations", "id", "name", "input", "toolUseId", "content",
			"structuredContent", "isError", "resource", "uri", "_meta"))).
		in("modelPreferences", of("costPriority", "speedPriority", "intelligencePriority").in("hints", of("name"))).
		in("tools", of("name", "title", "description", "inputSchema", "outputSchema", "annotations", "icons", "_meta")).
		in("toolChoice", of("mode"))
)

// The names of answers: of elicitation, whose content has names of its form's,
// of sampling and of roots.
var answerNames = of("action", "content", "role", "model", "stopReason", "_meta").in("roots", of("uri", "name", "_meta"))

// The names of results and of errors that mean something to us or to clients.
var (
	resultNames = of("_meta", "resultType", "inputRequests", "requestState", "ttlMs", "cacheScope", "taskId", "task",
		"content", "structuredContent", "isError", "contents", "messages", "completion")
	inputNames    = of("_meta", "resultType", "requestState").in("inputRequests", names{"*": of("method", "params")})
	taskNames     = of("_meta", "resultType", "taskId", "status", "statusMessage", "ttlMs", "pollIntervalMs", "result", "error", "createdAt", "lastUpdatedAt", "requestState", "inputRequests")
	errorNames    = of("code", "message", "data")
	redirectNames = of("elicitations")
)

// alike refuses what is not one JSON value that every decoder reads alike: at every
// depth, names that occur twice or differ only in case from one another or from a
// known one, NUL, and numbers that a float64 would change.
func alike(raw json.RawMessage, known names) error {
	d := jsontext.NewDecoder(bytes.NewReader(raw))
	if err := alikeValue(d, known, 0); err != nil {
		return err
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return errTwoWays
	}
	return nil
}

func alikeValue(d *jsontext.Decoder, known names, depth int) error {
	tok, err := d.ReadToken()
	if err != nil || depth > maxDepth {
		return errTwoWays
	}
	switch tok.Kind() {
	case '[':
		for d.PeekKind() != ']' {
			if err := alikeValue(d, known, depth+1); err != nil {
				return err
			}
		}
		_, err = d.ReadToken()
		return err
	case '{':
		return alikeObject(d, known, depth)
	case '"':
		if strings.IndexByte(tok.String(), 0) >= 0 {
			return errTwoWays
		}
	case '0':
		if !Exact(tok.String()) {
			return errTwoWays
		}
	}
	return nil
}

func alikeObject(d *jsontext.Decoder, known names, depth int) error {
	seen := map[string]bool{}
	for d.PeekKind() != '}' {
		tok, err := d.ReadToken()
		if err != nil {
			return errTwoWays
		}
		name := tok.String()
		low := fold(name)
		if seen[low] || known.variant(name) || strings.IndexByte(name, 0) >= 0 {
			return errTwoWays
		}
		seen[low] = true
		inside, ok := known[name]
		if !ok {
			inside = known["*"]
		}
		if err := alikeValue(d, inside, depth+1); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

// variant reports whether some decoder would take name for a known one that it is not.
func (n names) variant(name string) bool {
	if _, ok := n[name]; ok {
		return false
	}
	for k := range n {
		if strings.EqualFold(name, k) {
			return true
		}
	}
	return false
}

// readable refuses an answer whose kind some decoder would read otherwise than we
// do, and one that asks for something without saying so. What is deeper in it than
// its own members is its tool's, and nothing here is decided by it.
func readable(r *Result) error {
	what, known := r.Raw, resultNames
	if r.Error != nil {
		what, known = r.Error, errorNames
	}
	begins, err := topAlike(what, known)
	if err == nil && begins["inputRequests"] != 0 && (r.Type == "" || r.Type == ResultComplete) {
		err = errors.New("it asks for input and says that it is complete")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadAnswer, err)
	}
	r.failed = saysFailed(begins)
	return nil
}

// Failed reports whether the tool says of itself that it failed, or says nothing
// that can be read.
func (r Result) Failed() bool {
	says := r.failed
	if r.Error == nil && says == notLooked { // it came another way than from its server just now
		begins, err := topAlike(r.Raw, resultNames)
		if err != nil {
			return true
		}
		says = saysFailed(begins)
	}
	return r.Error != nil || says == itFailed
}

// A failure is what a tool says of itself.
type failure uint8

const (
	notLooked failure = iota
	itDid
	itFailed
)

func saysFailed(begins map[string]byte) failure {
	switch begins["isError"] {
	case 0, 'f', 'n': // nobody reads null as true
		return itDid
	}
	return itFailed
}

// topAlike is alike for the members of an object alone, and says with which byte
// the values of those that are known begin. It reads no value, since an answer can
// be long.
func topAlike(raw json.RawMessage, known names) (begins map[string]byte, err error) {
	if jsontext.Value(raw).Kind() != '{' {
		return nil, errTwoWays
	}
	begins = make(map[string]byte, 4)
	depth, key := 0, false
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			end := StringEnd(raw, i+1)
			if end >= len(raw) {
				return nil, errTwoWays
			}
			if depth == 1 && key {
				name, err := jsontext.AppendUnquote(nil, raw[i:end+1])
				if err != nil || begins[string(name)] != 0 || known.variant(string(name)) {
					return nil, errTwoWays
				}
				value := bytes.TrimLeft(raw[end+1:], " \t\r\n:")
				if len(value) == 0 {
					return nil, errTwoWays
				}
				if _, ok := known[string(name)]; ok {
					begins[string(name)] = value[0]
				}
				key = false
			}
			i = end
		case '{', '[':
			depth++
			key = depth == 1 && raw[i] == '{'
		case '}', ']':
			depth--
		case ',':
			key = depth == 1
		}
	}
	return begins, nil
}

// StringEnd is where the quote stands that ends the JSON string that has begun before
// i, or the end of raw.
func StringEnd(raw []byte, i int) int {
	for begin := i; ; i++ {
		quote := bytes.IndexByte(raw[i:], '"')
		if quote < 0 {
			return len(raw)
		}
		i += quote
		slashes := 0
		for i-slashes > begin && raw[i-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
}
