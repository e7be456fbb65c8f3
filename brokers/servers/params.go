package servers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// An envelope is what a request says beside what was decided.
type envelope struct {
	token string // of progress, or empty
	era   []byte // what the modern era wants in _meta, as [modernMeta] makes it; nil in the legacy era
	key   string // the _meta key of idempotency that the server declares, or empty
}

// callParams builds a request's params out of what was decided, and of nothing
// else. The arguments are the agent's bytes.
func callParams(f gateway.Forward, e envelope) (json.RawMessage, error) {
	b := builder{b: make([]byte, 0, len(f.Args)+len(f.Tool.Name)+len(e.era)+len(f.Meta)+len(f.Answers)+len(f.State)+256)}
	switch f.Method {
	case gateway.MethodCall, "":
		b.text("name", f.Tool.Name)
		b.object("arguments", f.Args, "{}")
	case gateway.MethodGet:
		b.text("name", f.Tool.Name)
		b.object("arguments", f.Args, "")
	case gateway.MethodRead:
		b.text("uri", f.Tool.Name)
	case gateway.MethodComplete:
		b.complete(f)
	case gateway.MethodTaskGet, gateway.MethodTaskUpdate, gateway.MethodTaskCancel:
		b.text("taskId", f.Remote)
	default:
		return nil, errors.New("there is no way to send this method")
	}
	if f.Method != gateway.MethodComplete && (f.Answers != nil || f.State != "") {
		if e.era == nil {
			return nil, errors.New("the server that asked for answers speaks another era by now")
		}
		b.object("inputResponses", f.Answers, "")
		if f.State != "" {
			b.text("requestState", f.State)
		}
	}
	if b.err != nil {
		return nil, b.err
	}
	meta, err := callMeta(f, e)
	if err != nil {
		return nil, err
	}
	if meta != nil {
		b.raw("_meta", meta)
	}
	return b.done(), b.err
}

// A builder writes an object of parts that cannot break out of their places.
type builder struct {
	b   []byte
	err error
}

func (b *builder) raw(name string, value []byte) {
	b.b = append(b.b, `,"`...)
	b.b = append(b.b, name...)
	b.b = append(b.b, `":`...)
	b.b = append(b.b, value...)
}

func (b *builder) text(name, value string) {
	b.raw(name, nil)
	quoted, err := jsontext.AppendQuote(b.b, value)
	if err != nil {
		b.err = fmt.Errorf("the %s is not valid UTF-8", name)
		return
	}
	b.b = quoted
}

// object adds an object; where there is none, what otherwise says, or nothing.
func (b *builder) object(name string, value json.RawMessage, otherwise string) {
	if len(value) == 0 {
		value = json.RawMessage(otherwise)
	}
	switch {
	case len(value) == 0:
	case !object(value):
		b.err = fmt.Errorf("the %s are not a JSON object", name)
	default:
		b.raw(name, value)
	}
}

// complete adds what completion/complete says, of which the arguments hold
// argument and context.
func (b *builder) complete(f gateway.Forward) {
	var ref builder
	if f.Tool.Sort == gateway.SortPrompt {
		ref.text("type", "ref/prompt")
		ref.text("name", f.Tool.Name)
	} else {
		ref.text("type", "ref/resource")
		ref.text("uri", f.Tool.Name)
	}
	b.raw("ref", ref.done())
	all, err := members(f.Args)
	if err != nil || ref.err != nil {
		b.err = errors.New("the completion's arguments are no good")
		return
	}
	for _, m := range all {
		if m.name == "argument" || m.name == "context" {
			b.object(m.name, m.value, "")
		}
	}
}

func (b *builder) done() json.RawMessage {
	if len(b.b) == 0 {
		return json.RawMessage("{}")
	}
	b.b[0] = '{'
	return append(b.b, '}')
}

// callMeta puts together what the config lets through of the agent's _meta, our
// progress token, the key of idempotency and what the era wants; nil when that is
// nothing.
func callMeta(f gateway.Forward, e envelope) ([]byte, error) {
	var parts [][]byte
	if len(f.Meta) > 0 {
		all, err := members(f.Meta)
		if err != nil {
			return nil, errors.New("the agent's _meta is not a JSON object")
		}
		for _, m := range all {
			// These are for us to say, whoever let them through.
			if m.name != "progressToken" && m.name != e.key && !strings.HasPrefix(m.name, "io.modelcontextprotocol/") && !strings.HasPrefix(m.name, ours) {
				parts = append(parts, f.Meta[m.start:m.end])
			}
		}
	}
	var mine builder
	if e.token != "" {
		mine.text("progressToken", e.token)
	}
	if e.key != "" {
		mine.text(e.key, onceKey(f))
	}
	if len(mine.b) > 0 {
		parts = append(parts, mine.b[1:])
	}
	if e.era != nil {
		parts = append(parts, e.era)
	}
	if parts == nil {
		return nil, mine.err
	}
	return braced(parts), mine.err
}

