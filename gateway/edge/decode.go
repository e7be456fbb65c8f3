package edge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// A message is one JSON-RPC message after the one strict reading of it. Its
// values are the agent's own bytes; a nil value was not there.
type message struct {
	id              jsontext.Value // a string or an integer; nil in a notification
	method          string         // empty in a response
	params          jsontext.Value // an object
	result, failure jsontext.Value // of a response, one of them

	// of params
	name, uri, args, cursor, requestID, taskID, severity jsontext.Value
	ref, argument, context                               jsontext.Value // of a completion
	answers, state                                       jsontext.Value // inputResponses and requestState
	wants                                                jsontext.Value // the notifications that a listener asks for
	offers                                               jsontext.Value // the capabilities of an initialize
	// of params._meta
	meta, token jsontext.Value // token is a string or a number
	declares    jsontext.Value // the capabilities of its client, for this request alone
	logLevel    string
	version     string // the MCP revision the message says it is in
	task        string // the running task it names, by its id; or empty
}

const (
	maxNesting = 128    // of a whole message; arguments have a tighter limit of the gateway's
	maxValues  = 32_000 // the same; each costs much more to read than its few bytes say
	maxIDBytes = 256
	maxName    = 256
	maxURI     = 4096
	maxState   = 512 << 10 // of a server's, sealed
	maxCaps    = 16 << 10  // they are kept with a session
	maxVersion = 32
)

// The names that mean something to us, to the gateway or to mcp-go, per object.
// Many decoders ignore case, so a name that differs from one of these only in
// case would be read by some and not by others: it is refused.
var (
	envelopeNames = []string{"jsonrpc", "id", "method", "params", "result", "error"}
	paramsNames   = []string{
		"name", "uri", "arguments", "_meta", "cursor", "requestId", "reason", "inputResponses", "requestState", "task", "taskId",
		"protocolVersion", "capabilities", "clientInfo", "notifications", "level", "ref", "argument", "context",
	}
	metaNames = []string{
		"progressToken", mcp.MetaKeyProtocolVersion, mcp.MetaKeyClientCapabilities, mcp.MetaKeyClientInfo, mcp.MetaKeyLogLevel, TaskMeta,
	}
	refNames      = []string{"type", "name", "uri"}
	argumentNames = []string{"name", "value"}
	contextNames  = []string{"arguments"}
	wantsNames    = []string{"toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions"}
	capsNames     = []string{"elicitation", "sampling", "roots", "extensions", "experimental", "tasks"}
	modeNames     = []string{"form", "url"}
	errorNames    = []string{"code", "message", "data"}
)

func badMessage(code int, text string) error { return &fault{code: code, message: text} }

// faultOf is why a message was not accepted.
func faultOf(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	return &fault{code: mcp.PARSE_ERROR, message: "the message cannot be read"}
}

// decode reads one message. What it refuses, it refuses with a [*fault]; no
// decoder reads differently what it accepts.
func decode(raw []byte) (message, error) {
	var m message
	if isBatch(raw) {
		return m, noBatch // here
	}
	switch why := tooMuch(raw); why {
	case "":
	case manyValues: // to find names that are given twice among those is what would cost
		return message{id: idOf(raw, jsontext.AllowDuplicateNames(true))}.refused(), badMessage(mcp.INVALID_REQUEST, "the message "+why)
	default:
		return m, badMessage(mcp.INVALID_REQUEST, "the message "+why)
	}
	d := reader{raw: raw, dec: borrow(raw)}
	defer giveBack(d.dec)
	var rpc bool
	err := d.object(envelopeNames, func(name string) (err error) {
		switch name {
		case "jsonrpc":
			v, err := d.value()
			if rpc = string(v) == `"2.0"`; err == nil && !rpc {
				return badMessage(mcp.INVALID_REQUEST, `jsonrpc must be "2.0"`)
			}
			return err
		case "id":
			if m.id, err = d.value(); err == nil && !isRequestID(m.id) {
				return badMessage(mcp.INVALID_REQUEST, "id must be a string or an integer, of reasonable length")
			}
			return err
		case "method":
			if m.method, err = d.text(); err == nil && (m.method == "" || len(m.method) > maxName) {
				return badMessage(mcp.INVALID_REQUEST, "method must be a name of reasonable length")
			}
			return err
		case "params":
			return d.params(&m)
		case "result":
			m.result, err = d.value()
			return err
		case "error":
			m.failure, err = d.nested(errorNames)
			return err
		}
		return d.dec.SkipValue()
	})
	if err == nil {
		if _, err = d.dec.ReadToken(); err == nil {
			err = badMessage(mcp.PARSE_ERROR, "there is more after the message")
		} else if err == io.EOF {
			err = nil
		}
	}
	if err != nil {
		if m.id == nil {
			m.id = idOf(raw) // it may come after what was refused
		}
		return m.refused(), asFault(err)
	}
	response := m.result != nil || m.failure != nil
	switch {
	case !rpc:
		return m.refused(), badMessage(mcp.INVALID_REQUEST, `jsonrpc must be "2.0"`)
	case response && (m.method != "" || m.id == nil || m.result != nil && m.failure != nil), !response && m.method == "":
		return m.refused(), badMessage(mcp.INVALID_REQUEST, "a message is a request, a notification or a response")
	}
	return m, nil
}

