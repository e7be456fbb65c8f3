package servers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

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

// answer writes the response to a request of the server's: a ping is answered,
// and as we declare no capability, nothing else is.
func answer(m message) []byte {
	b := append([]byte(`{"jsonrpc":"2.0","id":`), m.id...)
	if m.method == "ping" {
		return append(b, `,"result":{}}`...)
	}
	return append(b, `,"error":{"code":-32601,"message":"not supported by this client"}}`...)
}

// callParams builds the params of a tools/call out of what was decided, and of
// nothing else. The arguments are the agent's bytes.
func callParams(f gateway.Forward, token string, era []byte) (json.RawMessage, error) {
	args := f.Args
	if len(args) == 0 {
		args = json.RawMessage("{}")
	}
	if jsontext.Value(args).Kind() != '{' || !jsontext.Value(args).IsValid() {
		return nil, errors.New("the arguments are not a JSON object")
	}
	meta, err := callMeta(f.Meta, token, era)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(args)+len(meta)+len(f.Tool.Name)+64)
	b = append(b, `{"name":`...)
	if b, err = jsontext.AppendQuote(b, f.Tool.Name); err != nil {
		return nil, errors.New("the tool's name is not valid UTF-8")
	}
	b = append(b, `,"arguments":`...)
	b = append(b, args...)
	if meta != nil {
		b = append(b, `,"_meta":`...)
		b = append(b, meta...)
	}
	return append(b, '}'), nil
}

// callMeta puts together what the config lets through of the agent's _meta,
// our progress token, and what the era wants; nil when that is nothing.
func callMeta(allowed json.RawMessage, token string, era []byte) ([]byte, error) {
	var parts [][]byte
	if len(allowed) > 0 {
		all, err := members(allowed)
		if err != nil {
			return nil, errors.New("the agent's _meta is not a JSON object")
		}
		for _, m := range all {
			// These are for us to say, whoever let them through.
			if m.name != "progressToken" && !strings.HasPrefix(m.name, "io.modelcontextprotocol/") && !strings.HasPrefix(m.name, ours) {
				parts = append(parts, allowed[m.start:m.end])
			}
		}
	}
	if token != "" {
		quoted, err := jsontext.AppendQuote([]byte(`"progressToken":`), token)
		if err != nil {
			return nil, err
		}
		parts = append(parts, quoted)
	}
	if era != nil {
		parts = append(parts, era)
	}
	if parts == nil {
		return nil, nil
	}
	return slices.Concat([]byte("{"), bytes.Join(parts, []byte(",")), []byte("}")), nil
}

// modernMeta is what each request of the 2026-07-28 era says about us: the
// members, without the braces.
func modernMeta(version string) []byte {
	b := []byte(`"` + mcp.MetaKeyProtocolVersion + `":"` + mcp.ProtocolVersion20260728 + `","` + mcp.MetaKeyClientInfo + `":`)
	b = append(b, clientInfo(version)...)
	return append(b, `,"`+mcp.MetaKeyClientCapabilities+`":{}`...)
}

func clientInfo(version string) []byte {
	b, err := json.Marshal(map[string]string{"name": "toolbroker", "version": version})
	if err != nil {
		panic(err) // a map of strings
	}
	return b
}

// hasToken reports whether a progress notification is about token.
func hasToken(params json.RawMessage, token string) bool {
	all, err := members(params)
	if err != nil || token == "" {
		return false
	}
	i := slices.IndexFunc(all, func(m member) bool { return m.name == "progressToken" })
	if i < 0 || jsontext.Value(all[i].value).Kind() != '"' {
		return false
	}
	got, err := jsontext.AppendUnquote(nil, all[i].value)
	return err == nil && string(got) == token
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

// maxResultDepth is far above what any tool answers and below what clients read.
const maxResultDepth = 256

// finished refuses a result that is not the end of a call, or that no client
// could read: a server that asks back, or that promises an answer later, is not
// supported yet.
func finished(result json.RawMessage) error {
	all, err := members(result)
	if err != nil {
		return err
	}
	if depth(result) > maxResultDepth {
		return unusable("the server's answer is nested too deep")
	}
	var task, content bool
	var unreadable error
	for _, m := range all {
		switch m.name {
		case "resultType":
			kind, err := jsontext.AppendUnquote(nil, m.value)
			if err != nil {
				return errRubbish
			}
			switch string(kind) {
			case "complete":
			case "input_required", "task":
				return unusable("the server answered with a result of type " + string(kind) + ", which is not supported")
			default:
				return unusable("the server answered with a result of a type that is not supported")
			}
		case "task":
			task = true
		case "content":
			content = true
			if !blocks(jsontext.Value(m.value)) {
				unreadable = unusable("the content of the server's answer is not a list of blocks")
			}
		case "isError":
			if k := jsontext.Value(m.value).Kind(); k != 't' && k != 'f' {
				unreadable = unusable("isError in the server's answer is neither true nor false")
			}
		}
	}
	if task && !content {
		return unusable("the server answered with a task, which is not supported")
	}
	return unreadable
}

// blocks reports whether v is a list of objects that each name their type.
func blocks(v jsontext.Value) bool {
	var all []struct {
		Type *string `json:"type"`
	}
	if v.Kind() != '[' || json.Unmarshal(v, &all) != nil {
		return false
	}
	for _, b := range all {
		if b.Type == nil {
			return false
		}
	}
	return true
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
