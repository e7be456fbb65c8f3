package servers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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
	errTooBig  = unusable("the server's reply is too big")
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
	d := jsontext.NewDecoder(bytes.NewBuffer(object)) // decodes in place, so that values alias object
	if t, err := d.ReadToken(); err != nil || t.Kind() != '{' {
		return nil, errRubbish
	}
	var all []member
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, errRubbish
		}
		m := member{name: name.String()}
		// The name as written is behind the offset; its start is found from its
		// last quote, as no name holds an unescaped one.
		end := int(d.InputOffset())
		m.start = openingQuote(object, end)
		value, err := d.ReadValue()
		if err != nil {
			return nil, errRubbish
		}
		m.end = int(d.InputOffset())
		m.at = m.end - len(value)
		m.value = object[m.at:m.end:m.end]
		all = append(all, m)
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, errRubbish
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return nil, errRubbish
	}
	return all, nil
}

// elements splits a JSON array, as members does an object.
func elements(array []byte) ([]member, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(array))
	if t, err := d.ReadToken(); err != nil || t.Kind() != '[' {
		return nil, errRubbish
	}
	var all []member
	for d.PeekKind() != ']' {
		value, err := d.ReadValue()
		if err != nil {
			return nil, errRubbish
		}
		end := int(d.InputOffset())
		at := end - len(value)
		all = append(all, member{start: at, end: end, at: at, value: array[at:end:end]})
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, errRubbish
	}
	return all, nil
}

// word returns the string that value is.
func word(value json.RawMessage) (string, bool) {
	if jsontext.Value(value).Kind() != '"' {
		return "", false
	}
	s, err := jsontext.AppendUnquote(nil, value)
	return string(s), err == nil
}

// object reports whether raw is a JSON object that every decoder reads alike.
func object(raw json.RawMessage) bool {
	return jsontext.Value(raw).Kind() == '{' && jsontext.Value(raw).IsValid()
}

// openingQuote finds where the string that ends before end begins.
func openingQuote(b []byte, end int) int {
	for i := end - 2; i >= 0; i-- {
		if b[i] != '"' {
			continue
		}
		slashes := 0
		for j := i - 1; j >= 0 && b[j] == '\\'; j-- {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
	return 0
}

// parse reads one message, strictly.
func parse(frame []byte) (message, error) {
	all, err := members(frame)
	if err != nil {
		return message{}, err
	}
	var m message
	var version, hasMethod bool
	for _, f := range all {
		kind := jsontext.Value(f.value).Kind()
		switch f.name {
		case "jsonrpc":
			version = string(f.value) == `"2.0"`
		case "id":
			if kind != '"' && kind != '0' && kind != 'n' {
				return message{}, errRubbish
			}
			m.id = f.value
		case "method":
			if kind != '"' {
				return message{}, errRubbish
			}
			name, err := jsontext.AppendUnquote(nil, f.value)
			if err != nil || len(name) == 0 {
				return message{}, errRubbish
			}
			m.method, hasMethod = string(name), true
		case "params":
			m.params = f.value
		case "result":
			if kind != '{' {
				return message{}, errRubbish
			}
			m.result = f.value
		case "error":
			if !validFault(f.value) {
				return message{}, errRubbish
			}
			m.fault = f.value
		}
	}
	answers := 0
	for _, part := range []json.RawMessage{m.result, m.fault} {
		if part != nil {
			answers++
		}
	}
	if !version || hasMethod == (answers > 0) || answers > 1 || answers == 1 && m.id == nil {
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
	all, err := members(raw)
	if err != nil {
		return raw
	}
	for _, m := range all {
		if m.name != where || jsontext.Value(m.value).Kind() != '{' {
			continue
		}
		inner, err := members(m.value)
		if err != nil {
			return raw
		}
		var kept [][]byte
		for _, k := range inner {
			if !strings.HasPrefix(k.name, ours) {
				kept = append(kept, m.value[k.start:k.end])
			}
		}
		if len(kept) == len(inner) {
			return raw
		}
		return slices.Concat(raw[:m.at], []byte("{"), bytes.Join(kept, []byte(",")), []byte("}"), raw[m.end:])
	}
	return raw
}

// depth is how deep a JSON value is nested.
func depth(raw []byte) int {
	most := 0
	d := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true))
	for {
		if _, err := d.ReadToken(); err != nil {
			return most
		}
		most = max(most, d.StackDepth())
	}
}
