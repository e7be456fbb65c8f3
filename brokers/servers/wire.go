package servers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"toolbroker/gateway"
)

// ours is the name space of the keys that only we may write; from anyone else
// they are deleted.
const ours = "io.toolbroker/"

// What is wrong with a reply, in words that hold none of it: a server chooses
// its bytes, and they may hold secrets.
var (
	errRubbish = unusable("the server's reply is not valid JSON-RPC")
	errTooBig  = fmt.Errorf("%w: the server said more at once than its max_response", gateway.ErrTooLong)
	errTooMany = unusable("the server's reply has too many parts")
	errUnasked = unusable("the server answered something that nobody asked")
	errNoise   = unusable("the server says too much that nobody asked for")
)

// unusable is an error about a server that answered, but not with what can be
// passed on.
func unusable(what string) error { return fmt.Errorf("%w: %s", gateway.ErrBadAnswer, what) }

// A message is one JSON-RPC message, its parts still the sender's bytes.
type message struct {
	id     json.RawMessage // as written; nil when there is none
	method string          // empty for a response
	params json.RawMessage
	result json.RawMessage // an object, or nil
	fault  json.RawMessage // the error object, or nil

	tree tree // of all of it
	at   int  // of result in there

	tooLong bool // it was an answer, and nothing of it was kept
}

func (m message) response() bool     { return m.method == "" }
func (m message) notification() bool { return m.method != "" && m.id == nil }

// A member is one member of a JSON object, as a place in its bytes.
type member struct {
	name       string
	start, end int // of the whole member, from its name's quote to the end of its value
	value      json.RawMessage
	at         int // where the value starts
}

// members splits a JSON object at its top level. Everything below is checked
// too: duplicate names and invalid UTF-8, at any depth, are errors.
func members(object []byte) ([]member, error) {
	t, end, err := scan(object, "")
	if err != nil {
		return nil, err
	}
	if space(object, end) != len(object) || t.kind(0) != '{' {
		return nil, errRubbish
	}
	all := make([]member, 0, len(t.nodes)-1)
	for i := range t.inside(0, '{') {
		n := &t.nodes[i]
		all = append(all, member{name: string(t.name(i)), start: n.name, end: n.end, at: n.at, value: t.value(i)})
	}
	return all, nil
}

// memberOf returns one of the members of an object, if it has it. It takes nothing for
// the others, of which there can be any number.
func memberOf(object []byte, name string) (member, bool) {
	t, end, err := scan(object, name)
	if err != nil || space(object, end) != len(object) || t.kind(0) != '{' {
		return member{}, false
	}
	for i := range t.inside(0, '{') {
		n := &t.nodes[i]
		return member{name: name, start: n.name, end: n.end, at: n.at, value: t.value(i)}, true
	}
	return member{}, false
}

// elements splits a JSON array, as members does an object.
func elements(array []byte) ([]member, error) {
	t, _, err := scan(array, "")
	if err != nil {
		return nil, err
	}
	if t.kind(0) != '[' {
		return nil, errRubbish
	}
	all := make([]member, 0, len(t.nodes)-1)
	for i := range t.inside(0, '[') {
		n := &t.nodes[i]
		all = append(all, member{start: n.at, end: n.end, at: n.at, value: t.value(i)})
	}
	return all, nil
}

// word returns the string that value is.
func word(value json.RawMessage) (string, bool) {
	if jsontext.Value(value).Kind() != '"' {
		return "", false
	}
	if bytes.IndexByte(value, '\\') < 0 && value[0] == '"' {
		return string(value[1 : len(value)-1]), true
	}
	s, err := jsontext.AppendUnquote(nil, value)
	return string(s), err == nil
}

// object reports whether raw is a JSON object that every decoder reads alike.
func object(raw json.RawMessage) bool {
	end, _, ok := pass(raw, nil)
	return ok && space(raw, end) == len(raw) && raw[space(raw, 0)] == '{'
}

