package edge

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
)

// A message is one JSON-RPC message after the one strict reading of it. Its
// values are the agent's own bytes; a nil value was not there.
type message struct {
	id     jsontext.Value // a string or an integer; nil in a notification
	method string         // empty in a response
	params jsontext.Value // an object

	// of params
	name, args, meta, cursor, requestID jsontext.Value
	answers                             bool // inputResponses or requestState are there
	// of params._meta
	token   jsontext.Value // a string or a number
	caps    jsontext.Value
	version string // the MCP revision the message says it is in
	task    string // the running task it names, by its id; or empty
}

const (
	maxNesting = 128 // of a whole message; arguments have a tighter limit of the gateway's
	maxIDBytes = 256
	maxName    = 256
	maxVersion = 32
)

// The names that mean something to us or to mcp-go, per object. Many decoders
// ignore case, so a name that differs from one of these only in case would be
// read by some and not by others: it is refused.
var (
	envelopeNames = []string{"jsonrpc", "id", "method", "params", "result", "error"}
	paramsNames   = []string{
		"name", "arguments", "_meta", "cursor", "requestId", "reason", "inputResponses", "requestState", "task",
		"protocolVersion", "capabilities", "clientInfo", "notifications", "level", "uri",
	}
	metaNames = []string{
		"progressToken", mcp.MetaKeyProtocolVersion, mcp.MetaKeyClientCapabilities, mcp.MetaKeyClientInfo, mcp.MetaKeyLogLevel, TaskMeta,
	}
)

func badMessage(code int, text string) error { return &fault{code: code, message: text} }

// decode reads one message. What it refuses, it refuses with a [*fault]; no
// decoder reads differently what it accepts.
func decode(raw []byte) (message, error) {
	var m message
	if first := bytes.TrimLeft(raw, " \t\r\n"); len(first) > 0 && first[0] == '[' {
		return m, badMessage(mcp.INVALID_REQUEST, "batches are not supported: send one message at a time")
	}
	if tooDeep(raw) {
		return m, badMessage(mcp.INVALID_REQUEST, "the message is nested too deeply")
	}
	d := reader{raw: raw, dec: borrow(raw)}
	defer giveBack(d.dec)
	var rpc, response bool
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
		case "result", "error":
			response = true
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
		return message{}, asFault(err)
	}
	switch {
	case !rpc:
		return message{}, badMessage(mcp.INVALID_REQUEST, `jsonrpc must be "2.0"`)
	case response && (m.method != "" || m.id == nil), !response && m.method == "":
		return message{}, badMessage(mcp.INVALID_REQUEST, "a message is a request, a notification or a response")
	}
	return m, nil
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
		case "arguments":
			m.args, err = d.value()
		case "cursor":
			m.cursor, err = d.value()
		case "requestId":
			m.requestID, err = d.value()
		case "_meta":
			err = d.meta(m)
		case "inputResponses", "requestState":
			m.answers = true
			fallthrough
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
			m.caps, err = d.value()
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

// tooDeep counts brackets outside strings, so that nothing recurses further.
func tooDeep(raw []byte) bool {
	depth := 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = stringEnd(raw, i+1)
		case '{', '[':
			if depth++; depth > maxNesting {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}

// stringEnd is where the quote stands that ends the string that has begun
// before i, or the end of raw.
func stringEnd(raw []byte, i int) int {
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