func braced(members [][]byte) []byte {
	n := 1 + len(members)
	for _, m := range members {
		n += len(m)
	}
	b := make([]byte, 0, n)
	for _, m := range members {
		b = append(append(b, ','), m...)
	}
	b[0] = '{'
	return append(b, '}')
}

// onceKey is what a server that declares a key of idempotency reads: one a call, the
// same where that can only be one that is made again, and nothing that a call's id
// could be told from.
func onceKey(f gateway.Forward) string {
	what := "\x00call\x00" + f.CallID
	if f.Once != "" {
		what = "\x00once\x00" + f.Once
	}
	sum := sha256.Sum256([]byte("toolbroker idempotency\x00" + f.Principal.Tenant + what))
	return hex.EncodeToString(sum[:16])
}

// modernMeta is what each request of the 2026-07-28 era says about us and about
// what the agent can be asked: the members, without the braces.
func modernMeta(version string, caps json.RawMessage, level string) []byte {
	b := append(make([]byte, 0, 256+len(caps)), `"`+mcp.MetaKeyProtocolVersion+`":"`+mcp.ProtocolVersion20260728+`","`+mcp.MetaKeyClientInfo+`":`...)
	b = append(b, clientInfo(version)...)
	b = append(b, `,"`+mcp.MetaKeyClientCapabilities+`":`...)
	b = append(b, capsOr(caps)...)
	if validLevel(level) {
		b = append(b, `,"`+mcp.MetaKeyLogLevel+`":"`+level+`"`...)
	}
	return b
}

// capsOr is what the agent can be asked, as client capabilities: {} for nothing.
func capsOr(caps json.RawMessage) json.RawMessage {
	if len(caps) == 0 {
		return json.RawMessage("{}")
	}
	return caps
}

func validLevel(level string) bool {
	return slices.Contains([]string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}, level)
}

func clientInfo(version string) []byte {
	b, err := jsontext.AppendQuote([]byte(`{"name":"toolbroker","version":`), version)
	if err != nil {
		return []byte(`{"name":"toolbroker","version":"dev"}`)
	}
	return append(b, '}')
}

// reply writes the response to a request of a server's.
func reply(id json.RawMessage, r gateway.Result) []byte {
	b := append([]byte(`{"jsonrpc":"2.0","id":`), id...)
	if r.Error != nil {
		return append(append(append(b, `,"error":`...), r.Error...), '}')
	}
	return append(append(append(b, `,"result":`...), r.Raw...), '}')
}

// What a server reads that asks for nothing, for what it may not, or too much.
var (
	pong       = gateway.Result{Raw: json.RawMessage(`{}`)}
	notOurs    = gateway.Result{Error: json.RawMessage(`{"code":-32601,"message":"not supported by this client"}`)}
	noAnswer   = gateway.Result{Error: json.RawMessage(`{"code":-32603,"message":"the client did not answer"}`)}
	oneAtATime = gateway.Result{Error: json.RawMessage(`{"code":-32603,"message":"too many requests at once"}`)}
)

// hasToken reports whether a progress notification is about token.
func hasToken(params json.RawMessage, token string) bool {
	m, ok := memberOf(params, "progressToken")
	got, is := word(m.value)
	return ok && is && got == token && token != ""
}

// textOf returns the string member of an object, or "".
func textOf(raw json.RawMessage, name string) string {
	m, _ := memberOf(raw, name)
	s, _ := word(m.value)
	return s
}

// headers are what repeats a modern request's params over HTTP.
func headers(f gateway.Forward, params []byte) map[string]string {
	all := map[string]string{}
	name := ""
	switch f.Method {
	case gateway.MethodCall, "":
		name = f.Tool.Name
		if bytes.Contains(f.Tool.Schema, []byte("x-mcp-header")) {
			all = mcp.GenerateParamHeaders(&mcp.Tool{Name: f.Tool.Name, RawInputSchema: f.Tool.Schema}, params)
		}
	case gateway.MethodGet, gateway.MethodRead:
		name = f.Tool.Name
	case gateway.MethodTaskGet, gateway.MethodTaskUpdate, gateway.MethodTaskCancel:
		name = f.Remote
	}
	if value, ok := mcp.EncodeHeaderValue(name); ok && name != "" {
		if all == nil {
			all = map[string]string{}
		}
		all[mcp.HeaderName] = value
	}
	return all
}