// idOf finds the id of a message that is JSON and was refused for something
// else, wherever in it that stands.
func idOf(raw []byte, opts ...jsontext.Options) (id jsontext.Value) {
	d := reader{raw: raw, dec: borrow(raw, opts...)}
	defer giveBack(d.dec)
	err := d.object(envelopeNames, func(name string) (err error) {
		if name == "id" {
			id, err = d.value()
			return err
		}
		return d.dec.SkipValue()
	})
	if err != nil {
		return nil
	}
	return id
}

// refused is all that is kept of a message that was not accepted: the id that
// its refusal goes to.
func (m message) refused() message {
	if m.id != nil && isRequestID(m.id) {
		return message{id: m.id}
	}
	return message{}
}

// asFault turns what the JSON reader says into what the agent reads. The
// reader's own words would quote the message.
func asFault(err error) error {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return badMessage(mcp.INVALID_REQUEST, "a name is given twice in one object")
	}
	return badMessage(mcp.PARSE_ERROR, "the message is not valid JSON")
}

// A reader goes through raw once. The decoder refuses duplicate names, invalid
// UTF-8 and lone surrogates at every depth, also in what is skipped.
type reader struct {
	raw []byte
	dec *jsontext.Decoder
}

var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// borrow returns a decoder of raw that must be given back. It changes nothing
// in raw, and what it returned before is raw's.
func borrow(raw []byte, opts ...jsontext.Options) *jsontext.Decoder {
	d := decoders.Get().(*jsontext.Decoder)
	d.Reset(bytes.NewBuffer(raw), opts...)
	return d
}

func giveBack(d *jsontext.Decoder) {
	d.Reset(strings.NewReader("")) // forget what was read
	decoders.Put(d)
}

func (d *reader) params(m *message) error {
	switch d.dec.PeekKind() {
	case 'n':
		return d.dec.SkipValue() // as good as absent
	case '{':
	default:
		if err := d.dec.SkipValue(); err != nil {
			return err
		}
		return badMessage(mcp.INVALID_REQUEST, "params must be an object")
	}
	start := d.next()
	err := d.object(paramsNames, func(name string) (err error) {
		switch name {
		case "name":
			m.name, err = d.value()
		case "uri":
			m.uri, err = d.value()
		case "arguments":
			m.args, err = d.value()
		case "cursor":
			m.cursor, err = d.value()
		case "requestId":
			m.requestID, err = d.value()
		case "taskId":
			m.taskID, err = d.value()
		case "level":
			m.severity, err = d.value()
		case "inputResponses":
			m.answers, err = d.value()
		case "requestState":
			m.state, err = d.value()
		case "ref":
			m.ref, err = d.nested(refNames)
		case "argument":
			m.argument, err = d.nested(argumentNames)
		case "context":
			m.context, err = d.nested(contextNames)
		case "notifications":
			m.wants, err = d.nested(wantsNames)
		case "capabilities":
			m.offers, err = d.capabilities()
		case "_meta":
			err = d.meta(m)
		default:
			err = d.dec.SkipValue()
		}
		return err
	})
	m.params = d.raw[start:d.dec.InputOffset()]
	return err
}

func (d *reader) meta(m *message) error {
	start := d.next()
	if d.dec.PeekKind() != '{' {
		if err := d.dec.SkipValue(); err != nil {
			return err
		}
		return badMessage(mcp.INVALID_PARAMS, "_meta must be an object")
	}
	err := d.object(metaNames, func(name string) (err error) {
		switch name {
		case "progressToken":
			if m.token, err = d.value(); err == nil && (m.token.Kind() != '"' && m.token.Kind() != '0' || len(m.token) > maxIDBytes) {
				return badMessage(mcp.INVALID_PARAMS, "progressToken must be a string or a number, of reasonable length")
			}
		case mcp.MetaKeyProtocolVersion:
			if m.version, err = d.text(); err == nil && len(m.version) > maxVersion {
				return badMessage(mcp.INVALID_PARAMS, name+" is too long")
			}
		case mcp.MetaKeyClientCapabilities:
			m.declares, err = d.capabilities()
		case mcp.MetaKeyLogLevel:
			v, err := d.value()
			if err != nil {
				return err
			}
			if m.logLevel = levelOf(v); m.logLevel == "" {
				return badMessage(mcp.INVALID_PARAMS, name+" must be one of the log levels")
			}
		case TaskMeta:
			v, err := d.value()
			if err != nil {
				return err
			}
			if v.Kind() == '"' {
				m.task = unquote(v)
			}
			if !isID(m.task) {
				return badMessage(mcp.INVALID_PARAMS, TaskMeta+" must be a string that is a task's id")
			}
		default:
			err = d.dec.SkipValue()
		}
		return err
	})
	m.meta = d.raw[start:d.dec.InputOffset()]
	return err
}