// parse reads one message, strictly.
func parse(frame []byte) (message, error) {
	t, err := read(frame)
	if err != nil {
		return message{}, err
	}
	if t.kind(0) != '{' {
		return message{}, errRubbish
	}
	m := message{tree: t}
	var version, hasMethod bool
	for i := range t.inside(0, '{') {
		kind, value := t.kind(i), t.value(i)
		switch string(t.name(i)) {
		case "jsonrpc":
			version = string(value) == `"2.0"`
		case "id":
			if kind != '"' && kind != '-' && (kind < '0' || kind > '9') && kind != 'n' {
				return message{}, errRubbish
			}
			m.id = value
		case "method":
			name, ok := t.word(i)
			if !ok || name == "" {
				return message{}, errRubbish
			}
			m.method, hasMethod = name, true
		case "params":
			m.params = value
		case "result":
			if kind != '{' {
				return message{}, errRubbish
			}
			m.result, m.at = value, i
		case "error":
			if !few(value, maxAsked) {
				return message{}, errTooMany
			}
			if !validFault(value) {
				return message{}, errRubbish
			}
			m.fault = value
		}
	}
	answered := m.result != nil || m.fault != nil
	if !version || hasMethod == answered || m.result != nil && m.fault != nil || answered && m.id == nil {
		return message{}, errRubbish
	}
	return m, nil
}

// validFault reports whether raw is a JSON-RPC error object.
func validFault(raw json.RawMessage) bool {
	all, err := members(raw)
	if err != nil {
		return false
	}
	var code, words bool
	for _, f := range all {
		switch f.name {
		case "code":
			_, err := strconv.ParseInt(string(f.value), 10, 64)
			code = err == nil
		case "message":
			words = jsontext.Value(f.value).Kind() == '"'
		}
	}
	return code && words
}

// faultCode returns the code of an error object.
func faultCode(fault json.RawMessage) int64 {
	var body struct {
		Code int64 `json:"code"`
	}
	_ = json.Unmarshal(fault, &body) // parse has seen that it is there
	return body.Code
}

// numberOf returns the id that is one of ours, or 0.
func numberOf(id json.RawMessage) int64 {
	n, err := strconv.ParseInt(string(id), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// frame writes a request or, with id 0, a notification.
func frame(id int64, method string, params json.RawMessage) []byte {
	b := make([]byte, 0, len(params)+len(method)+64)
	b = append(b, `{"jsonrpc":"2.0",`...)
	if id != 0 {
		b = append(b, `"id":`...)
		b = strconv.AppendInt(b, id, 10)
		b = append(b, ',')
	}
	b = append(b, `"method":"`...)
	b = append(b, method...)
	b = append(b, '"')
	if params != nil {
		b = append(b, `,"params":`...)
		b = append(b, params...)
	}
	return append(b, '}')
}

// scrub deletes keys in our name space from the object at raw's member named
// where, which is _meta or, in an error, data. Every other byte stays. raw has
// been parsed before.
func scrub(raw json.RawMessage, where string) json.RawMessage {
	// Nearly nothing has one; an escape may hide one.
	if !bytes.Contains(raw, []byte("toolbroker")) && !bytes.Contains(raw, []byte(`\u`)) {
		return raw
	}
	m, ok := memberOf(raw, where)
	if !ok || jsontext.Value(m.value).Kind() != '{' {
		return raw
	}
	inner, err := members(m.value)
	var kept [][]byte // nothing of what has more members than anyone reads
	for _, k := range inner {
		if !strings.HasPrefix(k.name, ours) {
			kept = append(kept, m.value[k.start:k.end])
		}
	}
	if err == nil && len(kept) == len(inner) {
		return raw
	}
	return slices.Concat(raw[:m.at], []byte("{"), bytes.Join(kept, []byte(",")), []byte("}"), raw[m.end:])
}

// depth is how deep a JSON value is nested.
func depth(raw []byte) int {
	_, deep, ok := pass(raw, nil)
	if !ok {
		return 0
	}
	return deep
}