// object reads an object; member reads the value of each name.
func (d *reader) object(known []string, member func(name string) error) error {
	if tok, err := d.dec.ReadToken(); err != nil {
		return err
	} else if tok.Kind() != '{' {
		return badMessage(mcp.INVALID_REQUEST, "a message must be an object")
	}
	for d.dec.PeekKind() != '}' {
		tok, err := d.dec.ReadToken()
		if err != nil {
			return err
		}
		name := tok.String()
		for _, k := range known {
			if name != k && strings.EqualFold(name, k) {
				return badMessage(mcp.INVALID_REQUEST, "a name differs from "+k+" only in case")
			}
		}
		if err := member(name); err != nil {
			return err
		}
	}
	_, err := d.dec.ReadToken()
	return err
}

// nested reads a member's value, and where it is an object, its names like those
// around it.
func (d *reader) nested(known []string) (jsontext.Value, error) {
	if d.dec.PeekKind() != '{' {
		return d.value()
	}
	start := d.next()
	err := d.object(known, func(string) error { return d.dec.SkipValue() })
	return d.raw[start:d.dec.InputOffset()], err
}

// capabilities reads what a client says that it can do.
func (d *reader) capabilities() (jsontext.Value, error) {
	if d.dec.PeekKind() != '{' {
		return d.value()
	}
	start := d.next()
	err := d.object(capsNames, func(name string) (err error) {
		switch name {
		case "elicitation":
			_, err = d.nested(modeNames)
		case "extensions":
			_, err = d.nested([]string{TasksExtension})
		default:
			err = d.dec.SkipValue()
		}
		return err
	})
	if v := d.raw[start:d.dec.InputOffset()]; err != nil || len(v) <= maxCaps {
		return v, err
	}
	return nil, badMessage(mcp.INVALID_PARAMS, "the capabilities are too long")
}

// value reads the next value as the bytes it is.
func (d *reader) value() (jsontext.Value, error) {
	v, err := d.dec.ReadValue()
	end := int(d.dec.InputOffset())
	return d.raw[end-len(v) : end : end], err
}

func (d *reader) text() (string, error) {
	v, err := d.value()
	if err == nil && v.Kind() != '"' {
		return "", badMessage(mcp.INVALID_REQUEST, "a name or version must be a string")
	}
	return unquote(v), err
}

// next is where the next value begins; it must be an object's member.
func (d *reader) next() int {
	d.dec.PeekKind()
	i := int(d.dec.InputOffset())
	return i + bytes.IndexFunc(d.raw[i:], func(c rune) bool { return !strings.ContainsRune(" \t\r\n:", c) })
}

// unquote reads a JSON string that was read strictly before.
func unquote(v jsontext.Value) string {
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return ""
	}
	return string(b)
}

// quote writes text as a JSON string.
func quote(s string) string {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil { // it is not UTF-8, and its worst parts were replaced
		return string(b)
	}
	return string(b)
}

func isRequestID(v jsontext.Value) bool {
	if len(v) > maxIDBytes {
		return false
	}
	return v.Kind() == '"' || v.Kind() == '0' && !bytes.ContainsAny(v, ".eE")
}

// idKey is the same for two spellings of one id, and for nothing else.
func idKey(v jsontext.Value) string {
	if v.Kind() == '"' {
		return "s" + unquote(v)
	}
	return "n" + string(v)
}

var manyValues = fmt.Sprintf("holds more than %d values", maxValues)

// tooMuch says of JSON that is nested too deeply, or has too many values in it, that
// it is so. It counts what stands outside strings, before anything recurses or
// remembers names: brackets, and commas. An empty list with a blank in it counts as
// one of one.
func tooMuch(raw []byte) (why string) {
	depth, values := 0, 1
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = gateway.StringEnd(raw, i+1)
		case '{', '[':
			if i+1 < len(raw) && raw[i+1] != raw[i]+2 {
				values++ // the first in it
			}
			if depth++; depth > maxNesting {
				return "is nested too deeply"
			}
		case ',':
			values++
		case '}', ']':
			depth--
		}
	}
	if values > maxValues {
		return manyValues
	}
	return ""
}
